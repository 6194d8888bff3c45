"""Optimizers and learning-rate schedules."""

from xpnet.optim.adaptive import Adam, AdamW
from xpnet.optim.gradient_descent import SGD
from xpnet.optim.optimizer import Optimizer

__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]
