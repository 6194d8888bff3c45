"""Layers: parameters plus a call of operations. No layer knows which array library runs it."""

from xpnet.layers.activation import (
    ELU,
    GELU,
    SELU,
    Activation,
    HardSigmoid,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Softsign,
    Step,
    Tanh,
)
from xpnet.layers.convolution import Conv2D
from xpnet.layers.dense import Dense
from xpnet.layers.dropout import Dropout
from xpnet.layers.module import Module
from xpnet.layers.pooling import AveragePool2D, GlobalAveragePool2D, LpPool2D, MaxPool2D
from xpnet.layers.sequential import Residual, Sequential
from xpnet.layers.shaping import Flatten, Reshape

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Activation",
    "AveragePool2D",
    "Conv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAveragePool2D",
    "HardSigmoid",
    "LeakyReLU",
    "LpPool2D",
    "MaxPool2D",
    "Module",
    "ReLU",
    "Reshape",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Softsign",
    "Step",
    "Tanh",
]
