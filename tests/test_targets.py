"""How a target fits a prediction, over all losses and metrics: shapes, values that no formula knows, NaN, empty batches."""

import math
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet import losses, metrics
from xpnet.training import ClassWeighted

LOSSES = sorted({f.__name__ for f in losses.NAMES.values()} - {"triplet"})  # which takes no target
METRICS = sorted({f.__name__ for f in metrics.NAMES.values()})
RNG = np.random.default_rng(5)
N, K = 6, 4


def relu(x):
    return np.maximum(x, 0)


def log_softmax(x):
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def binary(x, y):
    return -y * -np.log1p(np.exp(-x)) - (1 - y) * -np.log1p(np.exp(x))


def margins(power):
    def rows(s, y):
        own = s[np.arange(len(s)), y.argmax(1)]
        return ((relu(s - own[:, None] + 1) * (1 - y)) ** power).sum(1)

    return rows


def pairs(e, same):
    d = np.sqrt(((e[:, 0] - e[:, 1]) ** 2).sum(-1))
    return (same * d**2 + (1 - same) * relu(1 - d) ** 2) / 2


def by_huber(p, y):
    r = np.abs(p - y)
    return np.where(r <= 1, r**2 / 2, r - 0.5)


# name: the terms by the formula, in float64, and which targets it has a value for
ANY = np.array([0.0, 1.0, -1.0, 0.3, 2.5, -0.7])
FORMULAS: dict[str, Any] = {
    "softmax_cross_entropy": (lambda p, y: -(y * log_softmax(p)).sum(-1), ANY),
    "negative_log_likelihood": (lambda p, y: -(y * p).sum(-1), ANY),
    "hinge": (margins(1), "one-hot"),
    "squared_hinge": (margins(2), "one-hot"),
    "sigmoid_cross_entropy": (binary, ANY),
    "attribute_logistic": (lambda p, y: binary(p, y).sum(-1), ANY),
    "attribute_hinge": (lambda p, y: relu(1 - np.where(y > 0, 1, -1) * p).sum(-1), np.array([0.0, 1.0, -1.0])),
    "mean_squared_error": (lambda p, y: (p - y) ** 2, ANY),
    "half_squared_error": (lambda p, y: (p - y) ** 2 / 2, ANY),
    "quadratic_cost": (lambda p, y: ((p - y) ** 2).sum(-1) / 2, ANY),
    "mean_absolute_error": (lambda p, y: np.abs(p - y), ANY),
    "huber": (by_huber, ANY),
    "contrastive": (pairs, ANY),
}


def example(name, seed=0):
    """A prediction and a floating target that suit the loss, float64."""
    rng = np.random.default_rng(seed)
    values = FORMULAS[name][1]
    if name == "contrastive":
        return rng.normal(size=(N, 2, K)), rng.choice(values, N)
    y = np.eye(K)[rng.integers(0, K, N)] if isinstance(values, str) else rng.choice(values, (N, K))
    return rng.normal(size=(N, K)) * 2, y


def test_every_loss_has_a_formula():
    assert set(FORMULAS) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(4))
