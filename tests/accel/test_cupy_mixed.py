"""The kernels of mixed precision against array code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.accel.gpu import skip_without_gpu
from xpnet import ops
from xpnet.accel.cupy.optimizers import DeviceSchedule, adam, sgd
from xpnet.backend import dtype_named
from xpnet.ops.updates import half as rules_half
from xpnet.ops.updates.rule import rules

HALVES = [pytest.param("float16"), pytest.param("bfloat16", marks=pytest.mark.bfloat16)]
RANDOM = np.random.default_rng(2)
SPECIAL = [0.0, -0.0, np.inf, -np.inf, 65504.0, 65519.9, 65520.0, -7e4, 6e-8, 2.9e-8, 1e-40, 1 + 2**-11, 1 + 2**-8, 3e38]


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("count", [1, 7, 1024, 4003])
def test_conversions_have_the_bits_of_numpy(gpu, count, name):
    x = np.resize(np.concatenate([SPECIAL, RANDOM.standard_normal(64)]), count).astype(np.float32)
    kind = dtype_named(np, name)
    with np.errstate(over="ignore"):
        expected = x.astype(kind)
    there = gpu.array(x)
    narrow = ops.cast(there, name)
    wide = ops.cast(narrow, "float32")
    copy = gpu.xp.empty(count, dtype=kind)
    rules_half.rounded(copy, there)
    assert len(gpu.launches) == 3
    for found in (narrow, copy):
        np.testing.assert_array_equal(gpu.numpy(found).view(np.uint16), expected.view(np.uint16))
    np.testing.assert_array_equal(gpu.numpy(wide), expected.astype(np.float32))


@pytest.mark.parametrize("name", HALVES)
def test_infinities_and_nans_are_kept(gpu, name):
    found = ops.cast(gpu.array(np.array([np.nan] * 5, np.float32)), name)
    assert np.isnan(gpu.numpy(found).astype(np.float32)).all()


def test_conversions_without_a_kernel_are_array_code(gpu):
    assert ops.cast(gpu.array(np.ones(3)), "float16").dtype == np.float16
    assert ops.cast(gpu.array(np.ones(3, np.float16)), "float64").dtype == np.float64
    copy = gpu.array(np.zeros(3, np.float16))
    rules_half.rounded(copy, gpu.array(np.ones(3)))
    assert gpu.launches == []
    np.testing.assert_array_equal(gpu.numpy(copy), 1)


def scale_of(value, good=0, overflow=0):
    return np.array(value, np.float32), np.array(good, np.int64), np.array(overflow, np.uint32)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 6, 2048, 5001])
@pytest.mark.parametrize("bad", [None, np.inf, -np.inf, np.nan])
def test_gradients_are_unscaled_and_checked(gpu, size, dtype, bad):
    g = RANDOM.standard_normal(size).astype(dtype)
    if bad is not None:
        g[RANDOM.integers(size)] = bad
    expected = g.copy()
    scale, _, overflow = scale_of(2.0**12)
    flag = overflow.copy()
    rules_half.unscale.reference(np, expected, scale, flag)
    there, overflow = gpu.array(g), gpu.array(overflow)
    rules_half.unscale(there, gpu.array(scale), overflow)
    assert len(gpu.launches) == 1
    np.testing.assert_array_equal(gpu.numpy(there), expected)
    assert int(overflow) == int(flag) == (bad is not None)


def test_the_scale_follows_the_same_rule(gpu):
    settings: dict[str, Any] = {"factor": 2.0, "interval": 3, "smallest": 0.5}
    for start in (8.0, 0.25, 2.0**127):
        one, other = scale_of(start), tuple(map(gpu.array, scale_of(start)))
        for step in range(60):
            one[2][...] = other[2][...] = step % 7 in (2, 3) or 40 < step < 50
            rules_half.adjust.reference(np, *one, **settings)
            rules_half.adjust(*other, **settings)
            assert [a.item() for a in one] == [a.item() for a in other]
            assert np.isfinite(one[0])


@pytest.mark.parametrize("rule", [sgd, adam])
def test_a_skipped_update_changes_nothing(gpu, rule):
    arrays = [RANDOM.standard_normal(70).astype(np.float32) for _ in range(2 if rule is sgd else 4)]
    arrays, before = ([gpu.array(a) for a in arrays] for _ in range(2))
    clock, skip = DeviceSchedule.new(gpu.xp, arrays[0], 0.1), gpu.array(np.array(1, np.uint32))
    rule(*arrays, rate=clock.skipping(skip), weight_decay=0.1)
    for one, other in zip(arrays, before):
        np.testing.assert_array_equal(gpu.numpy(one), gpu.numpy(other))
    assert (int(clock.steps), int(clock.ticket)) == (0, 0)
    skip[...] = 0
    rule(*arrays, rate=clock.skipping(skip), weight_decay=0.1)
    rule(*before, rate=0.1, weight_decay=0.1)
    for one, other in zip(arrays, before):
        np.testing.assert_array_equal(gpu.numpy(one), gpu.numpy(other))
    assert int(clock.steps) == 1


def test_every_rule_has_a_kernel():
    assert {name for name in ("rounded", "unscale", "adjust") if "cupy" in rules[name].accelerated} == {
        "rounded",
        "unscale",
        "adjust",
    }


# -- on a GPU --


@pytest.fixture
def cuda():
    skip_without_gpu()
    return "cuda"


@pytest.mark.cuda
@pytest.mark.parametrize("name", HALVES)
def test_conversions_on_the_gpu(cuda, name):
    x = np.resize(np.array(SPECIAL, np.float32), 4003)
    there = ops.cast(xn.to_device(x, cuda), name)
    with np.errstate(over="ignore"):
        expected = x.astype(dtype_named(np, name)).astype(np.float32)
    np.testing.assert_array_equal(xn.to_numpy(ops.cast(there, "float32")), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("capture", [True, False])
def test_training_on_digits_on_the_gpu(cuda, name, capture):
    """Captured or not: the same bits, and about the accuracy of float32."""
    data = xn.data.load("digits")

    def trained(dtype, capture):
        layers = [xn.Conv2D(16, 3, padding=1, use_bias=False), xn.BatchNorm(), xn.ReLU(), xn.MaxPool2D(2)]
        layers += [xn.Residual([xn.Conv2D(16, 3, padding=1, activation="relu")]), xn.Flatten(), xn.Dropout(0.2), xn.Dense(10)]
        model = xn.Sequential(layers, input_shape=(8, 8, 1), device=cuda, dtype=dtype, seed=0)
        trainer = xn.Trainer(
            model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.003), metrics=["accuracy"], capture=capture
        )
        trainer.fit(data.train, epochs=6, batch_size=32, verbose=False)
        return trainer, trainer.evaluate(data.test)["accuracy"]

    trainer, accuracy = trained(name, capture)
    other, wide = trained(name, True), trained("float32", True)
    np.testing.assert_array_equal(
        xn.to_numpy(trainer.model.flat_parameters.values), xn.to_numpy(other[0].model.flat_parameters.values)
    )
    assert accuracy > wide[1] - 0.015
    assert trainer.optimizer.iterations + trainer.optimizer.skipped == trainer.iteration
