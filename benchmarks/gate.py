"""The regression gate: ``python -m benchmarks gate [--update]``.

A time says little on a machine that others use, too. What is kept for each case is the ratio of our time to that of a
yardstick measured in the same seconds: the case's own matrix products in plain NumPy, or a copy of the bytes that it has
to move. A case that looks slower than the baseline is measured again, with more turns, before it is called so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.cases import Case, all_cases
from benchmarks.compare import CEILINGS, DISTURBED, Comparison, Options
from benchmarks.libraries import OURS
from benchmarks.report import write

BASELINE = Path(__file__).parent / "baseline.json"
ALLOWED = 1.3
"""A case fails above this multiple of its baseline: quiet machines of one kind repeat within 10 to 15 %."""
AGAIN = 2  # how often a case that looks slower is measured anew
SKIPPED_KINDS = ("import", "first_step")


def cases(quick: bool) -> list[Case]:
    """What the gate measures: all cases but sweeps and start-up, for which there is no yardstick."""
    return [c for c in all_cases(quick) if c.kind not in SKIPPED_KINDS and c.sweep is None]


def measure(comparison: Comparison, case: Case) -> dict[str, Any] | None:
    """{"yardstick": kind, "ratio": our time / its time}, or None where xpnet cannot run the case."""
    record = comparison.run(case)
    if OURS not in record["libraries"]:
        return None
    for kind in CEILINGS:
        if kind in record["ceilings"]:
            # The fraction is the yardstick's time over ours. Its upper quartile, not its median: others' work on the
            # machine can only make us look slower, and half the turns may be hit.
            fraction = record["ceilings"][kind]["fraction"]["upper_quartile"]
            foreign = record.get("foreign_cores", 0.0)
            return {"yardstick": kind, "ratio": float(f"{1 / fraction:.4g}"), "foreign_cores": round(foreign, 2)}
    return None


def key(options: Options) -> str:
    """Baselines are kept for each kind of run, such as "cpu, threads 2, float32, wall clock"."""
    return f"{options.device}, threads {options.threads}, {options.precision}, {options.clock} clock"


def load() -> dict[str, Any]:
    """The baselines in the repository."""
    return json.loads(BASELINE.read_text()) if BASELINE.exists() else {}


def verdicts(found: dict[str, dict[str, Any]], baseline: dict[str, dict[str, Any]]) -> dict[str, str]:
    """ "ok", "slower", "faster" or "new" for each case that was measured."""
    result = {}
    for name, now in found.items():
        before = baseline.get(name)
        if before is None or before["yardstick"] != now["yardstick"]:
            result[name] = "new"
        else:
            change = now["ratio"] / before["ratio"]
            result[name] = "slower" if change > ALLOWED else "faster" if change < 1 / ALLOWED else "ok"
    return result


def run(options: Options, *, quick: bool = False, update: bool = False) -> int:
    """Measure, compare with the baseline or write it; returns the exit status."""
    every = load()
    kept = every.get(key(options), {}).get("cases", {})
    if not kept and not update:
        print(f"there is no baseline for {key(options)} in {BASELINE.name}; make one with python -m benchmarks gate --update")
        return 2
    found: dict[str, dict[str, Any]] = {}
    with Comparison([], options) as comparison:
        for case in cases(quick):
            now = measure(comparison, case)
            for _ in range(AGAIN):
                if now is None or verdicts({case.name: now}, kept)[case.name] != "slower" or update:
                    break
                again = measure(comparison, case)
                now = again if again is not None and again["ratio"] < now["ratio"] else now
            if now is not None:
                found[case.name] = now
    if update:
        disturbed = [name for name, now in found.items() if now["foreign_cores"] > DISTURBED]
        entry = {"machine": machine.describe(), "commit": machine.commit(), "cases": {**kept, **found}}
        write(BASELINE, json.dumps({**every, key(options): entry}, indent=1) + "\n")
        print(f"wrote {len(found)} ratios to {BASELINE}; {len(disturbed)} of them were disturbed by other processes")
        return 0
    judged = verdicts(found, kept)
    for name, verdict in judged.items():
        before = kept.get(name, {}).get("ratio")
        print(f"{verdict:7} {name}: {found[name]['ratio']:.3g} of the {found[name]['yardstick']}, baseline {before}")
    slower = [name for name, verdict in judged.items() if verdict == "slower"]
    missing = sorted({c.name for c in cases(quick)} & set(kept) - set(found))
    print(f"{len(slower)} of {len(judged)} cases are slower than {ALLOWED} times their baseline" + (
        f"; {', '.join(missing)} could not be measured any more" if missing else ""
    ))  # fmt: skip
    return 1 if slower or missing else 0
