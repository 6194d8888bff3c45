"""The sections of a report: each converts part of the record to HTML, or to "" if there is nothing to show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xpnet.report.charts import histogram, scatter
from xpnet.report.document import table
from xpnet.report.png import data_uri
from xpnet.report.text import (
    DASH,
    DOT,
    TIMES,
    Markup,
    duration,
    html,
    image,
    join,
    name_of,
    number,
    percent,
    setting,
    size,
)

TABLE = 20
"""Confusion matrices of more classes are drawn as an image."""


def class_name(names: list[str], k: int) -> str:
    """Return the name of class k, or its index."""
    return names[k] if 0 <= k < len(names) else str(k)


def confusion(predictions: dict[str, Any], names: list[str]) -> Markup:
    """Show the confusion matrix, the pairs of classes confused most often, and the recall of each class."""
    rows = predictions.get("confusion")
    if not rows:
        return html("")
    matrix = np.array(rows, np.int64)
    total, right = int(matrix.sum()), int(np.trace(matrix))
    picture = _matrix_table(matrix, names) if len(matrix) <= TABLE else _matrix_image(matrix)
    share = html("{} of {} correct: <b>{}</b>", number(right), number(total), percent(right / max(total, 1)))
    return html(
        '<div class="grid confusion"><div><p class="caption">{}</p>{}</div><div>{}{}</div></div>',
        share,
        picture,
        _pairs(matrix, names),
        _recall(matrix, names),
    )


def _matrix_table(matrix: np.ndarray[Any, Any], names: list[str]) -> Markup:
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shares = matrix / totals
    K = len(matrix)
    long = K > 4 and any(len(class_name(names, k)) > 3 for k in range(K))
    head = join(html('<th scope="col"><span>{}</span></th>', class_name(names, k)) for k in range(K))
    body = []
    for i in range(K):
        cells = []
        for j in range(K):
            kind = "hit" if i == j else "miss"
            # Square roots: a confusion of 1 % should be visible beside one of 20 %.
            depth = round(100 * math.sqrt(shares[i, j])) if matrix[i, j] else 0
            text = number(int(matrix[i, j])) if matrix[i, j] else ""
            what = f"{class_name(names, i)} predicted as {class_name(names, j)}: {matrix[i, j]}, {100 * shares[i, j]:.1f} %"
            deep = " deep" if depth > 62 else ""
            cells.append(html('<td class="{}{}" style="--d:{}%" title="{}">{}</td>', kind, deep, depth, what, text))
        body.append(html('<tr><th scope="row">{}</th>{}</tr>', class_name(names, i), join(cells)))
    kind = "matrix long" if long else "matrix few" if K <= 4 else "matrix"
    return table(html("<td></td>{}", head), join(body), kind)


def _matrix_image(matrix: np.ndarray[Any, Any]) -> Markup:
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    depth = np.sqrt(matrix / totals)
    K = len(matrix)
    # Transparent colours suit light and dark backgrounds.
    drawn = np.zeros((K, K, 4), np.uint8)
    drawn[..., :3] = (217, 98, 43)
    drawn[np.arange(K), np.arange(K), :3] = (52, 112, 171)
    drawn[..., 3] = np.rint(255 * depth)
    return html('<img class="matrix-image" alt="confusion matrix of {} classes" src="{}">', K, data_uri(drawn))


def _pairs(matrix: np.ndarray[Any, Any], names: list[str], most: int = 6) -> Markup:
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    found = [(int(p) // len(matrix), int(p) % len(matrix)) for p in order]
    items = join(
        html(
            "<li><b>{}</b> predicted as <b>{}</b><span>{}{}</span></li>",
            class_name(names, i),
            class_name(names, j),
            number(int(off[i, j])),
            TIMES,
        )
        for i, j in found
        if off[i, j]
    )
    if not items:
        return html('<p class="well">No mistakes.</p><br>')
    return html('<h3>Confused most often</h3><ul class="pairs">{}</ul>', items)


def _recall(matrix: np.ndarray[Any, Any], names: list[str]) -> Markup:
    totals, found = matrix.sum(axis=1), np.diag(matrix)
    order = [int(k) for k in np.argsort(found / np.maximum(totals, 1), kind="stable") if totals[k]]
    order = order[:10] if len(order) > TABLE else sorted(order)
    bars = join(
        html(
            '<li><span>{}</span><i style="--w:{:.1f}%"></i><span>{}</span></li>',
            class_name(names, k),
            100 * found[k] / totals[k],
            percent(float(found[k] / totals[k]), 1),
        )
        for k in order
    )
    title = "Recall of each class" if len(order) == len(matrix) else "Lowest recall"
    return html('<h3>{}</h3><ul class="bars">{}</ul>', title, bars)


def regression(predictions: dict[str, Any]) -> Markup:
    """Plot predictions against truth, and list the errors."""
    if predictions.get("kind") != "numbers":
        return html("")
    facts = join(
        html("<div><dt>{}</dt><dd>{}</dd></div>", label, number(predictions.get(key)))
        for label, key in (
            ("root mean squared error", "root_mean_squared_error"),
            ("mean absolute error", "mean_absolute_error"),
            ("variance explained", "explained"),
        )
    )
    plot = scatter("Predictions against truth", predictions.get("points") or [], x_name="truth", y_name="prediction")
    return html('<div class="grid">{}<dl class="facts small">{}</dl></div>', plot, facts)


def mistakes(predictions: dict[str, Any], names: list[str]) -> Markup:
    """Show the worst mistakes as images, or in a table."""
    found = predictions.get("mistakes") or []
    if not found:
        return html("")
    classes = predictions.get("kind") == "classes"

    def shown(value: Any, digits: int = 4) -> str:
        return class_name(names, value) if classes else join((number(v, digits) for v in value), ", ")

    if all("image" in m for m in found):
        items = []
        for m in found:
            text = html("{} \N{RIGHTWARDS ARROW} <b>{}</b>", shown(m["truth"]), shown(m["predicted"])) if classes else ""
            sure = percent(m["probability"], 0) if classes else shown(m["predicted"], 3)
            items.append(
                html(
                    '<li><img alt="example {index}" title="example {index}" src="{image}">'
                    "<span>{text}</span><small>{sure}</small></li>",
                    index=number(m["index"]),
                    image=image(m["image"]),
                    text=text,
                    sure=sure,
                )
            )
        return html('<ul class="gallery">{}</ul>', join(items))
    rows = []
    for m in found[:12]:
        values = join((number(float(v), 3) for v in m.get("example", ()) if v is not None), ", ")
        cells = [number(m["index"]), shown(m["truth"]), shown(m["predicted"])]
        cells += [percent(m["probability"], 1)] if classes else []
        rows.append(html("<tr>{}</tr>", join(html("<td>{}</td>", cell) for cell in [*cells, values])))
    heads = ["example", "truth", "prediction", *["probability"] * classes, "features"]
    return table(join(html("<th>{}</th>", head) for head in heads), join(rows))


def filters(found: dict[str, Any] | None) -> Markup:
    """Show the first layer's filters as images."""
    if not found:
        return html("")
    items = join(
        html('<li><img alt="{i}" title="filter {i}" src="{address}"></li>', i=i, address=image(address))
        for i, address in enumerate(found["images"])
    )
    return html('<ul class="filters">{}</ul>', items)


