"""The comparison: the same cases in every library, checked for agreement, then timed in turns."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agreement import DISAGREES, DRAWS, arrays_for, distance, summary, tolerance_of
from benchmarks.cases import PASSES, Case
from benchmarks.libraries import LIBRARIES, OURS, ROOFLINE
from benchmarks.libraries.job import Unsupported
from benchmarks.machine import busy_seconds, seconds_of
from benchmarks.peers import ROOT, interpreter
from benchmarks.process import Process, WorkerError, environment, hold_to
from benchmarks.text import bytes_text, seconds_text
from benchmarks.wait_idle import wait_until_idle

CEILINGS = ("products", "copy")
ALGORITHMS = ("im2col", "product", "implicit", "cudnn")
"""The candidates of the autotuner for convolutions on a GPU; each is timed, besides the chosen one."""
# A case is marked if other processes keep more than so many cores busy: threads that wait for each other suffer most from
# that, so ratios then no longer compare the libraries.
DISTURBED = 0.15


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        device, precision, threads: the same for all libraries.
        budget: seconds per case and peer, without the pauses between turns.
        rounds: the largest number of pairs of turns.
        turn: the least seconds of one turn.
        clock: "wall", or "cpu" for CPU time, which other processes do not lengthen; with one thread on a CPU only.
        wait: the most seconds to wait before a case until the rest of the machine is idle.
        verbose: print progress.
    """

    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    budget: float = 3.0
    rounds: int = 25
    turn: float = 0.15
    clock: str = "wall"
    wait: float = 0.0
    verbose: bool = True


