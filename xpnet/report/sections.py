"""The sections of a report: each converts part of the record to HTML, or to "" if there is nothing to show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xpnet.report.charts import histogram, scatter
from xpnet.report.document import table
from xpnet.report.png import data_uri
from xpnet.report.text import DASH, DOT, TIMES, duration, escape, name_of, number, percent, setting, size

TABLE = 20
"""Confusion matrices of more classes are drawn as an image."""


def class_name(names: list[str], k: int) -> str:
    """Return the name of class k, or its index."""
    return escape(names[k]) if k < len(names) else str(k)


def confusion(predictions: dict[str, Any], names: list[str]) -> str:
    """Show the confusion matrix, the pairs of classes confused most often, and the recall of each class."""
    rows = predictions.get("confusion")
    if not rows:
        return ""
    matrix = np.array(rows, np.int64)
    total, right = int(matrix.sum()), int(np.trace(matrix))
    picture = _matrix_table(matrix, names) if len(matrix) <= TABLE else _matrix_image(matrix)
    share = f"{number(right)} of {number(total)} correct: <b>{percent(right / max(total, 1))}</b>"
    return (
        f'<div class="grid confusion"><div><p class="caption">{share}</p>{picture}</div>'
        f"<div>{_pairs(matrix, names)}{_recall(matrix, names)}</div></div>"
    )


def _matrix_table(matrix: np.ndarray[Any, Any], names: list[str]) -> str:
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shares = matrix / totals
    K = len(matrix)
    long = K > 4 and any(len(class_name(names, k)) > 3 for k in range(K))
    head = "".join(f'<th scope="col"><span>{class_name(names, k)}</span></th>' for k in range(K))
    body = []
    for i in range(K):
        cells = []
        for j in range(K):
            kind = "hit" if i == j else "miss"
            # Square roots: a confusion of 1 % should be visible beside one of 20 %.
            depth = round(100 * math.sqrt(shares[i, j])) if matrix[i, j] else 0
            text = number(int(matrix[i, j])) if matrix[i, j] else ""
            what = f"{class_name(names, i)} predicted as {class_name(names, j)}: {matrix[i, j]}, {100 * shares[i, j]:.1f} %"
            cells.append(f'<td class="{kind}{" deep" if depth > 62 else ""}" style="--d:{depth}%" title="{what}">{text}</td>')
        body.append(f'<tr><th scope="row">{class_name(names, i)}</th>{"".join(cells)}</tr>')
    kind = "matrix long" if long else "matrix few" if K <= 4 else "matrix"
    return table(f"<td></td>{head}", "".join(body), kind)


def _matrix_image(matrix: np.ndarray[Any, Any]) -> str:
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    depth = np.sqrt(matrix / totals)
    K = len(matrix)
    # Transparent colours suit light and dark backgrounds.
    image = np.zeros((K, K, 4), np.uint8)
    image[..., :3] = (217, 98, 43)
    image[np.arange(K), np.arange(K), :3] = (52, 112, 171)
    image[..., 3] = np.rint(255 * depth)
    return f'<img class="matrix-image" alt="confusion matrix of {K} classes" src="{data_uri(image)}">'


def _pairs(matrix: np.ndarray[Any, Any], names: list[str], most: int = 6) -> str:
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    found = [(int(p) // len(matrix), int(p) % len(matrix)) for p in order]
    items = "".join(
        f"<li><b>{class_name(names, i)}</b> predicted as <b>{class_name(names, j)}</b>"
        f"<span>{number(int(off[i, j]))}{TIMES}</span></li>"
        for i, j in found
        if off[i, j]
    )
    return f'<h3>Confused most often</h3><ul class="pairs">{items}</ul>' if items else '<p class="well">No mistakes.</p><br>'


def _recall(matrix: np.ndarray[Any, Any], names: list[str]) -> str:
    totals, found = matrix.sum(axis=1), np.diag(matrix)
    order = [int(k) for k in np.argsort(found / np.maximum(totals, 1), kind="stable") if totals[k]]
    order = order[:10] if len(order) > TABLE else sorted(order)
    bars = "".join(
        f'<li><span>{class_name(names, k)}</span><i style="--w:{100 * found[k] / totals[k]:.1f}%"></i>'
        f"<span>{percent(float(found[k] / totals[k]), 1)}</span></li>"
        for k in order
    )
    title = "Recall of each class" if len(order) == len(matrix) else "Lowest recall"
    return f'<h3>{title}</h3><ul class="bars">{bars}</ul>'


def regression(predictions: dict[str, Any]) -> str:
    """Plot predictions against truth, and list the errors."""
    if predictions.get("kind") != "numbers":
        return ""
    facts = "".join(
        f"<div><dt>{label}</dt><dd>{number(predictions.get(key))}</dd></div>"
        for label, key in (
            ("root mean squared error", "root_mean_squared_error"),
            ("mean absolute error", "mean_absolute_error"),
            ("variance explained", "explained"),
        )
    )
    plot = scatter("Predictions against truth", predictions.get("points") or [], x_name="truth", y_name="prediction")
    return f'<div class="grid">{plot}<dl class="facts small">{facts}</dl></div>'


def mistakes(predictions: dict[str, Any], names: list[str]) -> str:
    """Show the worst mistakes as images, or in a table."""
    found = predictions.get("mistakes") or []
    if not found:
        return ""
    classes = predictions.get("kind") == "classes"

    def shown(value: Any, digits: int = 4) -> str:
        return class_name(names, value) if classes else ", ".join(number(v, digits) for v in value)

    if "image" in found[0]:
        items = []
        for m in found:
            text = f"{shown(m['truth'])} \N{RIGHTWARDS ARROW} <b>{shown(m['predicted'])}</b>" if classes else ""
            sure = percent(m["probability"], 0) if classes else shown(m["predicted"], 3)
            items.append(
                f'<li><img alt="example {number(m["index"])}" title="example {number(m["index"])}" src="{m["image"]}">'
                f"<span>{text}</span><small>{sure}</small></li>"
            )
        return f'<ul class="gallery">{"".join(items)}</ul>'
    rows = []
    for m in found[:12]:
        values = ", ".join(number(float(v), 3) for v in m["example"] if v is not None)
        cells = [number(m["index"]), shown(m["truth"]), shown(m["predicted"])]
        cells += [percent(m["probability"], 1)] if classes else []
        rows.append(f"<tr><td>{'</td><td>'.join([*cells, values])}</td></tr>")
    heads = ["example", "truth", "prediction", *["probability"] * classes, "features"]
    return table(f"<th>{'</th><th>'.join(heads)}</th>", "".join(rows))


def filters(found: dict[str, Any] | None) -> str:
    """Show the first layer's filters as images."""
    if not found:
        return ""
    items = "".join(f'<li><img alt="{i}" title="filter {i}" src="{address}"></li>' for i, address in enumerate(found["images"]))
    return f'<ul class="filters">{items}</ul>'


