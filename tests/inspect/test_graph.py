"""Networks drawn as graphs."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from xpnet import inspect
from xpnet.examples import by_hand

pytest.importorskip("matplotlib")


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_every_weight_is_written_on_its_line():
    figure = inspect.draw_network(by_hand.network(), digits=2)
    written = texts(figure)
    for weight in ("0.15", "0.20", "0.25", "0.30", "0.40", "0.45", "0.50", "0.55"):
        assert written.count(weight) == 1
    assert written.count("0.35") == written.count("0.60") == 2  # the biases of two units each
    assert written.count("1") == 2
    assert written.count("sigmoid") == 2
    assert len(figure.axes[0].lines) == 12
    assert len(figure.axes[0].patches) == 2 + 2 + 2 + 2


def test_labels_do_not_lie_on_each_other(tmp_path):
    model = xn.Sequential([xn.Dense(3, "tanh"), xn.Dense(3)], input_shape=(4,), seed=4)
    figure = inspect.draw_network(model)
    figure.savefig(tmp_path / "a.png")
    labels = [t for t in figure.axes[0].texts if t.get_rotation() or t.get_bbox_patch()]
    at = np.array([t.get_position() for t in labels])
    distance = np.hypot(*(at[:, None] - at[None]).transpose(2, 0, 1)) + 9 * np.eye(len(at))
    assert distance.min() > 0.2


def test_negative_weights_have_another_colour_and_a_true_minus():
    model = xn.Sequential([xn.Dense(1, use_bias=False)], input_shape=(2,))
    model.load_state({"0.kernel": np.array([[2.0], [-3.0]])})
    figure = inspect.draw_network(model, input_names=["a", "b"], output_names=["c"])
    assert {"a", "b", "c", "2.00", "\N{MINUS SIGN}3.00"} <= set(texts(figure))
    first, second = figure.axes[0].lines
    assert first.get_color() != second.get_color()
    assert second.get_linewidth() > first.get_linewidth()


def test_large_layers_are_shortened():
    model = xn.Sequential([xn.Dense(100, "relu"), xn.Dense(2)], input_shape=(30,))
    figure = inspect.draw_network(model, most_units=8)
    assert texts(figure).count(r"$\vdots$") == 2
    assert len(figure.axes[0].patches) == 8 - 1 + 8 - 1 + 2 + 2 or len(figure.axes[0].patches) == 8 + 8 + 2 + 2
    names = texts(figure)
    assert "$x_{1}$" in names
    assert "$x_{30}$" in names


def test_axes_of_ones_own():
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert inspect.draw_network(by_hand.network(), axes=right) is figure
    assert not left.lines
    assert right.lines


def test_other_layers_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"layer '0' \(Conv2D\) has weights that are not a Dense layer's"):
        inspect.draw_network(xn.Sequential([xn.Conv2D(2, 3), xn.Flatten(), xn.Dense(2)], input_shape=(4, 4, 1)))
    with pytest.raises(ValueError, match="no Dense layer"):
        inspect.draw_network(xn.Sequential([xn.ReLU()], input_shape=(3,)))
    with pytest.raises(ValueError, match="has no weights yet"):
        inspect.draw_network(xn.Sequential([xn.Dense(3)]))