class Comparison:
    """A comparison with its workers, which end with this context manager."""

    def __init__(self, peers: list[str], options: Options, *, ceilings: bool = True) -> None:
        self.options = options
        self.skipped: dict[str, str] = {}
        self.workers: dict[str, Process] = {}
        self.peers: list[str] = []
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="xpnet-benchmarks-")))
        try:
            for name in [OURS, *peers, *([ROOFLINE] if ceilings else [])]:
                try:
                    self.workers[name] = self._stack.enter_context(self._process(name))
                except Unsupported as reason:
                    if name == OURS:
                        raise
                    self.skipped[name] = str(reason)
                    self.say(f"skipped {name}: {reason}")
        except BaseException:
            self._stack.close()
            raise
        self.peers = [name for name in peers if name in self.workers]

    def _process(self, name: str) -> Process:
        o = self.options
        return Process(name, device=o.device, precision=o.precision, threads=o.threads)

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def say(self, line: str) -> None:
        if self.options.verbose:
            print(line, flush=True)

    # -- one case --

    def run(self, case: Case) -> dict[str, Any]:
        """Check and time one case."""
        record: dict[str, Any] = {
            "name": case.name,
            "kind": case.kind,
            "group": case.group,
            "sweep": list(case.sweep) if case.sweep else None,
            "batch": case.batch,
            "floating_point_operations": case.floating_point_operations(),
            "bytes_moved": case.bytes_moved(),
            "libraries": {},
            "ratios": {},
            "ceilings": {},
            "agreement": {},
            "skipped": {},
        }
        file = self.folder / "arrays.npz"
        for draw in range(DRAWS):
            np.savez(file, **arrays_for(case, draw))
            if case.kind in ("import", "first_step"):
                self._time(record, self._starters(case, file, record))
                break
            record["skipped"].clear()
            with self._prepared(case, file, record) as ready:
                if OURS not in ready:
                    break
                self._check(case, ready, record)
                if draw + 1 < DRAWS and any(why.startswith(DISAGREES) for why in record["skipped"].values()):
                    continue
                self._time(record, {name: self._turns(name, key) for name, key in ready.items()})
                break
        return record

    def _prepared(self, case: Case, file: Path, record: dict[str, Any]) -> _Prepared:
        wanted: list[tuple[str, str, dict[str, Any]]] = [(name, name, {}) for name in [OURS, *self.peers]]
        if ROOFLINE in self.workers:
            kinds = CEILINGS[:1] if case.kind in PASSES else CEILINGS
            wanted += [(f"{ROOFLINE} {kind}", ROOFLINE, {"ceiling": kind}) for kind in kinds]
        if case.kind in PASSES and self.options.device == "cuda":
            wanted += [(f"{OURS} {name}", OURS, {"algorithm": name}) for name in ALGORITHMS]
        return _Prepared(self, case, file, wanted, record)

    def _check(self, case: Case, ready: dict[str, str], record: dict[str, Any]) -> None:
        """Remove from `ready` the peers whose results disagree with ours."""
        ours = self._results(OURS)
        tolerance = tolerance_of(case, self.options.precision)
        for name in [n for n in ready if n != OURS and not n.startswith(ROOFLINE)]:
            try:
                theirs = self._results(name)
            except WorkerError as error:
                record["skipped"][name] = f"its check failed: {str(error).strip().splitlines()[-1]}"
                del ready[name]
                continue
            # What a library does not expose (scikit-learn its logits) is not compared; something must be.
            shared = sorted(set(ours) & set(theirs))
            distances = {key: distance(ours[key], theirs[key]) for key in shared}
            worst = max(distances, key=lambda k: distances[k], default=None)
            record["agreement"][name] = {
                "compared": len(shared),
                "worst": worst,
                "distance": distances[worst] if worst is not None else None,
                "tolerance": tolerance,
            }
            if worst is None or not distances[worst] <= tolerance:
                found = "nothing to compare" if worst is None else f"{worst} differs by {distances[worst]:.1e} of its norm"
                record["skipped"][name] = f"{DISAGREES}: {found}"
                del ready[name]

    def _results(self, name: str) -> dict[str, Any]:
        out = self.folder / f"{name}.npz"
        self.workers[name.split()[0]].ask(do="check", key=name, out=str(out))
        with np.load(out, allow_pickle=False) as loaded:
            found = dict(loaded)
        out.unlink()
        return found

    def _turns(self, name: str, key: str) -> Callable[[int], dict[str, Any]]:
        worker = self.workers[name.split()[0]]
        return lambda count: worker.ask(do="time", key=key, count=count, limit=10 * self.options.turn, clock=self.options.clock)

    def _starters(self, case: Case, file: Path, record: dict[str, Any]) -> dict[str, Callable[[int], dict[str, Any]]]:
        """Return functions that time fresh interpreters, for start-up cases."""
        found: dict[str, Callable[[int], dict[str, Any]]] = {}
        for name in [OURS, *self.peers]:
            python, _ = interpreter(LIBRARIES[name].environment)
            command = [str(python), "-m", "benchmarks.startup", name, case.kind, json.dumps(case.as_dict()), str(file)]
            command.append(self.options.clock)
            variables = environment(name, self.options.threads, self.options.precision)

            def start(count: int, command: list[str] = command, variables: dict[str, str] = variables) -> dict[str, Any]:
                settings: dict[str, Any] = {"cwd": ROOT, "env": variables, "preexec_fn": hold_to(self.options.threads)}
                done = subprocess.run(command, capture_output=True, text=True, check=False, **settings)
                if done.returncode:
                    raise WorkerError(done.stderr)
                return {"seconds": [json.loads(done.stdout.splitlines()[-1])], "device_seconds": []}

            try:
                start(1)
            except WorkerError as error:
                record["skipped"][name] = str(error).strip().splitlines()[-1]
                continue
            found[name] = start
        return found

    # -- time --

    def _time(self, record: dict[str, Any], turns: dict[str, Callable[[int], dict[str, Any]]]) -> None:
        """Time in turns: ours, theirs, ours, the next library's, ...

        Ratios are taken of neighbouring turns only: when the machine slows down for a while, it slows both.
        """
        if OURS not in turns:
            return
        o = self.options
        fresh = record["kind"] in ("import", "first_step")
        counts: dict[str, int] = {}
        for name, turn in list(turns.items()):
            try:
                once = turn(1)["seconds"][0]
                # The first call may compile or capture; on a CPU, a call of seconds is just slow.
                again = not fresh and (once <= 1.0 or o.device != "cpu")
                once = 1.0 if fresh else turn(1)["seconds"][0] if again else once
            except (WorkerError, Unsupported) as error:
                record["skipped"][name] = str(error).strip().splitlines()[-1]
                del turns[name]
                continue
            counts[name] = 1 if fresh else max(1, min(100_000, math.ceil(o.turn / max(once, 1e-9))))
        others = [name for name in turns if name != OURS]
        samples: dict[str, list[float]] = {name: [] for name in turns}
        device: dict[str, list[float]] = {name: [] for name in turns}
        ratios: dict[str, list[float]] = {name: [] for name in others}
        pauses: list[float] = []

        def take(name: str) -> float:
            pauses.append(wait_until_idle(worker.process.pid for worker in self.workers.values()))
            reply = turns[name](counts[name])
            if reply.get("remark"):
                record.setdefault("remarks", {})[name] = reply["remark"]
            samples[name] += reply["seconds"]
            device[name] += reply["device_seconds"]
            return float(statistics.median(reply["seconds"]))

        self._wait_for_quiet()
        foreign_before = self._foreign()
        start = time.perf_counter()
        spent: dict[str, float] = dict.fromkeys(others or [OURS], 0.0)
        for number in range(o.rounds):
            active = [n for n in spent if number < 3 or spent[n] + spent[n] / number <= o.budget]
            for name in active:
                begun, paused = time.perf_counter(), sum(pauses)
                ours = take(OURS)
                if name != OURS:
                    try:
                        ratios[name].append(take(name) / ours)
                    except WorkerError as error:
                        record["skipped"][name] = f"failed while being timed: {str(error).strip().splitlines()[-1]}"
                        for kept in (spent, samples, ratios):
                            del kept[name]
                        continue
                spent[name] += time.perf_counter() - begun - (sum(pauses) - paused)
            if not active:
                break
        elapsed = time.perf_counter() - start
        record["turn_seconds"] = o.turn
        record["pause_seconds"] = statistics.median(pauses)
        record["seconds_of_measuring"] = round(elapsed, 2)
        if not fresh and o.clock == "wall" and busy_seconds():
            # The number of cores that the rest of the machine kept busy.
            record["foreign_cores"] = max(0.0, (self._foreign() - foreign_before) / elapsed)
        self._store(record, samples, device, ratios)

    def _wait_for_quiet(self) -> None:
        deadline = time.perf_counter() + self.options.wait
        while time.perf_counter() < deadline:
            before = self._foreign()
            time.sleep(0.5)
            if (self._foreign() - before) / 0.5 <= DISTURBED:
                return

    def _foreign(self) -> float:
        """Return the CPU seconds that everything except this comparison has used since the machine started."""
        own = [os.getpid(), *(worker.process.pid for worker in self.workers.values())]
        return busy_seconds() - sum(map(seconds_of, own))

    def _store(self, record: dict[str, Any], samples: Any, device: Any, ratios: Any) -> None:
        for name, values in samples.items():
            if name.startswith(f"{OURS} "):
                record.setdefault("ways", {})[name.split()[1]] = summary(values)
            elif not name.startswith(ROOFLINE):
                record["libraries"][name] = summary(values)
                if device[name]:
                    record["libraries"][name]["device_median"] = statistics.median(device[name])
        for name, values in ratios.items():
            if name.startswith(f"{OURS} "):
                record["ways"][name.split()[1]]["ratio"] = statistics.median(values)
            elif not name.startswith(ROOFLINE):
                record["ratios"][name] = summary(values)  # their time / our time
                continue
            kind, seconds = name.split()[1], statistics.median(samples[name])
            # Their median over ours: the fraction of the roofline's speed that the case reaches.
            found = {"seconds": seconds, "fraction": summary(values)}
            if kind == "products":
                found["gflops"] = record["floating_point_operations"] / seconds / 1e9
            else:
                found["gigabytes_per_second"] = record["bytes_moved"] / seconds / 1e9
            record["ceilings"][kind] = found
        parts = [f"ours {seconds_text(record['libraries'][OURS]['median'])}"]
        parts += [f"{n} {r['median']:.2f}x" for n, r in record["ratios"].items()]
        parts += [f"{algorithm} {found['ratio']:.2f}x" for algorithm, found in record.get("ways", {}).items()]
        parts += [f"{c['fraction']['median']:.0%} of {kind}" for kind, c in record["ceilings"].items()]
        parts += [f"({n}: {why})" for n, why in record["skipped"].items() if not n.startswith((ROOFLINE, f"{OURS} "))]
        self.say(f"{record['name']}: {', '.join(parts)}")

    # -- memory --

    def memory(self, case: Case) -> dict[str, Any]:
        """Measure the peak memory of training steps, each library in a process that has only done a tiny step before."""
        record: dict[str, Any] = {"name": case.name, "sweep": list(case.sweep or ()), "bytes": {}, "skipped": {}}
        tiny = Case(case.name, case.kind, case.net, 2, case.shape, case.group)
        files = [self.folder / "tiny.npz", self.folder / "arrays.npz"]
        for made, file in zip((tiny, case), files):
            np.savez(file, **arrays_for(made))
        for name in [OURS, *self.peers]:
            try:
                with self._process(name) as worker:
                    for made, file in zip((tiny, case), files):
                        worker.ask(do="prepare", key="memory", case=made.as_dict(), arrays=str(file))
                        reply = worker.ask(do="memory", key="memory", count=2)
                    if reply["bytes"] is None:
                        raise Unsupported("this system or device does not report it")
                    record["bytes"][name], record["how"] = reply["bytes"], reply["how"]
            except (Unsupported, WorkerError) as error:
                record["skipped"][name] = str(error).strip().splitlines()[-1]
        self.say(f"{case.name}: " + ", ".join(f"{n} {bytes_text(b)}" for n, b in record["bytes"].items()))
        return record


