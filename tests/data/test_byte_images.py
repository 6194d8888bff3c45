"""Images that stay bytes: their batches are the normalised floats, by array code and by the kernel alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.data import Batches, ByteImages
from xpnet.data.byte_images import gathered

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 5, 4, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 3, 50)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def floats(images):
    return ((images / 255 - MEAN) / STD).astype(np.float32)


def test_batches_are_those_of_the_floats():
    """To rounding: the floats are normalised in float64 here."""
    ours = Batches((ByteImages(IMAGES, mean=MEAN, std=STD), LABELS), 8, seed=3)
    theirs = Batches((floats(IMAGES), LABELS), 8, seed=3)
    for (x, y), (u, v) in zip(ours.epoch(2), theirs.epoch(2), strict=True):
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, u, atol=2e-6)
        np.testing.assert_array_equal(y, v)
    in_order = Batches(ByteImages(IMAGES), 8, shuffle=False)
    np.testing.assert_allclose(np.concatenate(list(in_order)), IMAGES / np.float32(255), rtol=1e-6)


def test_a_model_learns_from_bytes():
    model = xn.Sequential([xn.Flatten(), xn.Dense(3)], input_shape=(5, 4, 3))
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.03))
    history = trainer.fit((ByteImages(IMAGES, mean=MEAN, std=STD), LABELS), epochs=60, batch_size=16, verbose=False)
    assert history["loss"][-1] < 0.2 * history["loss"][0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_kernel_gives_the_same_numbers(gpu, dtype):
    data = ByteImages(IMAGES, mean=MEAN, std=STD, dtype=dtype, device="cuda")
    index = RNG.permutation(50)[:9]
    found: Any = gathered(data, gpu.array(index), kernel=True)
    assert len(gpu.launches) == 1
    assert found.dtype == dtype
    np.testing.assert_allclose(gpu.numpy(found), gpu.numpy(gathered(data, gpu.array(index), kernel=False)), atol=1e-6)
    on_cpu = gathered(ByteImages(IMAGES, mean=MEAN, std=STD, dtype=dtype), index, kernel=False)
    np.testing.assert_allclose(gpu.numpy(found), xn.to_numpy(on_cpu), atol=1e-6)


def test_mistakes():
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (IMAGES / 255, {}, "uint8"),
        (IMAGES, {"mean": MEAN}, "both"),
        (IMAGES, {"mean": MEAN, "std": [1.0]}, "std has 1 numbers, the images 3 channels"),
    ]
    for images, settings, says in cases:
        with pytest.raises(ValueError, match=says):
            ByteImages(images, **settings)


def test_the_old_name_warns():
    with pytest.warns(DeprecationWarning, match=r"xpnet\.data\.Bytes .* use xpnet\.data\.ByteImages"):
        assert xn.data.Bytes is ByteImages
    with pytest.raises(AttributeError, match=r"xpnet\.data"):
        _ = xn.data.Byte


@pytest.mark.cuda
def test_on_a_gpu():
    data = ByteImages(IMAGES, mean=MEAN, std=STD, device="cuda")
    x = next(iter(Batches(data, 8, shuffle=False)))
    np.testing.assert_allclose(xn.to_numpy(x), floats(IMAGES[:8]), atol=2e-6)
