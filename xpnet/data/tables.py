"""Text tables: CSV and its relatives, plain or as .gz, with the separator, decimal mark and encoding that the file has."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xpnet.runtime.messages import quoted

from .dataset import DataError, NumpyArray

ENDINGS = (".csv", ".tsv", ".tab", ".csv.gz", ".tsv.gz", ".tab.gz")

_SEPARATORS = (",", ";", "\t", "|", " ")
_SAMPLE = 200  # rows that separator, decimal mark and titles are judged by
_CHUNK = 4096
_LEAST_LIMIT, _MOST_EXPANSION = 1 << 26, 100  # text in a .gz file: no table is compressed better than this
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(\.\d{3})+(,\d+)?")


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
    """

    numbers: NumpyArray
    texts: list[list[str]]
    lines: NumpyArray
    rounding: NumpyArray


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

    def title(self, column: int) -> str:
        """Return how messages name a column: by its title, or else by its number, from 0."""
        name = self.titles[column] if self.titles is not None and column < len(self.titles) else ""
        return f"column {quoted(name)}" if name else f"column {column}"

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the line on which each row begins and its cells, without the titles.

        Raises:
            DataError: a row has more or fewer cells than the first one, or is not CSV.
        """
        rows = _rows(self._content, self._encoding, self.separator, self.path, self._skipped)
        if self.titles is not None:
            next(rows)
        for line, row in rows:
            if len(row) != self.width:
                raise DataError(
                    f"{self.path}: line {line} has {len(row)} columns, expected {self.width}, separated by "
                    f"{_name(self.separator)}"
                )
            yield line, row

    def read(self, numbers: Sequence[int], texts: Sequence[int] = ()) -> Columns:
        """Read some columns as numbers and some as text.

        Raises:
            DataError: a cell is not a finite number; the message names its line and column. Or there are no rows.
        """
        if not any(True for _ in itertools.islice(self.rows(), 1)):
            raise DataError(f"{self.path}: holds titles and no rows")
        try:
            return self._read(numbers, texts)
        except _DecimalCommaError:
            return replace(self, decimal=",")._read(numbers, texts)

    def _read(self, numbers: Sequence[int], texts: Sequence[int]) -> Columns:
        convert = self._converter()
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
                waiting.append([convert(row[k]) for k in numbers])
            except ValueError:
                raise self._wrong_cell(line, row, numbers, convert) from None
            for column, found in zip(texts, cells):
                found.append(row[column].strip())
            if len(waiting) == _CHUNK:
                flush()
        flush()
        return Columns(np.concatenate(chunks), cells, np.array(lines, np.int64), rounding)

    def _converter(self) -> Callable[[str], float]:
        if self.decimal == ",":
            return _comma_number
        # Python reads 1_000 as a number, and no other program writes it as one.
        return _plain_number if b"_" in self._content else float

    def _wrong_cell(self, line: int, row: list[str], numbers: Sequence[int], convert: Callable[[str], float]) -> Exception:
        """Return the error for the first cell that is not a number."""
        column = next(k for k in numbers if not _converts(row[k], convert))
        cell = row[column].strip()
        where = f"{self.path}: line {line}, {self.title(column)}"
        if self.decimal == "." and self.separator != "," and _DECIMAL_COMMA.fullmatch(cell):
            return _DecimalCommaError()
        if self.decimal == "," and _converts(cell, float):
            return DataError(f"{where}: got {quoted(cell)} in a file with decimal commas; expected numbers written in one way")
        if is_missing(cell):
            what = "the cell is empty" if not cell else f"got {quoted(cell)}"
            return DataError(f"{where}: expected numbers, {what}; fill such cells, or remove their rows")
        return DataError(
            f"{where}: expected numbers, got {quoted(cell)}; encode text as numbers or leave the column out, and name the "
            f"column of classes with --target"
        )


class _DecimalCommaError(Exception):
    """A number with a decimal comma was met in a file that was taken to have points."""


def open_table(path: Path, columns: Collection[str] = (), labels: Collection[str] = ()) -> Table:
    """Find out the form of a text table: encoding, separator, decimal mark, and whether its first line holds titles.

    Args:
        path: the file, plain or compressed by gzip.
        columns: titles that the file may have: they decide where it is in doubt whether the first line holds titles.
        labels: words that are data: a first line that holds one is not taken for titles.

    Raises:
        DataError: the file is missing, not text, or empty.
    """
    content = _content(path)
    encoding, notes = _encoding(path, content)
    skipped, separator = _declared_separator(content, encoding)
    if separator is None:
        separator = _find_separator(path, content, encoding)
    sample = [row for _, row in itertools.islice(_rows(content, encoding, separator, path, skipped), _SAMPLE)]
    if not sample:
        raise DataError(f"{path}: holds no rows")
    decimal = "," if separator != "," and _has_decimal_commas(sample) else "."
    if separator not in (",", "\t") or (
        separator == "\t" and ".tsv" not in path.name.lower() and ".tab" not in path.name.lower()
    ):
        notes.append(f"columns are separated by {_name(separator)}")
    if decimal == ",":
        notes.append("numbers have decimal commas")
    convert = _comma_number if decimal == "," else _plain_number
    head = [cell.strip() for cell in sample[0]]
    head[0] = head[0].removeprefix("#").strip()
    titles = tuple(head) if _are_titles(head, sample[1:], convert, columns, labels) else None
    return Table(path, titles, len(sample[0]), separator, decimal, tuple(notes), content, encoding, skipped)


def _content(path: Path) -> bytes:
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


def _encoding(path: Path, content: bytes) -> tuple[str, list[str]]:
    """Return the encoding of a text file: by its byte order mark, or else UTF-8, UTF-16 or Windows-1252."""
    for mark, name in (
        (b"\xff\xfe\0\0", "utf-32"),
        (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if content.startswith(mark):
            return _decodes(path, content, name), []
    if content.startswith(b"PK\x03\x04"):
        raise DataError(f"{path}: a zip or Excel file; export the table as CSV")
    head = content[:4096]
    if b"\0" in head:
        odd, even = head[1::2].count(0), head[::2].count(0)
        return _decodes(path, content, "utf-16-le" if odd > even else "utf-16-be"), []
    try:
        text = content.decode("utf-8-sig")
        encoding = "utf-8-sig"
    except UnicodeDecodeError:
        text, encoding = content.decode("latin-1"), "latin-1"
        # Five bytes mean nothing in Windows-1252; Latin-1 takes them for control characters.
        with contextlib.suppress(UnicodeDecodeError):
            text, encoding = content.decode("cp1252"), "cp1252"
    if re.search(r"[\0-\x08\x0e-\x1f\x7f]", text):
        raise DataError(f"{path}: not a text file: it holds control characters; expected a table such as CSV")
    return encoding, [] if encoding == "utf-8-sig" else [f"not UTF-8: read as {encoding.replace('cp', 'Windows-')}"]


def _decodes(path: Path, content: bytes, encoding: str) -> str:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file: {error.reason} in {encoding.upper()}; save it as UTF-8") from None
    if re.search(r"[\0-\x08\x0e-\x1f\x7f]", text):
        raise DataError(f"{path}: not a text file: it holds control characters; expected a table such as CSV")
    return encoding


def _rows(content: bytes, encoding: str, separator: str, path: Path, skipped: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that hold something, with the line that each begins on."""
    file = io.TextIOWrapper(io.BytesIO(content), encoding, newline="")
    lines: Iterator[str] = itertools.islice(file, skipped, None)
    if separator == " ":
        lines = (line.strip() + "\n" for line in lines)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator == " ")
    line = skipped + 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield line, row
            line = skipped + reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {skipped + reader.line_num}: not CSV: {error}") from error


