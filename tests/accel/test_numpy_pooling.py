"""Pooling on NumPy arrays against the reference in float64: values, switches, and the argmax among equal elements."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet as xn
from tests.op_contract import running
from xpnet import ops
from xpnet.ops.pooling import average_pool2d, max_pool2d, max_pool2d_with_switches
from xpnet.ops.registry import reference_only

pytestmark = pytest.mark.usefixtures("force_threads")


@st.composite
def poolings(draw):
    integers = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    window = (integers(1, 4), integers(1, 4))
    padding = tuple((integers(0, k - 1), integers(0, k - 1)) for k in window) if draw(st.booleans()) else 0
    stride = draw(st.sampled_from([None, 1, 2, (2, 3), (5, 1)]))
    shape = (integers(1, 6), window[0] + integers(0, 9), window[1] + integers(0, 9), integers(1, 9))
    return shape, {"window": window, "stride": stride, "padding": padding}


def both(op, x, dy, settings):
    """Return outputs and gradient of the accelerated version on float32, and of the reference on float64."""
    results = []
    for implementation, dtype in ((op.implementation(np), x.dtype), (op.reference, np.float64)):
        extra = {"save": True} if implementation.wants_save else {}
        y, saved = implementation.forward(np, x.astype(dtype, copy=False), **extra, **settings)
        upstream = dy(y).astype(dtype)
        gradient = implementation.backward_function(np, (upstream, None) if type(y) is tuple else upstream, saved, **settings)
        results.append((y, gradient))
    return results


def gradient_of(y):
    shape = (y[0] if type(y) is tuple else y).shape
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def make(shape, seed, layout="plain"):
    """Return small integers: many equal elements, and sums without rounding."""
    x = np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)
    if layout == "strided":
        x = np.ascontiguousarray(x.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
    x.flags.writeable = False
    return x


@settings(max_examples=120, deadline=None)
@given(poolings(), st.integers(0, 99), st.sampled_from(["plain", "strided"]))
def test_max_pool(case, seed, layout):
    shape, settings = case
    x = make(shape, seed, layout)
    ((y, switches), dx), ((want, places), dwant) = both(max_pool2d_with_switches, x, gradient_of, settings)
    assert y.dtype == dx.dtype == np.float32
    assert switches.dtype == np.uint8
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(switches, places)
    np.testing.assert_allclose(dx, dwant, atol=1e-5)
    (y, dx), _ = both(max_pool2d, x, gradient_of, settings)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_allclose(dx, dwant, atol=1e-5)
    np.testing.assert_array_equal(ops.max_pool2d(x, **settings), want)  # without a mask


@settings(max_examples=80, deadline=None)
@given(poolings(), st.integers(0, 99), st.booleans())
def test_average_pool(case, seed, include):
    shape, settings = case
    settings = {**settings, "count_include_pad": include}
    (y, dx), (want, dwant) = both(average_pool2d, make(shape, seed), gradient_of, settings)
    assert y.dtype == dx.dtype == np.float32
    np.testing.assert_allclose(y, want, atol=1e-5)
    np.testing.assert_allclose(dx, dwant, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 600, 300, 4), (40, 26, 26, 32), (3, 9, 9, 700)])
@pytest.mark.parametrize("settings", [{"window": 2}, {"window": 3, "stride": 2, "padding": 1}])
def test_sizes_of_many_chunks(shape, settings):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    settings = {"stride": None, "padding": 0, **settings}
    (y, dx), (want, dwant) = both(max_pool2d, x, gradient_of, settings)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_allclose(dx, dwant, atol=1e-5)


def test_padding_never_wins_and_infinities_pass():
    x = np.full((1, 4, 4, 2), -np.inf, np.float32)
    x[0, 1, 1] = 5
    x[0, 3, 3, 1] = np.inf
    y, _ = ops.max_pool2d_with_switches(x, 3, stride=2, padding=1)
    np.testing.assert_array_equal(y[0, 0, 0], [5, 5])
    np.testing.assert_array_equal(y[0, 1, 1], [5, np.inf])


def test_nan_is_never_hidden():
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 2, 1] = np.nan
    for y in (ops.max_pool2d(x, 2), ops.max_pool2d_with_switches(x, 2)[0]):
        np.testing.assert_array_equal(np.isnan(y[0, :, :, 0]), [[False, False], [True, False]])


def test_an_infinite_gradient_goes_to_the_maximum_alone():
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    (_, dx), _ = both(max_pool2d, x, lambda y: np.full(y.shape, np.inf), {"window": 2, "stride": None, "padding": 0})
    assert np.isinf(dx).sum() == 4
    assert not np.isnan(dx).any()


def test_large_windows_and_integers_are_left_to_the_reference():
    x = np.random.default_rng(0).standard_normal((1, 20, 20, 1)).astype(np.float32)
    y, switches = ops.max_pool2d_with_switches(x, 20)
    assert switches.dtype == np.int32
    assert x.reshape(-1)[switches[0, 0, 0, 0]] == y[0, 0, 0, 0]
    assert ops.max_pool2d(np.arange(16).reshape(1, 4, 4, 1), 2).dtype == np.int64


def with_nans(shape=(2, 9, 8, 5)):
    x = make(shape, 3).copy()
    x[np.random.default_rng(4).random(shape) < 0.05] = np.nan
    x[0, :3, :3, 0] = -np.inf
    return x


POOLINGS = [
    {"window": 2},
    {"window": 3, "stride": 2, "padding": 1},
    {"window": (2, 3), "stride": (1, 2), "padding": ((1, 0), (0, 2))},
]


def first_of_the_largest(x, window, stride=None, padding=0):
    """Pool as PyTorch and numpy.maximum do, window by window: the first NaN is the maximum, else the first of the largest.

    The padding is never chosen, also where nothing in the image is larger than it.
    """
    (KH, KW), (sh, sw) = np.broadcast_to(window, 2), np.broadcast_to(stride or window, 2)
    pads = np.broadcast_to(padding, (2, 2)) if isinstance(padding, int) else padding
    least = -np.inf if x.dtype.kind == "f" else False if x.dtype.kind == "b" else np.iinfo(x.dtype).min
    filled = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=least)
    image = np.pad(np.ones(x.shape, bool), ((0, 0), *pads, (0, 0)))
    N, H, W, C = filled.shape
    y = np.empty((N, (H - KH) // sh + 1, (W - KW) // sw + 1, C), x.dtype)
    switches = np.empty(y.shape, np.uint8)
    for n, i, j, c in np.ndindex(y.shape):
        values = filled[n, i * sh : i * sh + KH, j * sw : j * sw + KW, c].ravel()
        largest = np.isnan(values) if np.isnan(values).any() else values == values.max()
        where = int(np.flatnonzero(largest & image[n, i * sh : i * sh + KH, j * sw : j * sw + KW, c].ravel())[0])
        y[n, i, j, c], switches[n, i, j, c] = values[where], where
    return y, switches


@pytest.mark.parametrize("settings", POOLINGS)
@pytest.mark.parametrize("reference", [True, False])
def test_a_nan_is_the_largest(settings, reference):
    """A network that has diverged must not look as if it had not."""
    x = with_nans()
    expected, _ = first_of_the_largest(x, **settings)
    assert np.isnan(expected).any()
    with reference_only(reference):
        np.testing.assert_array_equal(ops.max_pool2d(x, **settings), expected)
        np.testing.assert_array_equal(ops.max_pool2d_with_switches(x, **settings)[0], expected)


@pytest.mark.parametrize("settings", POOLINGS)
@pytest.mark.parametrize(
    "reference",
    [True, False],
)
def test_the_gradient_goes_to_the_first_nan(settings, reference):
    x = with_nans()
    _, switches = first_of_the_largest(x, **settings)
    with reference_only(reference):
        np.testing.assert_array_equal(ops.max_pool2d_with_switches(x, **settings)[1], switches)
        t = xn.Tensor(x, requires_grad=True)
        y = ops.max_pool2d(t, **settings)
        y.backward(np.ones_like(y.array))
    with reference_only():
        u = xn.Tensor(x, requires_grad=True)
        y = ops.max_pool2d(u, **settings)
        y.backward(np.ones_like(y.array))
    np.testing.assert_array_equal(t.grad, u.grad)


@pytest.mark.parametrize("settings", [*POOLINGS[1:], {"window": 3, "stride": 1, "padding": 2}])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int16", "bool"])
@pytest.mark.parametrize("implementation", ["reference", "numpy", pytest.param("cupy", marks=pytest.mark.cuda)])
def test_the_padding_is_never_chosen(settings, dtype, implementation):
    """Where nothing in the image is larger than it: -inf, and the least integer. No gradient is lost."""
    random = np.random.default_rng(0)
    if dtype.startswith("float"):
        choice = np.array([-np.inf, -np.inf, -np.inf, np.finfo(dtype).min, 0, np.nan])
        x = choice[random.integers(0, len(choice), (3, 7, 8, 3))].astype(dtype)
        x[0] = -np.inf
    else:
        least = np.iinfo(dtype).min if dtype != "bool" else False
        x = np.where(random.random((3, 7, 8, 3)) < 0.9, least, 1).astype(dtype)
    expected, switches = first_of_the_largest(x, **settings)
    with running(implementation) as place:
        found = place.back(ops.max_pool2d_with_switches(place.to(x), **settings))
        np.testing.assert_array_equal(found[0], expected)
        np.testing.assert_array_equal(found[1], switches)
        np.testing.assert_array_equal(place.back(ops.max_pool2d(place.to(x), **settings)), expected)
        assert found[0].dtype == dtype
        if dtype.startswith("float"):
            for pool in (ops.max_pool2d, lambda t, **s: ops.max_pool2d_with_switches(t, **s)[0]):
                t = xn.Tensor(place.to(x), requires_grad=True)
                y = pool(t, **settings)
                y.backward(place.to(np.ones(y.shape, dtype)))
                assert place.back(t.grad).sum() == expected.size
