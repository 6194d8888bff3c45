"""Whether the first line of a text table holds titles: words do, and so may numbers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterable

from .table_form import as_number, converts, is_missing, is_truth

_SHOWN = 6
_MOSTLY = 0.9
"""The share of cells that make a column one of numbers: some may be missing, or written as <0.1."""

Convert = Callable[[str], float]


def is_untitled(title: str) -> bool:
    """Return whether a title is none: pandas calls a column that had none Unnamed: 0, with its number."""
    return not title or re.fullmatch(r"Unnamed: \d+(_level_\d+)?", title) is not None


def first_line_is_titles(
    head: list[str],
    rows: list[list[str]],
    convert: Convert,
    columns: Collection[str] = (),
    labels: Collection[str] = (),
    titled: bool | None = None,
    target: str | None = None,
) -> tuple[bool, str]:
    """Judge the first line of a table.

    Args:
        head: its cells, stripped.
        rows: those below.
        convert: what makes a number of a cell.
        columns: titles that are known from the training data.
        labels: classes that are known from the training data.
        titled: whether these had titles; None: nothing is known of them.
        target: what the user calls the column of classes: its title, or its number.

    Returns:
        Whether it holds titles, and where that is in doubt what should be said.
    """
    if columns and set(columns) <= set(head):
        return True, ""
    below = [[row[k].strip() for row in rows if k < len(row)] for k in range(len(head))]
    if target in head and as_number(target) is None and target not in below[head.index(target)]:
        return True, ""
    numbers = [k for k, cell in enumerate(head) if converts(cell, convert) and not is_missing(cell)]
    if any(cell in labels and k not in numbers for k, cell in enumerate(head)):
        return False, ""
    numeric = [k for k in range(len(head)) if _are_numbers(below[k], convert)]
    words = [k for k, cell in enumerate(head) if k not in numbers and not is_missing(cell)]
    named = [k for k in words if k in numeric and any(c.isalpha() for c in head[k])]  # a word above numbers, but not <0.1
    filled = [[cell for cell in column if not is_missing(cell)] for column in below]
    truths = [k for k in range(len(head)) if all(map(is_truth, filled[k]))]
    if any(k in truths for k in words if is_truth(head[k])) and not named:
        # Values above values of their kind; but pred,true may stand above True and False.
        return any(k in truths and bool(filled[k]) for k in words if not is_truth(head[k])), ""
    if not numbers:
        return bool(named or (words and not numeric)) or _once(head, below, words), ""
    shown = ", ".join(head[:_SHOWN]) + (", ..." if len(head) > _SHOWN else "")
    as_titles = f"the first line ({shown}) is taken for titles; if it holds data, put a line of titles above it"
    as_data = f"the first line ({shown}) is taken for data; if it holds titles, write words there, such as x0,x1,label"
    if len(numbers) == len(head) - 1 and head[0] == "":  # as pandas writes an index and numbered columns
        return _count(head[k] for k in numbers) and (_count(below[0]) or _numbers_rows(below[0], head)), ""
    likely, doubt = _numbers_are_titles(head, below, numbers, words, numeric, named, convert)
    if titled is False:  # what was learnt without titles has none now, either
        return False, as_data if likely or doubt else ""
    return likely, (as_titles if likely else as_data) if doubt else ""


def _numbers_are_titles(
    head: list[str],
    below: list[list[str]],
    numbers: list[int],
    words: list[int],
    numeric: list[int],
    named: list[int],
    convert: Convert,
) -> tuple[bool, bool]:
    """Return whether a first line with numbers in it holds titles, and whether that is in doubt."""
    counting = _count(head[k] for k in numbers)
    if named:
        return True, True
    classes = [k for k in words if k not in numeric]
    if classes:
        if any(head[k] in below[k] for k in classes):
            return False, False
        # A word that comes once, above others that come again; a class of one example, in the first row, is less likely.
        again = _once(head, below, classes)
        if counting and head[numbers[0]] == "0" and len(numbers) > 2:
            return True, False
        if not again:
            return False, False
        values = [convert(head[k]) for k in numbers]
        rising = all(b > a for a, b in itertools.pairwise(values))
        falling = len(values) > 2 and all(b < a for a, b in itertools.pairwise(values))
        odd = len(values) > 3 or any(_differs(head[k], below[k], convert) for k in numbers)
        return (counting and len(numbers) > 1) or ((rising or falling) and odd), True
    if words or len(numbers) < len(head) or not counting or len(head) < 3 or head[0] not in ("0", "1"):
        return False, False
    # 0,1,2,3: as pandas numbers columns, unless the numbers below could continue it.
    whole = all(cell.lstrip("+-").isdigit() for column in below for cell in column)
    strange = any(head[k] not in below[k] and 2 * len(set(below[k])) <= len(below[k]) for k in numbers)
    return not whole or strange, whole or head[0] == "1"


def _are_numbers(column: list[str], convert: Convert) -> bool:
    filled = [cell for cell in column if not is_missing(cell)]
    return bool(filled) and sum(converts(cell, convert) for cell in filled) >= _MOSTLY * len(filled)


def _once(head: list[str], below: list[list[str]], columns: list[int]) -> bool:
    """Return whether some cells of the first line never come again in their columns, where others do."""
    return bool(columns) and all(head[k] not in below[k] and len(set(below[k])) < len(below[k]) for k in columns)


def _count(cells: Iterable[str]) -> bool:
    """Return whether cells are whole numbers, each larger by 1 than the one before."""
    listed = list(cells)
    return all(c.isdecimal() for c in listed) and all(int(b) - int(a) == 1 for a, b in itertools.pairwise(listed))


def _numbers_rows(column: list[str], head: list[str]) -> bool:
    """Return whether a column holds row numbers in any order, beside titles that count from 0.

    Where numbers come again, more titles must count: ,0,1 may be a row with a gap.
    """
    whole = all(cell.isascii() and cell.isdecimal() for cell in column)
    least = 2 if len(set(column)) == len(column) else 4
    return whole and head[1] == "0" and len(head) > least


def _differs(cell: str, column: list[str], convert: Convert) -> bool:
    """Return whether a number of the first line is beyond those below, or has fewer digits than all of them."""
    filled = [other for other in column if converts(other, convert) and not is_missing(other)]
    values = [convert(other) for other in filled]
    return not min(values, default=0) <= convert(cell) <= max(values, default=0) or len(cell) < min(map(len, filled), default=0)