def test_value_and_gradient_are_those_of_the_formula(name, seed):
    loss, formula = losses.get(name), FORMULAS[name][0]
    p, y = example(name, seed)
    np.testing.assert_allclose(loss(p, y, reduction="none"), formula(p, y), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(loss(p, y), formula(p, y).mean(), rtol=1e-12)
    t = xn.Tensor(p, requires_grad=True)
    loss(t, y, reduction="sum").backward()
    numeric = np.zeros_like(p)
    for i in np.ndindex(*p.shape):
        step = np.zeros_like(p)
        step[i] = 1e-6
        numeric[i] = (formula(p + step, y).sum() - formula(p - step, y).sum()) / 2e-6
    np.testing.assert_allclose(xn.to_numpy(t.grad), numeric, rtol=1e-6, atol=1e-7)


def missing(name, logits=None):
    """The example in float32 with a NaN in the target of its second example, and what the loss of each example is made of."""
    p, y = example(name)
    p = (p if logits is None else np.full_like(p, logits)).astype(np.float32)
    y = y.astype(np.float32)
    y[1, ...] = np.nan if y.ndim == 1 else y[1]
    if y.ndim > 1:
        y[1, 2] = np.nan
    return p, y


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("logits", [None, 0.0])
def test_nan_in_the_target_is_nan_in_its_loss_alone(name, logits):
    loss = losses.get(name)
    p, y = missing(name, logits)
    terms = loss(p, y, reduction="none")
    assert np.isnan(terms[1]).any()
    assert np.isfinite(np.delete(terms, 1, axis=0)).all()
    for reduction in ("mean", "sum"):
        assert np.isnan(loss(p, y, reduction=reduction))
    t = xn.Tensor(p, requires_grad=True)
    assert np.isnan(loss(t, y).array)


@pytest.mark.cuda
@pytest.mark.parametrize("name", LOSSES)
def test_nan_in_the_target_is_nan_on_a_gpu(name, gpu):
    import cupy as cp

    p, y = missing(name)
    terms = losses.get(name)(cp.asarray(p), cp.asarray(y), reduction="none").get()
    np.testing.assert_allclose(terms, losses.get(name)(p, y, reduction="none"), rtol=1e-5, atol=1e-6)
    p, y = example(name, 2)
    terms = losses.get(name)(cp.asarray(p), cp.asarray(y), reduction="none").get()
    np.testing.assert_allclose(terms, FORMULAS[name][0](p, y), rtol=1e-10, atol=1e-12)


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["hinge", "squared_hinge", "attribute_hinge"])
def test_targets_without_a_formula_are_nan_on_a_gpu(name, gpu):
    import cupy as cp

    p, y = example(name)
    y[3, 1] = 0.5
    terms = losses.get(name)(cp.asarray(p), cp.asarray(y), reduction="none").get()
    assert np.isnan(terms[3]).any()
    assert np.isfinite(np.delete(terms, 3, axis=0)).all()


@pytest.mark.parametrize("name", ["hinge", "squared_hinge", "attribute_hinge"])
@pytest.mark.parametrize("value", [0.5, 2.0, -3.0, math.inf])
def test_targets_without_a_formula_are_refused(name, value):
    p, y = example(name)
    y[3, 1] = value
    with pytest.raises(ValueError, match=f"{name}: the target .* must hold"):
        losses.get(name)(p, y)


@pytest.mark.parametrize("name", ["hinge", "squared_hinge"])
@pytest.mark.parametrize("row", [[0, 0, 0, 0], [1, 1, 0, 0], [1, -1, 0, 0]])
def test_rows_that_are_not_one_hot_are_refused(name, row):
    p, y = example(name)
    y[0] = row
    with pytest.raises(ValueError, match="one-hot rows with a single 1"):
        losses.get(name)(p, y)


def measured(name, p, y):
    return losses.get(name)(p, y) if name in LOSSES else metrics.get(name)[1](p, y)


OF_CLASSES = ("softmax_cross_entropy", "negative_log_likelihood", "hinge", "squared_hinge", "accuracy")
OTHER_SHAPES = [((N, 1), (N,)), ((N,), (N, 1)), ((N, K), (N, 1)), ((N, K), (1, K)), ((N, K), (K,)), ((N, K), (N, K + 1)),
                ((N, K), (1,)), ((N, K), ()), ((N, K), (N, K, 1)), ((1, K), (N, K))]  # fmt: skip


@pytest.mark.parametrize("name", sorted({*LOSSES, *METRICS}))
@pytest.mark.parametrize(("prediction", "target"), OTHER_SHAPES)
@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_no_target_broadcasts(name, prediction, target, dtype):
    if target == prediction[:-1] and dtype is np.int64 and name in OF_CLASSES:
        return  # one class index for each row
    p, y = np.zeros(prediction), np.ones(target, dtype)
    for of in (losses, metrics):
        if name in of.NAMES:
            with pytest.raises(xn.ShapeError, match=f"^{name}: "):
                getattr(of, name)(p, y)


