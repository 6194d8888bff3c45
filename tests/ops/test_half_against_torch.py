"""Operations with 16-bit floats against PyTorch's of the same dtype on the CPU, to a few of the last digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet import ops
from xpnet.backend import dtype_named

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

LAST_DIGIT = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
HALVES = [pytest.param("float16"), pytest.param("bfloat16", marks=pytest.mark.bfloat16)]
RANDOM = np.random.default_rng(8)


def nchw(t):
    return t.permute(0, 3, 1, 2)


def nhwc(t):
    return t.permute(0, 2, 3, 1)


F = torch.nn.functional
CASES: dict[str, tuple[list[tuple[int, ...]], Any, Any]] = {
    "dense": (
        [(6, 33), (33, 5), (5,)],
        lambda x, k, b: ops.dense(x, k, b, activation="relu"),
        lambda x, k, b: torch.relu(x @ k + b),
    ),
    "conv2d": (
        [(2, 7, 6, 3), (3, 3, 3, 4), (4,)],
        lambda x, k, b: ops.conv2d(x, k, b, stride=2, padding=1),
        lambda x, k, b: nhwc(F.conv2d(nchw(x), k.permute(3, 2, 0, 1), b, stride=2, padding=1)),
    ),
    "max_pool2d": ([(2, 6, 6, 3)], lambda x: ops.max_pool2d(x, 2), lambda x: nhwc(F.max_pool2d(nchw(x), 2))),
    "average_pool2d": ([(2, 6, 6, 3)], lambda x: ops.average_pool2d(x, 3), lambda x: nhwc(F.avg_pool2d(nchw(x), 3))),
    "softmax": ([(5, 40)], ops.softmax, lambda x: torch.softmax(x, -1)),
    "log_softmax": ([(5, 40)], ops.log_softmax, lambda x: torch.log_softmax(x, -1)),
    "layer_norm": ([(6, 24), (24,), (24,)], ops.layer_norm, lambda x, s, o: F.layer_norm(x, (24,), s, o)),
    "gelu": ([(5, 9)], ops.gelu, F.gelu),
    "sum": ([(300, 4)], lambda x: ops.sum(x, axis=0), lambda x: x.sum(0)),
}


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, name):
    shapes, ours, theirs = CASES[case]
    kind = dtype_named(np, name)
    arrays = [RANDOM.standard_normal(shape).astype(kind) for shape in shapes]
    mine = [xn.Tensor(a, requires_grad=True) for a in arrays]
    other = [torch.tensor(a.astype(np.float32)).to(getattr(torch, name)).requires_grad_() for a in arrays]
    y, z = ours(*mine), theirs(*other)
    dy = RANDOM.standard_normal(y.shape).astype(kind)
    y.backward(dy)
    z.backward(torch.tensor(dy.astype(np.float32)).to(z.dtype))
    assert y.dtype == kind
    for found, expected in [(y.array, z), *((m.grad, o.grad) for m, o in zip(mine, other))]:
        assert found.dtype == kind
        expected = expected.detach().float().numpy()
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found.astype(np.float32), expected, rtol=0, atol=4 * LAST_DIGIT[name] * scale, err_msg=case)
