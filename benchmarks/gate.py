"""The regression gate: ``python -m benchmarks gate [--update]``.

A time says little on a shared machine. The baseline of a case is the ratio of our time to that of a yardstick measured at the
same time: the case's own matrix products in plain NumPy, or a copy of the bytes that it has to move. A case that looks slower
than its baseline is measured again before it is reported.
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
"""A case fails above this multiple of its baseline: idle machines of one kind repeat within 10 to 15 %."""
RETRIES = 2  # of a case that looks slower
SKIPPED_KINDS = ("import", "first_step")


def cases(quick: bool) -> list[Case]:
    """Return the cases of the gate: all but sweeps, and start-up, which has no yardstick."""
    return [c for c in all_cases(quick) if c.kind not in SKIPPED_KINDS and c.sweep is None]


def measure(comparison: Comparison, case: Case) -> dict[str, Any] | None:
    """Return {"yardstick": kind, "ratio": our time / its time}, or None if xpnet cannot run the case."""
    record = comparison.run(case)
    if OURS not in record["libraries"]:
        return None
    for kind in CEILINGS:
        if kind in record["ceilings"]:
            # The fraction is the yardstick's time over ours. Take its upper quartile, not its median: other processes can
            # only make us look slower, and may disturb half the turns.
            fraction = record["ceilings"][kind]["fraction"]["upper_quartile"]
            foreign = record.get("foreign_cores", 0.0)
            return {"yardstick": kind, "ratio": float(f"{1 / fraction:.4g}"), "foreign_cores": round(foreign, 2)}
    return None


def key(options: Options) -> str:
    """Return the key of a kind of run in the baseline, such as "cpu, threads 2, float32, wall clock"."""
    return f"{options.device}, threads {options.threads}, {options.precision}, {options.clock} clock"


def load() -> dict[str, Any]:
    """Load the baselines in the repository."""
    return json.loads(BASELINE.read_text()) if BASELINE.exists() else {}


def verdicts(found: dict[str, dict[str, Any]], baseline: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Judge each measured case: "ok", "slower", "faster" or "new"."""
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
    """Measure, then compare with the baseline or write it; return the exit status."""
    every = load()
    kept = every.get(key(options), {}).get("cases", {})
    if not kept and not update:
        print(f"there is no baseline for {key(options)} in {BASELINE.name}; create it with python -m benchmarks gate --update")
        return 2
    found: dict[str, dict[str, Any]] = {}
    with Comparison([], options) as comparison:
        for case in cases(quick):
            now = measure(comparison, case)
            for _ in range(RETRIES):
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
        f"; {', '.join(missing)} could no longer be measured" if missing else ""
    ))  # fmt: skip
    return 1 if slower or missing else 0
