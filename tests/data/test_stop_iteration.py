"""A StopIteration ends an epoch where a stream ends; from any other code of a user's it is an error."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from xpnet.data import Batches
from xpnet.data.augment import Augmentation

X, Y = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32), np.arange(40) % 3


class Items:
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return (X[i], Y[i]) if i < 17 else next(iter(()))


class Augments(Augmentation):
    def apply(self, xp, x, y, rng):
        return (x, y) if x[0, 0] != X[24, 0] else next(iter(()))


class Rows:
    shape, dtype = X.shape, X.dtype

    def __getitem__(self, index):
        return X[index] if index.stop <= 16 else next(iter(()))


def transform(batch):
    return batch if batch[0][0, 0] != X[24, 0] else next(iter(()))


def called():
    """Return no stream: the function itself raises."""
    return next(iter(()))


FORMS = {
    "data[i]": lambda **more: Batches(Items(), 8, shuffle=False, **more),
    "transform": lambda **more: Batches((X, Y), 8, shuffle=False, transform=transform, **more),
    "transform of a stream": lambda **more: Batches(lambda: zip(X, Y), 8, transform=transform, **more),
    "transform of examples": lambda **more: Batches(list(zip(X, Y)), 8, shuffle=False, transform=transform, **more),
    "augment": lambda **more: Batches((X, Y), 8, shuffle=False, augment=Augments(), **more),
    "a stream": lambda **more: Batches(called, 8, **more),
    "an array": lambda **more: Batches((Rows(), Y), 8, shuffle=False, **more),
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_a_stop_iteration_is_an_error(form, workers, device):
    run = xn.Trainer(
        xn.Sequential([xn.Dense(3)], input_shape=(6,), device=device), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1)
    )
    says = {"data[i]": "Items.__getitem__", "augment": "Augments"}.get(form, "transform" if "transform" in form else "")
    with pytest.raises(RuntimeError, match=f"{says}.* raised StopIteration"):
        run.fit(FORMS[form](workers=workers, device=device), epochs=2, verbose=False)
    assert not run.history
    if form == "transform" and not workers:
        assert run.batch == 3  # those before are done


def test_the_end_of_an_iterator_is_the_end_of_its_epoch():
    class Some:
        def __init__(self):
            self.count = 0

        def __iter__(self):
            return Some()

        def __next__(self):
            if self.count == 20:
                raise StopIteration
            self.count += 1
            return X[self.count], Y[self.count]

    assert [len(x) for x, _ in Batches(Some(), 8)] == [8, 8, 4]
