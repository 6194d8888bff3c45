"""A network of dense layers drawn as a graph: circles for units, lines for weights, with their values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpnet.backend import to_numpy
from xpnet.inspect.activity import activation_name
from xpnet.inspect.figures import COLOURS, axes_or_new
from xpnet.layers.dense import Dense
from xpnet.layers.module import Module

Point = tuple[float, float]
Weights = np.ndarray[Any, np.dtype[np.float64]]

RADIUS = 0.17
POSITIVE, NEGATIVE, BIAS = COLOURS[0], COLOURS[1], COLOURS[5]


@dataclass(frozen=True)
class _Stage:
    """The weights between two layers of units."""

    kernel: Weights  # (in, out)
    bias: Weights | None  # (out,)
    activation: str


def _stages(model: Module) -> list[_Stage]:
    """Return the dense layers of a model in order.

    Raises:
        ValueError: there are none, or two in a row do not fit.
    """
    found: list[_Stage] = []
    for path, module in model.named_modules():
        if isinstance(module, Dense):
            if not module.built:
                raise ValueError(f"draw_network: layer {path!r} has no weights yet; give the model an input_shape")
            kernel = np.asarray(to_numpy(module.kernel.array), dtype=np.float64)
            if found and found[-1].kernel.shape[1] != kernel.shape[0]:
                raise ValueError(
                    f"draw_network: layer {path!r} takes {kernel.shape[0]} inputs, the dense layer before it gives "
                    f"{found[-1].kernel.shape[1]}; only chains of Dense layers can be drawn"
                )
            bias = np.asarray(to_numpy(module.bias.array), dtype=np.float64) if module.use_bias else None
            found.append(_Stage(kernel, bias, activation_name(module)))
        elif module._parameters:
            raise ValueError(
                f"draw_network: layer {path!r} ({type(module).__name__}) has weights that are not a Dense layer's; "
                f"only chains of Dense layers can be drawn"
            )
    if not found:
        raise ValueError("draw_network: the model has no Dense layer")
    return found


def _shown(units: int, most: int) -> list[int | None]:
    """Return the units of a layer to draw; None in place of those left out."""
    if units <= most:
        return list(range(units))
    head = most // 2
    return [*range(head), None, *range(units - (most - head - 1), units)]


def draw_network(
    model: Module,
    *,
    axes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    digits: int | None = None,
    most_units: int = 10,
) -> Any:
    """Draw a chain of Dense layers: inputs on the left, a line for every weight, thicker for larger weights.

    Positive weights are blue and negative ones orange; grey circles with a 1 carry the biases. The values are written on
    the lines with at most 24 lines between any two layers.

    Args:
        model: all its layers with weights must be Dense, as in a Sequential.
        axes: matplotlib axes to draw in; None makes a figure.
        input_names, output_names: written beside the units; by default x1, x2, ... and y1, y2, ...
        digits: decimals of the weights; None chooses three significant digits.
        most_units: in a layer with more units those in the middle are replaced by dots.

    Returns:
        The matplotlib Figure: ``figure.savefig("network.png")``.

    Raises:
        ValueError: other layers have weights, or some weights do not exist yet.
        ImportError: matplotlib is not installed.

    Source: modelled on plot.nn of R's package neuralnet (Guenther and Fritsch, 2010).
    """
    stages = _stages(model)
    sizes = [stages[0].kernel.shape[0], *(s.kernel.shape[1] for s in stages)]
    rows = [_shown(n, most_units) for n in sizes]
    tallest = max(len(r) for r in rows)
    gap = max(1.7, 0.75 * tallest)  # between layers: steep lines cannot be told apart
    figure, axes = axes_or_new(axes, 1.2 + gap * 1.45 * len(stages), 0.9 + 0.85 * (tallest + 0.6))
    largest = max(float(np.max(np.abs(s.kernel))) for s in stages) or 1.0

    def place(layer: int, row: int) -> Point:
        return gap * layer, (len(rows[layer]) - 1) / 2 - row

    top = (tallest - 1) / 2 + 0.85
    written = all(len(a) * len(b) <= 24 for a, b in itertools.pairwise(rows))
    labels: list[tuple[Point, Point, str, str]] = []  # start, end, text, colour
    for number, stage in enumerate(stages):
        sources: list[tuple[Point, int, Weights]] = [
            (place(number, row), unit, stage.kernel) for row, unit in enumerate(rows[number]) if unit is not None
        ]
        targets = [(place(number + 1, row), unit) for row, unit in enumerate(rows[number + 1]) if unit is not None]
        if stage.bias is not None:
            start = (gap * (number + 0.42), top)
            _circle(axes, start, BIAS, "1" if written else "")
            sources.append((start, 0, stage.bias[None, :]))
        for start, unit, values in sources:
            biased = values is not stage.kernel
            for end, unit2 in targets:
                value = float(values[unit, unit2])
                colour = BIAS if biased else POSITIVE if value >= 0 else NEGATIVE
                _line(axes, start, end, colour, 0.4 + min(2.6 * abs(value) / largest, 2.6), dashed=biased)
                if written:
                    labels.append((start, end, _text(value, digits), colour))
    _write(axes, labels)

    names_in = input_names or [f"$x_{{{i + 1}}}$" for i in range(sizes[0])]
    names_out = output_names or [f"$y_{{{i + 1}}}$" for i in range(sizes[-1])]
    for layer, units in enumerate(rows):
        for row, drawn in enumerate(units):
            x, y = place(layer, row)
            if drawn is None:
                axes.text(x, y, r"$\vdots$", ha="center", va="center", fontsize=14)
                continue
            _circle(axes, (x, y), "black", "")
            if layer == 0:
                axes.text(x - 0.3, y, names_in[drawn], ha="right", va="center")
            if layer == len(rows) - 1:
                axes.text(x + 0.3, y, names_out[drawn], ha="left", va="center")
        if layer:
            below = -(tallest - 1) / 2 - 0.5
            axes.text(gap * layer, below, stages[layer - 1].activation, ha="center", va="top", style="italic", color=BIAS)
    axes.set_xlim(-0.75, gap * len(stages) + 0.85)
    axes.set_ylim(-(tallest - 1) / 2 - 0.85, top + 0.35)
    axes.set_aspect("equal")
    axes.axis("off")
    return figure


def _text(value: float, digits: int | None) -> str:
    decimals = digits
    if decimals is None:
        decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value and math.isfinite(value) else 0
    text = f"{value:.{decimals}f}" if decimals < 6 else f"{value:.1e}"
    return text.replace("-", "\N{MINUS SIGN}")


def _line(axes: Any, start: Point, end: Point, colour: str, width: float, dashed: bool = False) -> None:
    style = (0, (4, 2)) if dashed else "solid"
    axes.plot(*zip(start, end), color=colour, linewidth=width, linestyle=style, alpha=0.75, zorder=1, solid_capstyle="butt")


def _write(axes: Any, labels: list[tuple[Point, Point, str, str]]) -> None:
    """Write every label on its line, at the position that is farthest from the other labels."""
    placed: list[Point] = []
    for start, end, text, colour in labels:
        (x0, y0), (x1, y1) = start, end

        def at(along: float, x0: float = x0, y0: float = y0, x1: float = x1, y1: float = y1) -> Point:
            return x0 + along * (x1 - x0), y0 + along * (y1 - y0)

        def space(along: float, at: Any = at, colour: str = colour) -> float:
            x, y = at(along)
            # A label is about three times as wide as high; more distance than 0.3 makes no difference.
            nearest = min((math.hypot((x - a) / 1.8, y - b) for a, b in placed), default=1.0)
            return min(nearest, 0.3) - 0.02 * abs(along - (0.5 if colour == BIAS else 0.35))

        best = max((0.22 + 0.02 * i for i in range(28)), key=space)
        placed.append(at(best))
        axes.text(
            *at(best),
            text,
            color=colour,
            fontsize=8,
            ha="center",
            va="center",
            rotation=math.degrees(math.atan2(y1 - y0, x1 - x0)),
            rotation_mode="anchor",
            transform_rotates_text=True,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
            zorder=2,
        )


def _circle(axes: Any, centre: Point, colour: str, text: str) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle(centre, RADIUS, facecolor="white", edgecolor=colour, linewidth=1.3, zorder=3))
    if text:
        axes.text(*centre, text, color=colour, ha="center", va="center", zorder=4)
