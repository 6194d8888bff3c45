"""Fits whose recorded steps are fed by data on the device, or ahead of time, end with the bits of plain ones.

No GPU is needed: kernels run on the emulator, graphs and streams are stand-ins that refuse what CUDA refuses.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from tests.cuda_emulator.emulator import emulated_ops
from tests.streams import TwoStreams
from tests.training.test_captured import FakeGraphs, Remote
from xpnet.accel.cupy.optimizers import DeviceSchedule
from xpnet.backend import CPU, Device
from xpnet.compiled.captured_steps import CapturedSteps
from xpnet.data import Batches, ByteImages
from xpnet.data.arrays import Arrays
from xpnet.data.augment import Compose, Crop, Cutout, Flip, Mixup, Normalise, Rescale, Rotation, Shift
from xpnet.data.device_feed import PlainFeed, PrefetchFeed, ResidentFeed, choose_feed, device_feed
from xpnet.inspect.timeline import Timeline
from xpnet.ops import reference_only
from xpnet.training import Checkpoint

pytestmark = pytest.mark.emulator

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (27, 6, 5, 3), dtype=np.uint8)
FLOATS = RNG.standard_normal((27, 6, 5, 3)).astype(np.float32)
Y = RNG.integers(0, 3, 27)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
AUGMENT = Compose(Crop(2), Flip(), Cutout(2, fill=0.1))
NORMALISE = Compose(Rescale(3.0), Shift(1), Normalise(MEAN, STD))
GPU = Device("cuda")


class FeedGraphs(FakeGraphs):
    """Also undoes what a recorded step did to its feed."""

    feed = None

    def _device(self):
        arrays = super()._device()
        for owner in (self.feed, getattr(self.feed, "builder", None)):
            arrays += [a for a in vars(owner or object).values() if isinstance(a, np.ndarray) and a.flags.writeable]
        return arrays


class Fed(CapturedSteps):
    """Captured steps with a feed of the test's own."""

    def __init__(self, trainer, make):
        super().__init__(trainer, FeedGraphs(trainer), lambda values: DeviceSchedule.new(np, values))
        self.make = make

    def fed(self, batches):
        feed = cast(FeedGraphs, self.graphs).feed = self.make(batches)
        for owner in (feed, getattr(feed, "builder", None)):  # what is on the device, the host must not read
            for name, value in vars(owner or object).items():
                if isinstance(value, np.ndarray) and name in ("order", "position", "step", "index", "drawn", "x", "y"):
                    setattr(owner, name, value.view(Remote))
        return feed


def trainer(*callbacks, capture=True):
    layers = [xn.Flatten(), xn.Dense(6, "relu"), xn.BatchNorm(), xn.Dropout(0.3), xn.Dense(3)]
    model = xn.Sequential(layers, input_shape=(6, 5, 3), seed=2)
    return xn.Trainer(
        model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), metrics=["accuracy"], callbacks=callbacks,
        seed=4, capture=capture,
    )  # fmt: skip


def fit(run, data, monkeypatch, make=None, **settings):
    """A fit on the emulator, plain or fed by what `make` makes of the batches; returns the captured steps."""
    fed = None if make is None else Fed(run, make)
    monkeypatch.setattr("xpnet.training.trainer.captured_steps", lambda _: fed)
    if fed is not None:
        monkeypatch.setattr("xpnet.data.device_feed.choose_feed", lambda batches, *_, recorded: fed.fed(batches))
    with emulated_ops() as runtime:
        run.fit(data, verbose=False, **settings)
    return fed, runtime


def fingerprint(run):
    weights = {name: np.asarray(array).tobytes() for name, array in run.model.state().items()}
    return {
        **weights,
        **{name: np.asarray(values).tobytes() for name, values in run.history.items()},
        **run.model.rng_counters(),
    }


def resident(batches):
    feed = choose_feed(batches, CPU, TwoStreams)
    assert isinstance(feed, ResidentFeed)
    return feed


def prefetched(*eager):
    """A feed through streams of which some are eager, for arrays that are in main memory and a model that would not be."""

    def make(batches):
        batches.device = GPU
        feed = choose_feed(batches, GPU, lambda: TwoStreams(*eager, at_once=True))
        assert isinstance(feed, PrefetchFeed)
        batches.device = None
        return feed

    return make


SOURCES = {
    "bytes": lambda: Batches((ByteImages(IMAGES), Y), 8, seed=4),
    "normalised bytes, augmented": lambda: Batches((ByteImages(IMAGES, mean=MEAN, std=STD), Y), 8, seed=4, augment=AUGMENT),
    "floats": lambda: Batches((FLOATS, Y), 8, seed=4),
    "floats, augmented": lambda: Batches((FLOATS, Y), 8, seed=4, augment=AUGMENT),
    "floats, augmented and normalised": lambda: Batches((FLOATS, Y), 8, seed=4, augment=NORMALISE),
    "uint8, augmented and normalised": lambda: Batches((IMAGES, Y), 8, seed=4, augment=NORMALISE),
    "drawn by weight": lambda: Batches(
        (ByteImages(IMAGES), Y), 8, seed=4, weights=1.0 + Y, samples_per_epoch=20, drop_last=True
    ),
    "in order": lambda: Batches((FLOATS, Y), 8, seed=4, shuffle=False),
    "one batch": lambda: Batches((FLOATS, Y), 64, seed=4, augment=AUGMENT),
}


