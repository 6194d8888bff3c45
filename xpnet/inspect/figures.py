"""Figures: matplotlib, imported only when something is drawn, and a common style."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xpnet.io.archive import write_atomically

COLOURS = ("#2864a8", "#d1662a", "#3a8f4d", "#a33a8c", "#8a6d1f", "#5b5b5b")
"""Blue, orange, green, purple, ochre, grey: distinguishable in print and with red-green colour blindness."""

INK, PALE, GRID = "#23303d", "#7a8794", "#e3e7eb"
"""The colours of text, of frames and of grid lines."""

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.dpi": 150,
    "savefig.facecolor": "white",
}


LONGEST_NAME = 28
"""Characters of a name of a class in a picture."""


def short_names(names: Sequence[str], most: int = LONGEST_NAME) -> list[str]:
    """Shorten names for a picture so that they can still be told apart: each keeps its beginning and its end, or where they
    differ elsewhere, the part from there on.

    What cannot be drawn (line breaks, bytes of file names that are no text) is replaced.
    """
    plain = ["".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(name)) for name in names]
    if all(len(name) <= most for name in plain):
        return plain
    kept = most - 1
    for head in (kept // 3, kept - kept // 3, 0, kept):
        made = [n if len(n) <= most else f"{n[:head]}\N{HORIZONTAL ELLIPSIS}{n[len(n) - kept + head :]}" for n in plain]
        if len(set(made)) == len(set(plain)):
            return made
    columns = zip(*(n for n in plain if len(n) > most))
    alike = next((i for i, column in enumerate(columns) if len(set(column)) > 1), 0)
    start = max(0, alike - 2)
    made = [n if len(n) <= most else f"\N{HORIZONTAL ELLIPSIS}{n[start : start + most - 1]}" for n in plain]
    if len(set(made)) == len(set(plain)):
        return made
    return [n if len(n) <= most else f"{n[: most - 6]}\N{HORIZONTAL ELLIPSIS}#{i}" for i, n in enumerate(plain)]


class MissingMatplotlib(ImportError):  # noqa: N818 - an ImportError by its base
    """Drawing needs matplotlib, which is not installed."""


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of this package within the block.

    Raises:
        MissingMatplotlib: it is not installed.
    """
    try:
        import matplotlib as mpl
        from cycler import cycler
    except ImportError:
        raise MissingMatplotlib('drawing needs matplotlib, which is not installed: pip install "xpnet[plot]"') from None
    with mpl.rc_context({**STYLE, "axes.prop_cycle": cycler(color=COLOURS)}):
        yield


def new_figure(width: float = 6.0, height: float = 4.0) -> Any:
    """Return an empty matplotlib Figure of that size in inches, independent of pyplot.

    Raises:
        MissingMatplotlib: matplotlib is not installed.
    """
    with style():
        from matplotlib.figure import Figure

        return Figure(figsize=(width, height), layout="constrained")


def axes_or_new(axes: Any, width: float = 6.0, height: float = 4.0) -> tuple[Any, Any]:
    """Return (figure, axes), of the given axes or of a new figure."""
    if axes is not None:
        return axes.figure, axes
    figure = new_figure(width, height)
    with style():
        return figure, figure.subplots()


def save_figure(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write a figure to a file, atomically; its suffix is the format (png, pdf, svg). Return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:] or None))
    return path
