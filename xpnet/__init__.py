"""xpnet: write a network once against the Array API; run it on NumPy or CuPy, at the speed of the hardware."""

# fmt: off
# isort: off
import importlib
import sys
from typing import TYPE_CHECKING, Any

from xpnet import backend, initializers, losses, metrics, ops, optim, random, regularizers
from xpnet.autograd.checkpointing import recompute
from xpnet.autograd.functional import value_and_grad
from xpnet.autograd.tape import no_grad
from xpnet.autograd.parameter import Parameter
from xpnet.autograd.tensor import Tensor
from xpnet.backend import DeviceError, device, to_device, to_numpy
from xpnet.layers import (
    ELU, GELU, GRU, LSTM, RNN, SELU, Activation, AveragePool2D, BatchNorm, Bidirectional, Conv1D, Conv2D, Conv2DTranspose,
    Dense, Dropout, Embedding, Flatten, GlobalAveragePool2D, GroupNorm, HardSigmoid, InstanceNorm, LayerNorm, LeakyReLU,
    LocalResponseNorm, LpPool2D, MaxPool2D, Module, ReLU, Reshape, Residual, Sequential, Sigmoid, SiLU, Softmax, Softplus,
    Softsign, Step, Tanh, reset_states,
)
from xpnet.ops import ShapeError, conv_output_size
from xpnet.runtime.deprecation import moved_modules
from xpnet.runtime.determinism import deterministic, get_deterministic, set_deterministic
from xpnet.runtime.peers import missing_name
from xpnet.runtime.threads import get_num_threads, set_num_threads
from xpnet.training import Callback, History, NotFiniteError, Trainer
# isort: on
# fmt: on

if TYPE_CHECKING:
    from xpnet import convert, cuda, inspect, models
    from xpnet.io.model_file import ModelFileError, load
    from xpnet.runtime.precision import set_matmul_precision

__version__ = "0.1.0"

_LATER = {
    "cuda": "",
    "data": "",
    "ModelFileError": "xpnet.io.model_file",
    "convert": "",
    "inspect": "",
    "load": "xpnet.io.model_file",
    "models": "",
    "set_matmul_precision": "xpnet.runtime.precision",
}
"""What is imported when it is first used: import xpnet is to be quick. A module, or where a name is found."""


_MOVED = {
    "arena": "autograd.flat_parameters", "capture": "compiled.graph", "determinism": "runtime.determinism",
    "gradients": "autograd.functional", "recomputation": "autograd.checkpointing", "tape": "autograd.tape",
    "tensor": "autograd.tensor", "threads": "runtime.threads", "timeline": "inspect.timeline",
}  # fmt: skip
moved_modules({f"xpnet.{old}": f"xpnet.{new}" for old, new in _MOVED.items()})


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        return importlib.import_module(f"xpnet.{name}")
    if name not in _LATER:
        raise missing_name(name, sys.modules[__name__])
    where = _LATER[name]
    found = getattr(importlib.import_module(where), name) if where else importlib.import_module(f"xpnet.{name}")
    globals()[name] = found
    return found


__all__ = [
    "ELU", "GELU", "GRU", "LSTM", "RNN", "SELU", "Activation", "AveragePool2D", "BatchNorm", "Bidirectional", "Callback",
    "Conv1D", "Conv2D", "Conv2DTranspose", "Dense", "DeviceError", "Dropout", "Embedding", "Flatten",
    "GlobalAveragePool2D", "GroupNorm", "HardSigmoid", "History", "InstanceNorm", "LayerNorm", "LeakyReLU",
    "LocalResponseNorm", "LpPool2D", "MaxPool2D", "ModelFileError", "Module", "NotFiniteError", "Parameter", "ReLU",
    "Reshape", "Residual", "Sequential", "ShapeError", "SiLU", "Sigmoid", "Softmax", "Softplus", "Softsign", "Step",
    "Tanh", "Tensor", "Trainer", "backend", "conv_output_size", "convert", "cuda", "data", "deterministic", "device",
    "get_deterministic", "get_num_threads", "initializers", "inspect", "load", "losses", "metrics", "models", "no_grad",
    "ops", "optim", "random", "recompute", "regularizers", "reset_states", "set_deterministic", "set_matmul_precision",
    "set_num_threads", "to_device", "to_numpy", "value_and_grad",
]  # fmt: skip
