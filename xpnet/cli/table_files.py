"""Tables of numbers with a column of classes: CSV files and their relatives, matched by their titles."""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from xpnet.cli.argument_types import UsageError
from xpnet.cli.readings import Known, Reading, alike_names, class_indices, normalized, placed, quoted_list
from xpnet.data import DataError
from xpnet.data.dataset import NumpyArray
from xpnet.data.inputs import InputRecord
from xpnet.data.splits import row_hashes
from xpnet.data.table_form import as_number, is_missing, is_truth
from xpnet.data.tables import Table, open_table
from xpnet.data.titles import is_untitled
from xpnet.runtime.messages import counted, quoted

_CLASS_TITLES = ("label", "labels", "class", "target", "y", "category", "species")
_IDENTIFIERS = frozenset({"index", "idx", "row", "rowid", "rowindex", "rownumber", "nr", "no"})
_ROUNDING = 0.01
_TOKENS = re.compile(r"""-(?=\s*[.,]?\d)|(?<!\w)[.,](?=\d)|\d+(?:[.,:]\d+)*|[^\s_.,:;()\[\]{}'"`-]""")
"""What a title means something by: numbers with their signs and points, and all characters but those between words."""
_SHORT = 20
"""So few rows may be counted by a measurement."""


@dataclass
class Chosen:
    """Which columns of a table are features, and which is the class.

    Attributes:
        features: their numbers, in the order of the model's inputs.
        target: the column of classes; None where there is none.
        notes: what should be said about the choice.
    """

    features: list[int]
    target: int | None
    notes: list[str] = field(default_factory=list)


def read_table(path: Path, target: str | None = None, known: Known | None = None) -> Reading:
    """Read numbers and classes from the rows of a table.

    Args:
        path: a CSV file or one of its relatives.
        target: the title, or the number from 0, of the column of classes; None: the last column, or that of `known`.
        known: how the inputs of a model or run were read: columns are matched by their titles.

    Raises:
        DataError: the file is missing or empty, holds text where numbers should be, or lacks columns or classes; it names the
            line.
        UsageError: there is no such column.
    """
    table = _open(path, known, target)
    chosen = _for_training(table, target) if known is None else choose(table, known, target)
    if chosen.target is None:
        raise DataError(_without_class(table, chosen, known))
    read = table.read(chosen.features, [chosen.target])
    labels = _labels(table, chosen.target, read.texts[0], read.lines)
    notes = [f"{path}: {note}" for note in (*table.notes, *chosen.notes, *read.notes)]
    x = read.numbers
    if known is None:
        names, y = _classes(table, chosen.target, labels, named=target is not None)
        notes += _merged(path, labels)
        notes += [f"{path}: {note}" for note in (*_odd_features(table, chosen, x, read.rounding), *alike_names(names))]
        titles = () if table.titles is None else tuple(_title(table, k) for k in chosen.features)
        title = "" if table.titles is None else table.titles[chosen.target]
        inputs = InputRecord(
            "table", x.shape[1:], columns=titles, target=title, target_column=chosen.target, separator=table.separator,
            decimal=read.decimal,
        )  # fmt: skip
    else:
        x, note = known.inputs.to_units(x, str(path), text=True)
        notes += [note] if note else []
        inputs, names, y = known.inputs, known.class_names, class_indices(labels, known, str(path))
    contents = row_hashes(x)
    places, inputs = placed(contents, inputs, known)
    return Reading(str(path), x.reshape(len(x), *inputs.shape), y, names, inputs, contents, places, None, notes)


def read_rows(path: Path, known: Known, target: str | None = None) -> tuple[NumpyArray, list[str]]:
    """Read the examples in the rows of a table for a model: float32 (N, *shape), and what should be said about them.

    Raises:
        DataError, UsageError: as in :func:`read_table`; a column of classes may be there, and is passed over.
    """
    table = _open(path, known, target)
    chosen = choose(table, known, target)
    read = table.read(chosen.features)
    x, note = known.inputs.to_units(read.numbers, str(path), text=True)
    notes = [f"{path}: {said}" for said in (*table.notes, *chosen.notes, *read.notes)]
    return x.reshape(len(x), *known.inputs.shape), notes + ([note] if note else [])


