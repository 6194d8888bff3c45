"""Fits whose recorded steps are fed by data on the device, or ahead of time, end with the bits of plain ones.

Plain steps run launch by launch on batches that the host made and moved one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.graphs import SCHEDULES, count_graphs, logged, scheduled
from xpnet.backend import CPU, Device
from xpnet.data import Batches, ByteImages
from xpnet.data.arrays import Arrays
from xpnet.data.augment import Compose, Crop, Cutout, Flip, Mixup, Normalise, Rescale, Rotation, Shift
from xpnet.data.device_feed import PlainFeed, PrefetchFeed, ResidentFeed, choose_feed, device_feed
from xpnet.inspect.timeline import Timeline
from xpnet.ops import reference_only
from xpnet.training import Checkpoint
from xpnet.training.trainer import captured_steps

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (27, 6, 5, 3), dtype=np.uint8)
FLOATS = RNG.standard_normal((27, 6, 5, 3)).astype(np.float32)
Y = RNG.integers(0, 3, 27)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
AUGMENT = Compose(Crop(2), Flip(), Cutout(2, fill=0.1))
NORMALISE = Compose(Rescale(3.0), Shift(1), Normalise(MEAN, STD))
GPU = Device("cuda")


class HostFeed(PlainFeed):
    """Moves the batches of the loader one by one."""

    def epoch(self, epoch, start=0):
        for x, y in super().epoch(epoch, start):
            yield xn.to_device(x, GPU), xn.to_device(y, GPU)


def trainer(*callbacks, capture=True, device="cuda"):
    layers = [xn.Flatten(), xn.Dense(6, "relu"), xn.BatchNorm(), xn.Dropout(0.3), xn.Dense(3)]
    model = xn.Sequential(layers, input_shape=(6, 5, 3), seed=2, device=device)
    return xn.Trainer(
        model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), metrics=["accuracy"], callbacks=callbacks,
        seed=4, capture=capture,
    )  # fmt: skip


def fit_plain(data, epochs):
    """Train a network on batches of the host, launch by launch."""
    run = trainer(capture=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xpnet.data.device_feed.choose_feed", lambda batches, *_, recorded: HostFeed(batches))
        run.fit(data, verbose=False, epochs=epochs)
    return run


def fit(run, data, kind, **settings):
    """Train by recorded steps, fed by a feed of a kind; return the graphs, and the log of launches."""
    made: list[Any] = []

    def counted(trainer):
        steps = captured_steps(trainer)
        made.append(count_graphs(steps))
        return steps

    def chosen(*arguments, **keywords):
        made.append(choose_feed(*arguments, **keywords))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch, logged() as log:
        patch.setattr("xpnet.training.trainer.captured_steps", counted)
        patch.setattr("xpnet.data.device_feed.choose_feed", chosen)
        run.fit(data, verbose=False, **settings)
    graphs, feed = made
    assert type(feed) is kind
    return graphs, log


def fingerprint(run):
    weights = {name: xn.to_numpy(array).tobytes() for name, array in run.model.state().items()}
    return {
        **weights,
        **{name: np.asarray(values).tobytes() for name, values in run.history.items()},
        **run.model.rng_counters(),
    }


def pixels(where, **settings):
    return ByteImages(IMAGES, device=where, **settings)


def floats(where):
    return xn.to_device(FLOATS, where)


# Batches of data on a device ("cpu", "cuda"), with settings.
SOURCES = {
    "bytes": lambda where, **to: Batches((pixels(where), Y), 8, seed=4, **to),
    "normalised bytes, augmented": lambda where, **to: Batches(
        (pixels(where, mean=MEAN, std=STD), Y), 8, seed=4, augment=AUGMENT, **to
    ),
    "floats": lambda where, **to: Batches((floats(where), Y), 8, seed=4, **to),
    "floats, augmented": lambda where, **to: Batches((floats(where), Y), 8, seed=4, augment=AUGMENT, **to),
    "floats, augmented and normalised": lambda where, **to: Batches((floats(where), Y), 8, seed=4, augment=NORMALISE, **to),
    "uint8, augmented and normalised": lambda where, **to: Batches(
        (xn.to_device(IMAGES, where), Y), 8, seed=4, augment=NORMALISE, **to
    ),
    "drawn by weight": lambda where, **to: Batches(
        (pixels(where), Y), 8, seed=4, weights=1.0 + Y, samples_per_epoch=20, drop_last=True, **to
    ),
    "in order": lambda where, **to: Batches((floats(where), Y), 8, seed=4, shuffle=False, **to),
    "one batch": lambda where, **to: Batches((floats(where), Y), 64, seed=4, augment=AUGMENT, **to),
}


def of_host(source):
    return SOURCES[source]("cpu")


def resident(source):
    return SOURCES[source]("cuda", device="cuda")


def prefetched(source):
    return SOURCES[source]("cpu", device="cuda")


FEEDS = {"resident": (resident, ResidentFeed), "prefetched": (prefetched, PrefetchFeed)}


@pytest.mark.cuda
@pytest.mark.parametrize("source", SOURCES)
def test_data_on_the_device(source):
    plain, run = fit_plain(of_host(source), 3), trainer()
    graphs, log = fit(run, resident(source), ResidentFeed, epochs=3)
    assert fingerprint(run) == fingerprint(plain)
    # Every batch size is recorded at its second time; a recorded step takes no array from the host.
    sizes = {len(x) for x, _ in of_host(source).epoch(0)}
    assert graphs.recorded == len(sizes)
    assert graphs.replayed == run.iteration - len(sizes)
    launched = 2 * len(sizes)  # by the host: at the first step of a size, and in its recording
    assert sum(name.startswith("gather<") for name in log.launches) == launched
    drawn = "augmented" in source or source == "one batch"  # else the examples are selected and gathered in one launch
    assert sum(name.startswith("select<") for name in log.launches) == launched * drawn


@pytest.mark.cuda
@pytest.mark.parametrize("schedule", SCHEDULES[1:])
@pytest.mark.parametrize("feed", FEEDS)
def test_feeds_wait_for_what_they_use(feed, schedule):
    make, kind = FEEDS[feed]
    source = "normalised bytes, augmented"
    plain, run = fit_plain(of_host(source), 2), trainer()
    with scheduled(schedule):
        fit(run, make(source), kind, epochs=2)
        assert fingerprint(run) == fingerprint(plain)


@pytest.mark.cuda
@pytest.mark.parametrize("source", SOURCES)
def test_data_that_are_brought_there_ahead_of_time(source):
    plain, run = fit_plain(of_host(source), 2), trainer()
    graphs, _ = fit(run, prefetched(source), PrefetchFeed, epochs=2)
    assert fingerprint(run) == fingerprint(plain)
    assert graphs.recorded > 0
    assert graphs.replayed == run.iteration - len({len(x) for x, _ in of_host(source).epoch(0)})


@pytest.mark.cuda
@pytest.mark.parametrize(
    "labels",
    [
        Y,
        Y.astype(np.int32),
        Y.astype(np.uint8),
        np.eye(3)[Y],
        np.eye(3, dtype=np.float32)[Y][:, ::-1],
        np.tile(np.eye(3)[Y], 9),
    ],
    ids=lambda y: f"{y.dtype}{y.shape[1:]}",
)
def test_labels_of_every_form(labels):
    there = xn.to_device(labels[:, ::-1], GPU)[:, ::-1] if labels.strides[-1] < 0 else xn.to_device(labels, GPU)
    batches = Batches((pixels("cuda"), there), 8, seed=4, device="cuda")
    feed: Any = choose_feed(batches, GPU, no_transfers)
    assert type(feed) is ResidentFeed
    expected = Batches((pixels("cpu"), labels), 8, seed=4)
    for (x, y), (u, v) in zip(feed.epoch(3), expected.epoch(3), strict=True):
        feed.prepare(size=len(x))
        assert y.dtype == v.dtype
        np.testing.assert_array_equal(xn.to_numpy(y), v)
        np.testing.assert_array_equal(xn.to_numpy(x), u)


def no_transfers():
    raise AssertionError("nothing has to be copied")


class Folder:
    """A sequence of examples."""

    def __len__(self):
        return len(Y)

    def __getitem__(self, i):
        return FLOATS[i], Y[i]


def stream(epoch):
    for begin in range(0, 24, 8):
        yield np.roll(FLOATS, epoch, 0)[begin : begin + 8], Y[begin : begin + 8]


def doubled(batch):
    return 2 * batch[0], batch[1]


@pytest.mark.cuda
@pytest.mark.parametrize(
    "make",
    [
        lambda **to: Batches(Folder(), 8, seed=4, **to),
        lambda **to: Batches(Folder(), 8, seed=4, workers=2, **to),
        lambda **to: Batches(stream, None, seed=4, **to),
        lambda **to: Batches(stream, None, seed=4, workers=1, **to),
        lambda **to: Batches((FLOATS, Y), 8, seed=4, transform=doubled, workers=2, **to),
    ],
    ids=["folder", "folder, workers", "stream", "stream, worker", "transform, workers"],
)
def test_loaders(make):
    run = trainer()
    fit(run, make(device="cuda"), PrefetchFeed, epochs=2)
    assert fingerprint(run) == fingerprint(fit_plain(make(), 2))


@pytest.mark.cuda
@pytest.mark.parametrize("augment", [None, AUGMENT, Rotation(5.0)], ids=["plain", "program", "between copy and step"])
def test_a_file_larger_than_memory_would_be(tmp_path, augment):
    np.save(tmp_path / "x.npy", FLOATS)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    run = trainer()
    fit(run, Batches((mapped, Y), 8, augment=augment, device="cuda"), PrefetchFeed, epochs=3)
    # What no program expresses runs on the device, whose cosine may differ from the host's in the last bit.
    place: dict[str, Any] = {"device": "cuda"} if type(augment) is Rotation else {}
    assert fingerprint(run) == fingerprint(fit_plain(Batches((FLOATS, Y), 8, augment=augment, **place), 3))


class StopsAt(xn.Callback):
    def __init__(self, iteration):
        self.iteration = iteration

    def on_step_end(self, trainer):
        trainer.stop = trainer.stop or trainer.iteration == self.iteration


@pytest.mark.cuda
@pytest.mark.parametrize("feed", FEEDS)
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(feed, tmp_path):
    make, kind = FEEDS[feed]
    plain = fit_plain(of_host("normalised bytes, augmented"), 4)
    folder = tmp_path / "run"
    for stop in (6, 11, -1):  # within the second and the third epoch
        run = trainer(StopsAt(stop), Checkpoint(folder, every_steps=1))
        fit(run, make("normalised bytes, augmented"), kind, epochs=4, resume="auto")
        assert run.iteration == (stop if stop > 0 else plain.iteration)
    assert fingerprint(run) == fingerprint(plain)


@pytest.mark.cuda
@pytest.mark.parametrize(("where", "kind"), [("cuda", ResidentFeed), ("cpu", PrefetchFeed)], ids=["resident", "prefetched"])
def test_a_number_in_the_data_that_is_not_finite_is_found(where, kind):
    x = FLOATS.copy()
    x[7, 2, 2] = np.nan
    batches = Batches((xn.to_device(x, where), Y), 64, seed=4, device="cuda")
    with pytest.raises(xn.training.NotFiniteError, match=r"the inputs hold NaN|not finite, the first in example 7"):
        fit(trainer(), batches, kind, epochs=3)


@pytest.mark.cuda
def test_an_interrupt_ends_the_thread():
    import threading

    class Interrupts(xn.Callback):
        def on_step_end(self, trainer):
            if trainer.iteration == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(trainer(Interrupts()), prefetched("floats"), PrefetchFeed, epochs=3)
    assert not [t for t in threading.enumerate() if t.name.startswith("xpnet-data")]


def test_on_a_cpu_the_batches_are_the_feed():
    batches = of_host("floats")
    with device_feed(batches, CPU) as source:
        assert source is batches


@pytest.mark.cuda
def test_recorded_steps_have_a_feed_within_the_block():
    class Steps:
        feed = None

    steps = Steps()

    def run():
        with device_feed(resident("floats"), GPU, steps) as source:
            assert isinstance(source, ResidentFeed)
            assert steps.feed is source
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert steps.feed is None


@pytest.mark.cuda
def test_which_feed():
    from xpnet.accel.cupy.transfers import CudaTransfers

    def chosen(batches) -> Any:
        return choose_feed(batches, GPU, lambda: CudaTransfers(GPU))

    def kind(batches):
        return type(chosen(batches))

    there: dict[str, Any] = {"device": GPU}
    x = floats("cuda")
    assert kind(Batches((x, Y), 8, augment=AUGMENT, **there)) is ResidentFeed
    # No program for it, and nothing to copy.
    assert kind(Batches((x, Y), 8, augment=Mixup(classes=3), **there)) is PlainFeed
    assert kind(Batches((xn.to_device(IMAGES, GPU), Y), 8, **there)) is PlainFeed  # bytes that stay bytes
    assert kind(Batches((x, x), 8, transform=lambda batch: batch, **there)) is PlainFeed
    assert kind(Batches(((x, x), Y), 8, **there)) is PlainFeed
    assert kind(Batches((FLOATS, Y), 8)) is PlainFeed  # the caller's batches are not for the GPU: the model says so
    with reference_only():
        assert kind(Batches((x, Y), 8, **there)) is PlainFeed
    assert kind(Batches((FLOATS, Y), 8, **there)) is PrefetchFeed
    assert kind(Batches(Folder(), 8, **there)) is PrefetchFeed
    late = chosen(Batches((FLOATS, Y), 8, augment=Mixup(classes=3), **there))
    assert type(late) is PrefetchFeed
    assert late.builder is None
    within = chosen(Batches((ByteImages(IMAGES), Y), 8, augment=AUGMENT, **there))
    assert type(within) is PrefetchFeed
    assert within.builder is not None
    assert isinstance(within.raw, Arrays)  # bytes travel as bytes
    # Labels move to data on the device, unless they are larger than these.
    assert kind(Batches((x, np.zeros((27, 45))), 8, **there)) is ResidentFeed
    assert kind(Batches((x, np.zeros((27, 46))), 8, **there)) is PlainFeed
    assert kind(Batches((x, xn.to_device(np.zeros((27, 1000)), GPU)), 8)) is ResidentFeed


@pytest.mark.cuda
@pytest.mark.parametrize("source", ["bytes", "normalised bytes, augmented", "floats, augmented"])
def test_steps_that_are_not_recorded_get_whole_batches_ahead_of_time(source):
    assert type(choose_feed(resident(source), GPU, no_transfers, recorded=False)) is PlainFeed
    run = trainer(capture=False)
    run.fit(prefetched(source), epochs=2, verbose=False)
    assert fingerprint(run) == fingerprint(fit_plain(of_host(source), 2))
    expected = list(of_host(source).epoch(1, 2))
    with device_feed(prefetched(source), GPU) as feed:
        assert isinstance(feed, PrefetchFeed)
        for (x, y), (u, v) in zip(feed.epoch(1, 2), expected, strict=True):
            np.testing.assert_array_equal(xn.to_numpy(x), u)
            np.testing.assert_array_equal(xn.to_numpy(y), v)


@pytest.mark.cuda
def test_bytes_travel_as_bytes():
    class Steps:
        feed: Any = None

    steps = Steps()
    with device_feed(prefetched("bytes"), GPU, steps) as feed:
        for _ in feed.epoch(0):
            x, _ = steps.feed.inputs
            assert x.dtype == np.uint8


@pytest.mark.cuda
def test_a_timeline_of_a_fit():
    with Timeline() as line:
        fit(trainer(), prefetched("floats"), PrefetchFeed, epochs=2)
    count = 2 * 4
    assert [len(line.lane(lane)) for lane in ("computation", "copies", "loading", "waiting")] == [count] * 4
    with Timeline() as line:  # and on a CPU, where nothing is copied
        trainer(device="cpu").fit((FLOATS, Y), batch_size=8, verbose=False)
    assert {span.lane for span in line.spans} == {"computation", "waiting"}
