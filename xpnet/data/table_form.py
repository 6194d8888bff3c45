"""The form of a text table: its encoding, separator and decimal mark, and whether its first line holds titles."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from .dataset import DataError

_SEPARATORS = (",", ";", "\t", "|", " ")
SAMPLE = 200  # rows that separator, decimal mark and titles are judged by
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(\.\d{3})+(,\d+)?")


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


def find_separator(path: Path, content: bytes, encoding: str) -> str:
    """Return the separator that divides the rows into the most alike rows of numbers."""
    best, chosen = 0.0, ","
    for separator in _SEPARATORS:
        try:
            rows = [row for _, row in itertools.islice(split_rows(content, encoding, separator, path), SAMPLE)]
        except DataError:
            continue
        if not rows:
            continue
        widths = [len(row) for row in rows]
        width = max(set(widths), key=widths.count)
        if width < 2:
            continue
        alike = widths.count(width) / len(rows)
        convert = _any_number if separator != "," else plain_number
        cells = [cell for row in (rows[1:] or rows) for cell in row]
        numbers = sum(converts(cell, convert) or is_missing(cell.strip()) for cell in cells) / len(cells)
        # A trace for alike rows of text alone: titles and nothing else.
        score = alike * (numbers + 0.001)
        if score > best + 1e-9:
            best, chosen = score, separator
    return chosen


def has_decimal_commas(rows: list[list[str]]) -> bool:
    """Return whether a cell is a number with a decimal comma."""
    cells = [cell.strip() for row in rows for cell in row]
    return any(DECIMAL_COMMA.fullmatch(cell) or (_THOUSANDS.fullmatch(cell) and "," in cell) for cell in cells)


def are_titles(
    head: list[str],
    rows: list[list[str]],
    convert: Callable[[str], float],
    columns: Collection[str],
    labels: Collection[str],
) -> bool:
    """Return whether the first line of a table holds titles."""
    if columns and set(columns) <= set(head):
        return True
    numeric = [converts(cell, convert) for cell in head]
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
            and all(converts(other, convert) for other in below[k] if not is_missing(other))
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
