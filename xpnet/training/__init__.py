"""Training: one readable loop, callbacks, checkpoints and checks."""

from xpnet.runtime.deprecation import renamed_names
from xpnet.training.callback import Callback
from xpnet.training.callbacks import (
    ClipGradients,
    CSVLog,
    EarlyStopping,
    ExponentialMovingAverage,
    JSONLog,
    LambdaCallback,
    ReduceOnPlateau,
    TensorBoard,
    Timing,
)
from xpnet.training.checkpoint import load_checkpoint, save_checkpoint
from xpnet.training.checkpoint_folder import Checkpoint
from xpnet.training.history import History
from xpnet.training.not_finite import NotFiniteError
from xpnet.training.search import LearningRates, find_learning_rate, overfit_one_batch
from xpnet.training.search import search_decades as search_decades  # until 0.2
from xpnet.training.trainer import Trainer
from xpnet.training.weighting import ClassWeighted

__all__ = [
    "CSVLog", "Callback", "Checkpoint", "ClassWeighted", "ClipGradients", "EarlyStopping", "ExponentialMovingAverage",
    "History", "JSONLog", "LambdaCallback", "LearningRates", "NotFiniteError", "ReduceOnPlateau", "TensorBoard", "Timing",
    "Trainer", "find_learning_rate", "load_checkpoint", "overfit_one_batch", "save_checkpoint",
]  # fmt: skip

__getattr__ = renamed_names(__name__, {"Call": "LambdaCallback", "Decades": "LearningRates"})