def _declared_separator(content: bytes, encoding: str) -> tuple[int, str | None]:
    """Return (1, separator) where the first line names it, as Excel writes it (sep=;)."""
    first = next(iter(io.TextIOWrapper(io.BytesIO(content[:4096]), encoding, errors="replace", newline="")), "")
    named = re.fullmatch(r'"?sep=(.)"?', first.rstrip("\r\n"), re.IGNORECASE)
    return (1, named[1]) if named else (0, None)


def _find_separator(path: Path, content: bytes, encoding: str) -> str:
    """Return the separator that divides the rows into the most alike rows of numbers."""
    best, chosen = 0.0, ","
    for separator in _SEPARATORS:
        try:
            rows = [row for _, row in itertools.islice(_rows(content, encoding, separator, path), _SAMPLE)]
        except DataError:
            continue
        if not rows:
            continue
        widths = [len(row) for row in rows]
        width = max(set(widths), key=widths.count)
        if width < 2:
            continue
        alike = widths.count(width) / len(rows)
        convert = _any_number if separator != "," else _plain_number
        cells = [cell for row in (rows[1:] or rows) for cell in row]
        numbers = sum(_converts(cell, convert) or is_missing(cell.strip()) for cell in cells) / len(cells)
        # A trace for alike rows of text alone: titles and nothing else.
        score = alike * (numbers + 0.001)
        if score > best + 1e-9:
            best, chosen = score, separator
    return chosen


