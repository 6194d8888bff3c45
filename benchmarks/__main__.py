"""``python -m benchmarks``: compare xpnet with other libraries; ``python -m benchmarks gate``: the regression gate;
``python -m benchmarks gpu-budget``: what a GPU will do in a step, counted without one."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import gate, machine, plots, report
from benchmarks.cases import Case, cases_for, every_case, memory_cases
from benchmarks.compare import Comparison, Options
from benchmarks.libraries import OURS, chosen
from benchmarks.libraries.job import Unsupported
from benchmarks.peers import ROOT

RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("float32", "tf32", "float16", "bfloat16")
ON_GPU = "tf32,bfloat16"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare xpnet with other libraries.")
    made.add_argument("command", nargs="?", choices=("compare", "gate", "gpu-budget"), default="compare")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--against", default="torch,chainer,sklearn", help="names separated by commas (default: %(default)s)")
    made.add_argument(
        "--precision",
        help=f"{', '.join(PRECISIONS)}, or several separated by commas (default: float32, on a GPU {ON_GPU})",
    )
    made.add_argument("--threads", type=int, default=machine.cores(), help="threads of every library (default: all cores)")
    made.add_argument("--quick", action="store_true", help="fewer cases, fewer turns")
    made.add_argument("--cases", default="", help="only cases whose name matches this regular expression")
    made.add_argument("--all", action="store_true", help="on a GPU: also single layers, sweeps and memory")
    made.add_argument("--no-records", action="store_true", help="on a GPU: do not train to stated accuracies")
    made.add_argument("--limit", type=float, help="start no case after so many seconds; --resume continues")
    made.add_argument("--budget", type=float, help="seconds per case and peer")
    made.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time, with one thread only")
    made.add_argument("--wait", type=float, default=0.0, help="wait up to so many seconds for an idle machine before each case")
    made.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder for the files (default: benchmarks/results)")
    made.add_argument(
        "--resume", type=Path, metavar="JSON", help="keep the cases of this interrupted run and measure the others"
    )
    made.add_argument("--redraw", type=Path, metavar="JSON", help="measure nothing; write the page and plots of a result again")
    made.add_argument("--update", action="store_true", help="gate: write the baseline instead of checking against it")
    made.add_argument("--write", action="store_true", help="gpu-budget: write the budget and its page instead of comparing")
    return made


def options_of(arguments: argparse.Namespace, precision: str) -> Options:
    """Return the options of a comparison in one precision."""
    budget = arguments.budget or (1.0 if arguments.quick else 3.0)
    rounds = 11 if arguments.quick else 25 if arguments.device == "cpu" else 9  # a GPU is steadier
    return Options(
        arguments.device,
        precision,
        arguments.threads,
        budget,
        rounds=rounds,
        clock=arguments.clock,
        wait=arguments.wait,
    )


def precisions_of(arguments: argparse.Namespace, made: argparse.ArgumentParser) -> list[str]:
    """Return the precisions to measure in, one after the other."""
    if arguments.resume:
        return [json.loads(arguments.resume.read_text())["options"]["precision"]]
    found = (arguments.precision or ("float32" if arguments.device == "cpu" else ON_GPU)).split(",")
    wrong = [name for name in found if name not in PRECISIONS]
    if wrong:
        made.error(f"unknown precision {wrong[0]!r}: expected some of {', '.join(PRECISIONS)}")
    if arguments.device == "cpu" and found != ["float32"]:
        made.error("on a CPU the precision is float32")
    return found


def main(argv: list[str] | None = None) -> int:
    made = parser()
    arguments = made.parse_args(argv)
    if arguments.command == "gpu-budget":
        from benchmarks import gpu_budget  # needs CuPy

        return gpu_budget.run(update=arguments.write)
    if arguments.threads < 1:
        made.error("--threads must be at least 1")
    if arguments.clock == "cpu" and (arguments.threads > 1 or arguments.device != "cpu"):
        made.error("--clock cpu needs --device cpu --threads 1: the time of several threads adds up")
    if arguments.redraw:
        result = json.loads(arguments.redraw.read_text())
        result["title"] = title(result)
        save(result, arguments.out, stem_of(result))
        return 0
    precisions = precisions_of(arguments, made)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if arguments.command == "gate":
            return gate.run(options_of(arguments, precisions[0]), quick=arguments.quick, update=arguments.update)
        # End a run in the background like one at a terminal: what was measured is kept.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        peers = chosen([name for name in arguments.against.split(",") if name], arguments.device)
        deadline = time.monotonic() + (arguments.limit or float("inf"))
        for precision in precisions:
            if not compare(peers, options_of(arguments, precision), arguments, deadline):
                return 0
    except ValueError as error:
        made.error(str(error))
    except Unsupported as reason:
        print(f"{OURS} cannot run here: {reason}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    if arguments.device == "cuda" and not (arguments.no_records or arguments.quick or arguments.cases or arguments.resume):
        run_records(precisions, arguments.out, deadline)
    return 0


def run_records(precisions: list[str], out: Path, deadline: float) -> None:
    """Train to the stated accuracies, each in its own process, which says why if it cannot run."""
    for record in ("mnist", "cifar10"):
        for precision in precisions:
            command = [sys.executable, "-m", "benchmarks.records", record, "--device", "cuda", "--precision", precision]
            if time.monotonic() < deadline:
                subprocess.run([*command, "--out", str(out)], cwd=ROOT, check=False)
            else:
                print(f"no time left for: {' '.join(command[1:])}")


def selected(options: Options, arguments: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    """Return the cases to time, and those whose memory is measured."""
    cases = cases_for(options.device, options.precision, quick=arguments.quick, everything=arguments.all)
    if arguments.cases:  # by name from all cases; start-up and data loading belong to the CPU
        every = cases_for(options.device, options.precision, quick=arguments.quick, everything=True)
        if options.device == "cpu" and not arguments.quick:
            every = every_case()
        cases = [c for c in every if re.search(arguments.cases, c.name)]
    wanted = (options.device == "cpu" or arguments.all) and not (arguments.quick or arguments.no_memory)
    return cases, [c for c in memory_cases() if wanted and re.search(arguments.cases, c.name)]


def compare(peers: list[str], options: Options, arguments: argparse.Namespace, deadline: float) -> bool:
    """Measure in one precision and write the files; return False if interrupted."""
    cases, memory = selected(options, arguments)
    kept: dict[str, Any] = (
        json.loads(arguments.resume.read_text()) if arguments.resume else {"cases": [], "memory": [], "workers": {}}
    )
    for name in ("device", "precision", "threads", "clock") if arguments.resume else ():
        if kept["options"][name] != getattr(options, name):
            raise ValueError(
                f"{arguments.resume} was measured with {name} {kept['options'][name]}, not {getattr(options, name)}"
            )
    have = {record["name"] for record in [*kept["cases"], *kept["memory"]]}
    cases, memory = ([c for c in some if c.name not in have] for some in (cases, memory))
    if not cases and not memory:
        raise ValueError(f"no case matches {arguments.cases!r}{' that is not measured yet' if have else ''}")
    with Comparison(peers, options) as comparison:
        result: dict[str, Any] = {
            "title": "",
            "date": datetime.date.today().isoformat(),
            "commit": machine.commit(),
            "machine": machine.describe(),
            "options": {
                **dataclasses.asdict(options),
                "quick": arguments.quick,
                "everything": arguments.all,
                # A few cases do not replace the page of a whole run.
                "cases": kept["options"].get("cases", "") if arguments.resume else arguments.cases,
            },
            "workers": kept["workers"] | {name: _hello(worker.hello) for name, worker in comparison.workers.items()},
            "skipped": comparison.skipped,
            "resumed": [*kept.get("resumed", []), *_part(kept)],
            "cases": kept["cases"],
            "memory": kept["memory"],
        }
        result["device_name"] = comparison.workers[OURS].hello["settings"].get("device_name", "")
        result["title"] = title(result)
        try:
            for kind, measure, some in (("cases", comparison.run, cases), ("memory", comparison.memory, memory)):
                for case in some:
                    if time.monotonic() > deadline:
                        raise KeyboardInterrupt
                    result[kind].append(measure(case))
        except BaseException as error:
            result["interrupted"] = True
            save(result, arguments.out, stem_of(result))
            if not isinstance(error, KeyboardInterrupt):
                raise
            print("interrupted: what was measured is kept")
            return False
    save(result, arguments.out, stem_of(result))
    return True


def _part(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Return which cases come from an earlier run, and of which commit."""
    before = {name for part in kept.get("resumed", []) for name in part["cases"]}
    names = [record["name"] for record in [*kept["cases"], *kept["memory"]] if record["name"] not in before]
    return [{"commit": kept["commit"], "date": kept["date"], "cases": names}] if names else []