def choose(table: Table, known: Known, target: str | None = None) -> Chosen:
    """Choose the columns that a model takes: by their titles, or where file or model have none by their place.

    Raises:
        DataError: columns are missing, or it is in doubt which of them is the class.
        UsageError: `target` is no column.
    """
    record, titles = known.inputs, table.titles
    if not record.columns or titles is None:
        return _by_place(table, known, target)
    _check_titles(table)
    features = [_find_title(titles, name) for name in record.columns]
    missing = [name for name, k in zip(record.columns, features) if k is None]
    if missing:
        close = difflib.get_close_matches(missing[0], [title for title in titles if title], 1)
        raise DataError(
            f"{table.path}: has no column{'s' * (len(missing) > 1)} {quoted_list(missing)}; {known.place} takes the columns "
            f"{quoted_list(record.columns)}, and the file has {quoted_list(titles)}"
            + (f"; if {quoted(close[0])} is {quoted(missing[0])}, give it this title" if close else "")
        )
    wanted = [k for k in features if k is not None]
    if len(set(wanted)) < len(wanted):
        raise DataError(f"{table.path}: the titles {quoted_list(titles)} do not tell {quoted_list(record.columns)} apart")
    column = find_column(table, target) if target is not None else _find_title(titles, record.target) if record.target else None
    others = [titles[k] for k in range(table.width) if k not in wanted and k != column and titles[k]]
    notes = [f"columns that the model does not take were passed over: {quoted_list(others)}"] if others else []
    if column in wanted:
        raise UsageError(f"--target {target}: {known.place} takes this column as a feature")
    return Chosen(wanted, column, notes)


def _by_place(table: Table, known: Known, target: str | None) -> Chosen:
    """Choose columns by their place: all, or all but that of the classes."""
    record, count = known.inputs, math.prod(known.inputs.shape)
    notes = []
    if record.columns:
        notes.append(f"has no titles: columns are taken in the order {quoted_list(record.columns)}")
    elif record.kind == "table" and table.titles is not None:
        notes.append(f"columns are taken in their order, whatever their titles: the data of {known.place} had none")
    columns = list(range(table.width))
    wanted = count + (target is not None)
    if table.width > wanted and (numbered := _row_numbers(table, columns)):
        left = [k for k in columns if k not in numbered]
        if len(left) == count + 1 or (len(left) == wanted and not _hold_words(table, left)):
            columns = left
            notes += _left_out(numbered)
    if len(columns) == count and target is None:
        return Chosen(columns, None, notes)
    if len(columns) != count + 1:
        raise DataError(
            f"{table.path}: has {counted(table.width, 'column')}, the model takes {counted(count, 'number')}, and one column "
            f"may be the class; {known.place} takes {record.describe()}"
        )
    if target is not None:
        column = find_column(table, target)
    elif (place := record.target_column) is not None and place < len(columns) and _count_classes(table, columns[place], known):
        column = columns[place]
    else:
        column = _class_column(table, known, columns)
    notes.append(f"{table.title(column)} is taken for the class")
    return Chosen([k for k in columns if k != column], column, notes)


def _hold_words(table: Table, columns: Sequence[int]) -> bool:
    """Return whether one of some columns begins with a word, and is no feature then."""
    row = next((row for _, row in table.rows()), [""] * table.width)
    return any(as_number(row[k].replace(",", ".")) is None and not is_truth(row[k]) for k in columns)


def _class_column(table: Table, known: Known, columns: list[int]) -> int:
    """Return the first or the last of some columns, whichever holds classes."""
    ends = [columns[0], columns[-1]]
    if table.titles is not None:
        titled = [k for k in columns if table.titles[k].lower() in _CLASS_TITLES]
        ends = titled if len(titled) == 1 else ends
    counts = {k: _count_classes(table, k, known) for k in dict.fromkeys(ends)}
    found = [k for k, count in counts.items() if count]
    if len(found) == 2 and min(counts.values()) == 1 < max(
        counts.values()
    ):  # a constant one, such as the pixels of a corner, is not the class
        found = [k for k in found if counts[k] > 1]
    if len(found) != 1:
        what = "neither the first nor the last column holds" if not found else "the first and the last column hold"
        raise DataError(
            f"{table.path}: has {counted(table.width, 'column')}, the model takes {counted(len(columns) - 1, 'number')}, "
            f"and {what} classes of {known.place} ({quoted_list(known.class_names)}); name the column of classes with "
            f"--target, or remove it"
        )
    return found[0]