@pytest.mark.parametrize("source", SOURCES)
def test_data_on_the_device(source, monkeypatch):
    plain, run = trainer(), trainer()
    fit(plain, SOURCES[source](), monkeypatch, epochs=3)
    fed, runtime = fit(run, SOURCES[source](), monkeypatch, resident, epochs=3)
    assert fingerprint(run) == fingerprint(plain)
    # Every batch size is recorded at its second time; a recorded step takes no array from the host.
    sizes = {len(x) for x, _ in SOURCES[source]().epoch(0)}
    assert fed.graphs.recorded == len(sizes)
    assert fed.graphs.replayed == run.iteration - len(sizes)
    steps = run.iteration + fed.graphs.recorded  # recording runs the kernels of the stand-in, too
    assert sum(name.startswith("gather<") for name in runtime.launches) == steps
    assert sum(name.startswith("select<") for name in runtime.launches) == steps


@pytest.mark.parametrize(
    ("source", "eager"), [*((source, ("copies",)) for source in SOURCES), ("normalised bytes, augmented", ())]
)
def test_data_that_are_brought_there_ahead_of_time(source, eager, monkeypatch):
    plain, run = trainer(), trainer()
    fit(plain, SOURCES[source](), monkeypatch, epochs=2)
    fed, _ = fit(run, SOURCES[source](), monkeypatch, prefetched(*eager), epochs=2)
    assert fingerprint(run) == fingerprint(plain)
    assert fed.graphs.replayed > 0


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
    batches = Batches((ByteImages(IMAGES), labels), 8, seed=4)
    feed = resident(batches)
    with emulated_ops():
        for (x, y), (u, v) in zip(feed.epoch(3), batches.epoch(3), strict=True):
            feed.prepare(size=len(x))
            assert y.dtype == v.dtype
            np.testing.assert_array_equal(y, v)
            np.testing.assert_array_equal(x, u)


class Folder:
    """A sequence of examples."""

    def __len__(self):
        return len(Y)

    def __getitem__(self, i):
        return FLOATS[i], Y[i]


def stream(epoch):
    for begin in range(0, 24, 8):
        yield np.roll(FLOATS, epoch, 0)[begin : begin + 8], Y[begin : begin + 8]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Batches(Folder(), 8, seed=4),
        lambda: Batches(Folder(), 8, seed=4, workers=2),
        lambda: Batches(stream, None, seed=4),
        lambda: Batches(stream, None, seed=4, workers=1),
        lambda: Batches((FLOATS, Y), 8, seed=4, transform=lambda batch: (2 * batch[0], batch[1]), workers=2),
    ],
)
def test_loaders(make, monkeypatch):
    plain, run = trainer(), trainer()
    fit(plain, make(), monkeypatch, epochs=2)
    fit(run, make(), monkeypatch, prefetched("copies"), epochs=2)
    assert fingerprint(run) == fingerprint(plain)


