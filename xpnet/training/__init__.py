"""Training: one readable loop and what goes with it."""

from xpnet.training.callback import Callback
from xpnet.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from xpnet.training.history import History
from xpnet.training.trainer import NotFiniteError, Trainer

__all__ = ["Callback", "Checkpoint", "History", "NotFiniteError", "Trainer", "load_checkpoint", "save_checkpoint"]
