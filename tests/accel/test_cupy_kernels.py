"""Kernels outside operations, the checks of a launch, and those of a device under watch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import xpnet.accel.cupy as accel
from tests.gpu import Watched
from xpnet import ops, random
from xpnet.accel.cupy import compiler, source
from xpnet.accel.cupy import launch as launching
from xpnet.accel.cupy.batches import gather, select
from xpnet.accel.cupy.dropout import keep_mask
from xpnet.accel.cupy.gemm import gemm
from xpnet.accel.cupy.launch import fast_divmod, launch
from xpnet.accel.cupy.optimizers import DeviceSchedule, adam, sgd
from xpnet.accel.cupy.reductions import partition
from xpnet.accel.cupy.source import Kernel, declarations, every_kernel, kernel_folder
from xpnet.inspect.footprint.cupy_runtime import PlanningRuntime
from xpnet.ops.geometry import windows
from xpnet.ops.updates import flat
from xpnet.ops.updates import rule as rules
from xpnet.runtime.precision import get_matmul_precision, set_matmul_precision

RANDOM = np.random.default_rng(1)


def normal(*shape, dtype="float64"):
    return np.asarray(RANDOM.standard_normal(shape)).astype(dtype)


# -- optimizers --


@pytest.mark.parametrize("size", [1, 7, 16, 5000])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_sgd(gpu, size, dtype, scheduled):
    for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True)):
        w, g = normal(size, dtype=dtype), normal(size, dtype=dtype)
        v = normal(size, dtype=dtype) if momentum else None
        expected, memory = w.copy(), None if v is None else v.copy()
        decay = 0.1 * np.where(np.arange(size) < 5, expected, 0)
        slope = (g + decay).astype(dtype)
        if memory is None:
            rules.sgd.reference(np, expected, slope, learning_rate=0.05)
        else:
            rules.momentum.reference(np, expected, slope, memory, learning_rate=0.05, momentum=momentum, nesterov=nesterov)
        w, g, v = map(gpu.array, (w, g, v))
        rate = DeviceSchedule.new(gpu.xp, w, 0.05) if scheduled else 0.05
        sgd(w, g, v, rate=rate, momentum=momentum, nesterov=nesterov, weight_decay=0.1, decayed=5)
        tolerance = 1e-6 if dtype == "float32" else 1e-13
        np.testing.assert_allclose(gpu.numpy(w), expected, rtol=tolerance, atol=tolerance)
        if v is not None and memory is not None:
            np.testing.assert_allclose(gpu.numpy(v), memory, rtol=tolerance, atol=tolerance)
        if scheduled:
            assert isinstance(rate, DeviceSchedule)
            assert (int(rate.steps), int(rate.ticket)) == (1, 0)


@pytest.mark.parametrize("size", [1, 7, 16, 5000])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_adam(gpu, size, dtype, scheduled):
    w = normal(size, dtype=dtype)
    m, v = np.zeros_like(w), np.zeros_like(w)
    expected, mean, square = w.copy(), m.copy(), v.copy()
    w, m, v = map(gpu.array, (w, m, v))
    clock = DeviceSchedule.new(gpu.xp, w, 0.01)
    for step in range(1, 5):
        g = normal(size, dtype=dtype)
        slope = (g + 0.1 * np.where(np.arange(size) < 5, expected, 0)).astype(dtype)
        settings: dict[str, Any] = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-7}
        rules.adam.reference(np, expected, slope, mean, square, learning_rate=0.01, step=step, **settings)
        rate = clock if scheduled else 0.01
        adam(w, gpu.array(g), m, v, rate=rate, finished_steps=step - 1, weight_decay=0.1, decayed=5, **settings)
        tolerance = 3e-5 if dtype == "float32" else 1e-12
        np.testing.assert_allclose(gpu.numpy(w), expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(gpu.numpy(v), square, rtol=tolerance, atol=tolerance)
    assert (int(clock.steps), int(clock.ticket)) == ((4, 0) if scheduled else (0, 0))


def test_adamw_shrinks_the_weights_themselves(gpu):
    w, g = normal(20), normal(20)
    m, v = np.zeros(20), np.zeros(20)
    expected, mean, square = w.copy(), m.copy(), v.copy()
    expected[:8] *= 1 - 0.01 * 0.3
    rules.adam.reference(np, expected, g, mean, square, learning_rate=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8, step=1)
    w, m = gpu.array(w), gpu.array(m)
    adam(w, gpu.array(g), m, gpu.array(v), rate=0.01, weight_decay=0.3, decoupled=True, decayed=8)
    np.testing.assert_allclose(gpu.numpy(w), expected, rtol=1e-13)
    np.testing.assert_allclose(gpu.numpy(m), mean, rtol=1e-13)


ADAM: dict[str, Any] = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-7}
RMS: dict[str, Any] = {"decay": 0.9, "epsilon": 1e-6}
RULES: list[tuple[str, int, dict[str, Any]]] = [
    ("sgd", 0, {}),
    ("momentum", 1, {"momentum": 0.9, "nesterov": False}),
    ("momentum", 1, {"momentum": 0.9, "nesterov": True}),
    ("inertia", 1, {"momentum": 0.8}),
    ("adam", 2, ADAM),
    ("amsgrad", 3, ADAM),
    ("adamax", 2, ADAM),
    ("nadam", 2, {**ADAM, "now": 0.8, "following": 0.85, "product": 0.4}),
    ("adagrad", 1, {"epsilon": 1e-10}),
    ("rmsprop", 1, {**RMS, "centered": False, "momentum": 0.0}),
    ("rmsprop", 2, {**RMS, "centered": True, "momentum": 0.0}),
    ("rmsprop", 2, {**RMS, "centered": False, "momentum": 0.5}),
    ("rmsprop", 3, {**RMS, "centered": True, "momentum": 0.5}),
    ("rprop", 2, {"grow": 1.2, "shrink": 0.5, "smallest": 0.01, "largest": 0.8}),
    ("quickprop", 2, {"growth": 1.75}),
]
COUNTED = ("adam", "amsgrad", "adamax", "nadam")


@pytest.mark.parametrize("size", [1, 16, 5000])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize(("name", "slots", "settings"), RULES)
def test_rules_are_one_launch_with_weight_decay(gpu, name, slots, settings, scheduled, dtype, size):
    if scheduled and name == "nadam":
        return  # takes the momentum from the host
    arrays = [normal(size, dtype=dtype), *(np.abs(normal(size, dtype=dtype)) for _ in range(slots))]
    if settings.get("centered"):
        arrays[1] += 2 * arrays[2] ** 2 + 1  # a mean square is above the square of the mean
    expected = [a.copy() for a in arrays]
    there = [*map(gpu.array, arrays)]
    clock = DeviceSchedule.new(gpu.xp, there[0], 0.01)
    for step in range(1, 4):
        counted = {**settings, **({"step": step} if name in COUNTED else {})}
        g = normal(size, dtype=dtype)
        slope = g + (0.1 * np.where(np.arange(size) < 5, expected[0], 0)).astype(dtype)
        rules.rules[name].reference(np, expected[0], slope, *expected[1:], learning_rate=0.01, **counted)
        gpu.launches.clear()
        rate = clock if scheduled else 0.01
        rules.rules[name](
            there[0], gpu.array(g), *there[1:], learning_rate=rate, weight_decay=0.1, decayed=5, decoupled=False, **counted
        )
        assert len(gpu.launches) == 1
        tolerance = 1e-4 if dtype == "float32" else 1e-11
        for a, b in zip(there, expected):
            np.testing.assert_allclose(gpu.numpy(a), b, rtol=tolerance, atol=tolerance)
    assert (int(clock.steps), int(clock.ticket)) == ((3, 0) if scheduled else (0, 0))
    if scheduled:
        before = gpu.numpy(there[0]).copy()
        skip = clock.skipping(gpu.xp.ones((), dtype="uint32"))
        rules.rules[name](there[0], gpu.array(g), *there[1:], learning_rate=skip, **counted)
        np.testing.assert_array_equal(gpu.numpy(there[0]), before)
        assert int(clock.steps) == 3


@pytest.mark.parametrize("size", [1, 16, 5000])
@pytest.mark.parametrize("norm", [0.5, 1e9])
def test_clipping_the_norm_is_two_launches(gpu, size, norm):
    for dtype, launches in (("float32", 2), ("float64", 0)):
        g = normal(size, dtype=dtype) * 3
        expected, there = g.copy(), gpu.array(g)
        flat.clip_norm.reference(np, expected, norm=norm)
        gpu.launches.clear()
        flat.clip_norm(there, norm=norm)
        assert len(gpu.launches) == launches
        np.testing.assert_allclose(gpu.numpy(there), expected, rtol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(gpu.numpy(there)), min(np.linalg.norm(g), norm), rtol=1e-6)


def test_clipping_a_large_or_infinite_norm(gpu):
    there = gpu.array(np.full(1000, 3e38, np.float32))  # whose squares are infinite
    flat.clip_norm(there, norm=1.0)
    np.testing.assert_allclose(gpu.numpy(there), 1 / np.sqrt(1000), rtol=1e-4)  # the factor is subnormal
    for value in (np.inf, np.nan):
        g = np.ones(1000, np.float32)
        g[7] = value
        there = gpu.array(g)
        flat.clip_norm(there, norm=1.0)
        assert np.isnan(gpu.numpy(there)).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("size", [1, 16, 5000])
def test_clipping_values_is_one_launch(gpu, size, dtype):
    g = normal(size, dtype=dtype)
    g[0] = np.nan
    g[-1:] = np.inf if size > 1 else np.nan
    there = gpu.array(g)
    flat.clip_value(there, value=0.25)
    np.testing.assert_array_equal(gpu.numpy(there), np.clip(g, -0.25, 0.25))
    assert len(gpu.launches) == 1


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", [1, 16, 5000])
def test_the_moving_average_is_one_launch(gpu, size, dtype):
    average, values = normal(size, dtype=dtype), normal(size, dtype=dtype)
    expected = 0.9 * average + 0.1 * values
    there = gpu.array(average), gpu.array(values)
    steps, before, later = (gpu.array(np.array(n, np.int64)) for n in (3, 3, 2))
    for counted, settings in ((None, (None, None)), (3, (steps, None)), (3, (steps, later))):
        moved, after = flat.moving_average(*there, decay=0.9, steps=settings[0], before=settings[1])
        np.testing.assert_allclose(gpu.numpy(moved), expected, rtol=1e-5 if dtype == "float32" else 1e-12, atol=1e-7)
        assert (None if after is None else int(after)) == counted
    moved, after = flat.moving_average(*there, decay=0.9, steps=steps, before=before)
    np.testing.assert_array_equal(gpu.numpy(moved), average)
    assert len(gpu.launches) == 4


def test_the_update_rules_use_the_kernels(gpu):
    cases: list[tuple[str, int, dict[str, Any]]] = [
        ("sgd", 0, {}),
        ("momentum", 1, {"momentum": 0.9, "nesterov": True}),
        ("adam", 2, {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "step": 3}),
    ]
    for name, slots, settings in cases:
        arrays = [normal(100), normal(100), *(np.abs(normal(100)) for _ in range(slots))]
        expected = [a.copy() for a in arrays]
        rules.rules[name].reference(np, *expected, learning_rate=0.1, **settings)
        gpu.launches.clear()
        there = [*map(gpu.array, arrays)]
        rules.rules[name](*there, learning_rate=0.1, **settings)
        assert len(gpu.launches) == 1
        for a, b in zip(there, expected):
            np.testing.assert_allclose(gpu.numpy(a), b, rtol=1e-12)


# -- random masks and batches --


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000, 4096 * 5])
def test_keep_mask_has_the_bits_of_numpy(gpu, count):
    for key, step in ((random.key(7, "a"), 0), (random.Key(2**64 - 1, 2**63), 2**63 + 5)):
        for rate in (0.0, 0.25, 1.0):
            expected = random.keep_mask(np, key, step, (count,), rate)
            np.testing.assert_array_equal(gpu.numpy(keep_mask(gpu.xp, key, step, (count,), rate)), expected)


@pytest.mark.parametrize("shape", [(5, 4, 4, 3), (6, 8, 8, 1), (4, 10), (3, 16), (9,)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_rows_of_bytes_are_looked_up(gpu, shape, dtype):
    data = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    channels = shape[-1] if len(shape) > 1 else 1
    for columns in {1, channels}:
        table = normal(256, columns, dtype=dtype)
        for index in (np.array([2, 0, 2, 1]), np.zeros(0, np.int64), None):
            rows = data if index is None else data[index]
            out = gpu.xp.empty(rows.shape, dtype=dtype)
            gather(gpu.array(data), gpu.array(index), out, table=gpu.array(table))
            np.testing.assert_array_equal(gpu.numpy(out), table[rows, 0 if columns == 1 else np.arange(channels)])
    there = gpu.xp.empty((3, *shape[1:]), dtype=dtype)
    gather(gpu.array(data), gpu.array(np.array([-1, 1, shape[0]])), there, table=gpu.array(table))
    missing = gpu.numpy(there)
    assert np.isnan(missing[[0, 2]]).all()
    assert np.isfinite(missing[1]).all()


@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("shape", [(50, 4, 4, 3), (50, 9000), (50, 1)])
@pytest.mark.parametrize("labels", [None, (50, 1), (50, 16)])
def test_one_launch_selects_and_gathers(gpu, shape, labels, multiprocessors):
    gpu.multiprocessors = multiprocessors
    data, order = normal(*shape, dtype="float32"), RANDOM.permutation(50)
    words = None if labels is None else RANDOM.integers(0, 2**32, labels, dtype=np.uint32)
    position, index = gpu.array(np.array(3, np.int64)), gpu.xp.zeros(20, dtype="int64")
    taken = None if words is None else gpu.xp.zeros((20, words.shape[1]), dtype="uint32")
    there = gpu.array(data), gpu.array(order), gpu.array(words)
    for first in (3, 23, 43):
        out = gpu.xp.empty((20, *shape[1:]), dtype="float32")
        gather(there[0], index, out, order=there[1], position=position, labels=there[2], taken=taken)
        rows = order[first : first + 20]
        np.testing.assert_array_equal(gpu.numpy(index), np.r_[rows, np.full(20 - len(rows), -1)])
        np.testing.assert_array_equal(gpu.numpy(out)[: len(rows)], data[rows])
        assert np.isnan(gpu.numpy(out)[len(rows) :]).all()
        if taken is not None and words is not None:
            np.testing.assert_array_equal(gpu.numpy(taken)[: len(rows)], words[rows])
            assert (gpu.numpy(taken)[len(rows) :] == 2**32 - 1).all()
        assert int(position) == first + 20
    assert len(gpu.launches) == 3


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("shape", [(5, 4, 4, 3), (6, 8), (7,)])
def test_rows_of_numbers_go_through_pairs(gpu, shape, dtype):
    data, index = normal(*shape, dtype=dtype), np.array([3, 0, 0])
    values = np.abs(normal(2, 2, shape[-1] if len(shape) > 1 else 1, dtype="float32" if dtype == "float16" else dtype)) + 1
    out, kept = (gpu.xp.empty((3, *shape[1:]), dtype=dtype) for _ in range(2))
    gather(gpu.array(data), gpu.array(index), out, values=gpu.array(values))
    gather(gpu.array(data), gpu.array(index), kept)
    np.testing.assert_array_equal(gpu.numpy(kept), data[index])
    changed = ((data[index] - values[0, 0]) / values[0, 1] - values[1, 0]) / values[1, 1]
    np.testing.assert_array_equal(gpu.numpy(out), changed.astype(dtype))


def test_a_bytes_address_that_is_not_aligned(gpu):
    data = RANDOM.integers(0, 256, (5 * 16 + 1,), dtype=np.uint8)
    out, table = gpu.xp.empty((5, 16), dtype="float32"), normal(256, 1, dtype="float32")
    gather(gpu.array(data)[1:].reshape(5, 16), None, out, table=gpu.array(table))
    assert gpu.launches == ["gather<float, 1, u8>"]
    np.testing.assert_array_equal(gpu.numpy(out), table[data[1:].reshape(5, 16), 0])


SQUARES = [(5, 5), (1, 1), (2**31 + 1, 2**31 + 1)]


@pytest.mark.parametrize(
    ("choices", "paired"),
    [*((square, paired) for square in SQUARES for paired in (0, 1)), ((1, 7), 0), ((6, 1), 0), ((3, 3 * 2**30), 0)],
)
def test_random_numbers_are_those_of_numpy(gpu, choices, paired):
    """Also with many rejections: for 2**31 + 1 choices about every other number is rejected."""
    key, N = random.key(3, "augment", 1), 300
    low, high = (int(np.uint64(word).astype(np.int64)) for word in key)
    rng, step = random.generator(key, (2 << 32) + 7), np.array((2 << 32) + 7, np.uint64)
    if paired:
        expected = rng.integers(0, choices[0], (N, 2)).T
    else:
        expected = np.stack([rng.integers(0, n, N) for n in choices])
    program = np.array([[3, 0, 0, 0, *choices, -(2**30), 1, paired, low, high, 0]])
    order, index, position = RANDOM.permutation(400), np.zeros(N, np.int64), np.array(90, np.int64)
    drawn = np.zeros((1, 2, N), np.int32)
    labels, taken = RANDOM.integers(0, 2**32, (400, 3), dtype=np.uint32), np.zeros((N, 3), np.uint32)
    settings = {"order": order, "position": position, "step": step, "program": program, "labels": labels, "taken": taken}
    there = {name: gpu.array(value) for name, value in settings.items()}
    index, drawn = gpu.array(index), gpu.array(drawn)
    select(N, index, drawn, **there)
    np.testing.assert_array_equal(gpu.numpy(drawn)[0] + np.int64(2**30), expected)
    np.testing.assert_array_equal(gpu.numpy(index), order[90:390])
    np.testing.assert_array_equal(gpu.numpy(there["taken"]), labels[order[90:390]])
    select(N, index, drawn, **there)
    np.testing.assert_array_equal(gpu.numpy(index), [*order[390:], *[-1] * 290])  # beyond the end
    assert (gpu.numpy(there["taken"])[10:] == 2**32 - 1).all()
    assert (int(there["position"]), int(there["step"])) == (690, (2 << 32) + 9)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_flips_are_those_of_numpy(gpu, p):
    key, N = random.key(9, "augment"), 1027
    low, high = (int(np.uint64(word).astype(np.int64)) for word in key)
    drawn, step = gpu.array(np.zeros((1, 2, N), np.int32)), gpu.array(np.array(4, np.uint64))
    program = np.array([[1, 0, 0, 0, 1, 1, 0, 1, 0, low, high, int(np.ceil(p * 2.0**53))]])
    select(N, None, drawn, step=step, program=gpu.array(program))
    np.testing.assert_array_equal(gpu.numpy(drawn)[0, 0], random.generator(key, 4).random(N) < p)


# -- 16-bit floats --


def as_bfloat16(values):
    """Round float32 to nearest even, and return the upper half of the bits."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("width", [1, 8])