def _has_decimal_commas(rows: list[list[str]]) -> bool:
    cells = [cell.strip() for row in rows for cell in row]
    return any(_DECIMAL_COMMA.fullmatch(cell) or (_THOUSANDS.fullmatch(cell) and "," in cell) for cell in cells)


def _are_titles(
    head: list[str],
    rows: list[list[str]],
    convert: Callable[[str], float],
    columns: Collection[str],
    labels: Collection[str],
) -> bool:
    """Return whether the first line of a table holds titles."""
    if columns and set(columns) <= set(head):
        return True
    numeric = [_converts(cell, convert) for cell in head]
    if any(cell in labels and not number for cell, number in zip(head, numeric)):
        return False
    if not any(numeric):
        return True
    below = [[row[k].strip() for row in rows if k < len(row)] for k in range(len(head))]
    for k, cell in enumerate(head):
        if (
            cell
            and not numeric[k]
            and below[k]
            and all(_converts(other, convert) for other in below[k] if not is_missing(other))
        ):
            return any(not is_missing(other) for other in below[k])  # a word above numbers
    numbered = [cell for cell, number in zip(head, numeric) if number]
    if not all(cell.isdigit() for cell in numbered):
        return False
    counting = [int(cell) for cell in numbered]
    if len(counting) < 2 or any(b - a != 1 for a, b in itertools.pairwise(counting)) or not rows:
        return False
    if len(counting) == len(head):
        # 0,1,2,3: as pandas numbers columns, unless whole numbers below could continue it.
        whole = all(cell.lstrip("+-").isdigit() for column in below for cell in column)
        return counting[0] == 0 and len(counting) > 2 and not whole
    words = [k for k, number in enumerate(numeric) if not number]
    if any(head[k] in below[k] for k in words):
        return False
    # Words that come once above others that come again; a class of one example in the first row is less likely.
    return (counting[0] == 0 and len(counting) > 2) or all(len(set(below[k])) < len(below[k]) for k in words)


_MISSING = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "null", "nat", "?"})


def is_missing(cell: str) -> bool:
    """Return whether a stripped cell says that its value is missing."""
    return cell.lower() in _MISSING


def _plain_number(cell: str) -> float:
    if "_" in cell:
        raise ValueError(cell)
    return float(cell)


def _comma_number(cell: str) -> float:
    """Convert 1,5 and 1.234,5."""
    if "." in cell and not _THOUSANDS.fullmatch(cell.strip()):
        raise ValueError(cell)
    return _plain_number(cell.replace(".", "").replace(",", "."))


def _any_number(cell: str) -> float:
    try:
        return _plain_number(cell)
    except ValueError:
        return _comma_number(cell)


def _converts(cell: str, convert: Callable[[str], float]) -> bool:
    try:
        convert(cell)
    except ValueError:
        return False
    return True


def as_number(cell: str) -> float | None:
    """Return the number in a cell, or None."""
    return float(cell) if _converts(cell, _plain_number) else None


def _name(separator: str) -> str:
    return {",": "commas", ";": "semicolons", "\t": "tabs", " ": "spaces", "|": "'|'"}.get(separator, repr(separator))
