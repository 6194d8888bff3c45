"""Data that are rewritten in place between two epochs, such as pseudo-labels, are seen by the next one."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from tests.graphs import SCHEDULES, scheduled
from tests.on_cuda.three_ways import IMAGE_LABELS, IMAGES, WAYS, X, Y, alike, fit
from xpnet.backend import Device
from xpnet.data import Batches, ByteImages
from xpnet.data.device_feed import ResidentFeed, choose_feed
from xpnet.training import LambdaCallback

pytestmark = pytest.mark.cuda


ONE_HOT = np.eye(3, dtype=np.float32)[Y]


def table(device, *columns):
    return xn.to_device(np.stack(columns, 1), device)


def normalised(device, images):
    return ByteImages(images, mean=(0.5,), std=(0.3,), device=device)


DATA: dict[str, Any] = {
    "host": lambda device: (X.copy(), Y.copy()),
    "labels on the host": lambda device: (xn.to_device(X.copy(), device), Y.copy()),
    "wide labels on the host": lambda device: (
        xn.to_device(X.copy(), device),
        np.repeat(ONE_HOT, 2, 1)[:, ::2],
    ),
    "a column": lambda device: (xn.to_device(X.copy(), device), table(device, Y, Y)[:, 0]),
    "a slice of x": lambda device: (xn.to_device(np.concatenate([X, X], 1), device)[:, :6], Y.copy()),
    "all on the device": lambda device: (xn.to_device(X.copy(), device), xn.to_device(Y.copy(), device)),
    "bytes": lambda device: (normalised(device, IMAGES.copy()), IMAGE_LABELS.copy()),
    "a slice of bytes": lambda device: (
        normalised(device, xn.to_device(np.concatenate([IMAGES, IMAGES], 1), device)[:, :4]),
        IMAGE_LABELS.copy(),
    ),
    "bytes on the host": lambda device: (normalised("cpu", IMAGES.copy()), IMAGE_LABELS.copy()),
}


def rewrite(x, y):
    """Turn x around, and the labels by one class."""
    x = x.images if isinstance(x, ByteImages) else x
    x[...] = x[:, ::-1].copy()
    if y.ndim == 1:
        y[...] = (y + 1) % 3
    else:
        y[...] = y[:, [2, 0, 1]].copy()


@pytest.mark.parametrize("where", ["between", "at the beginning"])
@pytest.mark.parametrize("kind", DATA)
def test_what_is_rewritten_between_epochs(kind, where):
    def program(way, changed=True):
        x, y = DATA[kind](WAYS[way][0])

        def act(*_):
            if changed:
                rewrite(x, y)

        class Begins(xn.Callback):
            def on_epoch_begin(self, trainer):
                if trainer.epoch:
                    act()

        callback = LambdaCallback(epoch_end=act) if where == "between" else Begins()
        batches = Batches((x, y), 8, device=WAYS[way][0])
        return fit(way, batches, callback, shape=(6,) if len(x.shape) == 2 else (4, 4, 1))

    changing = alike(program)
    assert changing.history["loss"][1:] != program("cpu", changed=False).history["loss"][1:]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_copies_of_an_epoch_are_made_when_the_steps_before_have_read_them(schedule):
    def run(schedule):
        found = []
        x, y = xn.to_device(np.concatenate([X, X], 1), "cuda")[:, :6], Y.copy()

        def change(*_):
            rewrite(x, y)

        with scheduled(schedule):
            run = fit("captured", (x, y), LambdaCallback(epoch_end=change), epochs=4)
            found += [value.tobytes() for value in map(xn.to_numpy, run.model.state().values())]
        return found, run.history["loss"]

    assert run(schedule) == run("eager")


def test_what_is_contiguous_on_the_device_is_not_copied():
    x, y = xn.to_device(X, "cuda"), xn.to_device(Y, "cuda")
    for labels, copies in ((y, 0), (Y, 1)):
        feed: Any = choose_feed(Batches((x, labels), 8, device="cuda"), Device("cuda"), cast(Any, None))
        assert type(feed) is ResidentFeed
        assert feed.data is x
        assert len(feed._copies) == copies
