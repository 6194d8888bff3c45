"""``python -m benchmarks.records mnist|cifar10``: train over several seeds, and write the times and accuracies."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import xpnet as xn
from benchmarks import machine, report
from benchmarks.compare import DISTURBED
from benchmarks.records import cifar10, mnist
from benchmarks.records.common import Data, Recipe, Setting, one_run, summary, warm_up
from xpnet.runtime.precision import get_matmul_precision

RECIPES = {recipe.name: recipe for recipe in (mnist.RECIPE, cifar10.RECIPE)}
RESULTS = Path(__file__).parent.parent / "results"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.records", description="Time training to an accuracy.")
    made.add_argument("record", choices=tuple(RECIPES))
    made.add_argument("--device", default="cpu", help='"cpu", "cuda" or "cuda:N"')
    made.add_argument("--precision", choices=("float32", "tf32", "float16", "bfloat16"), default="float32")
    made.add_argument("--runs", type=int, default=10, help="number of seeds (default: 10)")
    made.add_argument("--first-seed", type=int, default=0, help="the first of consecutive seeds (default: 0)")
    made.add_argument("--threads", type=int, default=machine.cores(), help="on a CPU (default: all cores)")
    made.add_argument("--epochs", type=int, help="instead of the recipe's")
    made.add_argument("--steps", type=int, help="end every run after so many batches, and show the loss during it")
    made.add_argument("--width", type=float, default=1.0, help="multiply the numbers of channels")
    made.add_argument("--holdout", type=int, default=0, help="measure on so many held-out training images")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder for the files (default: benchmarks/results)")
    return made


def main(argv: list[str] | None = None) -> int:
    made = parser()
    arguments = made.parse_args(argv)
    if arguments.device == "cpu" and arguments.precision != "float32":
        made.error("on a CPU the precision is float32")
    if min(arguments.runs, arguments.threads) < 1 or min(arguments.epochs or 1, arguments.steps or 1) < 1:
        made.error("--runs, --threads, --epochs and --steps must be at least 1")
    setting = Setting(
        arguments.device, arguments.precision, arguments.epochs, arguments.steps, arguments.width, arguments.holdout
    )
    xn.set_num_threads(arguments.threads)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.runs)
    try:
        result = measure(RECIPES[arguments.record], setting, seeds, arguments.threads)
    except (xn.DeviceError, xn.data.DataError) as error:
        print(f"{arguments.record} cannot run here: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    if result["runs"]:
        stem = stem_of(result)
        report.save_json(result, arguments.out / f"{stem}.json")
        report.write(arguments.out / f"{stem}.md", page(result))
        print("\n".join(["", *words(result), f"wrote {arguments.out / stem}.md and .json"]))
    return 0


def measure(recipe: Recipe, setting: Setting, seeds: range, threads: int) -> dict[str, Any]:
    """Do all runs; return those done so far if interrupted."""
    before = get_matmul_precision()
    xn.set_matmul_precision("tf32" if setting.precision == "tf32" else "float32")
    try:
        result = about(recipe, setting, threads)
        data = Data(recipe, setting)
        result["remark"], result["measured_on"] = data.remark, data.test_name
        result["warm_up_seconds"] = warm_up(recipe, setting, data)
        start, foreign = time.perf_counter(), _foreign()
        try:
            for seed in seeds:
                run = one_run(recipe, setting, data, seed)
                result["runs"].append(run)
                print(f"seed {seed}: {run['seconds']:.2f} s, {run['accuracy']:.2%}, loss {_last(run):.4f}", flush=True)
        except KeyboardInterrupt:
            print("interrupted: the runs so far are kept")
        result["foreign_cores"] = max(0.0, (_foreign() - foreign) / (time.perf_counter() - start))
        if result["runs"]:
            result["summary"] = summary(recipe, result["runs"])
        return result
    finally:
        xn.set_matmul_precision(before)


def _foreign() -> float:
    """Return the CPU seconds that everything else has used; 0 if the system does not report it."""
    busy = machine.busy_seconds()
    return busy - machine.seconds_of(os.getpid()) if busy else 0.0


def _last(run: dict[str, Any]) -> float:
    last = run["losses"][-1]
    return float(last[1] if isinstance(last, list) else last)


def about(recipe: Recipe, setting: Setting, threads: int) -> dict[str, Any]:
    """Return what is known before the first run."""
    device = xn.backend.device(setting.device)
    name = ""
    if device.kind == "cuda":
        import cupy

        name = cupy.cuda.runtime.getDeviceProperties(device.index)["name"].decode()
    cores = machine.cores()
    where = name or f"CPU with {cores} core{'s' * (cores > 1)}, {threads} thread{'s' * (threads > 1)}"
    return {
        "record": recipe.name,
        "title": f"{recipe.title}: {where}, {setting.precision}",
        "date": datetime.date.today().isoformat(),
        "commit": machine.commit(),
        "machine": machine.describe(),
        "device_name": name,
        "where": where,
        "setting": dataclasses.asdict(setting),
        "altered": setting.altered,
        "versions": {"xpnet": xn.__version__},
        "runs": [],
    }


def stem_of(result: dict[str, Any]) -> str:
    """Return the name of the files."""
    parts = ["record", result["record"], result["where"], result["setting"]["precision"], result["altered"]]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def words(result: dict[str, Any]) -> list[str]:
    """Return sentences on the results, and whether the target was met."""
    recipe, found = RECIPES[result["record"]], result["summary"]
    lines = [
        f"* {found['runs']} run{'s' * (found['runs'] > 1)}: mean accuracy {found['mean_accuracy']:.2%} (standard deviation "
        f"{100 * found['accuracy_deviation']:.2f} points, from {found['worst_accuracy']:.2%} to {found['best_accuracy']:.2%}), "
        f"median time of training {found['median_seconds']:.2f} s."
    ]
    if "mean_accuracy_mirrored" in found:
        mirrored = found["mean_accuracy_mirrored"]
        lines.append(f"* With the mean over each image and its mirror image: mean accuracy {mirrored:.2%}.")
    if result["foreign_cores"] > DISTURBED:
        foreign = result["foreign_cores"]
        lines.append(f"* Other processes kept {foreign:.1f} cores busy meanwhile: on an idle machine it takes less time.")
    if result["remark"]:
        lines.append(f"* {result['remark']}.")
    if result["altered"]:
        lines.append(f"* Not the recipe ({result['altered']}): this is no record.")
        return lines
    reached = found["mean_accuracy"] >= recipe.accuracy
    lines.append(f"* The mean is {'not below' if reached else '**below**'} the target of {recipe.accuracy:.0%}.")
    if result["device_name"]:
        quick = found["median_seconds"] < recipe.seconds
        lines.append(f"* The time is {'under' if quick else '**not under**'} the target of {recipe.seconds:g} s on a GPU.")
    return lines


def page(result: dict[str, Any]) -> str:
    """Return the page: the recipe, the results, every seed."""
    recipe, about_machine = RECIPES[result["record"]], result["machine"]
    mirrored = "mean_accuracy_mirrored" in result["summary"]
    lines = [f"# {result['title']}", ""]
    lines += [f"* Recipe: {recipe.what}."]
    lines += [f"* Published results: {recipe.anchors}."]
    lines += [
        f"* Machine: {result['where']}; {about_machine.get('processor', about_machine['architecture'])}, "
        f"{about_machine['system']}. xpnet {result['versions']['xpnet']}, commit {result['commit'] or 'unknown'}, "
        f"{result['date']}."
    ]
    lines += [
        "* Training alone is timed, from the first batch until the device has finished. The data are on the device as bytes, "
        f"and {result['warm_up_seconds']:.1f} s of warm-up (kernels are compiled and autotuned) come before the first run.",
        f"* Accuracies are those of the {result['measured_on']} images after the last step; every run is in the table.",
        "",
        *words(result),
        "",
    ]
    heads = ["seed", "seconds", "accuracy", *["with mirror images"] * mirrored, "loss"]
    lines += [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for run in result["runs"]:
        cells = [str(run["seed"]), f"{run['seconds']:.2f}", f"{run['accuracy']:.2%}"]
        cells += [f"{run['accuracy_mirrored']:.2%}"] if mirrored else []
        losses = run["losses"]
        shown = [f"{step}: {loss:.3f}" for step, loss in losses] if isinstance(losses[0], list) else [f"{_last(run):.4f}"]
        lines.append(f"| {' | '.join([*cells, ', '.join(shown)])} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
