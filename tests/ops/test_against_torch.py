"""Convolutions, pooling and dense layers against PyTorch on the CPU: forward and all gradients, over random settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import xpnet as xn  # noqa: E402
from tests.op_contract import close  # noqa: E402
from xpnet import ops  # noqa: E402

# PyTorch warns of a setting of its own when oneDNN is turned off, see compare.
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")]

small = st.integers(1, 3)
pairs = st.tuples(small, small)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(["float64", "float32"])
TOLERANCE = {"float64": 1e-10, "float32": 5e-5}


def both_ways(x: Any) -> Any:
    """(H, W) and channels: NHWC to NCHW for PyTorch."""
    return x.permute(0, 3, 1, 2)


def normal(seed: int, dtype: str, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def compare(ours: Any, theirs: Any, arrays: list[np.ndarray], dtype: str) -> None:
    """`ours` of Tensors and `theirs` of torch tensors, both NHWC: outputs and gradients of all arrays."""
    import torch

    tensors = [xn.Tensor(a, requires_grad=True) for a in arrays]
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = ours(*tensors)
    # oneDNN's convolution of strided images crashes for some dilated windows in the padding.
    with torch.backends.mkldnn.flags(enabled=False):
        expected = theirs(*leaves)
    close(y.array, expected.detach().numpy(), TOLERANCE[dtype], "output")
    close(ours(*arrays), y.array, TOLERANCE[dtype], "output without a tape")
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(dtype)
    y.backward(dy)
    with torch.backends.mkldnn.flags(enabled=False):
        expected.backward(torch.tensor(dy))
    for tensor, leaf, name in zip(tensors, leaves, ("x", "kernel", "bias")):
        close(tensor.grad, leaf.grad.numpy(), 10 * TOLERANCE[dtype], f"gradient of {name}")
        assert xn.to_numpy(tensor.grad).dtype == dtype


@st.composite
def convolutions(draw: Any) -> dict[str, Any]:
    """Shapes and settings for which the window fits."""
    groups = draw(small)
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    size = [draw(st.integers(max(1, r - 2 * p), r + 6)) for r, p in zip(reach, padding)]
    return {
        "N": draw(st.integers(0, 3)), "size": tuple(size), "C": groups * draw(small), "O": groups * draw(small),
        "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
    }  # fmt: skip


@given(convolutions(), st.booleans(), dtypes, seeds)
def test_conv2d(s: dict[str, Any], with_bias: bool, dtype: str, seed: int):
    import torch.nn.functional as F

    x, kernel, bias = normal(
        seed, dtype, (s["N"], *s["size"], s["C"]), (*s["kernel"], s["C"] // s["groups"], s["O"]), (s["O"],)
    )
    keys = ("stride", "padding", "dilation", "groups")
    settings = {k: s[k] for k in keys}
    compare(
        lambda x, k, *b: ops.conv2d(x, k, *b, **settings),
        lambda x, k, *b: F.conv2d(both_ways(x), k.permute(3, 2, 0, 1), *b, **settings).permute(0, 2, 3, 1),
        [x, kernel, *([bias] if with_bias else [])],
        dtype,
    )


@given(
    st.integers(1, 2), st.tuples(st.integers(8, 20), st.integers(8, 20)), st.sampled_from([4, 16, 40]), st.integers(0, 1), seeds
)
def test_conv2d_of_the_usual_kind(N: int, size: tuple[int, int], C: int, padding: int, seed: int):
    """3 x 3, stride 1, more channels: where other ways of computing it pay."""
    import torch.nn.functional as F

    arrays = normal(seed, "float32", (N, *size, C), (3, 3, C, 16), (16,))
    compare(
        lambda x, k, b: ops.conv2d(x, k, b, padding=padding, activation="relu"),
        lambda x, k, b: F.conv2d(both_ways(x), k.permute(3, 2, 0, 1), b, padding=padding).relu().permute(0, 2, 3, 1),
        arrays,
        "float32",
    )


@given(st.integers(1, 9), st.integers(1, 9), small, small, dtypes, seeds)
def test_conv2d_same(H: int, W: int, k: int, dilation: int, dtype: str, seed: int):
    """Padding "same" at stride 1, for which PyTorch has a name too."""
    import torch.nn.functional as F

    compare(
        lambda x, k: ops.conv2d(x, k, padding="same", dilation=dilation),
        lambda x, k: F.conv2d(both_ways(x), k.permute(3, 2, 0, 1), padding="same", dilation=dilation).permute(0, 2, 3, 1),
        # An even window needs one more zero at one end; PyTorch then warns of a copy.
        normal(seed, dtype, (2, H, W, 2), (2 * k - 1, 2 * k - 1, 2, 3)),
        dtype,
    )


@given(st.integers(0, 3), st.integers(1, 12), small, small, small, small, st.integers(0, 2), dtypes, seeds)
def test_conv1d(N: int, extra: int, k: int, stride: int, dilation: int, groups: int, padding: int, dtype: str, seed: int):
    import torch.nn.functional as F

    L = dilation * (k - 1) + extra
    settings: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    compare(
        lambda x, k, b: ops.conv1d(x, k, b, **settings),
        lambda x, k, b: F.conv1d(x.permute(0, 2, 1), k.permute(2, 1, 0), b, **settings).permute(0, 2, 1),
        normal(seed, dtype, (N, L, 2 * groups), (k, 2, 3 * groups), (3 * groups,)),
        dtype,
    )


@st.composite
def transposed(draw: Any) -> dict[str, Any]:
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation))
    full = [(n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in zip(size, stride, dilation, kernel, extra)]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    padding = tuple(draw(st.integers(0, max(0, min(3, (f - r) // 2, (f - 1) // 2)))) for f, r in zip(full, reach))
    return {"kernel": kernel, "stride": stride, "dilation": dilation, "size": size, "extra": extra, "padding": padding}


@given(transposed(), small, st.integers(0, 2), dtypes, seeds)
def test_conv_transpose2d(s: dict[str, Any], groups: int, N: int, dtype: str, seed: int):
    import torch.nn.functional as F

    settings = {"stride": s["stride"], "padding": s["padding"], "dilation": s["dilation"], "output_padding": s["extra"]}

    def theirs(x: Any, kernel: Any, bias: Any) -> Any:
        # Theirs is (C, O/groups, KH, KW); the groups' outputs stand one after another in both.
        KH, KW, Cg, O = kernel.shape
        parts = kernel.reshape(KH, KW, Cg, groups, O // groups).permute(3, 2, 4, 0, 1).reshape(groups * Cg, O // groups, KH, KW)
        return F.conv_transpose2d(both_ways(x), parts, bias, groups=groups, **settings).permute(0, 2, 3, 1)

    compare(
        lambda x, k, b: ops.conv_transpose2d(x, k, b, groups=groups, **settings),
        theirs,
        normal(seed, dtype, (N, *s["size"], 2 * groups), (*s["kernel"], 2, 2 * groups), (2 * groups,)),
        dtype,
    )


@st.composite
def pools(draw: Any) -> dict[str, Any]:
    window, stride = draw(pairs), draw(pairs)
    padding = tuple(draw(st.integers(0, k // 2)) for k in window)  # PyTorch allows no more
    size = tuple(draw(st.integers(max(1, k - 2 * p), k + 6)) for k, p in zip(window, padding))
    shape = (draw(st.integers(1, 3)), *size, draw(st.integers(1, 4)))
    return {"shape": shape, "window": window, "stride": stride, "padding": padding}


@given(pools(), dtypes, seeds)
def test_max_pool2d(s: dict[str, Any], dtype: str, seed: int):
    import torch.nn.functional as F

    compare(
        lambda x: ops.max_pool2d(x, s["window"], stride=s["stride"], padding=s["padding"]),
        lambda x: F.max_pool2d(both_ways(x), s["window"], s["stride"], s["padding"]).permute(0, 2, 3, 1),
        normal(seed, dtype, s["shape"]),
        dtype,
    )


@given(pools(), seeds)
def test_max_pool2d_of_equal_elements(s: dict[str, Any], seed: int):
    """Small integers: many ties. The first of equal elements gets the whole gradient, as in PyTorch."""
    import torch.nn.functional as F

    x = np.random.default_rng(seed).integers(0, 3, s["shape"]).astype(np.float64)
    compare(
        lambda x: ops.max_pool2d(x, s["window"], stride=s["stride"], padding=s["padding"]),
        lambda x: F.max_pool2d(both_ways(x), s["window"], s["stride"], s["padding"]).permute(0, 2, 3, 1),
        [x],
        "float64",
    )


@given(pools(), st.booleans(), dtypes, seeds)
def test_average_pool2d(s: dict[str, Any], include: bool, dtype: str, seed: int):
    import torch.nn.functional as F

    compare(
        lambda x: ops.average_pool2d(x, s["window"], stride=s["stride"], padding=s["padding"], count_include_pad=include),
        lambda x: F.avg_pool2d(both_ways(x), s["window"], s["stride"], s["padding"], count_include_pad=include).permute(
            0, 2, 3, 1
        ),
        normal(seed, dtype, s["shape"]),
        dtype,
    )


@given(pools(), st.sampled_from([1.0, 2.0, 3.0]), seeds)
def test_lp_pool2d(s: dict[str, Any], p: float, seed: int):
    """PyTorch's sums x**p without the absolute value and knows no padding: compared on positive numbers."""
    import torch.nn.functional as F

    window = tuple(min(k, n) for k, n in zip(s["window"], s["shape"][1:3]))
    (x,) = normal(seed, "float64", s["shape"])
    compare(
        lambda x: ops.lp_pool2d(x, window, p=p, stride=s["stride"]),
        lambda x: F.lp_pool2d(both_ways(x), p, window, s["stride"]).permute(0, 2, 3, 1),
        [np.abs(x) + 0.1],
        "float64",
    )


