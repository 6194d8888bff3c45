"""The page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xpnet.io.archive import write_atomically
from xpnet.report.charts import Series, line_chart
from xpnet.report.document import document, section, table
from xpnet.report.record import Record, plain
from xpnet.report.text import Markup, duration, heading, html, join, name_of, number, percent, setting, size

COLOURS = 8


def write_comparison(records: Sequence[Record], path: str | Path) -> None:
    """Write a page that compares runs to a file, atomically.

    Raises:
        ValueError: no runs.
        OSError: the file cannot be written.
    """
    text = comparison_page(records).encode("utf-8", "replace")
    write_atomically(path, lambda file: file.write(text))


def comparison_page(records: Sequence[Record]) -> str:
    """Return a page that compares runs, as HTML: results, curves on shared axes, and the settings that differ.

    Raises:
        ValueError: no runs.
    """
    if not records:
        raise ValueError("comparison_page: there are no runs to compare")
    runs = [plain(record) for record in records]
    names = _distinct([str(run.get("name", "run")) for run in runs])
    count = f"{len(runs)} runs" if len(runs) > 1 else "One run"
    head = html(
        '<header><p class="over">xpnet</p><h1>{} side by side</h1><p class="lead">{}</p></header>\n', count, ", ".join(names)
    )
    body = [
        head,
        section("Results", _results(runs, names)),
        section("Curves", _curves(runs, names)),
        section("What differs", _differences(runs, names)),
    ]
    return document("Runs side by side \N{MIDDLE DOT} xpnet", join(body))


def _distinct(names: list[str]) -> list[str]:
    """Add numbers to the names that occur more than once."""
    return [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _style(i: int) -> str:
    return f"s{i % COLOURS}"


def _measures(runs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the history of every run, and the names of all losses and metrics in them."""
    histories = [run.get("history") or {} for run in runs]
    return histories, list(dict.fromkeys(name for h in histories for name in h if name not in ("learning_rate", "seconds")))


def _larger_is_better(runs: list[dict[str, Any]], measure: str) -> bool:
    """Return whether the larger values of a measure are better: as the runs say, or as its name does where they do not."""
    said = [mode for run in runs if (mode := (run.get("better") or {}).get(measure.removeprefix("val_")))]
    return said[0] == "max" if said else "accuracy" in measure


def _results(runs: list[dict[str, Any]], names: list[str]) -> Markup:
    columns: dict[str, list[tuple[float | None, str]]] = {}
    histories, measures = _measures(runs)
    larger = {m for m in measures if _larger_is_better(runs, m)}
    for m in measures:
        cells: list[tuple[float | None, str]] = []
        for h in histories:
            values = [v for v in h.get(m, []) if v is not None]
            best = None if not values else max(values) if m in larger else min(values)
            cells.append((best, percent(best) if "accuracy" in m else number(best)))
        columns[f"best {name_of(m)}"] = cells
    epochs = [max((len(v) for v in h.values()), default=0) for h in histories]
    columns["epochs"] = [(None, str(n)) for n in epochs]
    columns["time"] = [(run.get("seconds"), duration(run.get("seconds"))) for run in runs]
    columns["parameters"] = [(None, number(run.get("parameters"))) for run in runs]
    columns["memory"] = [((run.get("memory") or {}).get("peak"), size((run.get("memory") or {}).get("peak"))) for run in runs]
    winners: dict[str, float] = {}
    for name, cells in columns.items():
        values = [v for v, _ in cells if v is not None]
        if len(values) > 1:
            winners[name] = max(values) if name in {f"best {name_of(m)}" for m in larger} else min(values)
    rows = []
    for i, name in enumerate(names):
        shown = join(
            html('<td class="{}">{}</td>', "best" if key in winners and cells[i][0] == winners[key] else "", cells[i][1])
            for key, cells in columns.items()
        )
        rows.append(html('<tr><th scope="row" class="{}"><i class="key"></i>{}</th>{}</tr>', _style(i), name, shown))
    head = html("<th></th>") + join(html("<th>{}</th>", key) for key in columns)
    return table(head, join(rows), "plain numbers")


def _curves(runs: list[dict[str, Any]], names: list[str]) -> Markup:
    histories, measures = _measures(runs)
    # Validation comes first: runs are compared by it.
    measures.sort(key=lambda name: not name.startswith("val_"))

    def lines(parts: list[dict[str, Any]], key: str) -> list[Series]:
        found = [(i, part[key]) for i, part in enumerate(parts) if part.get(key)]
        return [Series(names[i], [k + 1.0 for k in range(len(v))], v, _style(i)) for i, v in found]

    charts = []
    for m in measures:
        percents = "accuracy" in m
        charts.append(line_chart(heading(m), lines(histories, m), height=250, log="loss" in m, percent=percents, start=0))
    for key, title in (("learning_rate", "Learning rate"), ("epoch_seconds", "Seconds per epoch")):
        charts.append(line_chart(title, lines(runs, key), height=150, zero=True, start=0))
    return html('<div class="grid">{}</div>', join(charts)) if any(charts) else html("")


def _differences(runs: list[dict[str, Any]], names: list[str]) -> Markup:
    """Tabulate the settings that are not the same in all runs."""
    settings = [{**(run.get("configuration") or {}), **(run.get("environment") or {})} for run in runs]
    keys = [key for key in dict.fromkeys(k for s in settings for k in s) if len({str(s.get(key)) for s in settings}) > 1]
    if not keys:
        return html('<p class="note">Nothing: all settings are the same.</p>') if len(runs) > 1 else html("")
    head = join(html('<th class="{}"><i class="key"></i>{}</th>', _style(i), name) for i, name in enumerate(names))
    rows = join(
        html('<tr><th scope="row">{}</th>{}</tr>', key, join(html("<td>{}</td>", setting(s.get(key))) for s in settings))
        for key in keys
    )
    return table(html("<th></th>{}", head), rows, "plain differs")