def test_bfloat16(gpu, width):
    x = as_bfloat16(np.concatenate([normal(60) * 10, [0, -0.0, np.inf, -np.inf]]))
    y = gpu.array(np.full_like(x, 0xFFFF))
    launch(accel.activation._forward["bfloat16", width, 3], 2, 64, gpu.array(x), y, x.size)
    np.testing.assert_array_equal(gpu.numpy(y), as_bfloat16(np.tanh(from_bfloat16(x))))


def test_bfloat16_keeps_nan(gpu):
    x = np.array([0x7FC1, 0xFFFF, 0x7F81, 0x3F80], np.uint16)  # three NaN, and 1
    there = gpu.array(np.zeros_like(x))
    launch(accel.activation._forward["bfloat16", 1, 1], 1, 32, gpu.array(x), there, x.size)
    y = gpu.numpy(there)
    assert np.isnan(from_bfloat16(y[:3])).all()
    assert from_bfloat16(y)[3] == 1


# -- products --


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_gemm_of_every_layout(gpu, dtype):
    for m, n, k in ((3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (3, 4, 0)):
        for batch in ((), (1,), (3,)):
            for flip_a in (False, True):
                for flip_b in (False, True):
                    a = normal(*batch, k, m, dtype=dtype).swapaxes(-1, -2) if flip_a else normal(*batch, m, k, dtype=dtype)
                    b = normal(*batch, n, k, dtype=dtype).swapaxes(-1, -2) if flip_b else normal(*batch, k, n, dtype=dtype)
                    c = normal(*batch, m, n, dtype=dtype)
                    wide = 2.0 * (a.astype("float64") @ b) + 0.5 * c
                    found = gpu.array(c)
                    gemm(gpu.xp, gpu.array(a), gpu.array(b), found, alpha=2.0, beta=0.5)
                    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2}[dtype]
                    np.testing.assert_allclose(gpu.numpy(found), wide, rtol=tolerance, atol=tolerance)