def test_a_file_larger_than_memory_would_be(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", FLOATS)
    plain, run = trainer(), trainer()
    for augment in (None, AUGMENT, Rotation(5.0)):
        fit(plain, Batches((FLOATS, Y), 8, augment=augment), monkeypatch)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        if type(augment) is Rotation:  # what no program expresses runs between copy and step
            batches = Batches((mapped, Y), 8)
            batches._device_augment = augment
        else:
            batches = Batches((mapped, Y), 8, augment=augment)
        fit(run, batches, monkeypatch, prefetched("copies"))
        assert fingerprint(run) == fingerprint(plain)


class StopsAt(xn.Callback):
    def __init__(self, iteration):
        self.iteration = iteration

    def on_step_end(self, trainer):
        trainer.stop = trainer.stop or trainer.iteration == self.iteration


@pytest.mark.parametrize("make", [resident, prefetched("copies")], ids=["resident", "prefetched"])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(make, monkeypatch, tmp_path):
    plain = trainer()
    fit(plain, SOURCES["normalised bytes, augmented"](), monkeypatch, epochs=4)
    folder = tmp_path / "run"
    for stop in (6, 11, -1):  # within the second and the third epoch
        run = trainer(StopsAt(stop), Checkpoint(folder, every_steps=1))
        fit(run, SOURCES["normalised bytes, augmented"](), monkeypatch, make, epochs=4, resume="auto")
        assert run.iteration == (stop if stop > 0 else plain.iteration)
    assert fingerprint(run) == fingerprint(plain)


@pytest.mark.parametrize("make", [resident, prefetched()], ids=["resident", "prefetched"])
def test_a_number_in_the_data_that_is_not_finite_is_found(make, monkeypatch):
    x = FLOATS.copy()
    x[7, 2, 2] = np.nan
    with pytest.raises(xn.training.NotFiniteError, match="the batch itself"):
        fit(trainer(), Batches((x, Y), 64, seed=4), monkeypatch, make, epochs=3)


def test_an_interrupt_ends_the_thread(monkeypatch):
    import threading

    class Interrupts(xn.Callback):
        def on_step_end(self, trainer):
            if trainer.iteration == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(trainer(Interrupts()), SOURCES["floats"](), monkeypatch, prefetched("copies"), epochs=3)
    assert not [t for t in threading.enumerate() if t.name.startswith("xpnet-data")]


def test_on_a_cpu_the_batches_are_the_feed():
    batches = SOURCES["floats"]()
    with device_feed(batches, CPU) as source:
        assert source is batches


def test_recorded_steps_have_a_feed_within_the_block():
    class Steps:
        feed = None

    steps = Steps()

    def run():
        with device_feed(SOURCES["floats"](), CPU, steps) as source:
            assert isinstance(source, ResidentFeed)
            assert steps.feed is source
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert steps.feed is None


def test_which_feed():
    def kind(batches, device=CPU):
        return type(choose_feed(batches, device, TwoStreams))

    on_gpu: dict[str, Any] = {"device": GPU}
    assert kind(Batches((FLOATS, Y), 8, augment=AUGMENT)) is ResidentFeed
    assert kind(Batches((FLOATS, Y), 8, augment=Mixup(classes=3))) is PlainFeed  # no program for it, and nothing to copy
    assert kind(Batches((IMAGES, Y), 8)) is PlainFeed  # bytes that stay bytes
    assert kind(Batches((FLOATS, FLOATS), 8, transform=lambda batch: batch)) is PlainFeed
    assert kind(Batches(((FLOATS, FLOATS), Y), 8)) is PlainFeed
    assert kind(Batches((FLOATS, Y), 8), GPU) is PlainFeed  # the caller's batches are not for the GPU: the model says so
    with reference_only():
        assert kind(Batches((FLOATS, Y), 8)) is PlainFeed
    assert kind(Batches((FLOATS, Y), 8, **on_gpu), GPU) is PrefetchFeed
    assert kind(Batches(Folder(), 8, **on_gpu), GPU) is PrefetchFeed
    late: Any = choose_feed(Batches((FLOATS, Y), 8, augment=Mixup(classes=3), **on_gpu), GPU, TwoStreams)
    assert late.builder is None
    within: Any = choose_feed(Batches((ByteImages(IMAGES), Y), 8, augment=AUGMENT, **on_gpu), GPU, TwoStreams)
    assert within.builder is not None
    assert isinstance(within.raw, Arrays)  # bytes travel as bytes
    # Labels move to data on the device, unless they are larger than these.
    labels = np.zeros((27, 1000))
    assert kind(Batches((FLOATS, labels), 8)) is ResidentFeed


@pytest.mark.parametrize("source", ["bytes", "normalised bytes, augmented", "floats, augmented"])
def test_steps_that_are_not_recorded_get_whole_batches_ahead_of_time(source):
    batches = SOURCES[source]()
    assert type(choose_feed(batches, CPU, TwoStreams, recorded=False)) is PlainFeed
    expected = [(x.copy(), y.copy()) for x, y in batches.epoch(1, 2)]
    ahead = SOURCES[source]()
    ahead.device, ahead._device_augment, ahead._finishes = GPU, ahead.augment, False  # as Batches(device="cuda") does
    feed = choose_feed(ahead, GPU, lambda: TwoStreams("copies", at_once=True), recorded=False)
    assert isinstance(feed, PrefetchFeed)
    for (x, y), (u, v) in zip(feed.epoch(1, 2), expected, strict=True):
        np.testing.assert_array_equal(x, u)
        np.testing.assert_array_equal(y, v)
    feed.close()


def test_bytes_travel_as_bytes():
    streams = TwoStreams("copies")
    batches = Batches((ByteImages(IMAGES), Y), 8, device=GPU)
    feed = choose_feed(batches, GPU, lambda: streams)
    for _ in feed.epoch(0):
        x, _ = feed.inputs
        assert x.dtype == np.uint8
    feed.close()


def test_a_timeline_of_a_fit(monkeypatch):
    with Timeline() as line:
        fit(trainer(), SOURCES["floats"](), monkeypatch, prefetched("copies"), epochs=2)
    count = 2 * 4
    assert [len(line.lane(lane)) for lane in ("computation", "copies", "loading", "waiting")] == [count] * 4
    monkeypatch.undo()
    with Timeline() as line:  # and on a CPU, where nothing is copied
        trainer().fit((FLOATS, Y), batch_size=8, verbose=False)
    assert {span.lane for span in line.spans} == {"computation", "waiting"}
