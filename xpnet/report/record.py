"""The record of a run: everything that its report shows, as a JSON file in the folder of the run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from xpnet.io.archive import ArchiveError, write_atomically
from xpnet.io.schema import MismatchError, dict_of, fields, finite, flag, free, integer, list_of, maybe, one_of, text

FORMAT = "xpnet-run-1"
NAME = "run.json"

Record = dict[str, Any]


def write_record(record: Record, path: str | Path) -> None:
    """Write a record to a file, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    content = json.dumps(plain({"format": FORMAT, **record}), indent=1, allow_nan=False).encode()
    write_atomically(path, lambda file: file.write(content))


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
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError; nested too deeply
        raise ArchiveError(f"{file}: not a record of a run: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ArchiveError(f"{file}: not a record of a run: expected JSON with the format {FORMAT!r}")
    try:
        if "answers" in record:  # as earlier versions named it
            _EARLIER(record["answers"], "answers")
            record["predictions"] = record.pop("answers")
            for mistake in record["predictions"].get("mistakes", []):
                mistake.setdefault("predicted", mistake.pop("called", None))
        _check(record)
    except MismatchError as error:
        raise ArchiveError(f"{file}: a damaged record of a run: {error}") from error
    return record


def _value(value: Any, where: str) -> None:
    """Check for a number that can be drawn, or None, which stands for one that was not finite."""
    if value is not None:
        finite(value, where)
        if abs(value) > _LARGEST:
            raise MismatchError(where, value, f"a number up to {_LARGEST:g}")


def _step(value: Any, where: str) -> None:
    """Check for a point of the loss by step: [step, loss]."""
    list_of(_value, 2)(value, where)
    integer()(value[0], f"{where}[0]")


def _predictions(value: Any, where: str) -> None:
    """Check the predictions, whose mistakes depend on their kind."""
    _PREDICTIONS(value, where)
    classes = value.get("kind") == "classes"
    truth = integer(-1) if classes else list_of(_value)
    mistake = fields(
        {"truth": truth, "predicted": truth, "index": maybe(integer()), **({"probability": _required} if classes else {})},
        {"image": text, "example": list_of(_value)},
    )
    maybe(list_of(mistake))(value.get("mistakes"), f"{where}.mistakes")
    rows = value.get("confusion")
    maybe(list_of(list_of(integer(0, _LARGEST_COUNT))))(rows, f"{where}.confusion")
    if rows and {len(row) for row in rows} != {len(rows)}:
        raise MismatchError(f"{where}.confusion", rows, "a square matrix")


def _required(value: Any, where: str) -> None:
    """Check for a number that can be drawn."""
    finite(value, where)
    _value(value, where)


_LARGEST, _LARGEST_COUNT = 1e300, 2**40
_EARLIER = fields({}, {"mistakes": list_of(fields({}))})
_PREDICTIONS = fields(
    {},
    {
        "kind": maybe(text),
        "examples": maybe(integer()),
        "on": text,
        "points": list_of(list_of(_value, 2)),
        **dict.fromkeys(("root_mean_squared_error", "mean_absolute_error", "explained"), _value),
    },
)
_HISTOGRAM = maybe(
    fields(
        {
            "counts": list_of(integer(0, _LARGEST_COUNT), least=1),
            **dict.fromkeys(("low", "high", "zeros"), _required),
            **dict.fromkeys(("mean", "std", "rms"), _value),
        }
    )
)
_LAYER = fields(
    {"kind": text, "forward": _required, "backward": _required, "kept": integer()},
    {
        "path": text,
        "shape": maybe(list_of(integer())),
        "parameters": maybe(integer()),
        "activations": _HISTOGRAM,
        "gradients": _HISTOGRAM,
    },
)
_RECORD = fields(
    {},
    {
        **dict.fromkeys(("name", "state", "began"), text),
        **dict.fromkeys(("configuration", "environment"), maybe(dict_of(free))),
        **dict.fromkeys(("parameters", "iteration", "examples", "batch"), maybe(integer())),
        "seconds": _value,
        "classes": maybe(list_of(text)),
        "history": maybe(dict_of(list_of(_value))),
        "weights": maybe(fields({}, {"epoch": maybe(integer()), "restored": flag, "averaged": flag})),
        "better": maybe(dict_of(maybe(one_of("min", "max")))),
        "learning_rate": maybe(list_of(_value)),
        "epoch_seconds": maybe(list_of(_required)),
        "steps": maybe(list_of(_step)),
        "filters": maybe(fields({"kind": text, "count": integer(), "images": list_of(text)})),
        "layers": maybe(list_of(_LAYER)),
        "memory": maybe(dict_of(maybe(integer()))),
        "findings": maybe(list_of(text)),
    },
)


def _check(record: Any) -> None:
    """Raise a MismatchError unless a page can be made of a record."""
    _RECORD(record, "it")
    if record.get("predictions") is not None:
        _predictions(record["predictions"], "it.predictions")


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