def test_gemm_of_slices_and_into_slices(gpu):
    wide, weights = normal(6, 10), normal(4, 9)
    there, out = gpu.array(weights), gpu.array(np.full((6, 12), 7.0))
    gemm(gpu.xp, gpu.array(wide)[:, 3:7], there[:, 2:5], out[:, 1:4])
    found = gpu.numpy(out)
    np.testing.assert_allclose(found[:, 1:4], wide[:, 3:7] @ weights[:, 2:5])
    assert (np.delete(found, [1, 2, 3], axis=1) == 7).all()
    strange = normal(6, 20)[:, ::2]  # no axis is contiguous: copied
    gemm(gpu.xp, gpu.array(strange)[:, :4], there[:, 2:5], out[:, 1:4])
    np.testing.assert_allclose(gpu.numpy(out)[:, 1:4], strange[:, :4] @ weights[:, 2:5])


def test_gemm_accumulates_half_precision_in_float32(gpu):
    a, b = normal(3, 4, dtype="float16"), normal(4, 5, dtype="float16")
    c = gpu.array(np.zeros((3, 5), "float32"))
    gemm(gpu.xp, gpu.array(a), gpu.array(b), c)
    np.testing.assert_allclose(gpu.numpy(c), a.astype("float32") @ b.astype("float32"), rtol=1e-6)


