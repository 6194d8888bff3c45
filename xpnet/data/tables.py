"""Text tables: CSV and its relatives, plain or as .gz, with the separator, decimal mark and encoding that the file has."""

from __future__ import annotations

import gzip
import io
import itertools
import math
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xpnet.runtime.messages import counted, quoted

from .dataset import DataError, NumpyArray, check_regular
from .inputs import InputRecord
from .table_form import (
    DECIMAL_COMMA,
    SAMPLE,
    SPACED_THOUSANDS,
    CommaNumbers,
    comma_number,
    converts,
    count_comments,
    declared_separator,
    find_decimal,
    find_encoding,
    find_separator,
    is_missing,
    is_truth,
    plain_number,
    separator_name,
    split_rows,
    truth_number,
)
from .titles import Convert, first_line_is_titles, is_untitled

ENDINGS = (".csv", ".tsv", ".tab", ".csv.gz", ".tsv.gz", ".tab.gz")

_CHUNK = 4096
_LEAST_LIMIT, _MOST_EXPANSION = 1 << 26, 100  # text in a .gz file: no table is compressed better than this


def is_table(path: str | Path) -> bool:
    """Return whether a file is a text table, by its name."""
    return str(path).lower().endswith(ENDINGS)


@dataclass(frozen=True)
class Columns:
    """What was read of a table.

    Attributes:
        numbers: float32 (N, F).
        texts: for each of the columns read as text, its N cells, stripped.
        lines: (N,) int64, the line of the file on which each row begins, from 1.
        rounding: (F,) float64, the largest error that float32 made in each column.
        decimal: "." or ",": far down in the file, one may be found where another was expected.
        notes: what was found out in reading, and should be said.
    """

    numbers: NumpyArray
    texts: list[list[str]]
    lines: NumpyArray
    rounding: NumpyArray
    decimal: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A text table that has been opened: its form is known, its rows are read with :meth:`read`.

    Attributes:
        path: the file.
        titles: of its columns, stripped; None where the first line holds data.
        width: the number of columns.
        separator: between cells.
        decimal: "." or ",".
        notes: what was found out about the file and should be said.
        _length, _kept: the cells of a row, and which of them are columns: others have no title and are empty.
        _doubts: what should be said where the numbers turn out to have decimal points.
        _names: 1 where the first cell of every row is its name, above which the line of titles has no cell, as R writes it.
    """

    path: Path
    titles: tuple[str, ...] | None
    width: int
    separator: str
    decimal: str
    notes: tuple[str, ...]
    _content: bytes
    _encoding: str
    _skipped: int
    _length: int
    _kept: tuple[int, ...]
    _names: int = 0
    _doubts: tuple[str, ...] = ()

    def title(self, column: int) -> str:
        """Return how messages name a column: by its title, or else by its number, from 0."""
        name = self.titles[column] if self.titles is not None and column < len(self.titles) else ""
        return f"column {quoted(name)}" if name else f"column {column}"

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the line on which each row begins and its cells, without the titles.

        Raises:
            DataError: a row has more or fewer cells than the first one, or is not CSV.
        """
        rows = split_rows(self._content, self._encoding, self.separator, self.path, self._skipped)
        if self.titles is not None:
            next(rows)
        whole = self._length == self.width
        empty = sorted(set(range(self._names, self._length)) - set(self._kept))
        for line, row in rows:
            if len(row) != self._length and (whole or not self._kept[-1] < len(row) < self._length):
                raise DataError(
                    f"{self.path}: line {line} has {counted(len(row), 'column')}, expected {self._length}, separated by "
                    f"{separator_name(self.separator)}"
                )
            if not whole:
                for k in empty:
                    if k < len(row) and row[k].strip():
                        raise DataError(
                            f"{self.path}: line {line} has {quoted(row[k].strip())} in column {k}, which has no title and is "
                            f"empty in the first lines; give it a title, or remove it"
                        )
                row = [row[k] for k in self._kept]
            yield line, row

    def read(self, numbers: Sequence[int], texts: Sequence[int] = ()) -> Columns:
        """Read some columns as numbers and some as text.

        Raises:
            DataError: a cell is not a finite number; the message names its line and column. Or there are no rows.
        """
        if not any(True for _ in itertools.islice(self.rows(), 1)):
            raise DataError(f"{self.path}: holds titles and no rows")
        first = next(self.rows())[1]
        truths = frozenset(k for k in numbers if is_truth(first[k]))
        try:
            return self._read(numbers, texts, truths)
        except _DecimalCommaError:
            read = replace(self, decimal=",")._read(numbers, texts, truths)
            return replace(read, notes=("numbers have decimal commas, though not in the first lines", *read.notes))

    def _read(self, numbers: Sequence[int], texts: Sequence[int], truths: Collection[int]) -> Columns:
        commas = CommaNumbers()
        convert = self._converter(commas)
        each = [truth_number if k in truths else convert for k in numbers]
        chunks: list[NumpyArray] = []
        cells: list[list[str]] = [[] for _ in texts]
        lines: list[int] = []
        rounding = np.zeros(len(numbers))
        waiting: list[list[float]] = []

        def flush() -> None:
            wide = np.array(waiting, np.float64).reshape(len(waiting), len(numbers))
            with np.errstate(over="ignore", invalid="ignore"):
                narrow = wide.astype(np.float32)
                if not np.isfinite(narrow).all():
                    row, column = np.argwhere(~np.isfinite(narrow))[0].tolist()
                    raise DataError(
                        f"{self.path}: line {lines[len(lines) - len(waiting) + row]}, {self.title(numbers[column])} holds a "
                        f"number that is not finite{' in float32' if np.isfinite(wide[row, column]) else ''}; fill such cells, "
                        f"or remove their rows"
                    )
                if len(wide) and len(numbers):
                    np.maximum(rounding, np.abs(wide - narrow).max(axis=0), out=rounding)
            chunks.append(narrow)
            waiting.clear()

        for line, row in self.rows():
            lines.append(line)
            try:
                waiting.append([one(row[k]) for one, k in zip(each, numbers)] if truths else [convert(row[k]) for k in numbers])
            except ValueError:
                raise self._wrong_cell(line, row, numbers, each) from None
            for column, found in zip(texts, cells):
                found.append(row[column].strip())
            if len(waiting) == _CHUNK:
                flush()
        flush()
        notes = (*commas.doubts(), *(self._doubts if self.decimal == "." and numbers else ()))
        return Columns(np.concatenate(chunks), cells, np.array(lines, np.int64), rounding, self.decimal, notes)

    def _converter(self, commas: CommaNumbers) -> Callable[[str], float]:
        if self.decimal == ",":
            return commas if b"." in self._content else comma_number
        # Python reads 1_000 as a number, and no other program writes it as one.
        return plain_number if b"_" in self._content else float

    def _wrong_cell(self, line: int, row: list[str], numbers: Sequence[int], each: Sequence[Convert]) -> Exception:
        """Return the error for the first cell that is not a number."""
        column, convert = next((k, convert) for k, convert in zip(numbers, each) if not converts(row[k], convert))
        cell = row[column].strip()
        where = f"{self.path}: line {line}, {self.title(column)}"
        if self.decimal == "." and self.separator != "," and DECIMAL_COMMA.fullmatch(cell):
            return _DecimalCommaError()
        if self.decimal == "," and converts(cell, float):
            return DataError(f"{where}: got {quoted(cell)} in a file with decimal commas; expected numbers written in one way")
        if is_missing(cell):
            what = "the cell is empty" if not cell else f"got {quoted(cell)}"
            return DataError(f"{where}: expected numbers, {what}; fill such cells, or remove their rows")
        if convert is truth_number or is_truth(cell):
            begins = "True or False" if convert is truth_number else "numbers"
            return DataError(
                f"{where}: got {quoted(cell)} in a column that begins with {begins}; write all its cells in one way"
            )
        if SPACED_THOUSANDS.fullmatch(cell):
            return DataError(f"{where}: expected numbers, got {quoted(cell)}; write thousands without spaces")
        return DataError(
            f"{where}: expected numbers, got {quoted(cell)}; encode text as numbers or leave the column out, and name the "
            f"column of classes with --target"
        )