@given(st.lists(st.integers(0, 4), min_size=0, max_size=3), st.integers(1, 6), st.integers(1, 6), dtypes, seeds)
def test_dense(leading: list[int], inputs: int, units: int, dtype: str, seed: int):
    import torch.nn.functional as F

    compare(
        lambda x, k, b: ops.dense(x, k, b),
        lambda x, k, b: F.linear(x, k.T, b),
        normal(seed, dtype, (*leading, inputs), (inputs, units), (units,)),
        dtype,
    )


@given(st.integers(1, 5), st.integers(2, 6), st.sampled_from(["mean", "sum", "none"]), st.floats(0, 1e4), seeds)
def test_softmax_cross_entropy(N: int, K: int, reduction: str, scale: float, seed: int):
    import torch
    import torch.nn.functional as F

    (logits,) = normal(seed, "float64", (N, K))
    labels = np.random.default_rng(seed).integers(0, K, N)
    compare(
        lambda x: ops.softmax_cross_entropy(x, labels, reduction=reduction),
        lambda x: F.cross_entropy(x, torch.tensor(labels), reduction=reduction),
        [logits * scale],
        "float64",
    )


@pytest.mark.parametrize("name", ["relu", "elu", "selu", "gelu", "sigmoid", "tanh", "softplus", "silu", "softsign"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_over_a_wide_range(name: str, dtype: str):
    """From -1e4 to 1e4, 0 and the smallest numbers: no overflow, and PyTorch's values."""
    import torch
    import torch.nn.functional as F

    x = np.concatenate([np.linspace(-20, 20, 801), [-1e4, -100.0, 0.0, -0.0, 1e-30, 100.0, 1e4]]).astype(dtype)
    function = getattr(F, name, None) or getattr(torch, name)
    with np.errstate(all="raise", under="ignore"):
        compare(lambda x: getattr(ops, name)(x), lambda x: function(x), [x], dtype)
