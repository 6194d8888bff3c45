"""The run of the fuzzer: one file after the other, and what must hold for each of them."""

from __future__ import annotations

import hashlib
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz.mutate import of_bytes
from tests.fuzz.readers import Failed, Reader, readers

SECONDS, LONGEST, GROWTH = 5.0, 2000, 700 << 20
_PROGRAMS = ("subprocess.Popen", "os.posix_spawn", "os.system", "os.exec", "os.spawn", "os.fork")
_started: list[str] = []
_watched = False


@dataclass
class Result:
    """What came of the files: counts by reader and outcome, and the faults, each with its file's content."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, str, bytes]] = field(default_factory=list)
    growth: int = 0
    slowest: float = 0.0


def fuzz(folder: Path, files: int, seed: int, only: str = "") -> Result:
    """Put mutated files to all readers in turn; the same seed makes the same files."""
    _watch_programs()
    made = {name: reader for name, reader in readers(folder / "needed").items() if only in name}
    home = folder / "files"
    home.mkdir()
    for reader in made.values():  # libraries are imported, and a whole file is read
        for number, content in enumerate(reader.seeds):
            _one(home, f"whole{number}", reader, content)
    result = Result()
    before = _peak()
    for number in range(files):
        name = list(made)[number % len(made)]
        draw = random.Random(f"{seed} {number}")
        reader = made[name]
        content = draw.choice(reader.seeds)
        mutation = draw.choice((of_bytes, *reader.mutations * 2))
        content = mutation(content, draw)
        started = time.perf_counter()
        outcome, fault = _one(home, f"file{number}", reader, content)
        result.slowest = max(result.slowest, time.perf_counter() - started)
        result.counts[f"{name}: {outcome}"] += 1
        if fault:
            result.faults.append((f"{name}, file {number} of seed {seed}", fault, content))
    result.growth = _peak() - before
    if result.growth > GROWTH:
        result.faults.append(("all", f"memory grew by {result.growth >> 20} MB", b""))
    return result


def _one(home: Path, stem: str, reader: Reader, content: bytes) -> tuple[str, str]:
    """Read one file; return the outcome, and the fault or ""."""
    path = home / f"{stem}{reader.suffix}"
    path.write_bytes(content)
    _started.clear()
    outcome, fault = "read", ""
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with _limit(SECONDS):
                reader.read(path)
        except reader.errors as error:
            outcome, fault = "refused", _message_fault(str(error), stem)
        except Failed as error:
            fault = str(error)
        except BaseException as error:  # a limit that is reached, too
            if isinstance(error, KeyboardInterrupt):
                raise
            fault = "".join(traceback.format_exception(error))[-2500:]
    if time.perf_counter() - began > SECONDS:
        fault = fault or "it took too long"
    if _started:
        fault = f"it started {_started}"
    if any(len(str(warning.message)) > LONGEST for warning in said):
        fault = "a warning is too long"
    if sorted(home.iterdir()) != [path] or hashlib.sha256(path.read_bytes()).digest() != hashlib.sha256(content).digest():
        fault = "a file was changed or made"
    for file in home.iterdir():
        file.unlink()
    return outcome, fault


def _message_fault(message: str, stem: str) -> str:
    if len(message) > LONGEST:
        return f"a message of {len(message)} characters: {message[:300]}"
    return "" if stem in message else f"a message without the file's name: {message[:300]}"


def _watch_programs() -> None:
    global _watched
    if not _watched:
        sys.addaudithook(lambda event, _: _started.append(event) if event in _PROGRAMS else None)
        _watched = True


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in the block after some seconds."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