@pytest.mark.parametrize("name", sorted({*LOSSES, *METRICS}))
def test_an_empty_batch_is_an_error(name):
    p, y = np.zeros((0, 2, K) if name == "contrastive" else (0, K)), np.zeros((0,) if name == "contrastive" else (0, K))
    with pytest.raises(ValueError, match=f"{name}: the mean of an empty batch"):
        measured(name, p, y)
    if name in LOSSES:
        assert losses.get(name)(p, y, reduction="sum") == 0


@pytest.mark.parametrize("name", METRICS)
def test_nan_in_the_target_is_nan_in_a_metric(name):
    p, y = RNG.normal(size=(N, K)), RNG.integers(0, 2, (N, K)).astype(float)
    y[2, 1] = np.nan
    metric = metrics.get(name)[1]
    assert np.isnan(metric(p, y))
    assert np.isfinite(metric(p, np.nan_to_num(y)))


def in_order(name):
    """A prediction and a target that every loss and metric takes, float32; for confusion_matrix class indices."""
    if name == "confusion_matrix":
        return np.eye(K, dtype=np.float32), np.arange(K)
    if name in METRICS:
        return np.eye(K, dtype=np.float32), np.eye(K, dtype=np.float32)
    if name == "triplet":
        return np.zeros((N, 3, K), np.float32), np.zeros(N, np.float32)
    p, y = example(name)
    return p.astype(np.float32), y.astype(np.float32)


EVERY = {**{f.__name__: f for f in losses.NAMES.values()}, **{f"metric {n}": getattr(metrics, n) for n in METRICS}}
EVERY["metric confusion_matrix"] = metrics.confusion_matrix
NOT_NUMBERS = {
    "datetime64": (np.datetime64("2020-01-01"), "numpy.timedelta64"),
    "timedelta64": (np.timedelta64(3, "D"), "numpy.timedelta64"),
    "object": (None, "numbers: .*astype.float., once nothing is missing"),
    "<U": ("1.5", "astype.float."),
    "S": (b"1", "astype.float."),
    "V4": (np.void(b"1234"), "expected"),
    "complex": (1j, "real"),
}


@pytest.mark.parametrize("kind", NOT_NUMBERS)
@pytest.mark.parametrize("entry", EVERY)
def test_every_loss_and_metric_refuses_what_is_no_number(entry, kind):
    name = entry.removeprefix("metric ")
    p, y = in_order(name)
    value, advice = NOT_NUMBERS[kind]
    of_prediction = np.full(p.shape, value)
    with pytest.raises(TypeError, match=f"{name}: .* dtype .*{kind}"):
        EVERY[entry](of_prediction, y)
    if entry in losses.NAMES:
        with pytest.raises(TypeError, match=kind):
            EVERY[entry](xn.Tensor(of_prediction), y)
    if name == "triplet":
        return  # which takes no target
    with pytest.raises(TypeError, match=f"{name}: the target has dtype .*{kind}.*{advice}"):
        EVERY[entry](p, np.full(y.shape, value))
    with pytest.raises(TypeError, match=f"{name}: .*{kind}"):
        EVERY[entry](of_prediction, np.full(y.shape, value))


@pytest.mark.parametrize("entry", sorted(set(EVERY) - {"triplet"}))
def test_every_loss_and_metric_refuses_a_list_and_names_it(entry):
    name = entry.removeprefix("metric ")
    p, y = in_order(name)
    for target in (y.tolist(), (y, y), {"y": y}, None, 1.0):
        with pytest.raises(TypeError, match=f"{name}: the target is a {type(target).__name__}, expected one array"):
            EVERY[entry](p, target)


def test_text_is_turned_into_class_indices():
    with pytest.raises(TypeError, match=r"class names: names, target = numpy\.unique\(target, return_inverse=True\)"):
        losses.softmax_cross_entropy(np.zeros((3, 2)), np.array(["a", "b", "a"]))