def _count_classes(table: Table, column: int, known: Known) -> int:
    """Return how many classes of a model a column holds; 0 where it holds anything else."""
    labels = {label for label in table.read([], [column]).texts[0] if not is_missing(label)}
    try:
        class_indices(sorted(labels), known, str(table.path))
    except DataError:
        return 0
    return len(labels)


def _open(path: Path, known: Known | None, target: str | None) -> Table:
    if known is None:
        return open_table(path, target=target)
    return open_table(path, known.inputs, known.class_names, target)


def _check_titles(table: Table) -> None:
    titles = [title for title in table.titles or () if title]
    if len(set(titles)) < len(titles):
        double = next(title for title in titles if titles.count(title) > 1)
        raise DataError(f"{table.path}: two columns have the title {quoted(double)}; give each its own")


def _find_title(titles: Sequence[str], name: str) -> int | None:
    """Return the column with this title: the same, or the only one that differs in case, or in what is between words, alone.

    A unit in brackets may be missing in the file: sepal_length is "sepal length (cm)", and "sepal length (mm)" is not.
    """
    if name in titles:
        return titles.index(name)
    for simple in (_folded, _letters):
        wanted = {simple(name), simple(re.sub(r"\(.*?\)$", "", name))} - {""}
        alike = [k for k, title in enumerate(titles) if simple(title) in wanted]
        if len(alike) == 1:
            return alike[0]
    placed = [k for k, title in enumerate(titles) if not title and f"column {k}" == name]
    return placed[0] if placed else None


def _folded(title: str) -> str:
    return normalized(title).casefold()


def _letters(title: str) -> str:
    """Return a title without what stands between words, which programs write in several ways.

    What is part of a number stays, and so do all other signs: 1.5 is not 15, lag-1 not lag+1, and age<30 not age>30.
    """
    left = ""
    for token in _TOKENS.findall(re.sub("[\u2010-\u2015\u2212]", "-", _folded(title))):  # dashes, and the sign minus
        left += " " * (left[-1:].isdecimal() and token[0].isdecimal()) + token  # x_1_5 is not x_15
    return left


def _title(table: Table, column: int) -> str:
    assert table.titles is not None
    return table.titles[column] or f"column {column}"


def find_column(table: Table, target: str) -> int:
    """Return the column with this title, or where none has it, with this number from 0.

    Raises:
        UsageError: there is none.
    """
    titles = table.titles
    if titles is not None and titles.count(target) == 1:
        return titles.index(target)
    if titles is not None and titles.count(target) > 1:
        raise UsageError(f"--target {target}: {table.path} has {titles.count(target)} columns with this title")
    try:
        number = int(target)
    except ValueError:
        if titles is None:
            raise UsageError(
                f"--target {target}: {table.path} has columns without titles; expected a number from 0 to {table.width - 1}"
            ) from None
    else:
        if -table.width <= number < table.width:
            return number % table.width
        if titles is None:
            raise UsageError(
                f"--target {target}: {table.path} has {counted(table.width, 'column')}, numbered from 0 to {table.width - 1}"
            )
    close = difflib.get_close_matches(target, titles, 1)
    hint = f"; did you mean {quoted(close[0])}?" if close else ""
    raise UsageError(f"--target {target}: {table.path} has the columns {quoted_list(titles, 20)}{hint}")


