"""The form of a text table: its encoding, separator and decimal mark."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from .dataset import DataError

_SEPARATORS = (",", ";", "\t", "|", " ")
SAMPLE = 200  # rows that separator, decimal mark and titles are judged by
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d+)?")
_ONE_GROUP = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")
_ENGLISH_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")

SPACED_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}([ \u00a0\u202f]\d{3})+([.,]\d+)?")


def find_encoding(path: Path, content: bytes) -> tuple[str, list[str]]:
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
        if 8 * max(odd, even) < len(head):
            raise DataError(
                f"{path}: not a text file, or a damaged one: it holds the character NUL, first at byte {head.index(0)}"
            )
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


def split_rows(content: bytes, encoding: str, separator: str, path: Path, skipped: int = 0) -> Iterator[tuple[int, list[str]]]:
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


def declared_separator(content: bytes, encoding: str) -> tuple[int, str | None]:
    """Return (1, separator) where the first line names it, as Excel writes it (sep=;)."""
    first = next(iter(io.TextIOWrapper(io.BytesIO(content[:4096]), encoding, errors="replace", newline="")), "")
    named = re.fullmatch(r'"?sep=(.)"?', first.rstrip("\r\n"), re.IGNORECASE)
    return (1, named[1]) if named else (0, None)


def count_comments(content: bytes, encoding: str) -> int:
    """Return how many lines at the beginning start with #."""
    lines = io.TextIOWrapper(io.BytesIO(content), encoding, errors="replace", newline="")
    return sum(1 for _ in itertools.takewhile(lambda line: line.startswith("#"), lines))


def find_separator(path: Path, content: bytes, encoding: str, skipped: int = 0, known: str = "", least: int = 2) -> str:
    """Return the separator that divides the rows into the most alike rows of numbers.

    Args:
        path: the file, for messages.
        content: of the file.
        encoding: of the content.
        skipped: lines at its beginning that are passed over.
        known: the separator of the training data, which decides between equals.
        least: the smallest number of columns that it may have; others have two.
    """
    best, chosen = 0.0, known or ","
    for separator in sorted(_SEPARATORS, key=lambda s: s != known):
        try:
            rows = [row for _, row in itertools.islice(split_rows(content, encoding, separator, path, skipped), SAMPLE)]
        except DataError:
            continue
        if not rows:
            continue
        widths = [len(row) for row in rows]
        width = max(set(widths), key=widths.count)
        if width < (least if separator == known else 2):
            continue
        alike = widths.count(width) / len(rows)
        cells = [cell for row in (rows[1:] or rows) for cell in row]
        # 1 100 is a number, though one that is refused, and not two columns: between commas, where titles are not spaced.
        spaced = separator in ";\t|" or (separator == "," and not any(" " in cell.strip() for cell in rows[0]))
        numbers = sum(
            converts(cell, _any_number)
            or is_missing(cell.strip())
            or is_truth(cell)
            or (spaced and SPACED_THOUSANDS.fullmatch(cell.strip()) is not None)
            for cell in cells
        ) / len(cells)
        # In 167,3;low the comma is no separator: another one is left in a cell.
        torn = sum(any(other in cell for other in ";\t|") and not converts(cell, _any_number) for cell in cells) / len(cells)
        # A trace for alike rows of text alone: titles and nothing else.
        score = alike * (numbers + 0.001) - 0.0001 * torn
        if score > best + 1e-9:
            best, chosen = score, separator
    return chosen


