"""Data as they are given: tables and labelled arrays count by position, and what is no pair of arrays is refused by name."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.data import Batches, split
from xpnet.data.preprocessing import MinMax, Standardize, one_hot
from xpnet.inspect import diagnose
from xpnet.runtime.messages import quoted
from xpnet.training import ClassWeighted, find_learning_rate, overfit_one_batch

N = 60


class Labelled:
    """A column of a table: indexed by labels, which are not positions, as a Series of pandas is."""

    def __init__(self, values, labels=None):
        self.values = np.asarray(values)
        self.labels = np.arange(len(self.values))[::-1] if labels is None else labels

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    ndim = property(lambda self: self.values.ndim)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, label):
        return Labelled(self.values[np.asarray(self.labels)[label]])

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)

    def to_numpy(self):
        return self.values


class Table:
    """A table: columns by name."""

    def __init__(self, columns):
        self.parts = {name: Labelled(values) for name, values in columns.items()}
        self.columns = list(columns)
        self.shape = (len(next(iter(self.parts.values()))), len(columns))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, name):
        return self.parts[name]

    def to_numpy(self):
        arrays = [part.values for part in self.parts.values()]
        same = len({a.dtype.kind for a in arrays}) == 1
        return np.stack(arrays, axis=1) if same else np.stack([a.astype(object) for a in arrays], axis=1)


class Convertible:
    """Something that NumPy converts."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


RNG = np.random.default_rng(0)
X, Y = RNG.random((N, 3)).astype(np.float32), RNG.integers(0, 3, N)
FRAME = Table({name: X[:, i] for i, name in enumerate("abc")})
FORMS: dict[str, tuple[Any, Any]] = {
    "table": (FRAME, Labelled(Y)),
    "labelled": (Labelled(X), Labelled(Y)),
    "converted": (Convertible(X), Convertible(Y)),
    "tensor": (xn.Tensor(X), Y),
}


def model():
    return xn.Sequential([xn.Dense(3)], input_shape=(3,))


def trainer(**settings):
    return xn.Trainer(model(), **{"loss": "softmax_cross_entropy", "optimizer": xn.optim.SGD(0.1), **settings})


def rows(batches):
    return [np.asarray(part) for batch in batches for part in (batch if isinstance(batch, tuple) else (batch,))]


def flat(parts):
    return [a for pair in parts for a in pair]


