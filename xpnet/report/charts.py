"""Charts as inline SVG.

The drawing is stretched to its place, but text is HTML beside it: letters and lines keep their size on any screen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xpnet.report.text import THIN, Markup, html, join, number

_SMALLEST = 1e-290
"""Of a range: powers of ten below it are not numbers."""


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: in the legend.
        x, y: its points; those that are None or not finite are left out.
        style: the CSS class of its colour, "s0" to "s9".
        faint: drawn thin and pale.
        note: beside the name in the legend.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: str = "s0"
    faint: bool = False
    note: str = ""

    @property
    def points(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(float(x), float(y)) for x, y in zip(self.x, self.y) if y is not None and math.isfinite(y)]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers that divide the range from `low` to `high`."""
    if not high - low > _SMALLEST:
        return [low]
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(f * unit for f in (1, 2, 2.5, 5, 10) if f * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Return the marks of a logarithmic axis, given the logarithms of its ends."""
    marks = [float(k) for k in range(math.ceil(low), math.floor(high) + 1)]
    if len(marks) > 5:
        marks = marks[:: -(-len(marks) // 5)]
    if len(marks) >= 2:
        return marks
    return [
        k + math.log10(f)
        for k in range(math.floor(low), math.ceil(high) + 1)
        for f in (1, 2, 5)
        if low <= k + math.log10(f) <= high
    ]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    height: int = 240,
    log: bool = False,
    x_name: str = "epoch",
    whole: bool = True,
    zero: bool = False,
    percent: bool = False,
    start: float | None = None,
) -> Markup:
    """Draw lines over one x axis, with a legend above; return "" if there is nothing to draw.

    Args:
        title: above it.
        series: the lines, later ones on top.
        height: in CSS pixels.
        log: logarithmic y axis, if every value is above 0.
        x_name: what x counts.
        whole: marks of the x axis at whole numbers only.
        zero: the y axis begins at 0.
        percent: y values are fractions, shown in percent.
        start: where the x axis begins; None: at the first point. Charts above one another should agree.
    """
    drawn = [s for s in series if s.points]
    if not drawn:
        return html("")
    every = [p for s in drawn for p in s.points]
    # Outliers at the start of the faint line by step would flatten the rest, so they may leave the picture.
    strong = [y for s in drawn if not s.faint for _, y in s.points] or [y for _, y in every]
    faint = sorted(y for s in drawn if s.faint for _, y in s.points)
    log = log and min(y for _, y in every) > 0

    def f(y: float) -> float:
        return math.log10(y) if log else y

    shown = [*strong, *faint[len(faint) // 50 : len(faint) - len(faint) // 50]]
    low, high = f(min(shown)), f(max(shown))
    low = 0.0 if zero and not log else low
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = (low if zero and not log else low - margin), high + margin
    if percent:
        high = min(high, 1.0) if max(shown) <= 1 else high
    left, right = min(x for x, _ in every), max(x for x, _ in every)
    left = left if start is None else min(start, left)
    if right == left:
        left, right = left - 0.5, right + 0.5

    def place(x: float, y: float) -> tuple[float, float]:
        return 1000 * (x - left) / (right - left), 1000 * (1 - (f(y) - low) / (high - low))

    marks = decades(low, high) if log else ticks(low, high, 4)
    rows = [(m, 100 * (1 - (m - low) / (high - low))) for m in marks]
    columns = [x for x in ticks(left, right, 6) if not whole or abs(x - round(x)) < 1e-6]
    grid = join(html('<path class="grid" d="M0 {:.1f}H1000"/>', 10 * top) for _, top in rows)
    lines = join(_line(s, place) for s in drawn)
    labels = join(
        html('<span class="y" style="top:{:.2f}%">{}</span>', top, _mark(10**m if log else m, percent)) for m, top in rows
    ) + join(
        html('<span class="x" style="left:{:.2f}%">{}</span>', 100 * (x - left) / (right - left), _mark(x, False))
        for x in columns
    )
    legend = join(
        html('<li class="{}{}"><i></i>{} <b>{}</b></li>', s.style, " faint" if s.faint else "", s.name, s.note) for s in drawn
    )
    data = {
        "x": [left, right],
        "y": [low, high],
        "log": log,
        "percent": percent,
        "unit": x_name,
        "series": [
            {"name": s.name, "style": s.style, "points": [[round(x, 4), float(f"{y:.5g}")] for x, y in s.points]}
            for s in drawn
            if not s.faint
        ],
    }
    return html(
        '<figure class="chart"><figcaption><h3>{title}</h3><ul class="legend">{legend}</ul></figcaption>'
        '<div class="plot" style="height:{height}px" data-chart="{data}">'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{title}">{grid}{lines}</svg>'
        '{labels}<span class="unit">{unit}</span></div></figure>',
        title=title,
        legend=legend,
        height=height,
        data=json.dumps(data, separators=(",", ":")),
        grid=grid,
        lines=lines,
        labels=labels,
        unit=x_name,
    )


def _line(series: Series, place: Callable[[float, float], tuple[float, float]]) -> Markup:
    points = [place(x, y) for x, y in series.points]
    kind = f"{series.style} faint" if series.faint else series.style
    if len(points) == 1:  # a line of zero length with round ends is a dot
        x, y = points[0]
        return html('<path class="dot {}" d="M{:.1f} {:.1f}h.01"/>', kind, x, y)
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return html('<path class="line {}" d="M{}"/>', kind, path)


def _mark(value: float, percent: bool) -> Markup:
    if percent:
        return html("{:.4g}{}%", 100 * value, THIN)
    return number(round(value) if value == round(value) and abs(value) < 1e6 else float(value))


def histogram(counts: Sequence[int], low: float, high: float, label: str) -> Markup:
    """Draw a small histogram, with a thin line at 0."""
    top = max(counts) or 1
    n = len(counts)
    # Heights are square roots: a spike (the zeros of a ReLU) would hide everything else.
    heights = [math.sqrt(c / top) for c in counts]
    steps = "".join(f"V{32 - 32 * h:.2f}H{100 * (i + 1) / n:.2f}" for i, h in enumerate(heights))
    zero = html('<path class="zero" d="M{:.2f} 0V32"/>', 100 * -low / (high - low)) if low < 0 < high else ""
    return html(
        '<svg class="hist" viewBox="0 0 100 32" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<path class="area" d="M0 32{}V32Z"/>{}</svg>',
        label,
        steps,
        zero,
    )


def scatter(title: str, points: Sequence[Sequence[float]], *, x_name: str, y_name: str, height: int = 300) -> Markup:
    """Draw points, and the diagonal where both coordinates are equal."""
    values = [v for p in points for v in p if v is not None and math.isfinite(v)]
    if not values:
        return html("")
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.5
    low, high = low - margin, high + margin
    scale = 1000 / (high - low)
    dots = join(
        html('<path class="dot s1 small" d="M{:.1f} {:.1f}h.01"/>', scale * (x - low), 1000 - scale * (y - low))
        for x, y in points
        if x is not None and y is not None
    )
    marks = [(m, 100 * (m - low) / (high - low)) for m in ticks(low, high, 4)]
    grid = join(html('<path class="grid" d="M0 {:.1f}H1000"/>', 1000 - 10 * at) for _, at in marks)
    labels = join(html('<span class="y" style="top:{:.2f}%">{}</span>', 100 - at, _mark(m, False)) for m, at in marks)
    labels += join(html('<span class="x" style="left:{:.2f}%">{}</span>', at, _mark(m, False)) for m, at in marks)
    return html(
        '<figure class="chart"><figcaption><h3>{title}</h3></figcaption>'
        '<div class="plot" style="height:{height}px"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        'aria-label="{y_name} against {x_name}">{grid}<path class="diagonal" d="M0 1000L1000 0"/>{dots}</svg>'
        '{labels}<span class="unit">{x_name}</span></div></figure>',
        title=title,
        height=height,
        x_name=x_name,
        y_name=y_name,
        grid=grid,
        dots=dots,
        labels=labels,
    )
