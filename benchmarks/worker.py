"""A worker: one library in its own process, which takes requests on standard input, one JSON object per line.

``python -m benchmarks.worker NAME`` with a NAME from libraries/__init__.py. What the library prints goes to standard error.

    {"do": "hello", "device": "cpu", "precision": "float32", "threads": 2}   -> versions and settings
    {"do": "prepare", "key": K, "case": {...}, "arrays": FILE, "settings": {}} -> {"ok": true} or {"unsupported": "why"}
    {"do": "check", "key": K, "out": FILE}                                   -> writes the results to compare
    {"do": "time", "key": K, "count": n, "turns": m, "limit": s}             -> seconds per unit, m times
    {"do": "memory", "key": K, "count": n}                                   -> bytes beyond what was there before
    {"do": "drop", "key": K}
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import math
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.cases import Case
from benchmarks.libraries import LIBRARIES, Library
from benchmarks.libraries.job import Job, Unsupported
from benchmarks.memory import Peak

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# Momentum matters from the second update on. With CUDA graphs, the first step runs launch by launch and the second is
# captured; two further ones are replayed, with weights other than those at capture.
STEPS_COMPARED = {"cpu": 2, "cuda": 4}


class Worker:
    """Holds the prepared cases of one library."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.module = library.load()
        self.jobs: dict[str, Job] = {}
        self.device, self.precision = "cpu", "float32"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request."""
        try:
            return {"ok": True, **(getattr(self, f"do_{request.pop('do')}")(**request) or {})}
        except Unsupported as reason:
            return {"ok": False, "unsupported": str(reason)}
        except Exception:
            return {"ok": False, "error": traceback.format_exc()}

    def do_hello(self, device: str, precision: str, threads: int) -> dict[str, Any]:
        self.device, self.precision = device, precision
        found = self.module.setup(device, precision, threads)
        return {"versions": versions(self.library), "settings": found, "python": sys.version.split()[0]}

    def do_prepare(self, key: str, case: dict[str, Any], arrays: str, settings: dict[str, Any] | None = None) -> None:
        with np.load(arrays, allow_pickle=False) as loaded:
            values = dict(loaded)
        settings = {**self.library.settings, **(settings or {})}
        self.jobs[key] = self.module.prepare(Case.from_dict(case), values, self.device, self.precision, settings)

    def do_check(self, key: str, out: str) -> None:
        job = self.jobs[key]
        found = {name: np.asarray(value) for name, value in job.check().items()}
        if job.weights is not None and job.units == 1:
            before = job.weights()
            for _ in range(STEPS_COMPARED[self.device]):
                job.once()
            job.synchronize()
            found.update({f"change/{path}": after - before[path] for path, after in job.weights().items()})
        np.savez(out, **cast("dict[str, Any]", found))

    def do_time(self, key: str, count: int, turns: int = 1, limit: float = math.inf, clock: str = "wall") -> dict[str, Any]:
        job = self.jobs[key]
        now = CLOCKS[clock]
        seconds, device_seconds = [], []
        job.once()  # untimed: brings code and data back into the caches after the other libraries' turns and the pause
        job.synchronize()
        for _ in range(turns):
            stop = _device_clock(self.device, self.library)
            done = 0
            start = now()
            # In a few pieces, so that a turn ends early if the machine has become slow.
            while done < count and now() - start < limit:
                piece = min(max(1, count // 8), count - done)
                for _ in range(piece):
                    job.once()
                done += piece
            elapsed_on_device = stop()
            job.synchronize()
            seconds.append((now() - start) / (done * job.units))
            if elapsed_on_device is not None:
                device_seconds.append(elapsed_on_device / (done * job.units))
        return {"seconds": seconds, "device_seconds": device_seconds, "remark": job.remark()}

    def do_memory(self, key: str, count: int) -> dict[str, Any]:
        job = self.jobs[key]
        gc.collect()
        with Peak(self.device, self.library.module) as peak:
            for _ in range(count):
                job.once()
            job.synchronize()
        return {"bytes": peak.bytes, "how": peak.how}

    def do_drop(self, key: str) -> None:
        job = self.jobs.pop(key, None)
        if job is not None:
            job.close()
        del job
        gc.collect()
        if self.device != "cpu":
            self.release()

    def release(self) -> None:
        """Return free memory to the device, for the other workers."""
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()
        if "cupy" in sys.modules:
            sys.modules["cupy"].get_default_memory_pool().free_all_blocks()


def versions(library: Library) -> dict[str, str]:
    """Return the installed versions of a library's distributions."""
    found = {}
    for name in library.distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name == "xpnet":
                found[name] = sys.modules["xpnet"].__version__
    return found


def _device_clock(device: str, library: Library) -> Any:
    """Start an event timer on the GPU; the returned function synchronizes and returns the seconds since."""
    if device == "cpu":
        return lambda: None
    make: Any
    if library.module == "pytorch":
        import torch

        make, stream = lambda: torch.cuda.Event(enable_timing=True), None
    elif library.module in ("ours", "roofline"):
        import cupy

        make, stream = cupy.cuda.Event, cupy.cuda.get_current_stream()
    else:
        return lambda: None
    first, last = make(), make()
    first.record() if stream is None else first.record(stream)

    def stop() -> float:
        last.record() if stream is None else last.record(stream)
        last.synchronize()
        if stream is None:
            return float(first.elapsed_time(last)) / 1e3
        import cupy

        return float(cupy.cuda.get_elapsed_time(first, last)) / 1e3

    return stop


def main() -> None:
    library = LIBRARIES[sys.argv[1]]
    # Replies get their own file, so that output of the library cannot mix with them.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "quit":
            break
        if worker is None:
            try:
                worker = Worker(library)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                print(json.dumps({"ok": False, "unsupported": f"it does not import: {reason}"}), file=replies)
                break
        print(json.dumps(worker.answer(request)), file=replies)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
