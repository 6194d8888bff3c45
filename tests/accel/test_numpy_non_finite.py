"""Infinities and NaNs in convolutions on NumPy arrays: they reach the windows that hold them, whatever the algorithm."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet import layers, ops
from xpnet.accel.numpy import convolution, im2col, winograd
from xpnet.ops.convolution import conv2d, conv_geometry
from xpnet.ops.fused import conv2d_max_pool2d
from xpnet.ops.registry import Op, reference_only
from xpnet.runtime import threads

pytestmark = pytest.mark.usefixtures("force_threads")

PLAIN: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "activation": None}
VALUES = (np.nan, np.inf, -np.inf)


def computed(op: Op, arrays: list[Any], dy: np.ndarray, settings: dict[str, Any]) -> tuple[Any, ...]:
    """Return output and gradients."""
    y, saved, implementation = op.run(np, tuple(arrays), settings, True)
    needs = tuple(a is not None for a in arrays)
    return (y, *op.gradients(implementation, np, dy, saved, settings, needs))


def check(op: Op, arrays: list[Any], dy: np.ndarray, settings: dict[str, Any]) -> tuple[Any, ...]:
    """Compare with the reference in float64: the same infinities and NaNs, and close numbers everywhere else."""
    dtype = dy.dtype
    with np.errstate(all="ignore"):
        with reference_only():
            wide = [None if a is None else a.astype(np.float64) for a in arrays]
            expected = computed(op, wide, dy.astype(np.float64), settings)
        found = computed(op, arrays, dy, settings)
        if settings["activation"] is None or op is conv2d:
            np.testing.assert_array_equal(op.run(np, tuple(arrays), settings, False)[0], found[0])
    for name, one, other in zip(("y", "dx", "dkernel", "dbias"), found, expected, strict=True):
        if other is None:
            continue
        assert one.dtype == dtype
        for kind in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(kind(one), kind(other), err_msg=f"{name}: {kind.__name__}")
        finite = np.isfinite(other)
        scale = max(1.0, float(np.abs(other[finite]).max(initial=0)))
        np.testing.assert_allclose(
            one[finite], other[finite], rtol=0, atol=scale * (1e-4 if dtype == np.float32 else 1e-10), err_msg=name
        )
    return found


def spoil(array: np.ndarray, random: np.random.Generator, count: int) -> None:
    places = random.integers(array.size, size=count)
    array.reshape(-1)[places] = random.choice(VALUES, count)


def inputs(
    random: np.random.Generator, shape: tuple[int, ...], kernel: tuple[int, ...], dtype: Any, op: Op, settings: Any
) -> tuple[list[Any], np.ndarray]:
    arrays = [random.standard_normal(s).astype(dtype) for s in (shape, kernel, kernel[3:])]
    arrays[1] *= dtype(0.5 / np.sqrt(np.prod(kernel[:3])))  # no activation is saturated: inf * 0 is decided by rounding
    if settings["activation"] == "relu":
        arrays[2] = np.where(np.arange(kernel[3]) % 2, 4, -4).astype(dtype)  # and no output so close to 0 that rounding decides
    return arrays, random.standard_normal(op.run(np, tuple(arrays), settings, False)[0].shape).astype(dtype)


# What chooses each algorithm: Winograd, its dilated form and the one for 5x5, block products with and without outputs left
# over, plain im2col, products of pixels, groups, depthwise with and without a multiplier.
ALGORITHMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "winograd": ((3, 14, 15, 32), (3, 3, 32, 32), {"padding": 1}),
    "winograd 5x5": ((4, 12, 12, 32), (5, 5, 32, 32), {"padding": "same"}),
    "winograd dilated": ((2, 20, 17, 32), (3, 3, 32, 32), {"dilation": 2, "padding": 2}),
    "winograd valid": ((3, 16, 17, 16), (3, 3, 16, 48), {}),
    "blocks": ((3, 12, 14, 3), (3, 3, 3, 8), {"padding": 1}),
    "blocks, some left over": ((3, 9, 25, 2), (3, 3, 2, 4), {}),
    "blocks, strided, some left over": ((3, 9, 28, 3), (3, 3, 3, 8), {"stride": 2}),
    "blocks, strided": ((3, 13, 15, 3), (3, 3, 3, 8), {"stride": 2}),
    "blocks, one channel": ((2, 28, 28, 1), (5, 5, 1, 6), {"padding": "same"}),
    "im2col": ((2, 7, 8, 40), (3, 3, 40, 12), {"padding": 1}),
    "im2col dilated": ((2, 9, 10, 8), (3, 3, 8, 12), {"padding": 2, "dilation": 2}),
    "pixels": ((2, 7, 8, 12), (1, 1, 12, 10), {}),
    "strided pixels": ((2, 7, 8, 12), (1, 1, 12, 10), {"stride": 2}),
    "groups": ((2, 10, 11, 12), (3, 3, 4, 9), {"groups": 3, "padding": 1}),
    "depthwise": ((2, 12, 11, 24), (3, 3, 1, 24), {"groups": 24, "padding": 1}),
    "depthwise, strided": ((2, 12, 11, 8), (3, 3, 1, 16), {"groups": 8, "padding": 1, "stride": 2}),
    "wide tiles": ((1, 70, 90, 16), (3, 3, 16, 16), {"padding": 1}),
}


def test_the_algorithms_are_what_they_are_called():
    for name, (shape, kernel, given) in ALGORITHMS.items():
        settings = {**PLAIN, **given}
        g = conv_geometry(np.empty(shape), np.empty(kernel), None, *(settings[k] for k in list(PLAIN)[:4]))
        w = convolution.windows_of(g)
        m = convolution.winograd_tile(w, w.size, kernel[2], kernel[3]) if settings["groups"] == 1 else 0
        fast = bool(m and shape[0] * g.h.out * g.w.out >= convolution.MIN_WINOGRAD_OUTPUTS)
        assert fast == ("winograd" in name or "tiles" in name), name
        if "blocks" in name:
            assert im2col._outputs_per_row(w, kernel[2], kernel[3]) > 1, name
            assert ("left over" in name) <= (g.w.out % im2col._outputs_per_row(w, kernel[2], kernel[3]) > 0)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("place", ["x", "kernel", "bias", "dy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
def test_one_reaches_its_windows(name: str, place: str, dtype: Any, activation: str | None):
    shape, kernel, given = ALGORITHMS[name]
    settings = {**PLAIN, **given, "activation": activation}
    random = np.random.default_rng(len(name))
    for value in VALUES:
        arrays, dy = inputs(random, shape, kernel, dtype, conv2d, settings)
        array = {"x": arrays[0], "kernel": arrays[1], "bias": arrays[2], "dy": dy}[place]
        array.reshape(-1)[random.integers(array.size)] = value
        check(conv2d, arrays, dy, settings)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("op", [conv2d, conv2d_max_pool2d], ids=lambda op: op.__name__)
def test_any_convolution(op: Op, seed: int):
    """Shapes, strides, paddings, dilations, groups, dtypes and places at random."""
    random = np.random.default_rng(seed)

    def pick(*values: Any) -> Any:
        return values[random.integers(len(values))]

    groups, C, O = pick(1, 1, 1, 2, 4), pick(1, 2, 3, 8, 16, 24, 32), pick(1, 4, 16, 20, 32)
    if groups > 1:
        C, O = pick((1, 1), (1, 2), (C, 4))
    k = pick(3, 3, 5, (1, 4), (4, 2), 1)
    size = k if isinstance(k, tuple) else (k, k)
    padding = pick(0, 1, 2, "same", ((2, 0), (1, 3)))
    settings = {"stride": pick(1, 1, 2, (1, 3)), "padding": padding, "dilation": pick(1, 1, 2), "groups": groups}
    settings["activation"] = pick(None, "relu", "sigmoid", "tanh")
    if op is conv2d_max_pool2d:
        settings.update(window=pick(2, 3), pool_stride=pick(1, 2), pool_padding=pick(0, 1))
    shape = (int(random.integers(1, 6)), *(int(n) for n in random.integers(12, 30, 2)), C * groups)
    # In float32 rounding may decide which of two elements is the maximum.
    dtype = pick(np.float32, np.float64) if op is conv2d else np.float64
    arrays, dy = inputs(random, shape, (*size, C, O * groups), dtype, op, settings)
    if pick(True, False) and settings["activation"] != "relu":
        arrays[2] = None
    for array in ((arrays[0],), (arrays[1],), (dy,), (arrays[0], dy))[seed % 4]:
        spoil(array, random, pick(1, 2, 5))
    check(op, arrays, dy, settings)


# Kernels of some processors pad what they multiply, and then NumPy itself warns of inf times 0 where no number is touched.
products_may_warn = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")


@products_may_warn
@pytest.mark.parametrize("channels", [2, 32])
def test_sequences_and_transposed_convolutions(channels: int):
    random = np.random.default_rng(0)
    for value in VALUES:
        x = random.standard_normal((4, 40, channels)).astype(np.float32)
        x[1, 20, 1] = value
        y = ops.conv1d(x, random.standard_normal((3, channels, 16)).astype(np.float32), padding="same")
        touched = np.zeros(y.shape, bool)
        touched[1, 19:22] = True
        np.testing.assert_array_equal(~np.isfinite(y), touched)
        image = random.standard_normal((2, 12, 12, channels)).astype(np.float32)
        image[1, 5, 6, 0] = value
        z = ops.conv_transpose2d(image, random.standard_normal((3, 3, channels, 8)).astype(np.float32), stride=2)
        touched = np.zeros(z.shape, bool)
        touched[1, 10:13, 12:15] = True
        np.testing.assert_array_equal(~np.isfinite(z), touched)


@pytest.mark.parametrize("name", ["winograd", "blocks", "winograd dilated", "wide tiles"])
def test_other_images_keep_their_numbers(name: str):
    """Also with many of them: the image after one with a hole is not touched."""
    shape, kernel, given = ALGORITHMS[name]
    settings = {**PLAIN, **given}
    (x, weights, bias), _ = inputs(np.random.default_rng(1), (5, *shape[1:]), kernel, np.float32, conv2d, settings)
    clean = conv2d.run(np, (x, weights, bias), settings, False)[0]
    x[1::2, 4, 5, 0] = np.nan
    found = conv2d.run(np, (x, weights, bias), settings, False)[0]
    assert np.isnan(found[1::2]).any(axis=(1, 2, 3)).all()
    np.testing.assert_allclose(found[::2], clean[::2], rtol=0, atol=2e-5 * np.abs(clean).max())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_more_warnings_than_the_sum_gives(name: str):
    shape, kernel, given = ALGORITHMS[name]
    settings = {**PLAIN, **given}
    random = np.random.default_rng(2)
    arrays, dy = inputs(random, shape, kernel, np.float32, conv2d, settings)
    arrays[0][1 % len(dy), 4, 6, 0] = np.inf
    arrays[1][...] = np.abs(arrays[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "invalid value encountered in matmul")  # as products_may_warn
        y = conv2d.run(np, tuple(arrays), settings, False)[0]
    assert np.isposinf(y).any()
    assert not np.isnan(y).any()


@pytest.mark.parametrize("name", ["winograd", "blocks"])
def test_overflow_of_transforms(name: str):
    """Numbers so large that only the fast algorithm overflows are computed again, too."""
    shape, kernel, given = ALGORITHMS[name]
    settings = {**PLAIN, **given}
    x, weights = np.full(shape, 3e37, np.float32), np.full(kernel, 1e-3, np.float32)
    x[:, ::2] *= -1
    with reference_only():
        expected = conv2d.run(np, (x.astype(np.float64), weights.astype(np.float64), None), settings, False)[0]
    found = conv2d.run(np, (x, weights, None), settings, False)[0]
    np.testing.assert_allclose(found / np.float32(1e37), expected / 1e37, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["winograd", "blocks", "depthwise"])
def test_bits_do_not_depend_on_threads(name: str):
    shape, kernel, given = ALGORITHMS[name]
    settings = {**PLAIN, **given}
    arrays, dy = inputs(np.random.default_rng(3), (9, *shape[1:]), kernel, np.float32, conv2d, settings)
    arrays[0][2, 5, 5, 0], arrays[0][7, 3, 9, 0] = np.nan, np.inf
    before, results = threads.get_num_threads(), []
    xn.set_deterministic(True)
    try:
        for count in (1, 2):
            threads.set_num_threads(count)
            results.append(computed(conv2d, arrays, dy, settings))
    finally:
        xn.set_deterministic(False)
        threads.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_planned_predictions():
    """A small model predicts what it computes layer by layer."""
    model = layers.Sequential([
        layers.Conv2D(8, 3, padding="same", activation="relu"), layers.MaxPool2D(2),
        layers.Conv2D(16, 3, padding="same", activation="tanh"), layers.MaxPool2D(2),
        layers.Conv2D(4, 3),
    ])  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, 20, 20, 1)).astype(np.float32)
    model.predict(x)
    for value in VALUES:
        spoiled = x.copy()
        spoiled[1, 9, 10, 0] = value
        with np.errstate(all="ignore"), reference_only():
            expected = model(spoiled).array
        with np.errstate(all="ignore"):
            found = [model.predict(spoiled), model(spoiled).array]
        for one in found:
            for kind in (np.isnan, np.isposinf, np.isneginf):
                np.testing.assert_array_equal(kind(one), kind(expected))
            finite = np.isfinite(expected)
            np.testing.assert_allclose(one[finite], expected[finite], atol=1e-5)


def test_winograd_can_be_turned_off_without_a_difference():
    shape, kernel, given = ALGORITHMS["winograd"]
    settings = {**PLAIN, **given}
    arrays, _ = inputs(np.random.default_rng(4), shape, kernel, np.float32, conv2d, settings)
    arrays[0][1, 6, 7, 3] = -np.inf
    before = winograd.use_winograd(False)
    try:
        plain = conv2d.run(np, tuple(arrays), settings, False)[0]
        winograd.use_winograd(True)
        fast = conv2d.run(np, tuple(arrays), settings, False)[0]
    finally:
        winograd.use_winograd(before)
    np.testing.assert_array_equal(np.isfinite(plain), np.isfinite(fast))
    assert np.isinf(fast).sum() == 9 * kernel[3]