def test_gemm_refuses_what_does_not_fit(gpu):
    def called(a, b, c):
        gemm(gpu.xp, gpu.array(a), gpu.array(b), gpu.array(c))

    with pytest.raises(ValueError, match="do not fit"):
        called(normal(2, 3), normal(4, 5), normal(2, 5))
    with pytest.raises(TypeError, match="one floating dtype"):
        called(normal(2, 3), normal(3, 5, dtype="float32"), normal(2, 5))
    with pytest.raises(ValueError, match="contiguous"):
        called(normal(2, 3), normal(3, 5), normal(5, 2).T)


def test_tf32_is_a_setting(gpu):
    assert get_matmul_precision() == "float32"
    try:
        set_matmul_precision("tf32")
        for dtype, expected in (("float32", True), ("float64", False), ("float16", False)):
            gpu.products.clear()
            gemm(gpu.xp, *(gpu.array(normal(*shape, dtype=dtype)) for shape in ((2, 3), (3, 5), (2, 5))))
            assert gpu.products[0].tf32 is expected
    finally:
        set_matmul_precision("float32")
    with pytest.raises(ValueError, match='"float32" or "tf32"'):
        set_matmul_precision("high")


# -- launches --


def test_a_launch_checks_dtypes_contiguity_and_count(gpu):
    kernel = accel.activation._forward["float", 1, 1]
    x = gpu.xp.zeros(8, dtype="float32")
    with pytest.raises(TypeError, match=r"activation<float, 1, 1>: x must be float32, got float64"):
        launch(kernel, 1, 32, gpu.xp.zeros(8, dtype="float64"), x, 8)
    with pytest.raises(ValueError, match="y must be C-contiguous"):
        launch(kernel, 1, 32, x, gpu.xp.zeros(16, dtype="float32")[::2], 8)
    with pytest.raises(TypeError, match="takes 3 arguments, got 2"):
        launch(kernel, 1, 32, x, x)
    assert gpu.launches == []
    with pytest.raises(KeyError, match="not among the listed instances"):
        accel.activation._forward["float", 3, 1]