class _Prepared:
    """A context manager that prepares a case in the workers and drops it at the end; it gives what is ready, by name."""

    def __init__(self, comparison: Comparison, case: Case, file: Path, wanted: list[Any], record: dict[str, Any]) -> None:
        self.comparison, self.case, self.file, self.wanted, self.record = comparison, case, file, wanted, record
        self.ready: dict[str, str] = {}

    def __enter__(self) -> dict[str, str]:
        for key, worker, settings in self.wanted:
            try:
                request = {"key": key, "case": self.case.as_dict(), "arrays": str(self.file), "settings": settings}
                self.comparison.workers[worker].ask(do="prepare", **request)
            except Unsupported as reason:
                self.record["skipped"][key] = str(reason)
                if key == OURS:
                    self.comparison.say(f"{self.case.name}: skipped, {reason}")
                    break  # nothing to compare with
                continue
            except WorkerError as error:
                if key == OURS:
                    raise
                self.record["skipped"][key] = str(error).strip().splitlines()[-1]
                continue
            self.ready[key] = key
        return dict(self.ready)

    def __exit__(self, *exception: object) -> None:
        for key, worker, _ in self.wanted:
            if self.comparison.workers[worker].process.poll() is None:
                self.comparison.workers[worker].ask(do="drop", key=key)