def filters_note(found: dict[str, Any] | None) -> str:
    """Return the sentence below the heading."""
    if not found:
        return ""
    what = "The convolution's filters" if found["kind"] == "filters" else "The weights into each unit, as images of the input"
    shown = f", {len(found['images'])} of {found['count']}" if len(found["images"]) < found["count"] else ""
    return f"{what}{shown}: grey is 0, white positive, black negative, all on one scale."


def layers(found: list[dict[str, Any]]) -> str:
    """Show one row per layer: name, activations, gradients, time, memory."""
    if not found:
        return ""
    slowest = max((layer["forward"] + layer["backward"] for layer in found), default=0.0) or 1.0
    total = sum(layer["forward"] + layer["backward"] for layer in found) or 1.0
    largest = max((layer["kept"] for layer in found), default=0) or 1
    rows = []
    for layer in found:
        name = escape(layer["kind"])
        shape = " \N{MULTIPLICATION SIGN} ".join(str(n) for n in layer.get("shape") or [])
        below = [f"<code>{escape(layer['path'])}</code>"] if layer.get("path") else []
        below += [shape] if shape else []
        if layer.get("parameters"):
            below.append(f"{number(layer['parameters'])} parameters")
        time = layer["forward"] + layer["backward"]
        bars = (
            f'<div class="bar" title="forward {layer["forward"] * 1e3:.3f} ms, backward {layer["backward"] * 1e3:.3f} ms">'
            f'<i class="s0" style="--w:{100 * layer["forward"] / slowest:.1f}%"></i>'
            f'<i class="s1" style="--w:{100 * layer["backward"] / slowest:.1f}%"></i></div>'
            f"<small>{duration(time)} \N{MIDDLE DOT} {100 * time / total:.0f}\N{NARROW NO-BREAK SPACE}%</small>"
        )
        kept = (
            f'<div class="bar"><i class="s3" style="--w:{100 * layer["kept"] / largest:.1f}%"></i></div>'
            f"<small>{size(layer['kept'])}</small>"
        )
        rows.append(
            f'<li><div class="who"><b>{name}</b><small>{DOT.join(below)}</small></div>'
            f'<div data-label="activations">{_histogram(layer.get("activations"), "s0")}</div>'
            f'<div data-label="gradients">{_histogram(layer.get("gradients"), "s1")}</div>'
            f'<div data-label="time">{bars}</div><div data-label="kept">{kept}</div></li>'
        )
    head = (
        '<li class="head" aria-hidden="true"><div>layer</div><div>activations</div><div>gradients</div>'
        '<div>time: <span class="s0">forward</span>, <span class="s1">backward</span></div><div>kept</div></li>'
    )
    return f'<ul class="layers">{head}{"".join(rows)}</ul>'


