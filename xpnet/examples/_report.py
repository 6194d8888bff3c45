"""What every example needs: a table of printed and computed numbers, and pictures if matplotlib is installed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Folder = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Row:
    """One comparison: what a text prints, what was computed, and whether they agree."""

    name: str
    printed: str
    got: str
    agrees: bool


class Report:
    """Print a table row by row, and keep the rows.

    Args:
        title: printed above it.
    """

    def __init__(self, title: str) -> None:
        self.rows: list[Row] = []
        print(f"\n{title}\n{'=' * len(title)}")

    def section(self, text: str) -> None:
        """Print a line between rows."""
        print(f"\n{text}")

    def row(self, name: str, printed: str, got: Any, *, within: float | None = None) -> None:
        """Compare numbers with the text's, to all the digits that it prints.

        Args:
            name: what it is.
            printed: one number or several, separated by spaces, as the text prints them.
            got: as many numbers.
            within: how far they may differ; None: half a unit of the last digit printed.
        """
        expected = printed.split()
        values = np.atleast_1d(np.asarray(got, dtype=np.float64)).ravel()
        if len(expected) != len(values):
            raise ValueError(f"{name}: {len(expected)} numbers are printed, {len(values)} were computed")
        close, shown = [], []
        for word, value in zip(expected, values):
            decimals, exponent = _digits(word)
            half_unit = 0.5 * 10.0 ** (exponent - decimals) * (1 + 1e-9)
            close.append(abs(value - float(word)) <= (half_unit if within is None else within))
            shown.append(f"{value:.{decimals}e}" if exponent else f"{value:.{decimals}f}")
        self._add(name, printed, " ".join(shown), all(close), "" if within is None else f"+-{within:g}")

    def at_least(self, name: str, printed: float, got: float, *, less: float = 0.0) -> None:
        """Compare a number that must not be below the text's by more than `less`."""
        allowed = f" - {less:g}" if less else ""
        self._add(name, f">= {printed:g}{allowed}", f"{got:.2f}", bool(got >= printed - less))

    def at_most(self, name: str, printed: float, got: float) -> None:
        """Compare a number that must not be above the text's."""
        self._add(name, f"<= {printed:g}", f"{got:.4g}", bool(got <= printed))

    def same(self, name: str, printed: Any, got: Any) -> None:
        """Compare anything by equality."""
        self._add(name, str(printed), str(got), bool(printed == got))

    def found(self, name: str, got: str) -> None:
        """Print a number that is not in the text."""
        print(f"  {name:<36} {'':>24}   {got}")

    def _add(self, name: str, printed: str, got: str, agrees: bool, note: str = "") -> None:
        if not self.rows:
            print(f"  {'':<36} {'the text':>24}   here")
        self.rows.append(Row(name, printed, got, agrees))
        print(f"  {name:<36} {printed:>24}   {got}{' ' + note if note else ''}{'' if agrees else '   <-- differs'}")

    @property
    def differing(self) -> list[Row]:
        """The rows that do not agree."""
        return [row for row in self.rows if not row.agrees]


def _digits(word: str) -> tuple[int, int]:
    """Return (decimals, exponent) of a printed number."""
    match = re.fullmatch(r"[+-]?\d*(?:\.(\d*))?(?:[eE]([+-]?\d+))?", word)
    if match is None:
        raise ValueError(f"{word!r} is not a printed number")
    return len(match[1] or ""), int(match[2] or 0)


def picture(out: Folder, name: str, draw: Callable[[Any], None], width: float = 6.0, height: float = 4.0) -> None:
    """Let `draw` fill a matplotlib Figure, and save it as `name` in the folder `out`.

    Draws nothing if `out` is None. Without matplotlib it prints one line, and the example continues.
    """
    from xpnet.inspect.figures import MissingMatplotlib, new_figure, save_figure, style

    if out is None:
        return
    try:
        with style():
            figure = new_figure(width, height)
            draw(figure)
            print(f"  picture: {save_figure(figure, os.path.join(out, name))}")
    except MissingMatplotlib as error:
        print(f"  no picture {name}: {error}")