def _without_class(table: Table, chosen: Chosen, known: Known | None) -> str:
    """Say that a table has no column of classes as a model calls it, and which of its columns may be that."""
    expected = "" if known is None else known.inputs.target
    if table.titles is None or not expected:
        return f"{table.path}: has no column of classes: {_columns(table)}; name it with --target"
    others = [title for k, title in enumerate(table.titles) if title and k not in chosen.features]
    close = difflib.get_close_matches(_letters(expected), [_letters(title) for title in others], len(others) or 1)
    others.sort(key=lambda title: (title.lower() not in _CLASS_TITLES) - 2 * (_letters(title) in close))
    which = f"its columns are the features of {known.place}" if known is not None else ""
    if others:
        which = (
            f"beside the features it has {quoted_list(others)}; if one is the class, name it: --target {shlex.quote(others[0])}"
        )
    return f"{table.path}: has no column of classes called {quoted(expected)}; {which}"


def _columns(table: Table) -> str:
    return f"it has {counted(table.width, 'column')}" + (f", {quoted_list(table.titles)}" if table.titles is not None else "")


def _for_training(table: Table, target: str | None) -> Chosen:
    """Choose the column of classes; all others are features, except for the row numbers that pandas writes."""
    _check_titles(table)
    if table.width < 2:
        raise DataError(f"{table.path}: has one column; expected features and a column of classes, separated by commas")
    column = table.width - 1 if target is None else find_column(table, target)
    notes = []
    titles = table.titles or ()
    others = [titles[k] for k in range(len(titles)) if k != column and titles[k].lower() in _CLASS_TITLES]
    if target is None and others and titles[column].lower() not in _CLASS_TITLES:
        notes.append(
            f"the last column, {quoted(titles[column])}, is the class; if it is {quoted(others[0])}, give --target {others[0]}"
        )
    features = [k for k in range(table.width) if k != column]
    numbered = _row_numbers(table, features)
    if numbered and len(numbered) < len(features):
        notes += _left_out(numbered)
        features = [k for k in features if k not in numbered]
    return Chosen(features, column, notes)


_REPEATED = "holds the numbers of rows, some of them more than once (give it a title if it is a feature)"


def _row_numbers(table: Table, columns: Sequence[int]) -> dict[int, str]:
    """Return which of some columns have no title and hold the numbers of rows, and in which way."""
    untitled = [k for k in columns if table.titles is not None and is_untitled(table.titles[k])]
    first = untitled if untitled in ([0], [0, 1]) else []  # as an index of pandas stands beside titles
    return {k: kind for k in untitled if (kind := _numbered(table, k)) and (kind != _REPEATED or k in first)}


def _left_out(numbered: dict[int, str]) -> list[str]:
    return [f"a column without a title {kind}, and was left out" for kind in dict.fromkeys(numbered.values())]


def _numbered(table: Table, column: int) -> str:
    """Say in which way a column holds the numbers or names of rows, as pandas writes its index; "" for not at all.

    A shuffled table, or a part of one, has them in any order; one that was put together or drawn with replacement some of
    them several times.
    """
    cells = table.read([], [column]).texts[0]
    if any(cells == [str(k) for k in range(start, start + len(cells))] for start in (0, 1)):
        return "counts the rows"
    if column == 0 and len(set(cells)) == len(cells) and all(as_number(c) is None and not is_missing(c) for c in cells):
        return "names the rows"  # as R writes it
    if not all(cell.isascii() and cell.isdecimal() for cell in cells):
        return ""
    return "numbers the rows" if len(set(cells)) == len(cells) else _REPEATED


def _labels(table: Table, column: int, cells: list[str], lines: NumpyArray) -> list[str]:
    """Return the cells of the column of classes.

    Raises:
        DataError: a cell is empty or NaN.
    """
    missing = [k for k, cell in enumerate(cells) if is_missing(cell)]
    if missing:
        shown = ", ".join(str(lines[k]) for k in missing[:5]) + (", ..." if len(missing) > 5 else "")
        what = "is empty" if not cells[missing[0]] else f"holds {quoted(cells[missing[0]])}"
        raise DataError(
            f"{table.path}: line {lines[missing[0]]}: the class, {table.title(column)}, {what}; rows without a class: "
            f"{len(missing):,} (lines {shown}); fill the cells, or remove these rows"
        )
    return cells


