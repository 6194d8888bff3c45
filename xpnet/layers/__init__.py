"""Layers: parameters plus a call of operations. No layer knows which array library runs it."""

# fmt: off
# isort: off
from xpnet.layers.activation import (
    ELU, GELU, SELU, Activation, HardSigmoid, LeakyReLU, ReLU, Sigmoid, SiLU, Softmax, Softplus, Softsign, Step, Tanh,
)
from xpnet.layers.convolution import Conv2D, Conv2DTranspose
from xpnet.layers.convolution1d import Conv1D
from xpnet.layers.dense import Dense
from xpnet.layers.dropout import Dropout
from xpnet.layers.embedding import Embedding
from xpnet.layers.module import Module
from xpnet.layers.normalization import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, LocalResponseNorm
from xpnet.layers.pooling import AveragePool2D, GlobalAveragePool2D, LpPool2D, MaxPool2D
from xpnet.layers.recurrent import GRU, LSTM, RNN, Bidirectional, reset_states
from xpnet.layers.sequential import Residual, Sequential
from xpnet.layers.shaping import Flatten, Reshape
# isort: on
# fmt: on

__all__ = [
    "ELU", "GELU", "GRU", "LSTM", "RNN", "SELU", "Activation", "AveragePool2D", "BatchNorm", "Bidirectional", "Conv1D",
    "Conv2D", "Conv2DTranspose", "Dense", "Dropout", "Embedding", "Flatten", "GlobalAveragePool2D", "GroupNorm",
    "HardSigmoid", "InstanceNorm", "LayerNorm", "LeakyReLU", "LocalResponseNorm", "LpPool2D", "MaxPool2D", "Module",
    "ReLU", "Reshape", "Residual", "Sequential", "SiLU", "Sigmoid", "Softmax", "Softplus", "Softsign", "Step", "Tanh",
    "reset_states",
]  # fmt: skip
