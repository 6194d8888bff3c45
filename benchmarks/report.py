"""Results as files: JSON with every number, and a Markdown page with tables and a summary."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import speed_targets
from benchmarks.cases import cases_for, memory_cases
from benchmarks.compare import DISTURBED
from benchmarks.libraries import OURS, ROOFLINE
from benchmarks.text import bytes_text, seconds_text

Result = dict[str, Any]
PASSES_GROUP = "Convolution kernels"
NEAR = 0.95
"""Above this ratio a difference is not called a loss: runs differ by as much."""


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)


def save_json(result: Result, path: Path) -> None:
    write(path, json.dumps(_rounded(result), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(v) for name, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def disturbed(record: Result) -> bool:
    """Return whether other processes kept the machine so busy that the ratios of a case are unreliable."""
    return record.get("foreign_cores", 0.0) > DISTURBED


def best_ratio(record: Result, peer: str) -> float:
    """Return their best turn over our best turn."""
    libraries = record["libraries"]
    return float(libraries[peer]["minimum"] / libraries[OURS]["minimum"])


def markdown(result: Result, pictures: Iterable[str] = ()) -> str:
    """Return the page."""
    lines = [f"# xpnet compared with other libraries: {result['title']}", "", *_setting(result), ""]
    lines += ["## Summary", "", *words(result), ""]
    targets = speed_targets.sentences(result)
    if targets:
        lines += ["## Speed targets", "", *targets, ""]
    groups = dict.fromkeys(record["group"] for record in result["cases"])
    for group in groups:
        lines += [f"## {group}", "", *(_passes_table if group == PASSES_GROUP else _table)(result, group), ""]
    if result["memory"]:
        lines += ["## Memory", "", *_memory_table(result), ""]
    if pictures:
        lines += ["## Pictures", "", *(f"![{Path(name).stem}]({name})" for name in pictures), ""]
    lines += ["## Not compared, and remarks", "", *_skipped(result), ""]
    return "\n".join(lines)


def _setting(result: Result) -> list[str]:
    machine, options = result["machine"], result["options"]
    where = f"{machine.get('processor') or machine['architecture']}, {machine['cores']} cores"
    if "vectors" in machine:
        where += f", {machine['vectors']}, {machine['memory_gib']} GiB"
    if result.get("device_name"):
        where = f"{result['device_name']}; {where}"
    lines = [
        f"* Machine: {where}, {machine['system']}. Threads: {options['threads']} for every library. "
        f"Precision: {options['precision']}. "
        + ("Times are CPU times: other processes used the machine." if options.get("clock") == "cpu" else ""),
        f"* Commit {result['commit'] or 'unknown'}, {result['date']}.",
    ]
    for name, hello in result["workers"].items():
        versions = ", ".join(f"{n} {v}" for n, v in hello["versions"].items())
        settings = ", ".join(f"{k}={v}" for k, v in hello["settings"].items())
        lines.append(f"* {name}: {versions}, Python {hello['python']}{f' ({settings})' if settings else ''}.")
    lines += [f"* {name} was skipped: {why}." for name, why in result["skipped"].items()]
    lines += [
        "* Every ratio is their time divided by ours: above 1 xpnet is faster. It is the median over pairs of neighbouring",
        "  turns (ours, theirs, ours, theirs, ...), with quartiles in brackets; after the semicolon their best turn over our",
        "  best turn. Results were compared before anything was timed: outputs, losses, gradients, and weights after two",
        "  updates. *Products* is the speed reached as a fraction of the same matrix products alone (Winograd needs fewer",
        "  products, so it can pass 100 %); *copy* as a fraction of copying the bytes that the case has to move.",
    ]
    pauses = [record["pause_seconds"] for record in result["cases"] if "pause_seconds" in record]
    if pauses:
        middle = seconds_text(statistics.median(pauses))
        lines += [
            "* Each library is timed alone: a turn starts when all of them are idle (threads of a BLAS or OpenMP spin for a",
            f"  while after their work; the median pause is {middle}). One untimed step then brings code and data back into",
            "  the caches.",
        ]
    if result.get("resumed"):
        earlier = [f"{', '.join(part['cases'])} ({part['commit']}, {part['date']})" for part in result["resumed"]]
        lines.append(f"* Taken over from an interrupted run: {'; '.join(earlier)}.")
    if result.get("interrupted"):
        lines.append("* The run was interrupted: cases that are missing here were not measured.")
    marked = sum(map(disturbed, result["cases"]))
    if marked:
        lines += [
            f"* **{marked} of {len(result['cases'])} cases, marked with a star, were measured while other processes kept more",
            f"  than {DISTURBED:.0%} of a core busy.** Libraries whose threads wait for each other at barriers then lose more",
            "  time than others, so these ratios are unreliable and flatter us; the best turns say more.",
        ]
    return lines


def peers_of(result: Result) -> list[str]:
    """Return the peers with at least one ratio."""
    return list(dict.fromkeys(peer for record in result["cases"] for peer in record["ratios"]))


def words(result: Result) -> list[str]:
    """Return sentences on where we are faster and where slower."""
    lines = []
    for peer in peers_of(result):
        compared = [r for r in result["cases"] if peer in r["ratios"]]
        reliable = [r for r in compared if not disturbed(r)]
        lost = sorted((r for r in reliable if r["ratios"][peer]["median"] < NEAR), key=lambda r: r["ratios"][peer]["median"])
        won = sum(r["ratios"][peer]["median"] > 1 / NEAR for r in reliable)
        text = f"* **{peer}**: {len(compared)} cases compared"
        text += f", {len(reliable)} of them on an idle machine" if len(reliable) < len(compared) else ""
        if not reliable:
            lines.append(f"{text}; no conclusion can be drawn from them.")
            continue
        text += f": xpnet is faster in {won}, as fast within 5 % in {len(reliable) - won - len(lost)}, slower in {len(lost)}."
        if lost:
            parts = [
                f"{r['name']} ({r['ratios'][peer]['median']:.2f}: {seconds_text(r['libraries'][OURS]['median'])} against "
                f"{seconds_text(r['libraries'][peer]['median'])})"
                for r in lost
            ]
            text += f" We are slower in {'; '.join(parts)}."
        lines.append(text)
    for record in result["memory"]:
        ours = record["bytes"].get(OURS)
        for peer, theirs in record["bytes"].items():
            if ours is not None and peer != OURS and ours > theirs:
                lines.append(f"* {record['name']}: we need {bytes_text(ours)}, {peer} {bytes_text(theirs)}.")
    return lines or ["* No peer was compared."]


def _table(result: Result, group: str) -> list[str]:
    records = [r for r in result["cases"] if r["group"] == group]
    peers = [p for p in peers_of(result) if any(p in r["ratios"] for r in records)]
    ceilings = [c for c in ("products", "copy") if any(c in r["ceilings"] for r in records)]
    heads = ["case", "xpnet", *peers, *(f"of {c}" for c in ceilings)]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for record in records:
        star = "\\*" if disturbed(record) else ""
        if OURS not in record["libraries"]:
            reason = record["skipped"].get(OURS, "not measured")
            lines.append(f"| {record['name']} | {reason} |{' |' * (len(heads) - 2)}")
            continue
        ours = record["libraries"][OURS]
        cells = [record["name"] + star, f"{seconds_text(ours['median'])} (best {seconds_text(ours['minimum'])})"]
        cells += [_ratio(record, peer) for peer in peers]
        cells += [_fraction(record, ceiling) for ceiling in ceilings]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _passes_table(result: Result, group: str) -> list[str]:
    """Tabulate each pass of a convolution with each algorithm, as a fraction of the same product's speed."""
    records = [r for r in result["cases"] if r["group"] == group]
    algorithms = list(dict.fromkeys(name for record in records for name in record.get("ways", {})))
    peers = [p for p in peers_of(result) if any(p in r["ratios"] for r in records)]
    where = "cuBLAS" if result["options"]["device"] == "cuda" else "NumPy"
    heads = ["pass", f"product in {where}", "chosen", *algorithms, *(f"{p} (cuDNN)" if where == "cuBLAS" else p for p in peers)]
    lines = [
        f"One pass alone, without bias or activation. Speeds as a fraction of the same product (m, k, n) in {where} at the",
        "same precision, with warm caches; *chosen* is what a network gets. The gradient of the images has one row of the",
        "product per pixel.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
    ]
    for record in records:
        if OURS not in record["libraries"]:
            reason = record["skipped"].get(OURS, "not measured")
            lines.append(f"| {record['name']} | {reason} |{' |' * (len(heads) - 2)}")
            continue
        ours, product = record["libraries"][OURS]["median"], record["ceilings"].get("products")
        cells = [record["name"] + ("\\*" if disturbed(record) else "")]
        cells.append(_speed(product["gflops"]) if product else "-")
        cells.append(_share(speed_targets.fraction_of_product(record), ours))
        for name in algorithms:
            known = record.get("ways", {}).get(name)
            cells.append(_share(speed_targets.fraction_of_product(record, name), known["median"]) if known else "-")
        for peer in peers:
            ratio = record["ratios"].get(peer)
            whole = speed_targets.fraction_of_product(record)
            share = whole / ratio["median"] if ratio and whole is not None else None
            cells.append(_share(share, record["libraries"][peer]["median"]) if ratio else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _speed(gflops: float) -> str:
    return f"{gflops / 1e3:.1f} TFLOP/s" if gflops >= 1e3 else f"{gflops:.0f} GFLOP/s"


def _share(fraction: float | None, seconds: float) -> str:
    return seconds_text(seconds) if fraction is None else f"**{fraction:.0%}** ({seconds_text(seconds)})"


def _ratio(record: Result, peer: str) -> str:
    if peer not in record["ratios"]:
        return "-"
    ratio = record["ratios"][peer]
    spread = f"[{ratio['lower_quartile']:.2f}, {ratio['upper_quartile']:.2f}]"
    theirs = seconds_text(record["libraries"][peer]["median"])
    return f"**{ratio['median']:.2f}** {spread}; {best_ratio(record, peer):.2f} ({theirs})"


def _fraction(record: Result, ceiling: str) -> str:
    if ceiling not in record["ceilings"]:
        return "-"
    found = record["ceilings"][ceiling]
    speed = _speed(found["gflops"]) if ceiling == "products" else f"{found['gigabytes_per_second']:.1f} GB/s"
    return f"{found['fraction']['median']:.0%} of {speed}"


def _memory_table(result: Result) -> list[str]:
    peers = list(dict.fromkeys(name for record in result["memory"] for name in record["bytes"]))
    how = next((record["how"] for record in result["memory"] if "how" in record), "")
    lines = [f"Memory of training steps beyond the weights and the batch ({how}).", ""]
    lines += [f"| case | {' | '.join(peers)} |", f"|{' --- |' * (len(peers) + 1)}"]
    for record in result["memory"]:
        cells = [bytes_text(record["bytes"][p]) if p in record["bytes"] else "-" for p in peers]
        lines.append(f"| {record['name'].removeprefix('memory ')} | {' | '.join(cells)} |")
    return lines


def _skipped(result: Result) -> list[str]:
    lines = [f"* {name}: {why}." for name, why in result["skipped"].items()]
    measured = {record["name"] for record in [*result["cases"], *result["memory"]]}
    options = result["options"]
    cases = cases_for(
        options.get("device", "cpu"), options["precision"], quick=options["quick"], everything=options.get("everything", False)
    )
    wanted = [case.name for case in [*cases, *(memory_cases() if options.get("device", "cpu") == "cpu" else [])]]
    missing = [name for name in wanted if name not in measured]
    if missing and not result["options"]["quick"]:
        lines.append(f"* Not measured in this run: {'; '.join(missing)}.")
    reasons: dict[tuple[str, str], list[str]] = {}
    for record in [*result["cases"], *result["memory"]]:
        for name, why in record["skipped"].items():
            if not name.startswith(ROOFLINE):
                reasons.setdefault((name, why), []).append(record["name"])
        for name, remark in record.get("remarks", {}).items():
            reasons.setdefault((name, remark), []).append(record["name"])
    for (name, why), names in reasons.items():
        which = ", ".join(names) if len(names) <= 4 else f"{len(names)} cases"
        lines.append(f"* {name}, {which}: {why}.")
    return lines or ["* Everything was compared."]