def _classes(table: Table, column: int, labels: list[str], named: bool) -> tuple[tuple[str, ...], NumpyArray]:
    """Return the names of the classes in order, and the class indices; 1 and 1.0 are one class.

    Raises:
        DataError: there is one class only, or so many that the column holds measurements, or, where the user did not name it,
            texts that differ in most of the rows.
    """
    spelled: dict[float | str, str] = {}
    keys: dict[str, float | str] = {}
    for label in dict.fromkeys(labels):
        number = as_number(label)
        key: float | str = label if number is None else number
        keys[label] = key
        if key not in spelled or len(label) < len(spelled[key]):
            spelled[key] = label
    count = len(spelled)
    where = f"{table.path}: {'the class column' if table.titles is None else f'the class, {table.title(column)},'}"
    if count < 2:
        only = "only" if len(keys) < 2 else "only, which are one number"
        raise DataError(
            f"{where} holds {quoted_list(list(keys), 3)} {only}; if another column is the class, name it with --target"
        )
    numbers = [key for key in spelled if isinstance(key, float)]
    measured = sum(key != round(key) for key in numbers)
    if len(numbers) > max(20, len(labels) // 3) or (measured > 20 and 2 * measured > count):
        raise DataError(
            f"{where} holds {counted(count, 'value')} in {counted(len(labels), 'row')}; are these classes? If another column "
            f"is, name it with --target; a network for numbers (regression) is trained with xn.Trainer and a loss such as "
            f"mean_squared_error"
        )
    if count > max(20, len(labels) // 2) and not named:
        this = shlex.quote((table.titles[column] if table.titles is not None else "") or str(column))
        raise DataError(
            f"{where} holds {counted(count, 'text')} in {counted(len(labels), 'row')}; if another column is the class, name "
            f"it with --target; if these are the classes, give --target {this}"
        )
    order = sorted(spelled, key=lambda key: (0, key, "") if isinstance(key, float) else (1, 0.0, key))
    index = {key: k for k, key in enumerate(order)}
    y = np.array([index[keys[label]] for label in labels], np.int64)
    return tuple(spelled[key] for key in order), y


def _merged(path: Path, labels: Sequence[str]) -> list[str]:
    """Say which labels are one class, because they are the same number."""
    spelled: dict[float, list[str]] = {}
    for label in dict.fromkeys(labels):
        if (number := as_number(label)) is not None:
            spelled.setdefault(number, []).append(label)
    several = [names for names in spelled.values() if len(names) > 1]
    return [f"{path}: the classes {quoted_list(names)} are one: they are the same number" for names in several[:3]]


def _odd_features(table: Table, chosen: Chosen, x: NumpyArray, rounding: NumpyArray) -> list[str]:
    """Say which features count the rows, and which differ in digits that float32 does not keep, such as milliseconds."""
    rows = np.arange(len(x))
    count = [k for k in range(x.shape[1]) if len(x) > _SHORT and x[0, k] in (0, 1) and np.array_equal(x[:, k], rows + x[0, k])]
    named = [k for k in range(x.shape[1]) if len(x) > _SHORT and k not in count and _is_identifier(table, chosen.features[k])]
    notes = [
        f"{table.title(chosen.features[k])} {'counts' if k in count else 'numbers'} the rows, and is a feature; if it is no "
        f"measurement, remove it"
        for k in sorted([*count, *named])[:3]
    ]
    lost = [k for k in range(x.shape[1]) if rounding[k] > _ROUNDING * float(x[:, k].std(dtype=np.float64))]
    return notes + [
        f"{table.title(chosen.features[k])}: its values, around {float(x[0, k]):.4g}, differ in digits that float32 does not "
        f"keep; subtract an offset first"
        for k in lost[:3]
    ]


def _is_identifier(table: Table, column: int) -> bool:
    """Return whether a column is called id, customer_id, index or the like, and holds whole numbers that all differ."""
    words = [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", table.titles[column] if table.titles else "")]
    if not words or not (words[-1] == "id" or "".join(words) in _IDENTIFIERS):
        return False
    return _numbered(table, column) not in ("", _REPEATED)
