"""dense, softmax, losses, normalisation, relu and dropout on NumPy arrays against the references in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpnet import ops
from xpnet.ops.activations import relu
from xpnet.ops.dropout import dropout
from xpnet.ops.linear import dense
from xpnet.ops.normalization import batch_norm_with_statistics
from xpnet.ops.registry import Op
from xpnet.ops.softmax import softmax, softmax_cross_entropy

pytestmark = pytest.mark.usefixtures("force_threads")


def freeze(array, layout):
    if layout == "strided" and array.ndim > 1:
        array = np.ascontiguousarray(np.moveaxis(array, -1, 0))
        array = np.moveaxis(array, 0, -1)
    array = array.view()
    array.flags.writeable = False
    return array


def compare(op: Op, arrays, tolerance=1e-5, layout="plain", dtype=np.float32, accelerated=True, **settings):
    """Compare output and gradients of both implementations; the accelerated one gets read-only arrays of `dtype`."""
    sides = []
    upstream = None
    for fast in (True, False):
        kind = dtype if fast else np.float64
        given = [a if a is None or a.dtype.kind in "iu" else a.astype(kind) for a in arrays]
        if fast:
            given = [a if a is None else freeze(a, layout) for a in given]
        inputs, full = op.bind(tuple(given), settings)
        implementation = op.implementation(np) if fast else op.reference
        extra = {"save": True} if implementation.wants_save else {}
        result = implementation.forward(np, *inputs, **extra, **full)
        assert (result is not NotImplemented) == accelerated or not fast
        if result is NotImplemented:
            return None
        y, saved = result
        outputs = y if type(y) is tuple else (np.asarray(y),)
        if upstream is None:
            rng = np.random.default_rng(3)
            upstream = [np.asarray(rng.standard_normal(o.shape)) for o in outputs]
        dy = tuple(u.astype(kind) for u in upstream)
        needs = tuple(a is not None and a.dtype.kind == "f" for a in given)
        grads = op.gradients(implementation, np, dy if type(y) is tuple else dy[0], saved, full, needs)
        sides.append((outputs, grads))
    (fast_outputs, fast_grads), (outputs, grads) = sides
    for name, got, want in [
        *(("output", g, w) for g, w in zip(fast_outputs, outputs)),
        *((f"gradient {i}", g, w) for i, (g, w) in enumerate(zip(fast_grads, grads, strict=True)) if w is not None),
    ]:
        assert got.dtype == dtype, name
        assert got.shape == want.shape, name
        scale = max(np.abs(want[np.isfinite(want)]).max(initial=0), 1e-3)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale, err_msg=name)
    return sides


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=0, max_size=3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([None, "relu", "sigmoid", "tanh"]),
    st.booleans(),
    st.sampled_from(["plain", "strided"]),
    st.sampled_from([np.float32, np.float64]),
)
def test_dense(shape, K, O, activation, with_bias, layout, dtype):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((*shape, K)), rng.standard_normal((K, O))
    bias = rng.standard_normal(O) if with_bias else None
    # Rounding of outputs near 0 would decide on relu's gradient: values on a coarse grid are exact in both dtypes.
    x, kernel, bias = (v if v is None else np.round(v * 4) / 4 for v in (x, kernel, bias))  # type: ignore[assignment]
    kernel = kernel / 8  # tanh and sigmoid stay away from 1, where their derivative is all rounding
    compare(dense, (x, kernel, bias), activation=activation, layout=layout, dtype=dtype)


@pytest.mark.parametrize(("M", "K", "O"), [(128, 784, 512), (2000, 100, 40), (3, 3000, 1000), (64, 784, 128)])
def test_large_dense(M, K, O):
    rng = np.random.default_rng(0)
    compare(dense, (rng.standard_normal((M, K)), rng.standard_normal((K, O)), rng.standard_normal(O)))


def test_dense_errors_are_the_reference_s():
    with pytest.raises(ValueError, match="dense"):
        ops.dense(np.ones((2, 3), np.float32), np.ones((4, 5), np.float32))
    assert ops.dense(np.ones((0, 3), np.float32), np.ones((3, 5), np.float32)).shape == (0, 5)


@pytest.mark.parametrize("shape", [(1, 1), (7, 10), (3, 4, 5), (300, 1000), (2, 70000)])
@pytest.mark.parametrize("layout", ["plain", "strided"])
def test_softmax(shape, layout):
    x = np.random.default_rng(0).standard_normal(shape) * 5
    compare(softmax, (x,), layout=layout)
    large = ops.softmax((x * 1e4).astype(np.float32))
    assert np.isfinite(large).all()


@pytest.mark.parametrize("shape", [(1, 2), (7, 10), (3, 4, 5), (300, 1000), (2, 70000)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint32])
def test_softmax_cross_entropy(shape, reduction, kind):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(shape) * 5
    labels = rng.integers(0, min(shape[-1], 200), shape[:-1]).astype(kind)
    compare(softmax_cross_entropy, (logits, labels), reduction=reduction)
    compare(softmax_cross_entropy, (logits, labels), reduction=reduction, layout="strided", dtype=np.float64)


@pytest.mark.parametrize("shape", [(4, 5), (300, 1000)])
@pytest.mark.parametrize("wrong", [-1, 5000])
def test_labels_out_of_range(shape, wrong):
    labels = np.zeros(shape[0], np.int64)
    labels[1] = wrong
    with pytest.raises(ValueError, match=f"{wrong}"):
        ops.softmax_cross_entropy(np.zeros(shape, np.float32), labels)


def test_probabilities_and_extreme_logits():
    logits = np.array([[1e4, -1e4, 0], [-np.inf, 0, 0]], np.float32)
    loss = ops.softmax_cross_entropy(logits, np.array([0, 1]), reduction="none")
    np.testing.assert_allclose(loss, [0, np.log(2)], rtol=1e-6)
    p = np.array([[0.5, 0.25, 0.25], [0, 0.5, 0.5]], np.float32)
    assert compare(softmax_cross_entropy, (logits[:1], p[:1]), accelerated=False) is None


@pytest.mark.parametrize("shape", [(64, 8, 8, 16), (128, 300), (5, 37, 41, 3), (1000, 17), (3, 9, 9, 700)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("far", [0, 30])
@pytest.mark.parametrize("layout", ["plain", "strided"])
def test_batch_norm(shape, affine, layout, far):
    rng = np.random.default_rng(0)
    C = shape[-1]
    # Means far from 0 compared with the deviation, where a plain sum of squares loses digits by cancellation.
    x = rng.standard_normal(shape) * rng.uniform(0.1, 3, C) + far * rng.standard_normal(C)
    vectors = (rng.standard_normal(C), rng.standard_normal(C)) if affine else (None, None)
    compare(batch_norm_with_statistics, (x.astype(np.float32), *vectors), tolerance=1e-4, layout=layout)
    compare(batch_norm_with_statistics, (x, *vectors), tolerance=1e-9, layout=layout, dtype=np.float64)


@pytest.mark.parametrize("shape", [(3,), (5, 600), (2, 300, 700), (70, 50, 50, 3)])
def test_relu(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    compare(relu, (x,))
    y = ops.relu(np.array([np.nan, -1, 2, -np.inf], np.float32))
    np.testing.assert_array_equal(y, [np.nan, 0, 2, 0])


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("inverted", [True, False])
def test_dropout(rate, inverted):
    x = np.random.default_rng(0).standard_normal((30, 40))
    sides = compare(dropout, (x,), rate=rate, key=5, step=3, inverted=inverted)
    np.testing.assert_array_equal(sides[0][0][0] == 0, sides[1][0][0] == 0)
    with np.errstate(all="raise"):
        assert not np.isnan(ops.dropout(np.full((40,), np.inf, np.float32), rate)).any()