ENTRIES: dict[str, Any] = {
    "fit": lambda x, y: trainer(metrics=["accuracy"]).fit((x, y), epochs=2, verbose=False)["loss"],
    "fit list": lambda x, y: trainer().fit([x, y], verbose=False)["loss"],
    "fit stream": lambda x, y: trainer().fit(lambda: iter([(x, y)]), verbose=False)["loss"],
    "fit batches": lambda x, y: trainer().fit(Batches((x, y), 7), verbose=False)["loss"],
    "validation": lambda x, y: trainer().fit((X, Y), validation=(x, y), verbose=False)["val_loss"],
    "evaluate": lambda x, y: list(trainer(metrics=["accuracy"]).evaluate((x, y)).values()),
    "predict": lambda x, y: model().predict(x),
    "Batches": lambda x, y: rows(Batches((x, y), 7)),
    "Batches of one": lambda x, y: rows(Batches(x, 7)),
    "Batches of a dict": lambda x, y: [b["y"] for b in Batches({"x": x, "y": y}, 7)],
    "split": lambda x, y: flat(split(x, y)),
    "class_weights": lambda x, y: xn.data.class_weights(y),
    "example_weights": lambda x, y: xn.data.example_weights(y),
    "Standardize": lambda x, y: Standardize().fit(x)(x),
    "inverse": lambda x, y: MinMax().fit(X).inverse(x),
    "one_hot": lambda x, y: one_hot(y, 3),
    "to_numpy": lambda x, y: xn.to_numpy(x),
    "to_device": lambda x, y: xn.to_device(x, "cpu"),
    "diagnose": lambda x, y: len(diagnose(model(), x, y)),
    "find_learning_rate": lambda x, y: find_learning_rate(trainer(), (x, y), steps=12).losses,
    "overfit_one_batch": lambda x, y: overfit_one_batch(trainer(), x, y, steps=2),
    "loss": lambda x, y: xn.losses.softmax_cross_entropy(X, y),
    "other loss": lambda x, y: xn.losses.hinge(X, y),
    "regression": lambda x, y: xn.losses.mean_squared_error(X, x),
    "accuracy": lambda x, y: xn.metrics.accuracy(X, y),
    "confusion_matrix": lambda x, y: xn.metrics.confusion_matrix(X, y),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_place_that_takes_data_takes_them_by_position(entry, form):
    given, expected = ENTRIES[entry](*FORMS[form]), ENTRIES[entry](X, Y)
    for a, b in zip(given, expected, strict=True) if isinstance(expected, list) else [(given, expected)]:
        np.testing.assert_array_equal(xn.to_numpy(getattr(a, "array", a)), b)


@pytest.mark.parametrize("form", ["table", "converted"])
def test_a_model_is_called_on_a_table(form):
    np.testing.assert_array_equal(model()(FORMS[form][0]).array, model()(X).array)


def test_examples_that_are_rows_of_a_table_are_stacked():
    examples = [(Labelled(X[i]), int(Y[i])) for i in range(N)]
    x, y = next(iter(Batches(examples, N, shuffle=False)))
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


def test_a_table_of_booleans_beside_numbers_is_one_of_numbers():
    mixed = Table({"a": X[:, 0], "b": X[:, 1] > 0.5, "c": Y})
    np.testing.assert_array_equal(next(iter(Batches(mixed, N, shuffle=False))), np.stack([X[:, 0], X[:, 1] > 0.5, Y], axis=1))


@pytest.mark.parametrize(
    "entry", ["fit", "fit batches", "validation", "evaluate", "predict", "split", "Standardize", "to_numpy"]
)
def test_columns_that_hold_no_numbers_are_named(entry):
    mixed = Table({"a": X[:, 0], "city": np.array(["x"] * N), "day": np.array(["2020-01-01"] * N, "datetime64[D]")})
    with pytest.raises(TypeError, match=r"a Table \(60, 3\) .*'city' \(<U1\), 'day' \(datetime64\[D\]\)"):
        ENTRIES[entry](mixed, Y)


def test_a_sparse_matrix_is_refused():
    class Sparse:
        shape, dtype, nnz = (N, 3), np.dtype("float32"), 4

        def toarray(self): ...
        def __getitem__(self, index): ...

    for entry in ("fit", "predict", "Batches", "split", "Standardize"):
        with pytest.raises(TypeError, match=r"sparse matrix \(60, 3\), .* x\.toarray\(\)"):
            ENTRIES[entry](Sparse(), Y)


def test_series_and_frames_of_pandas():
    pd = pytest.importorskip("pandas")
    order = np.random.default_rng(1).permutation(N)
    frame, series = pd.DataFrame(X, columns=list("abc")).iloc[order], pd.Series(Y).iloc[order]
    for entry in ENTRIES.values():
        given, expected = entry(frame, series), entry(X[order], Y[order])
        for a, b in zip(given, expected, strict=True) if isinstance(expected, list) else [(given, expected)]:
            np.testing.assert_array_equal(a, b)
    with pytest.raises(TypeError, match=r"'city' \(str|'city' \(object"):
        trainer().fit((frame.assign(city="x"), series))


# -- pairs --


TWO_ROWS = X.reshape(30, 2, 3)
NO_PAIRS: dict[str, Any] = {
    "Batches": lambda: Batches(X, 2),
    "Batches of a dict": lambda: Batches({"x": X, "y": Y}, 2),
    "Batches of three": lambda: Batches((X, Y, Y), 2),
    "Batches with transform": lambda: Batches((X, Y), 2, transform=lambda batch: batch[0]),
    "Batches of a stream": lambda: Batches(lambda: iter(TWO_ROWS), None),
    "Batches of examples": lambda: Batches(list(X), 2),
    "list": lambda: [[a, a, a] for a in TWO_ROWS],
    "function": lambda: lambda: iter(TWO_ROWS),
    "generator": lambda: (a for a in TWO_ROWS),
}


@pytest.mark.parametrize("source", NO_PAIRS)
@pytest.mark.parametrize("act", ["fit", "evaluate", "find_learning_rate"])
def test_batches_that_are_no_pair_are_refused(source, act):
    run = trainer(loss="mse")
    calls = {
        "fit": lambda data: run.fit(data, verbose=False),
        "evaluate": run.evaluate,
        "find_learning_rate": lambda data: find_learning_rate(run, data, steps=10),
    }
    with pytest.raises(ValueError, match=r"must be a pair \(x, y\), got (ndarray \(\d+, |a tuple of|a list of|dict with x, y)"):
        calls[act](NO_PAIRS[source]())


@pytest.mark.cuda
@pytest.mark.parametrize("source", ["Batches", "Batches with transform", "function"])
def test_batches_that_are_no_pair_are_refused_on_a_gpu(source, gpu):
    run = xn.Trainer(xn.Sequential([xn.Dense(3)], input_shape=(3,), device="cuda"), loss="mse", optimizer=xn.optim.SGD(0.1))
    with pytest.raises(ValueError, match=r"must be a pair \(x, y\)"):
        run.fit(NO_PAIRS[source](), verbose=False)


# -- examples --


@pytest.mark.parametrize(
    "data",
    [
        (X[0], X[1]),
        (X[0], Y[:3]),
        list(zip(X, Y)),
        list(zip(X, Y.tolist())),
        list(zip(X, X)),
        [(X[:4], Y[:3])],
        [(np.empty((0, 3)), np.empty(0))],
        Batches((X[0], X[1])),
    ],
)
@pytest.mark.parametrize("act", ["fit", "evaluate", "validation"])
def test_examples_without_an_axis_of_examples_are_refused(data, act):
    run = trainer(loss="mse")
    call = (
        functools.partial(run.fit, (X, X), validation=data)
        if act == "validation"
        else functools.partial(getattr(run, act), data)
    )
    with pytest.raises(ValueError, match=rf"{act}: .*(expected \(N, 3\)|the first batch is .* no batches)"):
        call()


# -- other things that are no data --


def refused(data, error=ValueError, **settings):
    with pytest.raises(error) as caught:
        trainer(**settings).fit(data, verbose=False)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_what_is_no_pair_of_arrays_is_named_with_what_to_do():
    assert "as from data.split? give fit the first" in refused(split(X, Y))
    assert "a dict with x, y; give a tuple, such as (data['x'], data['y'])" in refused({"x": X, "y": Y})
    bunch = type("Bunch", (dict,), {})(data=X, target=Y, DESCR="...")
    assert "a Bunch with data, target, DESCR; give a tuple, such as (data['data'], data['target'])" in refused(bunch)
    assert "'train.csv'; read a file first" in refused("train.csv")
    assert "got ndarray (60, 3) float32" in refused(X)
    assert "Sequential.forward does not take 2" in refused(((X, X), Y), TypeError)
    assert "Sequential takes one array" in refused(({"a": X}, Y), TypeError)
    assert "softmax_cross_entropy: the target is a tuple" in refused((X, (Y, Y)), TypeError)
    with pytest.raises(TypeError, match=r"fit\(\(x, y\), epochs"):
        trainer().fit(X, Y)
    with pytest.raises(TypeError, match=r"evaluate\(\(x, y\)\)"):
        trainer().evaluate(X, Y)
    with pytest.raises(TypeError, match=r"x is a list, .* numpy\.asarray"):
        split(X.tolist(), Y.tolist())


@pytest.mark.parametrize("augment", [True, [xn.data.augment.Flip()], xn.data.augment.Flip])
def test_what_is_no_augmentation_is_refused(augment):
    with pytest.raises(TypeError, match=r"augment must be an augmentation such as xn\.data\.augment\.Flip\(\)"):
        Batches((X, Y), augment=augment)


def test_a_transform_that_returns_nothing_is_named():
    with pytest.raises(TypeError, match="transform returned None"):
        trainer().fit(Batches((X, Y), transform=lambda batch: None), verbose=False)


def test_class_weights_are_an_array_behind_the_loss():
    with pytest.raises(TypeError, match=r"loss must be a string or a function, got ndarray"):
        ClassWeighted(np.ones(3), "softmax_cross_entropy")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="weights must be an array"):
        ClassWeighted("softmax_cross_entropy", {0: 1.0, 1: 2.0})  # type: ignore[arg-type]


