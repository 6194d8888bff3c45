"""The report of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xpnet.io.archive import write_atomically
from xpnet.report import sections
from xpnet.report.charts import Series, line_chart
from xpnet.report.document import document, section
from xpnet.report.record import Record, plain
from xpnet.report.text import DOT, Markup, duration, heading, html, join, name_of, number, percent, size


def write_page(record: Record, path: str | Path) -> None:
    """Write the report of a run to a file, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    text = run_page(record).encode("utf-8", "replace")  # a name may hold what UTF-8 does not
    write_atomically(path, lambda file: file.write(text))


def run_page(record: Record) -> str:
    """Return the report of a run as HTML; :class:`xpnet.report.RunReport` makes the record."""
    r = plain(record)
    predictions = r.get("predictions") or {}
    names = r.get("classes") or []
    layers = r.get("layers") or []
    batch = r.get("batch")
    on = html("{} {} examples", number(predictions.get("examples")), predictions.get("on", "validation"))
    body = [
        _head(r),
        section("Curves", _curves(r)),
        section(
            "What it gets wrong", sections.confusion(predictions, names), html("On {}. Rows: truth, columns: prediction.", on)
        )
        if predictions.get("kind") == "classes"
        else section("Predictions", sections.regression(predictions), html("On {}.", on)),
        section(
            "Worst mistakes",
            sections.mistakes(predictions, names),
            "Wrong with the highest probability: the truth, then the prediction with its probability."
            if predictions.get("kind") == "classes"
            else "The largest errors.",
        ),
        section("First layer", sections.filters(r.get("filters")), sections.filters_note(r.get("filters"))),
        section(
            "Layer by layer",
            sections.layers(layers),
            html(
                "On a batch of {}: the output of each layer, the gradient of that output, the time, and the memory "
                "kept for the backward pass. Histogram heights are square roots; the thin line is 0.",
                number(batch),
            ),
        ),
        section("Memory", sections.memory(r.get("memory"))),
        section("Diagnosis", sections.findings(r.get("findings"))),
        section("Configuration", sections.configuration(r)),
        section("Every epoch", sections.epochs(r)),
    ]
    return document(f"{r.get('name', 'run')}{DOT}xpnet", join(body))


def best_epoch(history: dict[str, list[float | None]]) -> tuple[str, int] | None:
    """Return the measure that matters most and the epoch (from 0) in which it was best."""
    for name in ("val_accuracy", "val_binary_accuracy", "accuracy", "binary_accuracy", "val_loss", "loss"):
        values = [(v, i) for i, v in enumerate(history.get(name, [])) if v is not None]
        if values:
            best = max(values, key=lambda p: p[0]) if "accuracy" in name else min(values, key=lambda p: p[0])
            return name, best[1]
    return None


def _head(r: dict[str, Any]) -> Markup:
    history = r.get("history") or {}
    configuration = r.get("configuration") or {}
    epochs = max((len(v) for v in history.values()), default=0)
    began = str(r.get("began", "")).replace("T", " ")[:16]
    sentence = [
        html("{} parameters", number(r.get("parameters"))),
        f"{epochs} epoch{'' if epochs == 1 else 's'}",
        str(configuration.get("optimizer", "")),
        str((r.get("environment") or {}).get("device", "")),
    ]
    end, at_the_end = -1, "at the end"
    weights = r.get("weights") or {}
    restored = weights.get("epoch") if weights.get("restored") else None
    if restored is not None:
        end = restored - 1
        at_the_end = f"in epoch {restored}, whose weights the model has"
        sentence.append(f"weights of epoch {restored}")
    elif weights.get("averaged"):
        at_the_end = "in the last epoch, before the weights were averaged"
        sentence.append("averaged weights")
    facts: list[tuple[str, str, str]] = []
    best = best_epoch(history)
    if best is not None:
        name, epoch = best
        value = history[name][epoch]
        shown = percent(value) if "accuracy" in name else number(value)
        facts.append((f"best {name_of(name)}", shown, f"in epoch {epoch + 1}"))
    for name in ("val_loss", "loss"):
        if history.get(name) and (best is None or best[0] != name or best[1] != epochs - 1):
            facts.append((f"{name_of(name)}", number(next(iter(history[name][end:][:1]), None)), at_the_end))
            break
    facts.append(("time", duration(r.get("seconds")), _speed(r)))
    memory = r.get("memory") or {}
    if memory.get("device"):
        facts.append(("memory on the device", size(memory["device"]), "at the end"))
    elif memory.get("peak"):
        facts.append(("memory", size(memory["peak"]), "peak of the process"))
    cells = join(html("<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>", *fact) for fact in facts)
    return html(
        '<header><p class="over"><span class="state {state}">{state}</span> {began}</p>'
        '<h1>{name}</h1><p class="lead">{sentence}</p><dl class="facts">{cells}</dl></header>\n',
        state=r.get("state", ""),
        began=began,
        name=r.get("name", "run"),
        sentence=join([s for s in sentence if s], DOT),
        cells=cells,
    )


def _speed(r: dict[str, Any]) -> str:
    seconds, examples = r.get("epoch_seconds") or [], r.get("examples")
    if not seconds or not examples:
        return ""
    middle = sorted(seconds)[len(seconds) // 2]
    return html("{} examples per second", number(round(examples / middle))) if middle else ""


def _curves(r: dict[str, Any]) -> Markup:
    history: dict[str, list[float | None]] = r.get("history") or {}
    epochs = max((len(v) for v in history.values()), default=0)
    x = [i + 1.0 for i in range(epochs)]
    steps = r.get("steps") or []
    charts = []
    names = [n for n in history if not n.startswith("val_") and n not in ("learning_rate", "seconds")]
    for name in names:
        series = []
        share = "accuracy" in name
        if name == "loss" and len(steps) > 2 and epochs:
            per_epoch = (r.get("iteration") or steps[-1][0] or 1) / max(epochs, 1)
            series.append(Series("by step", [i / per_epoch for i, _ in steps], [v for _, v in steps], "s0", faint=True))
        series.append(Series("training", x, history[name], "s0", note=_last(history[name], share)))
        checked = history.get(f"val_{name}")
        if checked:
            series.append(Series("validation", x, checked, "s1", note=_last(checked, share)))
        title = heading(name)
        charts.append(line_chart(title, series, height=260, log=name == "loss" and _spread(series), percent=share, start=0))
    rates = r.get("learning_rate") or []
    low: dict[str, Any] = {"height": 150, "zero": True, "start": 0.0}
    charts.append(line_chart("Learning rate", [Series("at the end of the epoch", x, rates, "s2")], **low))
    seconds = r.get("epoch_seconds") or []
    if epochs > 1:
        charts.append(line_chart("Seconds per epoch", [Series("with validation", x, seconds, "s3")], **low))
    return html('<div class="grid">{}</div>', join(charts)) if any(charts) else html("")


def _last(values: list[float | None], share: bool) -> str:
    value = next((v for v in reversed(values) if v is not None), None)
    return "" if value is None else percent(value) if share else number(value)


def _spread(series: list[Series]) -> bool:
    """Return whether a loss varies so much that a logarithmic axis shows more."""
    values = [y for s in series if not s.faint for _, y in s.points]
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)