def _histogram(values: dict[str, Any] | None, style: str) -> str:
    if not values:
        return '<p class="none">\N{EN DASH}</p>'
    zeros = f" \N{MIDDLE DOT} {percent(values['zeros'], 0)} zero" if values["zeros"] >= 0.005 else ""
    if style == "s0":
        text = f"{number(values['mean'], 2)} \N{PLUS-MINUS SIGN} {number(values['std'], 2)}{zeros}"
    else:
        text = f"rms {number(values['rms'], 2)}{zeros}"
    label = f"values from {values['low']:.3g} to {values['high']:.3g}"
    return (
        f'<div class="{style}">{histogram(values["counts"], values["low"], values["high"], label)}</div><small>{text}</small>'
    )


def memory(found: dict[str, Any] | None) -> str:
    """Show how much memory each part takes."""
    if not found:
        return ""
    names = (
        ("parameters", "parameters"),
        ("gradients", "their gradients"),
        ("optimizer", "the optimizer's state"),
        ("kept", "activations saved for the backward pass"),
    )
    largest = max((found.get(key) or 0 for key, _ in names), default=0) or 1
    bars = "".join(
        f'<li><span>{text}</span><i class="s3" style="--w:{100 * (found.get(key) or 0) / largest:.1f}%"></i>'
        f"<span>{size(found.get(key))}</span></li>"
        for key, text in names
    )
    whole = []
    if found.get("device"):
        whole.append(f"{size(found['device'])} on the device at the end")
    if found.get("peak"):
        whole.append(f"{size(found['peak'])} of main memory: peak of the whole process with its data")
    note = f'<p class="note">{"; ".join(whole)}.</p>' if whole else ""
    return f'<ul class="bars memory">{bars}</ul>{note}'


def findings(found: list[str] | None) -> str:
    """List the findings of the diagnosis."""
    if found is None:
        return ""
    if not found:
        return '<p class="well">Nothing looks wrong: inputs, labels, units and gradients are as they should be.</p>'
    items = "".join(f"<li>{escape(text[:1].upper() + text[1:])}.</li>" for text in found)
    return f'<ul class="findings">{items}</ul>'


def configuration(r: dict[str, Any]) -> str:
    """List settings and environment."""

    def group(title: str, values: dict[str, Any]) -> str:
        rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{setting(value)}</dd></div>" for key, value in values.items())
        return f'<div><h3>{title}</h3><dl class="settings">{rows}</dl></div>' if rows else ""

    parts = group("Settings", r.get("configuration") or {}) + group("Environment", r.get("environment") or {})
    return f'<div class="grid">{parts}</div>' if parts else ""


def epochs(r: dict[str, Any]) -> str:
    """Return the history as a table that opens on demand."""
    history = r.get("history") or {}
    count = max((len(v) for v in history.values()), default=0)
    if not count:
        return ""
    plural = "" if count == 1 else "s"
    columns = dict(history)
    columns.setdefault("learning_rate", r.get("learning_rate") or [])
    columns.setdefault("seconds", r.get("epoch_seconds") or [])
    head = "".join(f"<th>{escape(name_of(name))}</th>" for name in columns)
    body = ""
    for i in range(count):
        cells = "".join(f"<td>{number(v[i], 5) if i < len(v) else DASH}</td>" for v in columns.values())
        body += f"<tr><td>{i + 1}</td>{cells}</tr>"
    return (
        f"<details><summary>{count} epoch{plural}</summary>"
        + table(f"<th>epoch</th>{head}", body, "plain numbers")
        + "</details>"
    )
