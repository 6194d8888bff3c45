"""Plots of a result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.libraries import OURS
from benchmarks.report import disturbed, peers_of

Result = dict[str, Any]
# Okabe and Ito's colours, which colour-blind readers can distinguish.
COLOURS = {
    OURS: "#0072B2",
    "torch": "#D55E00",
    "torch-compile": "#E69F00",
    "torch-graphs": "#882255",
    "torch-compile-graphs": "#AA4499",
    "chainer": "#009E73",
    "sklearn": "#CC79A7",
    "keras": "#56B4E9",
    "jax": "#999933",
    "thinc": "#661100",
    "reference": "#888888",
}


def draw(result: Result, folder: Path, stem: str) -> list[str]:
    """Draw all plots that the result has data for; return the names of the files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110}
    made = []
    with plt.rc_context(style):
        for name, figure in (
            ("ratios", _ratios(plt, result)),
            ("sweeps", _sweeps(plt, result)),
            ("memory", _memory(plt, result)),
        ):
            if figure is None:
                continue
            file = folder / f"{stem}-{name}.png"
            temporary = file.with_name(file.name + ".part")
            figure.savefig(temporary, format="png", bbox_inches="tight")
            plt.close(figure)
            os.replace(temporary, file)
            made.append(file.name)
    return made


def _ratios(plt: Any, result: Result) -> Any:
    """Draw bars of their time / our time on a logarithmic axis, starting at 1: to the right we are faster."""
    peers = peers_of(result)
    records = [r for r in result["cases"] if r["ratios"] and r["group"] != "Sweeps"]
    if not peers or not records:
        return None
    # A row of space before each group.
    places, labels, headings, row = [], [], [], 0.0
    before = None
    for record in records:
        if record["group"] != before:
            row += 1.4 if before is not None else 0.6
            headings.append((row - 0.9, record["group"]))
            before = record["group"]
        places.append(row)
        labels.append(record["name"].partition(" ")[2] + (" *" if disturbed(record) else ""))
        row += 1
    figure, axes = plt.subplots(figsize=(8.5, 1.2 + (0.14 + 0.08 * len(peers)) * row))
    height = 0.8 / len(peers)
    for place, record in zip(places, records):
        present = [peer for peer in peers if peer in record["ratios"]]
        for i, peer in enumerate(present):
            ratio = record["ratios"][peer]
            at = place + (i - (len(present) - 1) / 2) * height
            value = ratio["median"]
            faded = 0.4 if disturbed(record) else 1.0
            axes.barh(at, value - 1, height * 0.9, left=1, color=COLOURS[peer], alpha=faded, zorder=2)
            axes.plot([ratio["lower_quartile"], ratio["upper_quartile"]], [at, at], color="black", lw=0.8, zorder=3)
            axes.annotate(
                f"{value:.2g}" if value < 10 else f"{value:.0f}",
                (max(ratio["upper_quartile"], value, 1.0), at),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
    axes.set_xscale("log")
    axes.axvline(1, color="black", lw=1, zorder=4)
    axes.set_ylim(row - 0.4, -0.6)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), max(high * 1.4, 2))
    axes.set_yticks(places, labels)
    for place, text in headings:
        axes.text(-0.01, place, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontweight="bold")
    axes.tick_params(axis="y", length=0)
    shown = [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]]
    axes.set_xticks(shown, [f"{t:g}" for t in shown])
    axes.set_xticks([], minor=True)
    axes.grid(axis="x", which="both", color="#dddddd", lw=0.5, zorder=0)
    axes.set_xlabel("their time / our time (right of 1: xpnet is faster); black lines: quartiles")
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[p]) for p in peers]
    axes.legend(handles, peers, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    star = "\n* other processes disturbed the measurement" if any(map(disturbed, records)) else ""
    axes.set_title(f"xpnet compared with other libraries, {result['title']}{star}", loc="left", fontsize=10)
    return figure


def _sweeps(plt: Any, result: Result) -> Any:
    """Draw time against one size at a time, on logarithmic axes."""
    sweeps: dict[str, list[Result]] = {}
    for record in result["cases"]:
        if record["sweep"] and record["libraries"]:
            sweeps.setdefault(record["sweep"][0], []).append(record)
    if not sweeps:
        return None
    columns = 3
    rows = -(-len(sweeps) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4 * columns, 3.1 * rows), squeeze=False, layout="constrained")
    titles = {
        "mlp batch size": ("training step, MLP [784,128,10]", "batch size"),
        "convnet batch size": ("training step, MNIST ConvNet", "batch size"),
        "image size": ("3x3 convolution, 32 channels, batch 16", "image side"),
        "channels": ("3x3 convolution, 16x16, batch 16", "channels in and out"),
        "depth": ("training step, MLP of 64 units, batch 32", "hidden layers"),
    }
    names: list[str] = []
    for axes, (what, records) in zip(grid.flat, sweeps.items()):
        libraries = list(dict.fromkeys(name for record in records for name in record["libraries"]))
        for name in libraries:
            points = [(r["sweep"][1], r["libraries"][name]) for r in records if name in r["libraries"]]
            x, values = [p[0] for p in points], [p[1] for p in points]
            axes.plot(x, [v["median"] * 1e3 for v in values], "o-", ms=3.5, lw=1.6, color=COLOURS[name], label=name)
            quartiles = ([v[k] * 1e3 for v in values] for k in ("lower_quartile", "upper_quartile"))
            axes.fill_between(x, *quartiles, color=COLOURS[name], alpha=0.15, lw=0)
            names += [name] if name not in names else []
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({r["sweep"][1] for r in records})
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(which="major", color="#dddddd", lw=0.5)
        title, label = titles.get(what, (what, what))
        axes.set(xlabel=label, ylabel="milliseconds")
        axes.set_title(title + (" *" if any(map(disturbed, records)) else ""), loc="left", fontsize=10)
    spare = list(grid.flat)[len(sweeps) :]
    for axes in spare:
        axes.axis("off")
    handles = [plt.Line2D([], [], color=COLOURS[n], marker="o", ms=3.5, label=n) for n in names]
    if spare:
        note = "bands: quartiles\n* disturbed by other processes" if any(
            disturbed(r) for records in sweeps.values() for r in records
        ) else "bands: quartiles"  # fmt: skip
        spare[0].legend(handles=handles, loc="center left", frameon=False, title=note, alignment="left")
    else:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def _memory(plt: Any, result: Result) -> Any:
    """Draw the peak memory of training steps against the batch size."""
    sweeps: dict[str, list[Result]] = {}
    for record in result["memory"]:
        if record["bytes"]:
            sweeps.setdefault(record["sweep"][0], []).append(record)
    if not sweeps:
        return None
    figure, grid = plt.subplots(1, len(sweeps), figsize=(4 * len(sweeps), 3.1), squeeze=False, layout="constrained")
    for axes, (what, records) in zip(grid.flat, sweeps.items()):
        for name in dict.fromkeys(name for record in records for name in record["bytes"]):
            points = [(r["sweep"][1], max(r["bytes"][name], 2**16) / 2**20) for r in records if name in r["bytes"]]
            axes.plot(*zip(*points), "o-", ms=3.5, lw=1.6, color=COLOURS[name], label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        ticks = sorted({r["sweep"][1] for r in records})
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(which="major", color="#dddddd", lw=0.5)
        axes.set(xlabel="batch size", ylabel="MiB beyond weights and batch")
        axes.set_title(f"training step, {what}", loc="left", fontsize=10)
        axes.legend(frameon=False)
    return figure