def filters_note(found: dict[str, Any] | None) -> str:
    """Return the sentence below the heading."""
    if not found:
        return ""
    what = "The convolution's filters" if found["kind"] == "filters" else "The weights into each unit, as images of the input"
    shown = f", {len(found['images'])} of {found['count']}" if len(found["images"]) < found["count"] else ""
    return f"{what}{shown}: grey is 0, white positive, black negative, all on one scale."


def layers(found: list[dict[str, Any]]) -> Markup:
    """Show one row per layer: name, activations, gradients, time, memory."""
    if not found:
        return html("")
    slowest = max((layer["forward"] + layer["backward"] for layer in found), default=0.0) or 1.0
    total = sum(layer["forward"] + layer["backward"] for layer in found) or 1.0
    largest = max((layer["kept"] for layer in found), default=0) or 1
    rows = []
    for layer in found:
        shape = " \N{MULTIPLICATION SIGN} ".join(str(n) for n in layer.get("shape") or [])
        below: list[str] = [html("<code>{}</code>", layer["path"])] if layer.get("path") else []
        below += [shape] if shape else []
        if layer.get("parameters"):
            below.append(html("{} parameters", number(layer["parameters"])))
        time = layer["forward"] + layer["backward"]
        bars = html(
            '<div class="bar" title="forward {forward:.3f} ms, backward {backward:.3f} ms">'
            '<i class="s0" style="--w:{first:.1f}%"></i><i class="s1" style="--w:{second:.1f}%"></i></div>'
            "<small>{time} \N{MIDDLE DOT} {share:.0f}\N{NARROW NO-BREAK SPACE}%</small>",
            forward=layer["forward"] * 1e3,
            backward=layer["backward"] * 1e3,
            first=100 * layer["forward"] / slowest,
            second=100 * layer["backward"] / slowest,
            time=duration(time),
            share=100 * time / total,
        )
        kept = html(
            '<div class="bar"><i class="s3" style="--w:{:.1f}%"></i></div><small>{}</small>',
            100 * layer["kept"] / largest,
            size(layer["kept"]),
        )
        rows.append(
            html(
                '<li><div class="who"><b>{name}</b><small>{below}</small></div>'
                '<div data-label="activations">{activations}</div><div data-label="gradients">{gradients}</div>'
                '<div data-label="time">{bars}</div><div data-label="kept">{kept}</div></li>',
                name=layer["kind"],
                below=join(below, DOT),
                activations=_histogram(layer.get("activations"), "s0"),
                gradients=_histogram(layer.get("gradients"), "s1"),
                bars=bars,
                kept=kept,
            )
        )
    head = html(
        '<li class="head" aria-hidden="true"><div>layer</div><div>activations</div><div>gradients</div>'
        '<div>time: <span class="s0">forward</span>, <span class="s1">backward</span></div><div>kept</div></li>'
    )
    return html('<ul class="layers">{}{}</ul>', head, join(rows))