class _DecimalCommaError(Exception):
    """A number with a decimal comma was met in a file that was taken to have points."""


def open_table(path: Path, record: InputRecord | None = None, labels: Collection[str] = (), target: str | None = None) -> Table:
    """Find out the form of a text table: encoding, separator, decimal mark, and whether its first line holds titles.

    Args:
        path: the file, plain or compressed by gzip.
        record: how the training data of a model were read: where a form is in doubt, the file has theirs.
        labels: words that are data: a first line that holds one is not taken for titles.
        target: what the user calls the column of classes: a first line that holds its title is one of titles.

    Raises:
        DataError: the file is missing, not text, or empty; or it is in doubt what its numbers are.
    """
    record = record or InputRecord("table", (), assumed=True)
    content = _content(path)
    encoding, notes = find_encoding(path, content)
    skipped, separator = declared_separator(content, encoding)
    comments = 0 if skipped else count_comments(content, encoding)
    skipped += max(comments - 1, 0)  # the last one may hold titles
    if separator is None:
        separator = find_separator(path, content, encoding, skipped, record.separator, 1 if record.shape == (1,) else 2)
    sample = [row for _, row in itertools.islice(split_rows(content, encoding, separator, path, skipped), SAMPLE)]
    if comments and len(sample) > 1 and len(sample[0]) != len(sample[1]):
        del sample[0]
        skipped += 1
    if not sample:
        raise DataError(f"{path}: holds no rows")
    if comments and skipped:
        notes.append(f"passed over {skipped} line{'s' * (skipped > 1)} of comments at the top")
    if separator not in (",", "\t") or (
        separator == "\t" and ".tsv" not in path.name.lower() and ".tab" not in path.name.lower()
    ):
        notes.append(f"columns are separated by {separator_name(separator)}")
    length, kept = _columns(sample, record)
    names = int(length == len(sample[0]) and len(sample) > 1 and all(len(row) == length + 1 for row in sample[1:]))
    if names:
        length, kept = length + 1, tuple(range(1, length + 1))
        sample = [["", *sample[0]], *sample[1:]]
    sample = [[row[k] if k < len(row) else "" for k in kept] for row in sample] if len(kept) < length else sample
    decimal, said, doubts = find_decimal(path, sample, separator, record.decimal)
    notes += said
    convert = comma_number if decimal == "," else plain_number
    head = [cell.strip() for cell in sample[0]]
    head[0] = head[0].removeprefix("#").strip()
    are_titles, doubt = first_line_is_titles(head, sample[1:], convert, record.columns, labels, record.titled, target)
    if names and not are_titles:  # rows of several lengths, which are refused where they are read
        length, kept, names = length - 1, tuple(range(length - 1)), 0
    notes += [doubt] if doubt else []
    notes += ["the first cell of every row has no title: it was taken for the name of the row, and left out"] if names else []
    titles = tuple(head) if are_titles else None
    width = len(sample[0])
    return Table(
        path, titles, width, separator, decimal, tuple(notes), content, encoding, skipped, length, kept, names, tuple(doubts)
    )


def _columns(sample: list[list[str]], record: InputRecord) -> tuple[int, tuple[int, ...]]:
    """Return the number of cells in a row, and which columns hold something: separators at the ends of lines make empty ones.

    One without a title that is empty in the sample holds nothing, unless a model takes as many columns.
    """
    head = ["" if is_untitled(cell.strip()) else cell for cell in sample[0]]
    # A separator at the end of every line but that of the titles.
    length = len(head) + (len(sample) > 1 and all(len(row) == len(head) + 1 and not row[-1].strip() for row in sample[1:]))
    kept = tuple(k for k in range(length) if any(k < len(row) and row[k].strip() for row in (head, *sample[1:])))
    if not kept or len(kept) < math.prod(record.shape) <= len(sample[0]):
        return len(sample[0]), tuple(range(len(sample[0])))
    return length, kept


def _content(path: Path) -> bytes:
    check_regular(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    if content[:2] != b"\x1f\x8b":
        return content
    limit = max(_LEAST_LIMIT, _MOST_EXPANSION * len(content))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            text = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: a damaged .gz file: {error}") from error
    if len(text) > limit:
        raise DataError(f"{path}: expands to more than {limit >> 20} MB, which is no table; decompress it first if it is one")
    return text
