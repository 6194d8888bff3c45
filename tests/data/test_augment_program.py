"""Augmentations as programs: one pass of a kernel gives the bits of the stages one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xpnet.accel.cupy.batches import gather, select
from xpnet.data import ByteImages
from xpnet.data.augment import Augmentation, Compose, Crop, Cutout, Elastic, Flip, Mixup, Normalise, Rescale, Rotation, Shift
from xpnet.data.augment.program import augment_program

RNG = np.random.default_rng(0)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NORMALISE = Normalise(MEAN, STD)

MOVES = [
    Shift(3),
    Shift(0, fill=2.0),
    Crop(4, fill=0.25),
    Crop(0, size=(5, 6)),
    Crop(1, size=(11, 9)),
    Flip(),
    Flip(0.8, vertical=True),
    Cutout(4, fill=0.5),
    Cutout(1),
    Compose(Shift(1), Compose(Flip(), Cutout(3)), Crop(2)),
    Compose(Crop(3, size=(8, 8)), Flip(), Flip(vertical=True), Cutout(4, fill=1), Shift(2, fill=3), Cutout(2, fill=7), Crop(1)),
]


def run(gpu, made, data, seed_step, index):
    """One batch of a program."""
    gpu.multiprocessors = 2
    N = len(index)
    drawn = None if made.stages is None else gpu.xp.zeros((len(made.stages), 2, N), dtype="int32")
    out = gpu.xp.empty((N, *made.shape), dtype=made.dtype)
    stages = gpu.array(made.stages)
    if drawn is not None:
        select(N, None, drawn, step=gpu.array(np.array(seed_step, np.uint64)), program=stages)
    table, values, fills = map(gpu.array, (made.table, made.values, made.fills))
    gather(gpu.array(data), gpu.array(index), out, table=table, values=values, fills=fills, program=stages, drawn=drawn)
    return gpu.numpy(out)


def same(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(np.uint8), np.ascontiguousarray(expected).view(np.uint8))


@pytest.mark.parametrize("augment", MOVES, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_moves_of_numbers(gpu, augment, dtype):
    data, index, step = RNG.standard_normal((12, 9, 7, 3)).astype(dtype), RNG.integers(0, 12, 17), (5 << 32) + 3
    made = augment_program(augment, 11, data.shape[1:], dtype)
    same(run(gpu, made, data, step, index), augment(data[index], seed=11, step=step))


@pytest.mark.parametrize("augment", [*MOVES, None], ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("scaled", [False, True])
def test_moves_of_bytes(gpu, augment, dtype, scaled):
    images, index, step = RNG.integers(0, 256, (12, 9, 7, 3), dtype=np.uint8), RNG.integers(0, 12, 17), 3
    data = ByteImages(images, mean=MEAN if scaled else None, std=STD if scaled else None, dtype=dtype)
    expected = data[index] if augment is None else augment(data[index], seed=2, step=step)
    same(run(gpu, data.augment_program(augment, 2), images, step, index), expected)


VALUES = [
    Rescale(255.0),
    Compose(Rescale(255.0), NORMALISE),
    Compose(
        Shift(2, fill=7), Rescale(100.0), Cutout(3, fill=0.3), NORMALISE, Flip(), Cutout(2, fill=-1), Normalise((0.1,), (3.0,))
    ),
    Compose(Rescale(9.0), Flip(), NORMALISE, NORMALISE, Crop(2)),
]


@pytest.mark.parametrize("augment", VALUES, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_moves_and_changes_of_value(gpu, augment, dtype):
    data = RNG.integers(0, 256, (12, 9, 8, 3)).astype(dtype)
    index, step = RNG.integers(0, 12, 17), 1 << 33
    made = augment_program(augment, 2**63 + 5, data.shape[1:], dtype)
    same(run(gpu, made, data, step, index), augment(data[index], seed=2**63 + 5, step=step))


def test_normalising_float64(gpu):
    data = RNG.standard_normal((6, 3))
    made = augment_program(NORMALISE, 0, (3,), "float64")
    same(run(gpu, made, data, 0, np.arange(6)), NORMALISE(data))


class Own(Flip):
    """A user's change of a class of ours."""

    def apply(self, xp, x, y, rng):
        return 1 - x, y


@pytest.mark.parametrize(
    ("augment", "dtype"),
    [
        (Mixup(), "float32"),
        (Compose(Flip(), Rotation(5.0)), "float32"),
        (Elastic(), "float32"),
        (Own(), "float32"),
        (Rescale(), "float64"),  # it becomes float32 first
        (Rescale(), "float16"),
        (NORMALISE, "float16"),  # array code rounds between the two
        (Flip(), "uint8"),  # bytes stay bytes
        (Shift(2**30 + 1), "float32"),
        (Crop(0, size=(10, 9)), "float32"),  # larger than the image: the stage itself says so
    ],
)
def test_what_no_program_expresses(augment, dtype):
    assert isinstance(augment, Augmentation)
    assert augment_program(augment, 0, (9, 7, 3), dtype) is None


def test_bytes_with_too_many_channels_for_a_table_are_converted_by_array_code():
    channels = 1 << 17
    images = RNG.integers(0, 256, (2, channels), dtype=np.uint8)
    mean: Any = np.linspace(0, 1, channels)
    table = ByteImages(images).table()
    assert table is not None
    assert table.shape == (256, 1)
    assert ByteImages(images, mean=mean, std=mean + 1).table() is None


def test_mistakes_are_those_of_the_stages():
    with pytest.raises(ValueError, match="2 channels, the images have 3"):
        augment_program(Normalise((0.1, 0.2), (1.0, 1.0)), 0, (9, 7, 3), "float32")
