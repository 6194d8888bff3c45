"""Figures of a training run. They need matplotlib (the extra "plot"), but not pyplot and its global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from xpnet.inspect.figures import COLOURS, GRID, INK, PALE, new_figure, short_names, style
from xpnet.runtime.deprecation import renamed_attribute

Figure: TypeAlias = Any
NumpyArray: TypeAlias = np.ndarray[Any, Any]

TRAINING, CHECKED, WRONG = "#8fa3b8", COLOURS[1], "#c0392b"


@dataclass(frozen=True)
class Mistake:
    """A misclassified example.

    Attributes:
        index: which example.
        example: for display: (H, W, 1) or (H, W, 3) in [0, 1], or features (F,).
        truth: the index of its class.
        predicted: the index of the predicted class.
        probability: of the predicted class.
    """

    index: int
    example: NumpyArray
    truth: int
    predicted: int
    called = renamed_attribute("predicted")
    probability: float


def worst_mistakes(examples: NumpyArray, labels: NumpyArray, probabilities: NumpyArray, count: int = 12) -> list[Mistake]:
    """Return the mistakes with the highest probability, worst first.

    Args:
        examples: (N, ...).
        labels: class indices (N,).
        probabilities: (N, K).
        count: at most this many.
    """
    predicted = probabilities.argmax(axis=1)
    sure = probabilities[np.arange(len(predicted)), predicted]
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-sure[wrong], kind="stable")][:count]
    return [Mistake(int(i), examples[i], int(labels[i]), int(predicted[i]), float(sure[i])) for i in order]


def learning_curves(history: Mapping[str, Sequence[float]], title: str = "", checked: str = "test") -> Figure:
    """Plot every value of a history over the epochs, each with its "val_..." counterpart in one panel.

    Args:
        history: as from Trainer.fit.
        title: of the figure.
        checked: the label of the "val_" curves.
    """
    names = [name for name in history if not name.startswith("val_")]
    with style():
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

        figure = new_figure(5.6 * max(len(names), 1), 4.2)
        for ax, name in zip(np.atleast_1d(figure.subplots(1, max(len(names), 1))), names):
            share = "accuracy" in name
            ends = []
            for key, color, label, width in ((name, TRAINING, "training", 1.8), (f"val_{name}", CHECKED, checked, 2.2)):
                values = list(history.get(key, ()))
                if values:
                    epochs = range(1, len(values) + 1)
                    marker = "o" if len(values) < 4 else None
                    ax.plot(epochs, values, color=color, lw=width, marker=marker, solid_capstyle="round", zorder=3)
                    shown = f"{100 * values[-1]:.1f} %" if share else f"{values[-1]:.3g}"
                    ends.append((len(values), values[-1], f"{label}  {shown}", color))
            ax.set_title(name)
            ax.set_xlabel("epoch")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            if ends and ends[0][0] < 4:
                ax.set_xlim(0.5, ends[0][0] + 0.5)
            ax.grid(axis="y", color=GRID, lw=0.8)
            ax.set_axisbelow(True)
            if share:
                ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
            elif _spread(history, name) > 20:
                ax.set_yscale("log")
                ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                ax.yaxis.set_minor_locator(NullLocator())
            _label_ends(ax, ends)
        if title:
            _title(figure, title)
    return figure


def _title(figure: Any, title: str) -> None:
    """Put a title above a figure, shortened to its width; it is text, in which a $ does not begin a formula."""
    [text] = short_names([title], int(9 * figure.get_figwidth()))
    figure.suptitle(text, x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)


def _spread(history: Mapping[str, Sequence[float]], name: str) -> float:
    """Return the largest value of a panel over the smallest, 1 where one is not positive."""
    values = [v for key in (name, f"val_{name}") for v in history.get(key, ())]
    return max(values) / min(values) if values and min(values) > 0 else 1.0


def _label_ends(ax: Any, ends: list[tuple[int, float, str, str]]) -> None:
    """Label the curves at their ends, moved apart where the labels would overlap."""
    low, high = ax.get_ylim()
    log = ax.get_yscale() == "log"

    def up(value: float) -> float:
        a, b, c = (float(np.log(v)) if log else float(v) for v in (low, high, value))
        return (c - a) / (b - a)

    places = [up(value) for _, value, _, _ in ends]
    if len(places) == 2 and abs(places[0] - places[1]) < 0.07:
        middle, upper = sum(places) / 2, int(places[1] >= places[0])
        places[upper], places[1 - upper] = middle + 0.035, middle - 0.035
    for (_, _, text, color), place in zip(ends, places):
        ax.annotate(
            text,
            xy=(1.0, place),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            color=color,
            va="center",
            fontweight="bold",
            fontsize=9,
        )


def confusion(matrix: NumpyArray, class_names: Sequence[str], mistakes: Sequence[Mistake] = (), title: str = "") -> Figure:
    """Plot a confusion matrix, and the worst mistakes beside it.

    Args:
        matrix: counts (K, K); rows are the true classes, columns the predicted ones.
        class_names: K names.
        mistakes: as from :func:`worst_mistakes`; shown as images, or as text for features.
        title: of the figure.
    """
    K = len(class_names)
    class_names = short_names(class_names)
    with style():
        side = min(max(3.6, 0.46 * K + 1.6), 9.0)
        images = bool(mistakes) and mistakes[0].example.ndim == 3
        beside = 5.2 if images else (3.6 if mistakes else 0.0)
        # Names stand beside the rows, and below the columns at an angle.
        room = 0.07 * max(0, max(map(len, class_names), default=0) - 8)
        figure = new_figure(side + 0.6 + room + beside, side + 0.5 + 0.7 * room)
        if title:
            _title(figure, title)
        if beside:
            halves: Any = figure.subfigures(1, 2, width_ratios=[side + 0.6 + room, beside])
            left, right = halves
            right.suptitle("the worst mistakes", fontsize=11, fontweight="bold", x=0.02, ha="left")
            (_image_grid if images else _written)(right, mistakes, class_names)
        else:
            left = figure
        _matrix(left.subplots(), matrix, class_names)
    return figure


def _matrix(ax: Any, matrix: NumpyArray, class_names: Sequence[str]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    K = len(class_names)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    right = LinearSegmentedColormap.from_list("right", ["#f4f7fa", "#3d6a94"])
    wrong = LinearSegmentedColormap.from_list("wrong", ["#fdf1ec", WRONG])
    colors = np.ones((K, K, 4))
    diagonal = np.eye(K, dtype=bool)
    colors[diagonal] = right(share[diagonal])
    # A few errors in a hundred should be visible: the colour scale of errors ends at a fifth of a class.
    errors = ~diagonal & (matrix > 0)
    colors[errors] = wrong(np.clip(share[errors] / 0.2, 0.08, 1.0))
    colors[~diagonal & (matrix == 0)] = (0.985, 0.988, 0.99, 1.0)
    ax.imshow(colors, interpolation="nearest")
    if K <= 20:
        for i, j in np.argwhere(matrix > 0):
            light = (i == j and share[i, j] > 0.5) or (i != j and share[i, j] > 0.12)
            ax.text(j, i, f"{matrix[i, j]:,}", ha="center", va="center", fontsize=9, color="white" if light else INK)
        ax.set_xticks(np.arange(K + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(K + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", lw=1.5)
        ax.tick_params(which="both", length=0)
    step = max(1, -(-K // 25))
    long = max(len(name) for name in class_names) > 3
    turned: dict[str, Any] = {"rotation": 45, "ha": "right"} if long else {"rotation": 0, "ha": "center"}
    # Names are text: a $ in them does not begin a formula.
    ax.set_xticks(range(0, K, step), class_names[::step], parse_math=False, **turned)
    ax.set_yticks(range(0, K, step), class_names[::step], parse_math=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    ax.set_title(f"{int(matrix[diagonal].sum()):,} of {int(matrix.sum()):,} right")


def _image_grid(figure: Any, mistakes: Sequence[Mistake], class_names: Sequence[str]) -> None:
    columns = 3 if len(mistakes) <= 9 else 4
    rows = max(3, -(-len(mistakes) // columns))
    axes = figure.subplots(rows, columns).ravel()
    for ax in axes[len(mistakes) :]:
        ax.axis("off")
    for ax, mistake in zip(axes, mistakes):
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set(visible=True, color=GRID, linewidth=1.2)
        image = np.clip(mistake.example, 0, 1)
        ax.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        title = f"{_confused(mistake, class_names, 5.2 / columns)}\n{100 * mistake.probability:.0f} % sure"
        ax.set_title(title, fontsize=8, fontweight="normal", loc="center", pad=4, parse_math=False)


def _written(figure: Any, mistakes: Sequence[Mistake], class_names: Sequence[str]) -> None:
    ax = figure.subplots()
    ax.axis("off")
    for i, mistake in enumerate(mistakes[:8]):
        y = 0.96 - i * 0.12
        truth, predicted = short_names([class_names[mistake.truth], class_names[mistake.predicted]], 13)
        text = f"{truth}, taken for {predicted} ({100 * mistake.probability:.0f} % sure)"
        ax.text(0, y, text, fontsize=9, va="top", parse_math=False)
        values = "  ".join(f"{v:.3g}" for v in np.ravel(mistake.example)[:8])
        ax.text(0, y - 0.05, f"no. {mistake.index}:  {values}", fontsize=8, va="top", color=PALE)


def _confused(mistake: Mistake, class_names: Sequence[str], inches: float) -> str:
    """Return the true and the predicted class on one line, or on two where one would not fit into that many inches."""
    truth, predicted = class_names[mistake.truth], class_names[mistake.predicted]
    if len(truth) + len(predicted) + 12 <= 16 * inches:
        return f"{truth}, taken for {predicted}"
    truth, predicted = short_names([truth, predicted], max(8, int(16 * inches) - 10))
    return f"{truth},\ntaken for {predicted}"