def nan_row(name):
    """Predictions of which one row is NaN, and targets that call it right where NaN passes for a class."""
    p, y = in_order(name)
    p[0] = np.nan
    return p, np.zeros_like(y)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_a_prediction_that_is_nan_is_nan(name):
    p, y = nan_row(name)
    assert np.isnan(metrics.get(name)[1](p, y))


def test_nan_is_no_class():
    p, y = nan_row("confusion_matrix")
    with pytest.raises(ValueError, match="the scores of 1 of 4 examples are NaN"):
        metrics.confusion_matrix(p, y)


@pytest.mark.cuda
def test_nan_is_no_class_on_a_gpu(gpu):
    import cupy as cp

    p, y = (cp.asarray(a) for a in nan_row("confusion_matrix"))
    assert xn.to_numpy(metrics.confusion_matrix(p, y)).sum() == K - 1
    for name in METRICS:
        p, y = (cp.asarray(a) for a in nan_row(name))
        assert np.isnan(xn.to_numpy(metrics.get(name)[1](p, y)))


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "negative_log_likelihood", "hinge", "squared_hinge"])
@pytest.mark.parametrize("target", [np.zeros(4, int), np.ones((4, 1), np.float32), np.ones((4, 1), bool)])
def test_one_class_is_refused(name, target):
    with pytest.raises(xn.ShapeError, match=f"{name}: .* has one class.* use sigmoid_cross_entropy"):
        losses.get(name)(np.zeros((4, 1), np.float32), target)
    trainer = xn.Trainer(xn.Sequential([xn.Dense(1)], input_shape=(3,)), loss=name, optimizer=xn.optim.SGD(0.1))
    with pytest.raises(xn.ShapeError, match="has one class"):
        trainer.fit((np.zeros((4, 3), np.float32), target), verbose=False)


@pytest.mark.cuda
def test_one_class_is_refused_on_a_gpu(gpu):
    import cupy as cp

    with pytest.raises(xn.ShapeError, match="has one class"):
        losses.softmax_cross_entropy(cp.zeros((4, 1), cp.float32), cp.zeros(4, cp.int64))


@pytest.mark.parametrize("target", [[0, 1, 2], [-1, 1, 1], [0.3, 1, 0]])
def test_binary_accuracy_takes_zeros_and_ones(target):
    with pytest.raises(ValueError, match=r'binary_accuracy: the target runs from .* expected 0 and 1.*"mean_absolute_error"'):
        metrics.binary_accuracy(np.ones(3), np.array(target))
    assert metrics.binary_accuracy(np.ones(3), np.array([True, True, False])) == pytest.approx(2 / 3)


def test_class_indices_as_floats_in_accuracy():
    assert metrics.accuracy(np.eye(3), np.array([0.0, 1.0, 0.0])) == pytest.approx(2 / 3)
    assert math.isnan(float(metrics.accuracy(np.eye(3), np.array([0.0, 1.0, np.nan]))))


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (np.zeros((3, 2)), np.array([0, 1, 2]), "the target runs from 0 to 2, expected class indices 0..1"),
        (np.zeros((3, 2)), np.array([0, -1, 1]), "the target runs from -1 to 1"),
        (np.zeros((3, 2)), np.array([0, 0.5, 1]), "whole numbers"),
        (np.zeros((3, 2)), np.array([[0], [1], [1]]), r"target \(3, 1\) do not fit"),
        (np.zeros((3, 2)), np.array([0]), r"target \(1,\) do not fit"),
        (np.zeros((3, 2, 2)), np.array([0, 1, 1]), "do not fit"),
    ],
)
def test_a_confusion_matrix_counts_every_example(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        metrics.confusion_matrix(prediction, target)


def test_negative_labels_get_their_own_advice():
    with pytest.raises(ValueError, match="labels run from -100 to 2") as caught:
        losses.softmax_cross_entropy(np.zeros((3, 4)), np.array([0, -100, 2]))
    assert "give the last layer" not in str(caught.value)
    assert "no class below 0" in str(caught.value)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan, math.inf])
