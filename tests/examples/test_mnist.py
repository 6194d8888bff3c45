"""The recipes for handwritten digits: on the small digits, on MNIST if available, and the long ones with --slow."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from xpnet.data import Dataset, load
from xpnet.examples import mnist


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def data():
    return load("mnist")


@pytest.mark.parametrize(("name", "least"), [("no_hidden_layer", 85), ("hidden_30", 90), ("cross_entropy_l2", 93)])
def test_dense_recipes_learn_the_small_digits(digits, name, least):
    recipe, _ = mnist.RECIPES[name]
    accuracies = recipe(digits, epochs=12)
    assert len(accuracies) == 12
    assert max(accuracies) >= least


def test_the_costs_are_the_texts():
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((7, 10)), rng.integers(0, 10, 7)
    t, a = np.eye(10)[y], 1 / (1 + np.exp(-z))
    assert np.isclose(float(mnist.quadratic_cost(a, y)), 0.5 * np.mean(np.sum((t - a) ** 2, axis=1)))
    text = -np.mean(np.sum(t * np.log(a) + (1 - t) * np.log(1 - a), axis=1))
    assert np.isclose(float(mnist.cross_entropy(z, y)), text)


def test_the_small_convnet_has_the_usual_size():
    class Like:
        classes = 10

    model = xn.Sequential(mnist.small_convnet_layers(cast(Any, Like)), input_shape=(28, 28, 1))
    assert model.count_parameters() == 34_826


def test_shifted_copies(digits):
    expanded = mnist.with_shifted_copies(digits, 20)
    x, y = expanded.train
    first = digits.train[0][:20]
    assert x.shape == (100, 8, 8, 1)
    assert np.array_equal(x[:20], first)
    assert np.array_equal(x[20:40, 1:], first[:, :-1])  # down
    assert np.array_equal(x[40:60, :-1], first[:, 1:])  # up
    assert np.array_equal(x[60:80, :, 1:], first[:, :, :-1])  # right
    assert np.array_equal(x[80:, :, :-1], first[:, :, 1:])  # left
    assert np.all(x[20:40, 0] == 0)
    assert np.array_equal(y, np.tile(digits.train[1][:20], 5))


@pytest.mark.parametrize("name", [n for n in mnist.RECIPES if "convnet" in n])
def test_every_convnet_runs_an_epoch_on_a_few_images(name):
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 28, 28, 1), dtype=np.float32), rng.integers(0, 10, 40)
    small = Dataset("made", (x, y), (x[:10], y[:10]), tuple("0123456789"), (0.5,), (0.3,), "made here", "none")
    (accuracy,) = mnist.RECIPES[name][0](small, epochs=1)
    assert 0 <= accuracy <= 100


def test_run_falls_back_to_the_small_digits(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(mnist, "get_data", lambda: load("digits"))
    report = mnist.run(recipes="hidden_30,convnet_1", epochs=1)
    printed = capsys.readouterr().out
    assert report.rows == []  # the text says nothing of these data
    assert "hidden_30, best epoch (%)" in printed
    assert "needs images of 16x16 or more" in printed


def test_run_names_what_it_does_not_know():
    with pytest.raises(ValueError, match="unknown recipe hidden_31: expected some of no_hidden_layer"):
        mnist.run(recipes="hidden_31")


# MNIST itself: the numbers that the recipes reached are in docs/examples.md


@pytest.mark.mnist
def test_mnist_first_epoch(data):
    (accuracy,) = mnist.hidden_30(data, epochs=1)
    assert accuracy > 88


@pytest.mark.mnist
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["hidden_30", "hidden_100"])
def test_mnist_dense(data, name, seed):
    recipe, printed = mnist.RECIPES[name]
    assert printed is not None
    assert abs(max(recipe(data, seed=seed)) - printed) <= 1.0


@pytest.mark.mnist
@pytest.mark.slow
def test_mnist_cross_entropy(data):
    assert max(mnist.cross_entropy_l2(data)) >= 98.04 - 0.3


@pytest.mark.mnist
@pytest.mark.slow
def test_mnist_small_convnet(data):
    accuracies = mnist.small_convnet(data)
    assert accuracies[0] >= 97.5
    assert max(accuracies) >= 99.0


@pytest.mark.mnist
@pytest.mark.slow
@pytest.mark.cuda
@pytest.mark.parametrize("name", ["convnet_1", "convnet_2", "convnet_relu", "convnet_dropout"])
def test_mnist_convnets_on_a_gpu(data, name):
    recipe, printed = mnist.RECIPES[name]
    assert printed is not None
    assert max(recipe(data, device="cuda")) >= printed - 0.15
