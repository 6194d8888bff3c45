"""What a user overrides of the classes that make batches and steps counts on a GPU as it does on a CPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.alike import on_call
from tests.on_cuda.three_ways import IMAGE_LABELS, IMAGES, WAYS, alike, fit
from xpnet.data import Batches, ByteImages, ImageFolder
from xpnet.data.arrays import Arrays
from xpnet.data.augment import Augmentation, Compose, Crop, Flip

pytestmark = pytest.mark.cuda
FLOATS = (IMAGES / 255).astype(np.float32)


class OwnEpoch(Batches):
    def epoch(self, epoch, start=0):
        for x, y in super().epoch(epoch, start):
            yield x * 0.5, y


class OwnOrder(Batches):
    def order(self, epoch):
        return super().order(epoch)[::-1].copy()


class OwnLength(Batches):
    def __len__(self):
        return 3


class Dark(ByteImages):
    def __getitem__(self, index):
        return super().__getitem__(index) * 0.1


class Centred(ByteImages):
    def numbers(self, images):
        numbers: Any = super().numbers(images)
        return numbers - numbers.mean(axis=(1, 2, 3), keepdims=True)


class LeftOut(Crop):
    def apply(self, xp, x, y, rng):
        x, y = super().apply(xp, x, y, rng)
        return x * 0.5, y


class Own(Augmentation):
    def apply(self, xp, x, y, rng):
        return x * float(rng.random()), y


class Twice(Compose):
    def staged(self, xp, x, y, seed, step, place):
        x, y = super().staged(xp, x, y, seed, step, place)
        return super().staged(xp, x, y, seed, step, place)


class Negative(np.ndarray):
    def take(self, indices, axis=None, out=None, mode="raise"):
        return -np.asarray(self).take(indices, axis)

    def __getitem__(self, index):
        return -np.asarray(self)[index]


class Rows:
    """Rows that are made when they are asked for."""

    shape, dtype, ndim = FLOATS.shape, FLOATS.dtype, 4

    def __len__(self):
        return len(FLOATS)

    def __getitem__(self, index):
        return FLOATS[index] * 0.3


def replaced(thing, name, value):
    setattr(thing, name, value)
    return thing


def in_the_source(batches):
    class Halves(Arrays):
        def fetch(self, order, start, stop):
            x, y = super().fetch(order, start, stop)
            return x * 0.5, y

    batches.source = Halves(batches.source.tree)
    return batches


def of(kind, x, device, **settings):
    return kind((x, IMAGE_LABELS), 8, device=device, **settings)


def there(device):
    return xn.to_device(FLOATS, device)


CASES: dict[str, Any] = {
    "Batches.epoch": lambda device: of(OwnEpoch, FLOATS, device),
    "Batches.epoch, on the device": lambda device: of(OwnEpoch, there(device), device),
    "Batches.order": lambda device: of(OwnOrder, FLOATS, device),
    "Batches.order, on the device": lambda device: of(OwnOrder, there(device), device),
    "Batches.__len__, on the device": lambda device: of(OwnLength, there(device), device),
    "Batches.order of an object": lambda device: replaced(
        of(Batches, there(device), device), "order", lambda epoch: np.arange(40)[::-1].copy()
    ),
    "Batches.source": lambda device: in_the_source(of(Batches, FLOATS, device)),
    "Batches.source, on the device": lambda device: in_the_source(of(Batches, there(device), device)),
    "ByteImages.__getitem__": lambda device: of(Batches, Dark(IMAGES), device),
    "ByteImages.__getitem__, on the device": lambda device: of(Batches, Dark(IMAGES, device=device), device),
    "ByteImages.numbers": lambda device: of(Batches, Centred(IMAGES), device),
    "ByteImages.numbers, on the device": lambda device: of(Batches, Centred(IMAGES, device=device), device),
    "ByteImages.numbers of an object": lambda device: (
        lambda images: of(
            Batches, replaced(images, "numbers", lambda part: 0.5 * ByteImages.numbers(images, part)), device, augment=Flip()
        )
    )(ByteImages(IMAGES, device=device)),
    "Crop.apply": lambda device: of(Batches, there(device), device, augment=LeftOut(1)),
    "Crop.apply, composed": lambda device: of(Batches, there(device), device, augment=Compose(Flip(), LeftOut(1))),
    "Compose.staged": lambda device: of(Batches, there(device), device, augment=Twice(Crop(1))),
    "Augmentation.apply": lambda device: of(Batches, FLOATS, device, augment=Own()),
    "ndarray.take": lambda device: of(Batches, FLOATS.view(Negative), device),
    "an array's __getitem__": lambda device: of(Batches, Rows(), device, transform=lambda batch: batch),
}


@pytest.mark.parametrize("case", CASES)
def test_the_override_counts(case):
    run = alike(lambda way: fit(way, CASES[case], shape=(4, 4, 1)))
    plain = fit("cpu", of(Batches, FLOATS, "cpu"), shape=(4, 4, 1))
    assert run.history["loss"] != pytest.approx(plain.history["loss"], rel=1e-4)


def test_a_method_that_is_replaced_in_the_class(monkeypatch):
    apply = Flip.apply
    monkeypatch.setattr(Flip, "apply", lambda self, xp, x, y, rng: (2 * apply(self, xp, x, y, rng)[0], y))
    alike(lambda way: fit(way, lambda device: of(Batches, there(device), device, augment=Flip()), shape=(4, 4, 1)))


@pytest.mark.parametrize("name", ["_train", "_step", "_update", "update", "forward_backward", "measure"])
@pytest.mark.parametrize("where", ["class", "object"])
def test_methods_of_the_loop(name, where):
    def program(way):
        calls: list[int] = []
        call = on_call(calls.append)

        def method(self, *arguments, **keywords):
            call(name)
            return getattr(xn.Trainer, name)(self, *arguments, **keywords)

        kind = type("Own", (xn.Trainer,), {name: method} if where == "class" else {})
        device, capture = WAYS[way]
        model = xn.Sequential([xn.Dense(3)], input_shape=(6,), device=device, seed=3)
        run = kind(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), capture=capture)
        if where == "object":
            setattr(run, name, lambda *arguments, **keywords: method(run, *arguments, **keywords))
        run.fit((FLOATS.reshape(40, -1)[:, :6], IMAGE_LABELS), epochs=2, batch_size=8, verbose=False)
        # What runs within a recorded step is called when it is recorded.
        return len(calls) if name in ("_train", "_step", "_update", "update") else bool(calls)

    assert alike(program)


def test_folders_of_images(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    for i, pixels in enumerate(IMAGES):
        folder = tmp_path / "abc"[int(IMAGE_LABELS[i])]
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(folder / f"{i}.png")

    class Halves(ImageFolder):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x * np.float32(0.5), y

    class Inverse(ImageFolder):
        def read(self, i):
            pixels = super().read(i)
            return dataclasses.replace(pixels, values=255 - pixels.values)

    found = set()
    for kind in (ImageFolder, Halves, Inverse):
        folder = kind(tmp_path, channels=1)
        found.add(tuple(alike(lambda way, data=folder: fit(way, data, shape=(4, 4, 1))).history["loss"]))  # type: ignore[misc]
    assert len(found) == 3