def find_decimal(path: Path, rows: list[list[str]], separator: str, known: str) -> tuple[str, list[str], list[str]]:
    """Return the decimal mark of a table, what should be said about it, and what where no other mark is met further down.

    Args:
        path: the file, for messages.
        rows: of the table.
        separator: between its cells.
        known: the mark in the training data, "" if unknown: it decides what 4.911 is.

    Raises:
        DataError: numbers have commas, in a file for a model that was trained on decimal points, and may be thousands.
    """
    cells = [cell.strip() for row in rows for cell in row]
    commas = [cell for cell in cells if DECIMAL_COMMA.fullmatch(cell) or (_THOUSANDS.fullmatch(cell) and "," in cell)]
    points = [cell for cell in cells if "." in cell and converts(cell, plain_number)]
    if separator == "," and (points or all(_ENGLISH_THOUSANDS.fullmatch(cell) for cell in commas)):
        commas = []  # in quotes: thousands, or words
    if commas:
        thousands = all(_ENGLISH_THOUSANDS.fullmatch(cell) for cell in commas)
        if thousands and known == ".":
            raise DataError(
                f"{path}: holds numbers such as {commas[0]}, and the training data have decimal points: write thousands "
                f"without commas, and decimals with points"
            )
        doubt = f": {commas[0]} is read as {commas[0].replace(',', '.')}, not as thousands" if thousands else ""
        return ",", [f"numbers have decimal commas{doubt}"], []
    thousands = bool(points) and all(_THOUSANDS.fullmatch(cell) for cell in points)
    if separator != "," and known == "," and (thousands or not points):
        return ",", [], []
    if points and known == ",":
        return ".", ["numbers have decimal points, and in the training data commas"], []
    if thousands and separator == ";" and not known:
        return ".", [], [f"{points[0]} is read with a decimal point; if points are between thousands, remove them"]
    return ".", [], []


_TRUTH = {"true": 1.0, "false": 0.0}
_MISSING = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "null", "nat", "?"})


def is_missing(cell: str) -> bool:
    """Return whether a stripped cell says that its value is missing."""
    return cell.lower() in _MISSING


def is_truth(cell: str) -> bool:
    """Return whether a cell holds True or False, as pandas.get_dummies writes them, in upper or lower case."""
    return cell.strip().lower() in _TRUTH


def truth_number(cell: str) -> float:
    """Convert True and False, in upper or lower case. Raises ValueError."""
    try:
        return _TRUTH[cell.strip().lower()]
    except KeyError:
        raise ValueError(cell) from None


def plain_number(cell: str) -> float:
    """Convert 1.5 and 2e3, but not 1_000, which Python takes for a number. Raises ValueError."""
    if "_" in cell:
        raise ValueError(cell)
    return float(cell)


def comma_number(cell: str) -> float:
    """Convert 1,5 and 1.234,5. Raises ValueError."""
    if "." in cell and not _THOUSANDS.fullmatch(cell.strip()):
        raise ValueError(cell)
    return plain_number(cell.replace(".", "").replace(",", "."))


class CommaNumbers:
    """Converts as :func:`comma_number`, and finds out whether a point may have been a decimal one."""

    def __init__(self) -> None:
        self._doubtful = ""
        self._sure = False

    def __call__(self, cell: str) -> float:
        """Convert a cell. Raises ValueError."""
        value = comma_number(cell)
        if "." in cell:
            text = cell.strip()
            if _ONE_GROUP.fullmatch(text):
                self._doubtful = self._doubtful or text
            else:
                self._sure = True
        return value

    def doubts(self) -> list[str]:
        """Say how the first number like 4.823 was read, unless others, like 1.234,5, show what points are."""
        if not self._doubtful or self._sure:
            return []
        whole = self._doubtful.replace(".", "")
        return [f"{self._doubtful} is read as {whole}: decimals have commas here, so that a point is between thousands"]


def _any_number(cell: str) -> float:
    try:
        return plain_number(cell)
    except ValueError:
        return comma_number(cell)


def converts(cell: str, convert: Callable[[str], float]) -> bool:
    """Return whether `convert` takes a cell for a number."""
    try:
        convert(cell)
    except ValueError:
        return False
    return True


def as_number(cell: str) -> float | None:
    """Return the finite number in a cell, or None."""
    if not converts(cell, plain_number):
        return None
    value = float(cell)
    return value if math.isfinite(value) else None


def separator_name(separator: str) -> str:
    """Return how messages name a separator."""
    return {",": "commas", ";": "semicolons", "\t": "tabs", " ": "spaces", "|": "'|'"}.get(separator, repr(separator))
