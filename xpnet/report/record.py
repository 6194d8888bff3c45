"""The record of a run: everything that its report shows, as a JSON file in the folder of the run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from xpnet.io.archive import ArchiveError, write_atomically

FORMAT = "xpnet-run-1"
NAME = "run.json"

Record = dict[str, Any]


def write_record(record: Record, path: str | Path) -> None:
    """Write a record to a file, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(plain({"format": FORMAT, **record}), indent=1, allow_nan=False).encode()
    write_atomically(path, lambda file: file.write(text))


def read_record(path: str | Path) -> Record:
    """Read the record of a run, given its folder or the file.

    Raises:
        FileNotFoundError: there is none.
        ArchiveError: it is not a record.
    """
    file = Path(path)
    if file.is_dir():
        file = file / NAME
    if not file.is_file():
        raise FileNotFoundError(2, f"no record of a run; `xpnet train` and the RunReport callback write {NAME}", str(file))
    try:
        record = json.loads(file.read_text())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ArchiveError(f"{file}: not a record of a run: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ArchiveError(f"{file}: not a record of a run: expected JSON with the format {FORMAT!r}")
    if "answers" in record:  # as earlier versions named it
        record["predictions"] = record.pop("answers")
        for mistake in record["predictions"].get("mistakes", []):
            mistake.setdefault("predicted", mistake.pop("called", None))
    return record


def plain(value: Any) -> Any:
    """Convert `value` to JSON types: numbers that are not finite become None, tuples lists, other objects text."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)