def test_messages_do_not_hold_whole_arrays():
    large = np.arange(6000.0).reshape(1000, 6)
    assert quoted(large) == "ndarray (1000, 6) float64"
    assert len(quoted([large, large])) < 160
    for call in (
        lambda: Batches(X, Y),  # type: ignore[arg-type]
        lambda: xn.to_device("cpu", large),  # type: ignore[arg-type]
        lambda: xn.Dense(large),  # type: ignore[arg-type]
        lambda: xn.Dense(3, large),  # type: ignore[arg-type]
        lambda: xn.Conv2D(3, large),  # type: ignore[arg-type]
        lambda: xn.Dropout(large),  # type: ignore[arg-type]
        lambda: xn.optim.SGD(large),  # type: ignore[arg-type]
        lambda: xn.losses.get(large),  # type: ignore[arg-type]
        lambda: xn.metrics.get(large),  # type: ignore[arg-type]
        lambda: xn.Trainer(large, loss="mse", optimizer=xn.optim.SGD(0.1)),  # type: ignore[arg-type]
        lambda: trainer(optimizer=large),
        lambda: trainer(callbacks=[large]),
        lambda: xn.Sequential(large),  # type: ignore[arg-type]
        lambda: trainer().fit((X, Y), epochs=large),
        lambda: trainer().fit((X, Y), batch_size=large),
        lambda: ClassWeighted("mse", large),
        lambda: xn.data.load(large),  # type: ignore[arg-type]
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert len(str(caught.value)) < 600
        assert "\n" not in str(caught.value)
