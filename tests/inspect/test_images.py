"""Weights as images, saliency, tiles."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from xpnet import inspect


@pytest.fixture
def convnet():
    layers = [xn.Conv2D(6, 3, activation="relu"), xn.Flatten(), xn.Dropout(0.5), xn.Dense(4)]
    return xn.Sequential(layers, input_shape=(7, 7, 3), dtype="float64")


def test_tiles_lie_in_reading_order_and_are_stretched():
    images = np.array([np.arange(4.0).reshape(2, 2, 1), 10 * np.arange(4.0).reshape(2, 2, 1) - 5, np.full((2, 2, 1), 7.0)])
    canvas = inspect.tile(images, columns=2, gap=1)
    assert canvas.shape == (5, 5, 1)
    stretched = np.arange(4).reshape(2, 2) / 3
    assert np.allclose(canvas[:2, :2, 0], stretched)
    assert np.allclose(canvas[:2, 3:, 0], stretched)
    assert np.allclose(canvas[3:, :2], 0.5)  # nothing to stretch
    assert np.all(canvas[2] == 1)
    assert np.all(canvas[:, 2] == 1)
    assert np.all(canvas[3:, 3:] == 1)  # no fourth image


def test_tiles_together_keep_their_strengths_and_zero_is_grey():
    images = np.zeros((2, 1, 2, 1))
    images[0, 0, :, 0] = -4, 4
    images[1, 0, :, 0] = 0, 2
    canvas = inspect.tile(images, columns=1, gap=0, scale=3, together=True)
    assert canvas.shape == (6, 6, 1)
    assert np.allclose(canvas[:3, :, 0], [0, 0, 0, 1, 1, 1])
    assert np.allclose(canvas[3:, :, 0], [0.5, 0.5, 0.5, 0.75, 0.75, 0.75])


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 4, 4, 2), (0, 4, 4, 1)])
def test_tiles_of_another_shape(shape):
    with pytest.raises(ValueError, match="expected images"):
        inspect.tile(np.zeros(shape))


def test_first_filters_are_the_kernels(convnet):
    filters = inspect.first_filters(convnet)
    kernel = convnet.parameters()["0.kernel"].array
    assert filters.shape == (6, 3, 3, 3)
    for k in range(6):
        assert np.array_equal(filters[k], kernel[..., k])
    assert inspect.filters_image(convnet, scale=2, gap=1, columns=3).shape == (2 * 6 + 1, 3 * 6 + 2, 3)


def test_first_filters_say_what_is_wrong():
    with pytest.raises(ValueError, match="no Conv2D"):
        inspect.first_filters(xn.Sequential([xn.Dense(2)], input_shape=(3,)))
    with pytest.raises(ValueError, match="has no weights yet"):
        inspect.first_filters(xn.Sequential([xn.Conv2D(2, 3)]))
    with pytest.raises(ValueError, match="only 1 or 3 channels"):
        inspect.first_filters(xn.Sequential([xn.Conv2D(2, 3)], input_shape=(5, 5, 4)))


def test_templates_score_the_images(convnet):
    model = xn.Sequential([xn.Flatten(), xn.Dense(5)], input_shape=(4, 6, 3), dtype="float64")
    x = np.random.default_rng(0).standard_normal((8, 4, 6, 3))
    templates = inspect.templates(model)
    assert templates.shape == (5, 4, 6, 3)
    assert np.allclose(np.einsum("nhwc,khwc->nk", x, templates), model.predict(x))
    with pytest.raises(ValueError, match="takes 150 values, the image shape is"):
        inspect.templates(convnet)
    with pytest.raises(ValueError, match="no Dense layer"):
        inspect.templates(xn.Sequential([xn.Conv2D(2, 3)], input_shape=(5, 5, 3)))


@pytest.mark.parametrize("given", [True, False])
def test_saliency_is_the_gradient_of_one_score(convnet, given):
    x = np.random.default_rng(0).standard_normal((5, 7, 7, 3))
    scores = convnet.predict(x)
    labels = np.array([3, 0, 1, 1, 2]) if given else scores.argmax(axis=1)
    found = inspect.saliency(convnet, x, labels if given else None)
    assert found.shape == (5, 7, 7)
    h = 1e-6
    for n, i, j in ((0, 0, 0), (2, 3, 4), (4, 6, 6), (1, 2, 5)):
        slopes = []
        for c in range(3):
            up, down = x.copy(), x.copy()
            up[n, i, j, c] += h
            down[n, i, j, c] -= h
            slopes.append((convnet.predict(up) - convnet.predict(down))[n, labels[n]] / (2 * h))
        assert found[n, i, j] == pytest.approx(np.max(np.abs(slopes)), abs=1e-6)


def test_saliency_leaves_the_model_trainable(convnet):
    x = np.random.default_rng(0).standard_normal((5, 7, 7, 3))
    inspect.saliency(convnet, x)
    assert all(p.requires_grad and p.grad is None for p in convnet.parameters().values())
    assert convnet.training
    assert all(layer.training for layer in convnet.modules())
    with pytest.raises(ValueError, match="expected scores"):
        inspect.saliency(xn.Sequential([xn.Conv2D(2, 3)], input_shape=(7, 7, 3), dtype="float64"), x)


def test_images_are_drawn_with_titles():
    pytest.importorskip("matplotlib")
    figure = inspect.draw_images(np.random.default_rng(0).random((5, 4, 4)), titles=list("abcde"), columns=3)
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", "d", "e", ""]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_saved_and_read_again(tmp_path, channels):
    image_module = pytest.importorskip("PIL.Image")
    image = np.random.default_rng(0).random((5, 8, channels))
    path = inspect.save_image(tmp_path / "deep" / "a.png", image)
    with image_module.open(path) as opened:
        read = np.asarray(opened)
    assert np.array_equal(read.reshape(5, 8, channels), np.rint(255 * image))
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
