"""Every operation, forward and backward, at sizes that matter; reference and accelerated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import xpnet as xn
from benchmarks.conftest import is_accelerated

Make = Callable[..., Any]
Call = tuple[list[Any], dict[str, Any]]

IMAGES = (64, 32, 32, 64)
ROWS = (4096, 1024)
WINDOW = {"window": 2, "stride": 2}

UNARY = (
    *("abs", "clip", "elu", "exp", "gelu", "hard_sigmoid", "leaky_relu", "negative"),
    *("relu", "selu", "sigmoid", "silu", "softplus", "softsign", "square", "step", "tanh"),
)
PLAIN = ("labels", "indices")  # inputs without gradient
BINARY = ["add", "divide", "maximum", "minimum", "multiply", "subtract"]
REDUCTIONS = ["max", "mean", "min", "sum"]


def _batch_norm(n: Make) -> Call:
    return [n(*IMAGES), n(64), n(64)], {}


CALLS: dict[str, Callable[[Make], Call]] = {
    **{name: lambda n: ([n(*IMAGES)], {}) for name in UNARY},
    **{name: lambda n: ([n(*IMAGES), n(*IMAGES)], {}) for name in BINARY},
    **{name: lambda n: ([n(*IMAGES)], {"axis": (1, 2)}) for name in REDUCTIONS},
    "log": lambda n: ([abs(n(*IMAGES)) + 0.1], {}),
    "sqrt": lambda n: ([abs(n(*IMAGES)) + 0.1], {}),
    "power": lambda n: ([abs(n(*IMAGES)) + 0.1, abs(n(*IMAGES))], {}),
    "select": lambda n: ([n(*IMAGES), n(*IMAGES)], {"condition": n(*IMAGES) > 0}),
    "dense": lambda n: ([n(128, 512), n(512, 512), n(512)], {"activation": "relu"}),
    "matmul": lambda n: ([n(16, 256, 256), n(16, 256, 256)], {}),
    "conv2d": lambda n: ([n(16, 32, 32, 64), n(3, 3, 64, 64), n(64)], {"padding": 1, "activation": "relu"}),
    "im2col": lambda n: ([n(16, 32, 32, 64)], {"window": 3, "padding": 1}),
    "col2im": lambda n: ([n(16, 32, 32, 3, 3, 64)], {"input_shape": (16, 32, 32, 64), "window": 3, "padding": 1}),
    "max_pool2d": lambda n: ([n(*IMAGES)], WINDOW),
    "average_pool2d": lambda n: ([n(*IMAGES)], WINDOW),
    "lp_pool2d": lambda n: ([n(*IMAGES)], WINDOW),
    "max_pool2d_with_switches": lambda n: ([n(*IMAGES)], WINDOW),
    "batch_norm_with_statistics": _batch_norm,
    "batch_norm_inference": lambda n: ([n(*IMAGES), n(64), n(64)], {"mean": n(64), "variance": abs(n(64)) + 0.1}),
    "layer_norm": lambda n: ([n(*ROWS), n(1024), n(1024)], {}),
    "group_norm": lambda n: ([n(*IMAGES), n(64), n(64)], {"groups": 8}),
    "local_response_norm": lambda n: ([n(16, 32, 32, 64)], {}),
    "softmax": lambda n: ([n(*ROWS)], {}),
    "log_softmax": lambda n: ([n(*ROWS)], {}),
    "softmax_cross_entropy": lambda n: ([n(*ROWS), _integers(n, 4096, 1024)], {}),
    "sigmoid_cross_entropy": lambda n: ([n(*ROWS), (n(*ROWS) > 0).astype("float32")], {}),
    "dropout": lambda n: ([n(*IMAGES)], {"rate": 0.5, "key": 1}),
    "embedding": lambda n: ([_integers(n, 4096, 10_000), n(10_000, 128)], {}),
    "rnn": lambda n: ([n(32, 64, 128), n(128, 128), n(128, 128), n(128)], {}),
    "lstm": lambda n: ([n(32, 64, 128), n(128, 512), n(128, 512), n(512)], {}),
    "gru": lambda n: ([n(32, 64, 128), n(128, 384), n(128, 384), n(384), n(384)], {}),
    "reshape": lambda n: ([n(*IMAGES)], {"shape": (64, -1)}),
    "transpose": lambda n: ([n(*IMAGES)], {"axes": (0, 3, 1, 2)}),
    "broadcast_to": lambda n: ([n(64)], {"shape": IMAGES}),
    "concat": lambda n: ([[n(*IMAGES), n(*IMAGES)]], {"axis": -1}),
    "stack": lambda n: ([[n(*IMAGES), n(*IMAGES)]], {"axis": 0}),
    "pad": lambda n: ([n(*IMAGES)], {"widths": ((0, 0), (1, 1), (1, 1), (0, 0))}),
    "flip": lambda n: ([n(*IMAGES)], {"axis": 1}),
    "getitem": lambda n: ([n(*IMAGES)], {"index": (slice(None), slice(2, -2), slice(2, -2))}),
}


def _integers(normal: Make, count: int, below: int) -> Any:
    values = abs(normal(count)) * below
    return (values % below).astype("int64")


def _needed(op: Any, device: str, implementation: str) -> None:
    if implementation == "accelerated" and not is_accelerated(op, device):
        pytest.skip("there is only a reference")


def _tensors(value: Any) -> Any:
    """Convert floating-point arrays to Tensors that require a gradient."""
    if isinstance(value, list):
        return [_tensors(v) for v in value]
    return xn.Tensor(value, requires_grad=True) if str(value.dtype).startswith("float") else value


@pytest.fixture(params=sorted(xn.ops.registry))
def op(request: pytest.FixtureRequest) -> Any:
    if request.param not in CALLS:
        pytest.skip(f"no sizes are set for {request.param} in benchmarks/test_ops.py")
    return xn.ops.registry[request.param]


def test_forward(op: Any, device: str, implementation: str, normal: Make, timed: Any) -> None:
    _needed(op, device, implementation)
    inputs, settings = CALLS[op.__name__](normal)
    timed(lambda: op(*inputs, **settings))


def test_forward_and_backward(op: Any, device: str, implementation: str, normal: Make, timed: Any) -> None:
    _needed(op, device, implementation)
    if not op.differentiable:
        pytest.skip("it has no gradient")
    inputs, settings = CALLS[op.__name__](normal)
    first = op(*inputs, **settings)
    dy = normal(*(first[0] if isinstance(first, tuple) else first).shape)

    def both() -> Any:
        y = op(*[_tensors(v) if name not in PLAIN else v for name, v in zip(op.input_names, inputs)], **settings)
        (y[0] if isinstance(y, tuple) else y).backward(dy)
        return y

    timed(both)
