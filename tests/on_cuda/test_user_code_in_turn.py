"""Without workers a user's code that makes batches runs when it does on a CPU: after the step before, and its callbacks."""

from __future__ import annotations

import itertools
import queue
import threading
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.three_ways import IMAGE_LABELS, IMAGES, WAYS, X, Y, alike, fit
from xpnet.data import Batches, ByteImages, SkipExample
from xpnet.data.augment import Augmentation
from xpnet.training import LambdaCallback

pytestmark = pytest.mark.cuda
PARTS = [slice(start, start + 8) for start in range(0, 40, 8)]


class Log:
    """What happens, in order, with the name of the thread."""

    def __init__(self):
        self.events: list[Any] = []

    def __call__(self, what):
        self.events.append((what, threading.current_thread() is threading.main_thread()))


class Steps(xn.Callback):
    def __init__(self, log):
        self.log = log

    def on_step_end(self, trainer):
        self.log("step")

    def on_checkpoint(self, trainer, epoch_ended):
        self.log("epoch" if epoch_ended else "point")


def generator(log, device):
    def batches():
        for part in PARTS:
            log("batch")
            yield X[part], Y[part]
        log("end")

    return batches


def of_epochs(log, device):
    def batches(epoch):
        log(epoch)
        yield from generator(log, device)()

    return Batches(batches, None, device=device)


def on_the_device(log, device):
    return lambda: ((xn.to_device(x, device), xn.to_device(y, device)) for x, y in generator(log, device)())


def iterable(log, device):
    class Loader:
        def __iter__(self):
            return generator(log, device)()

    return Loader()


def items(log, device):
    class Items:
        def __len__(self):
            return 40

        def __getitem__(self, i):
            log(i)
            if i == 5:
                raise SkipExample("five", "it is five")
            return X[i], Y[i]

    return Items()


def examples(log, device):
    return Batches(lambda: ((log("example"), (X[i], Y[i]))[1] for i in range(40)), 8, buffer=10, device=device)


def transform(log, device):
    def double(batch):
        log("transform")
        return 2 * batch[0], batch[1]

    return Batches((X, Y), 8, transform=double, device=device)


def transform_there(log, device):
    def double(batch):
        log("transform")
        return 2 * batch[0], batch[1]

    return Batches((xn.to_device(X, device), xn.to_device(Y, device)), 8, transform=double, device=device)


def augmentation(log, device):
    class Own(Augmentation):
        def apply(self, xp, x, y, rng):
            log("augment")
            return x * float(rng.random()), y

    return Batches((X, Y), 8, augment=Own(), device=device)


def array(log, device):
    class Rows:
        shape, dtype = X.shape, X.dtype

        def __getitem__(self, index):
            log("rows")
            return X[index]

    return Batches((Rows(), Y), 8, device=device)


def own_batches(log, device):
    class Own(Batches):
        def epoch(self, epoch, start=0):
            for batch in super().epoch(epoch, start):
                log("own")
                yield batch

    return Own((X, Y), 8, device=device)


def byte_images(log, device):
    class Own(ByteImages):
        def __getitem__(self, index):
            log("bytes")
            return super().__getitem__(index)

    return Batches((Own(IMAGES), IMAGE_LABELS), 8, device=device)


FORMS = [generator, of_epochs, on_the_device, iterable, items, examples, transform, transform_there, augmentation, array,
         own_batches, byte_images]  # fmt: skip


@pytest.mark.filterwarnings("ignore:left out five")
@pytest.mark.parametrize("validates", [False, True])
@pytest.mark.parametrize("make", FORMS)
def test_every_batch_is_made_after_the_step_before(make, validates):
    def program(way):
        log, device = Log(), WAYS[way][0]
        shape = (4, 4, 1) if make is byte_images else (6,)
        model = xn.Sequential([xn.Flatten(), xn.Dense(3)], input_shape=shape, device=device, seed=3)
        run = xn.Trainer(
            model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), capture=WAYS[way][1], callbacks=[Steps(log)]
        )
        run.fit(make(log, device), validation=make(log, device) if validates else None, epochs=2, batch_size=8, verbose=False)
        return log.events

    events = alike(program)
    assert all(in_main for _, in_main in events)
    assert sum(what == "step" for what, _ in events) == 10


def test_with_workers_batches_are_made_ahead_in_threads():
    for way in WAYS:
        log = Log()
        data = transform(log, WAYS[way][0])
        threaded = Batches((X, Y), 8, transform=data.transform, device=WAYS[way][0], workers=1)
        fit(way, threaded, Steps(log))
        assert [in_main for what, in_main in log.events if what == "transform"] == [False] * 15


def test_a_stream_that_is_stopped_loses_no_batch():
    def program(way):
        stream = iter([(X[part], Y[part]) for part in PARTS])
        stop = LambdaCallback(step_end=lambda trainer: setattr(trainer, "stop", trainer.iteration == 2))
        fit(way, lambda device: lambda: stream, stop, epochs=1)
        return len(list(stream))

    assert alike(program) == 3


def test_an_environment_that_waits_for_the_step():
    def program(way):
        waiting: Any = queue.Queue()
        waiting.put(0)

        def batches():
            for _ in range(6):
                i = waiting.get(timeout=5)
                yield X[i : i + 8], Y[i : i + 8]

        act = LambdaCallback(step_end=lambda trainer: waiting.put(trainer.iteration))
        return fit(way, lambda device: batches, act, epochs=1)

    alike(program)


def test_targets_that_the_model_makes():
    def program(way):
        device, capture = WAYS[way]
        model = xn.Sequential([xn.Dense(2)], input_shape=(6,), device=device, seed=3)

        def batches():
            for part in PARTS:
                yield X[part], X[part, :2] + 0.9 * xn.to_numpy(model.predict(xn.to_device(X[part], device)))

        run = xn.Trainer(model, loss="mean_squared_error", optimizer=xn.optim.SGD(0.1), capture=capture)
        run.fit(batches, epochs=2, verbose=False)
        return run

    alike(program)


def test_a_transform_that_a_callback_changes():
    def program(way):
        strength = [0.0]

        def change(trainer):
            strength[0] += 0.2

        data = Batches((X, Y), 8, transform=lambda batch: ((batch[0] * (1 + strength[0])).astype(np.float32), batch[1]),
                       device=WAYS[way][0])  # fmt: skip
        return fit(way, data, LambdaCallback(step_end=change))

    alike(program)


def test_the_end_of_a_stream_that_never_ends():
    """A function that counts forever is stopped by the callback, and asked for no more."""

    def program(way):
        asked = []

        def batches():
            for i in itertools.count():
                asked.append(i)
                yield X[:8], Y[:8]

        stop = LambdaCallback(step_end=lambda trainer: setattr(trainer, "stop", trainer.iteration == 7))
        fit(way, lambda device: batches, stop)
        return len(asked)

    assert alike(program) == 7
