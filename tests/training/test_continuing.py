"""An epoch that was cut short is continued on the same data in the same batches only; on others a new epoch begins."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.training import Checkpoint, LambdaCallback, load_checkpoint, save_checkpoint

X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def trainer(*callbacks: xn.Callback, stop_at: int = -1, **settings: Any) -> xn.Trainer:
    model = xn.Sequential([xn.Dense(4), xn.Dropout(0.5), xn.Dense(2)], input_shape=(5,), seed=1)
    stop = LambdaCallback(step_end=lambda t: setattr(t, "stop", t.iteration == stop_at))
    return xn.Trainer(
        model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), callbacks=[*callbacks, stop], seed=3, **settings
    )


def bits(run: xn.Trainer) -> Any:
    return (
        [xn.to_numpy(a).tobytes() for a in run.model.state().values()],
        dict(run.history),
        run.iteration,
        run.epoch,
        run.pending,
    )


class Sequence:
    """A user's sequence of examples, without a list of files."""

    def __init__(self, n=40):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return X[i], int(Y[i])


def stream():
    return ((X[k : k + 8], Y[k : k + 8]) for k in range(0, 40, 8))


LIST = [(X[k : k + 8], Y[k : k + 8]) for k in range(0, 40, 8)]
SEQUENCE = Sequence()
BATCHES = xn.data.Batches((X, Y), 8, seed=3)

