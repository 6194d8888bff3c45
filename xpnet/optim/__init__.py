"""Optimizers and learning-rate schedules."""

from xpnet.optim import schedules
from xpnet.optim.adaptive import Adam, Adamax, AdamW, Nadam
from xpnet.optim.full_batch import LBFGS, FullBatch, Minimum, TruncatedNewton
from xpnet.optim.gradient_descent import SGD
from xpnet.optim.loss_scale import LossScale
from xpnet.optim.optimizer import Optimizer
from xpnet.optim.rprop import Quickprop, Rprop
from xpnet.optim.scaled import Adagrad, RMSprop

__all__ = [
    "LBFGS", "SGD", "Adagrad", "Adam", "AdamW", "Adamax", "FullBatch", "LossScale", "Minimum", "Nadam", "Optimizer",
    "Quickprop", "RMSprop", "Rprop", "TruncatedNewton", "schedules",
]  # fmt: skip