def test_arguments_are_packed_as_the_kernel_declares_them():
    sizes = {p.name: p.format for p in accel.optimizers._adam["float", 4, False].parameters}
    assert sizes["count"] == "q"
    assert sizes["beta1"] == "d"
    assert sizes["epsilon"] == "f"
    assert sizes["mean"] == "P"
    assert {p.name: p.format for p in accel.optimizers._adam["double", 2, False].parameters}["epsilon"] == "d"
    assert {p.name: p.format for p in accel.im2col._im2col["float", 1, 0, 0].parameters}["by_kw"] == "3I"


def test_a_number_beyond_float32_becomes_infinity_as_in_c():
    instance = accel.optimizers._adam["float", 4, False]
    buffer = bytearray(instance.size)
    values = [1e300 if p.is_float else 1 for p in instance.parameters]
    instance.pack_into(buffer, values)
    for parameter, offset in zip(instance.parameters, instance.offsets):
        if parameter.is_float:
            (packed,) = struct.unpack_from(parameter.format, buffer, offset)
            assert packed == (np.inf if parameter.format == "f" else 1e300)


def test_every_declared_kernel_is_used():
    written = {path.stem for path in kernel_folder().glob("*.cu")}
    files = {kernel.file for kernel in every_kernel}
    assert files == written, "declare these kernels in a file of xpnet/accel/cupy that its __init__.py imports"
    for file in files:
        used = {kernel.name for kernel in every_kernel if kernel.file == file}
        assert used == set(declarations(file))


