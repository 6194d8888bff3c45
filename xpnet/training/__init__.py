"""Training: one readable loop and what goes with it."""

from xpnet.training.callback import Callback
from xpnet.training.callbacks import (
    Call,
    ClipGradients,
    CSVLog,
    EarlyStopping,
    ExponentialMovingAverage,
    JSONLog,
    ReduceOnPlateau,
    TensorBoard,
    Timing,
)
from xpnet.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from xpnet.training.history import History
from xpnet.training.search import LearningRates, find_learning_rate, overfit_one_batch
from xpnet.training.trainer import NotFiniteError, Trainer
from xpnet.training.weighting import ClassWeighted

__all__ = [
    "CSVLog",
    "Call",
    "Callback",
    "Checkpoint",
    "ClassWeighted",
    "ClipGradients",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "History",
    "JSONLog",
    "LearningRates",
    "NotFiniteError",
    "ReduceOnPlateau",
    "TensorBoard",
    "Timing",
    "Trainer",
    "find_learning_rate",
    "load_checkpoint",
    "overfit_one_batch",
    "save_checkpoint",
]