SAME: dict[str, Any] = {
    "the same arrays": ((X, Y), (X, Y)),
    "copies": ((X, Y), (X.copy(), Y.copy())),
    "views": ((X[:40], Y[:40]), (X[:40], Y[:40])),
    "batches": (BATCHES, BATCHES),
    "a function": (stream, stream),
    "a list of batches": (LIST, LIST),
    "a sequence": (SEQUENCE, SEQUENCE),
    "a list of examples": (xn.data.Batches(list(zip(X, Y)), 8, seed=3), xn.data.Batches(list(zip(X, Y)), 8, seed=3)),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("which", SAME)
def test_the_same_data_go_on_where_they_were(which, accumulate):
    first, second = SAME[which]
    run = trainer(stop_at=7, accumulate=accumulate)
    run.fit(first, epochs=3, batch_size=8, verbose=False)
    assert (run.epoch, run.batch) == (1, 2)
    run.fit(second, epochs=2, batch_size=8, verbose=False)
    whole = trainer(accumulate=accumulate)
    whole.fit(first, epochs=3, batch_size=8, verbose=False)
    assert bits(run) == bits(whole)


other = Y.copy()
other[17] = 1 - other[17]
OTHERS: dict[str, Any] = {
    "fewer examples": ((X, Y), (X[:24], Y[:24]), {}),
    "other values": ((X, Y), (X + 1, Y), {}),
    "another label": ((X, Y), (X, other), {}),
    "another batch size": ((X, Y), (X, Y), {"batch_size": 5}),
    "not shuffled": ((X, Y), (X, Y), {"shuffle": False}),
    "another function": (stream, lambda: iter(LIST), {}),
    "another list": (LIST, [(x + 1, y) for x, y in LIST], {}),
    "another sequence": (Sequence(), Sequence(), {}),
    "weighted": ((X, Y), xn.data.Batches((X, Y), 8, seed=3, weights=np.arange(1.0, 41.0)), {}),
    "a transform": ((X, Y), xn.data.Batches((X, Y), 8, seed=3, transform=lambda batch: batch), {}),
    "arrays after a stream": (stream, (X, Y), {}),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("which", OTHERS)
def test_other_data_begin_a_new_epoch(which, accumulate):
    first, second, settings = OTHERS[which]
    settings = {"batch_size": 8, "verbose": False, **settings}
    run = trainer(stop_at=8 if accumulate == 1 else 7, accumulate=accumulate)
    run.fit(first, epochs=3, batch_size=8, verbose=False)
    done = run.iteration
    epochs = run.history.epochs
    updates = run.optimizer.iterations
    before = bits(run)[0]
    assert run.pending == (0 if accumulate == 1 else 1) * (run.batch % 2)
    seen = []
    run.callbacks.append(LambdaCallback(step_end=lambda t: seen.append(t.batch)))
    run.fit(second, epochs=1, **settings)
    assert seen == list(range(1, len(seen) + 1))
    assert run.iteration == done + len(seen)
    assert (run.history.epochs, run.batch, run.pending) == (epochs + 1, 0, 0)
    assert run.optimizer.iterations == updates + -(-len(seen) // accumulate)
    assert bits(run)[0] != before


@pytest.mark.parametrize("how", ["in fit", "before"])
def test_a_checkpoint_knows_its_data(how, tmp_path):
    path = tmp_path / "a.ckpt"
    run = trainer(stop_at=7)
    run.fit((X, Y), epochs=3, batch_size=8, verbose=False)
    save_checkpoint(run, path)
    whole = trainer()
    whole.fit((X, Y), epochs=3, batch_size=8, verbose=False)

    def resume(data, **settings):
        again = trainer()
        epochs = 3
        if how == "before":
            load_checkpoint(again, path)
            settings["resume"], epochs = None, 2
        again.fit(data, epochs=epochs, verbose=False, **{"batch_size": 8, "resume": path, **settings})
        return again

    assert bits(resume((X.copy(), Y.copy()))) == bits(whole)
    for data, settings, says in (
        ((X, other), {}, "other content"),
        ((X[:24], Y[:24]), {}, "examples was 40, is 24"),
        ((X, Y), {"batch_size": 5}, "batch_size was 8, is 5"),
    ):
        if how == "in fit":
            with pytest.warns(RuntimeWarning, match=rf"within epoch 2, on other data or in other batches \({says}\)"):
                again = resume(data, **settings)
        else:
            again = resume(data, **settings)
        batches = -(-len(data[0]) // settings.get("batch_size", 8))
        assert again.iteration == 7 + 2 * batches


def test_a_checkpoint_between_two_epochs_goes_with_any_data(tmp_path):
    keep = Checkpoint(tmp_path)
    trainer(keep).fit((X, Y), epochs=1, batch_size=8, verbose=False)
    again = trainer(Checkpoint(tmp_path))
    again.fit((X[:24], Y[:24]), epochs=2, batch_size=8, verbose=False, resume="auto")
    assert again.iteration == 5 + 3


def test_large_arrays_are_compared_in_some_rows(monkeypatch):
    from xpnet.data import identity

    monkeypatch.setattr(identity, "WHOLE", 100)
    a, b = xn.data.Batches((X, Y), 8), xn.data.Batches((X.copy(), Y.copy()), 8)
    assert identity.difference(a, b) is None
    assert identity.difference(identity.describe(a), b) is None
    assert identity.difference(a, xn.data.Batches((X + 1, Y), 8)) == "other content"
    assert "shapes was" in (identity.difference(identity.describe(a), xn.data.Batches((X.astype("f8"), Y), 8)) or "")


def test_folders_are_the_same_by_their_files(tmp_path):
    from xpnet.data import identity

    image = pytest.importorskip("PIL.Image")

    def folder(name, files):
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            image.new("RGB", (4, 4)).save(tmp_path / name / file)
        return xn.data.Batches(xn.data.ImageFolder(tmp_path / name), 2)

    first = folder("a", ["cat/1.png", "cat/2.png", "dog/1.png"])
    assert identity.difference(identity.describe(first), folder("b", ["cat/1.png", "cat/2.png", "dog/1.png"])) is None
    assert identity.difference(first, folder("c", ["cat/1.png", "cat/3.png", "dog/1.png"])) == "other content"
    assert identity.difference(first, folder("d", ["cat/1.png", "dog/2.png", "dog/1.png"])) == "other content"


class Scales:
    """A transform with a setting, and a counter."""

    def __init__(self, factor):
        self.factor, self.calls = factor, 0

    def __call__(self, batch):
        self.calls += 1
        return batch[0] * np.float32(self.factor), batch[1]


def scaled(batch, factor):
    return batch[0] * np.float32(factor), batch[1]


def pairs():
    return zip(X, Y)


IMAGES = np.zeros((40, 4, 4, 1), np.uint8)


def of_images(**settings):
    return xn.data.Batches((xn.data.ByteImages(IMAGES, **settings), Y), 8)


augment = xn.data.augment
CHANGES: dict[str, Any] = {
    "buffer": [lambda buffer=buffer: xn.data.Batches(pairs, 8, buffer=buffer) for buffer in (0, 4, 30)],
    "the transform": [
        *(lambda factor=factor: xn.data.Batches((X, Y), 8, transform=Scales(factor)) for factor in (1, 2)),
        *(lambda factor=factor: xn.data.Batches((X, Y), 8, transform=partial(scaled, factor=factor)) for factor in (1, 2)),
        *(lambda factor=factor: xn.data.Batches((X, Y), 8, transform=Scales(factor).__call__) for factor in (1, 2)),
        lambda: xn.data.Batches((X, Y), 8, transform=partial(partial(scaled), factor=np.ones(1))),
    ],
    "the augmentation": [
        lambda stages=stages: xn.data.Batches((IMAGES, Y), 8, augment=augment.Compose(*stages))
        for stages in (
            [augment.Flip()], [augment.Flip(0.25)], [augment.Flip(), augment.Crop(1)], [augment.Flip(), augment.Crop(2)],
            [augment.Normalise((0.0,), (1.0,))], [augment.Normalise((0.0,), (2.0,))],
        )
    ],
    "the values of bytes": [
        lambda settings=settings: of_images(**settings)
        for settings in ({}, {"scale": 0.5}, {"mean": (0.5,), "std": (1.0,)}, {"mean": (0.5,), "std": (0.5,)})
    ],
    "the class of Batches": [
        lambda kind=kind: kind((X, Y), 8) for kind in (xn.data.Batches, type("Own", (xn.data.Batches,), {}))
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_settings_of_what_makes_batches_are_part_of_the_data(what):
    from xpnet.data import identity

    for i, first in enumerate(CHANGES[what]):
        for j, second in enumerate(CHANGES[what]):
            for known in (first(), json.loads(json.dumps(identity.describe(first())))):
                difference = identity.difference(known, second())
                assert difference is None if i == j else str(difference).startswith(f"{what} was ")


def test_a_counter_of_a_transform_is_no_setting():
    from xpnet.data import identity

    data = xn.data.Batches((X, Y), 8, transform=Scales(2))
    known = identity.describe(data)
    list(data)
    assert data.transform.calls == 5  # type: ignore[union-attr]
    assert identity.difference(known, data) is None


def test_an_epoch_does_not_go_on_with_another_shuffle_buffer():
    run = trainer(stop_at=2)
    run.fit(xn.data.Batches(pairs, 8, buffer=20), epochs=1, verbose=False)
    assert run.batch == 2
    run.callbacks.clear()
    run.fit(xn.data.Batches(pairs, 8, buffer=5), epochs=1, verbose=False)
    assert run.iteration == 2 + 5
