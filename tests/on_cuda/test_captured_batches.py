"""Captured steps of batches that are trees of arrays, and predictions that return such trees."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from tests.on_cuda.following import X, Y, assert_alike, outcome

pytestmark = pytest.mark.cuda


class TwoHeads(xn.Module):
    """Takes one array or a dict of them, and has two outputs."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.first, self.left, self.right = xn.Dense(8, "tanh"), xn.Dense(3), xn.Dense(1)

    def forward(self, x):
        y = self.first(x["x"] if isinstance(x, dict) else x)
        return self.left(y), self.right(y)


def two_losses(prediction, target):
    labels, values = (target["labels"], target["values"]) if isinstance(target, dict) else target[:2]
    left = xn.losses.softmax_cross_entropy(prediction[0], labels)
    return left + xn.losses.mean_squared_error(prediction[1], values)


Z = X[:, :1].copy()


def in_batches(make):
    places = [slice(start, start + 8) for start in range(0, 32, 8)]
    return [make(*(xn.to_device(a[place], "cuda") for a in (X, Y, Z))) for place in places]


TREES = {
    "arrays": lambda: (X, (Y, Z)),
    "batches": lambda: in_batches(lambda x, y, z: (x, (y, z))),
    "dicts": lambda: in_batches(lambda x, y, z: ({"x": x}, {"labels": y, "values": z})),
    "on the host": lambda: [(X[i : i + 8], (Y[i : i + 8], Z[i : i + 8])) for i in range(0, 32, 8)],
}


@pytest.mark.parametrize("tree", TREES)
def test_batches_of_several_arrays(tree, recordings):
    def make(capture):
        return xn.Trainer(TwoHeads(device="cuda"), loss=two_losses, optimizer=xn.optim.Adam(0.05), capture=capture)

    assert_alike(make, recordings, 1, data=TREES[tree]())


def test_batches_with_something_else_run_launch_by_launch(recordings):
    data = in_batches(lambda x, y, z: (x, (y, z, "a name")))

    def make(capture):
        return xn.Trainer(TwoHeads(device="cuda"), loss=two_losses, optimizer=xn.optim.Adam(0.05), capture=capture)

    expected = outcome(make(False), data=data)
    with pytest.warns(
        RuntimeWarning, match="batches that hold other things than arrays of numbers: got an array of <U6"
    ) as caught:
        assert outcome(make(True), data=data) == expected
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    assert recordings == [0]


class Outputs(xn.Module):
    """Returns trees of arrays."""

    def __init__(self, form, **settings):
        super().__init__(**settings)
        self.dense, self.form = xn.Dense(3), form

    def forward(self, x):
        y = self.dense(x)
        return self.form(y, y * 2.0)


FORMS = {
    "dict": lambda y, z: {"y": y, "z": z},
    "nested": lambda y, z: (y, {"both": (y, z)}),
    "list": lambda y, z: [y, z],
}


def leaves(output):
    if isinstance(output, dict):
        return {name: leaves(part) for name, part in output.items()}
    if isinstance(output, tuple):
        return tuple(leaves(part) for part in output)
    assert xn.backend.name_of(xn.backend.namespace(output)) in ("numpy", "cupy")
    return xn.to_numpy(output).round(4).tolist()


@pytest.mark.parametrize("batch_size", [256, 10])
@pytest.mark.parametrize("form", FORMS)
def test_predictions_of_several_outputs(form, batch_size, recordings):
    expected = leaves(Outputs(FORMS[form], device="cpu").predict(X, batch_size))
    model = Outputs(FORMS[form], device="cuda")
    for x in (X, xn.to_device(X, "cuda")):
        for _ in range(3):
            assert leaves(model.predict(x, batch_size)) == expected
    assert recordings[0] == (1 if batch_size == 256 else 2)


@pytest.mark.parametrize("capture", [False, True])
def test_an_index_out_of_range_is_among_the_causes_of_a_loss_that_is_not_finite(capture):
    model = xn.Sequential([xn.Embedding(10, 4), xn.Flatten(), xn.Dense(3)], input_shape=(2,), device="cuda")
    run = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), capture=capture)
    with pytest.raises(xn.training.NotFiniteError, match="labels and indices out of range"):
        run.fit((np.full((8, 2), 3), np.full(8, 7)), epochs=1, batch_size=8, verbose=False)