def test_division_by_multiplication():
    edges = [0, 1, 2, 3, 2**31 - 1, 2**31 - 2, 2**30]
    for d in [*range(1, 200), 255, 256, 257, 641, 65535, 65536, 65537, 2**30 - 1, 2**30, 2**31 - 1]:
        _, magic, shift = fast_divmod(d)
        assert magic < 2**32
        near = [k * d + r for k in (1, 2, 2**31 // d - 1) for r in (-1, 0, 1)]
        for n in [*edges, *(v for v in near if 0 <= v < 2**31)]:
            assert (((n * magic) >> 32) + n) % 2**32 >> shift == n // d, (n, d)
    with pytest.raises(ValueError, match="too large"):
        fast_divmod(2**31)


def test_parts_cover_all_rows():
    with launching.use_runtime(Watched(multiprocessors=4, inner=PlanningRuntime())):
        for rows in (1, 7, 1000, 10**6, 10**9):
            for vectors in (1, 3, 16, 40, 1000):
                split = partition(rows, vectors)
                wide, deep, _ = split.block
                assert wide * deep == 256
                assert split.grid[0] * wide >= vectors
                assert (split.parts - 1) * split.part_rows < rows <= split.parts * split.part_rows
                assert split.grid[1] <= 65535


def test_batches_beyond_32_bit_indices_are_split(gpu, monkeypatch):
    xp, x = gpu.xp, gpu.array(normal(5, 6, 6, 4))
    g = windows(x.shape, 3, 1, 1)
    for module in (accel.im2col, accel.pooling):
        monkeypatch.setattr(module, "INT32_LIMIT", 2000)
    cols = accel.im2col.im2col(xp, x, g)
    back = accel.im2col.col2im(xp, cols, g)
    y, switches = accel.pooling.max_pool(xp, x, g, True)
    accel.pooling.average_pool_backward(xp, accel.pooling.average_pool(xp, x, g, False), g, False)
    dx = accel.pooling.max_pool_backward(xp, y, switches, g)
    split = len(gpu.launches)
    monkeypatch.undo()
    again, _ = accel.pooling.max_pool(xp, x, g, True)
    for found, expected in (
        (accel.im2col.im2col(xp, x, g), cols),
        (accel.im2col.col2im(xp, cols, g), back),
        (again, y),
        (accel.pooling.max_pool_backward(xp, y, switches, g), dx),
    ):
        np.testing.assert_array_equal(gpu.numpy(found), gpu.numpy(expected))
    assert len(gpu.launches) == split + 4
    assert split > 5


def test_unaligned_arrays_are_accessed_element_by_element(gpu):
    values = normal(1, 4, 4, 4)
    memory = gpu.xp.zeros(4 * 4 * 4 + 1)
    memory[1:] = gpu.array(values.reshape(-1))
    x = memory[1:].reshape(1, 4, 4, 4)
    assert x.data.ptr % 16 == 8
    np.testing.assert_array_equal(gpu.numpy(ops.max_pool2d(x, 2)), ops.max_pool2d(values, 2))
    assert gpu.launches == ["max_pool<double, 1, 2, 2, false>"]


# -- the watch itself --

BROKEN = """
#include "common.cuh"
template <typename T>
__global__ void writes_behind(T* y, int count) { y[threadIdx.x + count] = T(); }
template <typename T>
__global__ void writes_before(T* y, int count) { y[-1] = T(); }
template <typename T>
__global__ void splits_at_a_barrier(T* y, int count) { if (threadIdx.x < 16) __syncthreads(); y[threadIdx.x] = T(); }
template <typename T>
__global__ void leaves_before_a_shuffle(T* y, int count) {
  if (threadIdx.x >= 16) return;
  y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, y[threadIdx.x], 1);
}
template <typename T>
__global__ void forgets_a_barrier(T* y, int count) {
  __shared__ T held[64];
  __syncthreads();
  held[threadIdx.x] = T(threadIdx.x);
  y[threadIdx.x] = held[63 - threadIdx.x];
}
template <typename T>
__global__ void reverses(T* y, int count) {
  __shared__ T held[64];
  held[threadIdx.x] = T(threadIdx.x);
  __syncthreads();
  y[threadIdx.x] = held[63 - threadIdx.x];
}
"""


@contextlib.contextmanager
def broken_kernels(folder):
    """Yield a function that launches a kernel of BROKEN, by name, on one block of threads and an array of as many numbers."""
    (folder / "broken.cu").write_text(BROKEN)
    (folder / "common.cuh").write_text(source.read_headers()["common.cuh"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "kernel_folder", lambda: folder)
        patch.setattr(source, "every_kernel", [])
        for module in (source, compiler):
            patch.setattr(module, "read_source", lambda file: (folder / f"{file}.cu").read_text())
        declarations.cache_clear()
        kernels = {name: Kernel("broken", name, ("float",)) for name in source.declarations("broken")}
        yield lambda name, y: launch(kernels[name][("float",)], 1, y.size, y, y.size)
    declarations.cache_clear()


def test_what_is_written_beside_an_array_is_reported(gpu, tmp_path):
    whole = gpu.xp.zeros(64 * 3, dtype="float32")
    arrays = [whole[64:128]]  # between other elements
    if not os.environ.get("XPNET_TEST_NO_POOL"):  # the ends of separate allocations are a memory checker's to see
        arrays.append(gpu.xp.zeros(64, dtype="float32"))  # between guards
    with broken_kernels(tmp_path) as broken:
        for y in arrays:
            for name, message in (("writes_behind", "wrote after the array"), ("writes_before", "wrote before the array")):
                whole[...] = 5
                with pytest.raises(AssertionError, match=message):
                    broken(name, y)
            broken("reverses", y)
            np.testing.assert_array_equal(gpu.numpy(y), np.arange(63, -1, -1))


def test_what_is_not_written_is_nan(gpu):
    assert np.isnan(gpu.numpy(gpu.xp.empty((5, 3), dtype="float32"))).all()
    assert np.isnan(gpu.numpy(gpu.xp.empty((5, 3), dtype="float16"))).all()


def test_a_launch_on_arguments_that_share_memory_is_refused(gpu):
    x = gpu.xp.zeros(16, dtype="float32")
    with pytest.raises(AssertionError, match="share memory"):
        launch(accel.activation._forward["float", 4, 1], 1, 32, x, x, 16)
    launch(accel.activation._forward["float", 1, 1], 1, 32, x[:8], x[8:], 8)


@pytest.mark.parametrize("name", ["splits_at_a_barrier", "leaves_before_a_shuffle", "forgets_a_barrier"])
@pytest.mark.usefixtures("software_gpu")
@pytest.mark.cuda
def test_threads_that_do_not_meet_are_reported(name, tmp_path):
    """In a process of its own: after an error in a kernel nothing runs in its process any more."""
    script = f"""
import pathlib, cupy, numpy as np
from tests.accel.test_cupy_kernels import broken_kernels
y = cupy.zeros(64, "float32")
with broken_kernels(pathlib.Path({str(tmp_path)!r})) as broken:
    broken({name!r}, y)
    cupy.cuda.get_current_stream().synchronize()
print("right" if (y.get() == np.arange(63, -1, -1)).all() else "wrong")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if name == "forgets_a_barrier":
        assert done.stdout == "wrong\n", done.stderr
    else:
        assert done.returncode
        # Which call reports it, one of the driver or of the runtime, depends on when the kernel runs.
        assert "CUDA_ERROR_LAUNCH_FAILED" in done.stderr or "cudaErrorLaunchFailure" in done.stderr
        assert "barrier" in done.stderr


def test_packed_arguments_survive_a_second_thread():
    from concurrent.futures import ThreadPoolExecutor

    seen = []

    class Recorder:
        multiprocessors, chunk_bytes = 1, 1

        def addresses(self, instance, arrays):
            return [0 if a is None else a.ctypes.data for a in arrays]

        def launch(self, instance, grid, block, arguments):
            first, _, count = (arguments[i] for i in range(3))
            seen.append((ctypes.c_uint64.from_address(first).value, ctypes.c_int64.from_address(count).value))

    arrays = [np.zeros(n, "float32") for n in range(1, 40)]
    kernel = accel.activation._forward["float", 1, 1]
    with launching.use_runtime(cast(Any, Recorder())), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda a: launch(kernel, 1, 32, a, a, a.size), arrays))
    assert sorted(seen) == sorted((a.ctypes.data, a.size) for a in arrays)