def _histogram(values: dict[str, Any] | None, style: str) -> Markup:
    if not values:
        return html('<p class="none">\N{EN DASH}</p>')
    zeros = f" \N{MIDDLE DOT} {percent(values['zeros'], 0)} zero" if values["zeros"] >= 0.005 else ""
    if style == "s0":
        text = html("{} \N{PLUS-MINUS SIGN} {}{}", number(values["mean"], 2), number(values["std"], 2), zeros)
    else:
        text = html("rms {}{}", number(values["rms"], 2), zeros)
    label = f"values from {values['low']:.3g} to {values['high']:.3g}"
    drawn = histogram(values["counts"], values["low"], values["high"], label)
    return html('<div class="{}">{}</div><small>{}</small>', style, drawn, text)


def memory(found: dict[str, Any] | None) -> Markup:
    """Show how much memory each part takes."""
    if not found:
        return html("")
    names = (
        ("parameters", "parameters"),
        ("gradients", "their gradients"),
        ("optimizer", "the optimizer's state"),
        ("kept", "activations saved for the backward pass"),
    )
    largest = max((found.get(key) or 0 for key, _ in names), default=0) or 1
    bars = join(
        html(
            '<li><span>{}</span><i class="s3" style="--w:{:.1f}%"></i><span>{}</span></li>',
            text,
            100 * (found.get(key) or 0) / largest,
            size(found.get(key)),
        )
        for key, text in names
    )
    whole = []
    if found.get("device"):
        whole.append(f"{size(found['device'])} on the device at the end")
    if found.get("peak"):
        whole.append(f"{size(found['peak'])} of main memory: peak of the whole process with its data")
    note = html('<p class="note">{}.</p>', "; ".join(whole)) if whole else ""
    return html('<ul class="bars memory">{}</ul>{}', bars, note)


def findings(found: list[str] | None) -> Markup:
    """List the findings of the diagnosis."""
    if found is None:
        return html("")
    if not found:
        return html('<p class="well">Nothing looks wrong: inputs, labels, units and gradients are as they should be.</p>')
    items = join(html("<li>{}.</li>", text[:1].upper() + text[1:]) for text in found)
    return html('<ul class="findings">{}</ul>', items)


def configuration(r: dict[str, Any]) -> Markup:
    """List settings and environment."""

    def group(title: str, values: dict[str, Any]) -> Markup:
        rows = join(html("<div><dt>{}</dt><dd>{}</dd></div>", key, setting(value)) for key, value in values.items())
        return html('<div><h3>{}</h3><dl class="settings">{}</dl></div>', title, rows) if rows else html("")

    parts = group("Settings", r.get("configuration") or {}) + group("Environment", r.get("environment") or {})
    return html('<div class="grid">{}</div>', parts) if parts else html("")


def epochs(r: dict[str, Any]) -> Markup:
    """Return the history as a table that opens on demand."""
    history = r.get("history") or {}
    count = max((len(v) for v in history.values()), default=0)
    if not count:
        return html("")
    plural = "" if count == 1 else "s"
    columns = dict(history)
    columns.setdefault("learning_rate", r.get("learning_rate") or [])
    columns.setdefault("seconds", r.get("epoch_seconds") or [])
    head = join(html("<th>{}</th>", name_of(name)) for name in columns)
    body = join(
        html(
            "<tr><td>{}</td>{}</tr>",
            i + 1,
            join(html("<td>{}</td>", number(v[i], 5) if i < len(v) else DASH) for v in columns.values()),
        )
        for i in range(count)
    )
    rows = table(html("<th>epoch</th>{}", head), body, "plain numbers")
    return html("<details><summary>{} epoch{}</summary>{}</details>", count, plural, rows)