def test_label_smoothing_is_a_share(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\]"):
        losses.softmax_cross_entropy(np.zeros((3, 4)), np.array([0, 1, 2]), label_smoothing=smoothing)


@pytest.mark.parametrize(("name", "setting"), [("hinge", "margin"), ("squared_hinge", "margin"), ("attribute_hinge", "margin"),
                                               ("contrastive", "margin"), ("huber", "delta")])  # fmt: skip
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_settings_of_losses(name, setting, value):
    p, y = example(name)
    with pytest.raises(ValueError, match=f"{name}: {setting} must be"):
        losses.get(name)(p, y, **{setting: value})


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "hinge", "mse", "mae", "sigmoid_cross_entropy"])
def test_training_names_the_targets(name):
    x, y = RNG.random((8, 3), np.float32), np.eye(3, dtype=np.float32)[RNG.integers(0, 3, 8)]
    y[5, 1] = np.nan
    trainer = xn.Trainer(xn.Sequential([xn.Dense(3)], input_shape=(3,)), loss=name, optimizer=xn.optim.SGD(0.1))
    with pytest.raises(xn.NotFiniteError, match="the targets hold values that are not finite") as caught:
        trainer.fit((x, y), epochs=1, verbose=False)
    assert "learning rate" not in str(caught.value)
    assert np.isfinite(trainer.model.predict(x)).all()


# -- ClassWeighted --


def test_class_weights_of_class_indices_and_one_hot_rows():
    p, y, w = RNG.normal(size=(N, 3)), np.array([0, 2, 1, 1, 2, 0]), np.array([1.0, 2.0, 4.0])
    loss = ClassWeighted("softmax_cross_entropy", w)
    expected = (losses.softmax_cross_entropy(p, y, reduction="none") * w[y]).mean()
    np.testing.assert_allclose(loss(p, y), expected)
    np.testing.assert_allclose(loss(p, np.eye(3)[y]), expected)


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, bool])
def test_class_weights_of_a_binary_loss(shape, dtype):
    p, y, w = RNG.normal(size=shape), RNG.integers(0, 2, shape), np.array([1.0, 3.0])
    expected = (losses.sigmoid_cross_entropy(p, y.astype(float), reduction="none") * w[y]).mean()
    t = xn.Tensor(p, requires_grad=True)
    loss = ClassWeighted("sigmoid_cross_entropy", w)(t, y.astype(dtype))
    np.testing.assert_allclose(loss.array, expected, rtol=1e-6)
    loss.backward()
    slope = (1 / (1 + np.exp(-p)) - y) * w[y] / p.size
    np.testing.assert_allclose(xn.to_numpy(t.grad), slope, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "weights", "p", "y", "message"),
    [
        ("softmax_cross_entropy", [1, 2], (4, 3), np.array([0, 1, 2, 0]), "2 weights, but the prediction .* has 3 classes"),
        ("softmax_cross_entropy", [1, 2, 3, 4], (4, 3), np.array([0, 1, 2, 0]), "4 weights, .* has 3 classes"),
        ("sigmoid_cross_entropy", [1, 2, 3], (4, 1), np.zeros((4, 1)), "3 weights, .* 2 classes"),
        ("sigmoid_cross_entropy", [1, 2], (4, 1), np.full((4, 1), 2), "0 and 1"),
        ("mse", [1, 2], (4, 1), np.full((4, 1), 1.5), "0 and 1"),
        ("attribute_logistic", [1, 2], (4, 4), np.zeros((4, 4), int), "one class for each"),
        ("softmax_cross_entropy", [1, 2, 3], (0, 3), np.zeros(0, int), "empty batch"),
    ],
)
def test_class_weights_that_do_not_fit(loss, weights, p, y, message):
    with pytest.raises(ValueError, match=f"ClassWeighted: .*{message}"):
        ClassWeighted(loss, np.array(weights, float))(np.zeros(p), y)