def _hello(hello: dict[str, Any]) -> dict[str, Any]:
    return {name: hello[name] for name in ("versions", "settings", "python")}


def title(result: dict[str, Any]) -> str:
    """Return the title of a run: device, threads, precision."""
    options, cores = result["options"], result["machine"]["cores"]
    where = (
        f"CPU with {cores} core{'s' if cores > 1 else ''}, {options['threads']} thread{'s' if options['threads'] > 1 else ''}"
    )
    parts = [result["device_name"] or where, options["precision"]]
    parts += ["processor time"] * (options["clock"] == "cpu") + ["quick"] * options["quick"]
    parts += ["some cases"] * bool(options.get("cases"))
    return ", ".join(parts)


def stem_of(result: dict[str, Any]) -> str:
    """Return the title in a form for file names."""
    return re.sub(r"[^a-z0-9]+", "-", title(result).lower()).strip("-")


def save(result: dict[str, Any], folder: Path, stem: str) -> None:
    """Write the JSON file, the plots and the page."""
    places = {case.name: i for i, case in enumerate([*every_case(), *memory_cases()])}
    for part in ("cases", "memory"):  # a resumed run measured them in another order
        result[part].sort(key=lambda record: places.get(record["name"], len(places)))
    report.save_json(result, folder / f"{stem}.json")
    try:
        pictures = plots.draw(result, folder, stem)
    except ImportError:
        pictures = []
        print("matplotlib is not installed: no plots")
    report.write(folder / f"{stem}.md", report.markdown(result, pictures))
    print(f"wrote {folder / stem}.md, .json and {len(pictures)} pictures")
    print("\n".join(report.words(result)))


if __name__ == "__main__":
    sys.exit(main())
