"""The benchmarks: their cases, the checks before timing, and what pages and the gate say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from benchmarks import agreement, gate, nets, plots, report, wait_idle
from benchmarks.__main__ import main, parser
from benchmarks.agreement import arrays_for, distance, summary
from benchmarks.cases import Case, all_cases, memory_cases
from benchmarks.compare import Comparison, Options
from benchmarks.libraries import LIBRARIES, chosen, ours
from benchmarks.libraries.job import Unsupported, flat_rows_from_nchw, flat_rows_to_nchw, from_oihw, to_oihw, weights_of
from benchmarks.nets import trace
from benchmarks.peers import interpreter
from benchmarks.process import Process

FAST = Options(threads=1, budget=0.01, rounds=2, turn=1e-4, verbose=False)
EVERY_KIND = [
    *[nets.conv(4, 3, bias=False), nets.batch_norm(), nets.relu(), nets.max_pool(3, 2, 1)],
    nets.residual([nets.conv(8, 3, stride=2)], [nets.conv(8, 1, stride=2, padding=0)]),
    *[nets.conv(8, 3, groups=8, dilation=2), nets.tanh(), nets.average_pool(2), nets.flatten(), nets.dense(10)],
]
SMALL = Case("small", "step", EVERY_KIND, 3, (12, 12, 2), "Tests")
TINY = Case("tiny", "step", nets.mlp(5, 10), 3, (4,), "Tests")


def test_every_case_has_its_own_name() -> None:
    names = [case.name for case in [*all_cases(), *memory_cases()]]
    assert len(set(names)) == len(names)
    assert {c.name for c in all_cases(quick=True)} < set(names)


def test_cases_survive_json() -> None:
    for case in all_cases():
        assert Case.from_dict(json.loads(json.dumps(case.as_dict()))) == case


@pytest.mark.parametrize("case", [c for c in all_cases() if c.kind == "step" and c.sweep is None], ids=lambda c: c.name)
def test_trace_agrees_with_xpnet(case: Case) -> None:
    walked = trace(case.net, case.shape)
    net = ours.Net(case, arrays_for(Case("one", "step", case.net, 1, case.shape, "")), "cpu", "float32")
    assert net.model.output_shape(case.shape) == walked.output_shape == (10,)
    assert {path: p.shape for path, p in net.parameters.items()} == {w.path: w.shape for w in walked.weights}


def test_products_of_a_step_are_counted_by_hand() -> None:
    case = Case("c", "step", [nets.conv(8, 3), nets.flatten(), nets.dense(10)], 2, (4, 4, 3), "")
    forward = [(2 * 16, 27, 8), (2, 128, 10)]
    weights = [(27, 32, 8), (128, 2, 10)]
    assert case.products() == [*forward, *weights, (2, 10, 128)]
    assert case.floating_point_operations() == 2 * sum(m * k * n for m, k, n in case.products())


def test_bytes_of_a_layer_are_counted_by_hand() -> None:
    case = Case("c", "layer", [nets.max_pool(2)], 1, (4, 4, 1), "")
    assert case.bytes_moved() == 4 * (16 + 4 + 4 + 16 + 16)
    assert Case("c", "step", nets.mlp(10), 1, (4,), "").bytes_moved() is None


def test_layout_conversions_are_inverse() -> None:
    rng = np.random.default_rng(0)
    kernel, dense = rng.normal(size=(3, 2, 5, 7)), rng.normal(size=(2 * 3 * 4, 6))
    np.testing.assert_array_equal(from_oihw(to_oihw(kernel)), kernel)
    np.testing.assert_array_equal(flat_rows_from_nchw(flat_rows_to_nchw(dense, (2, 3, 4)), (2, 3, 4)), dense)
    x = rng.normal(size=(1, 2, 3, 4))
    moved = x.transpose(0, 3, 1, 2).reshape(1, -1) @ flat_rows_to_nchw(dense, (2, 3, 4))
    np.testing.assert_allclose(moved, x.reshape(1, -1) @ dense)


def test_distance() -> None:
    a = np.array([3.0, 4.0])
    assert distance(a, a) == 0
    assert distance(a * 1.1, a) == pytest.approx(0.1)
    assert distance(a, a[:1]) == np.inf
    assert distance(np.array([np.nan, 1.0]), a) == np.inf


def test_summary() -> None:
    assert summary([3.0, 1.0, 2.0]) == {"median": 2, "minimum": 1, "lower_quartile": 1.5, "upper_quartile": 2.5, "turns": 3}
    assert summary([2.0])["upper_quartile"] == 2


def test_peers_are_named() -> None:
    assert chosen(["torch", "torch"], "cpu") == ["torch"]
    assert chosen(["torch", "jax"], "cuda")[-1] == "jax"
    with pytest.raises(ValueError, match="unknown library 'tourch'"):
        chosen(["tourch"], "cpu")


def test_workers_check_and_time_a_case() -> None:
    with Comparison(["reference"], FAST) as comparison:
        record = comparison.run(SMALL)
        assert record["skipped"] == {"ceiling copy": "memory traffic is counted for single layers only"}
        assert record["agreement"]["reference"]["compared"] == 2 + 2 * len(trace(SMALL.net, SMALL.shape).weights)
        assert record["libraries"]["xpnet"]["turns"] >= 2
        assert record["ratios"]["reference"]["median"] > 0
        assert record["ceilings"]["products"]["gflops"] > 0
        layer = comparison.run(Case("pool", "layer", [nets.max_pool(2)], 2, (8, 8, 4), "Tests"))
        assert layer["ceilings"]["copy"]["gigabytes_per_second"] > 0
        memory = comparison.memory(TINY)
        assert set(memory["bytes"]) | set(memory["skipped"]) == {"xpnet", "reference"}


def test_libraries_that_disagree_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(agreement.TOLERANCE, "float32", -1.0)
    with Comparison(["reference"], FAST, ceilings=False) as comparison:
        record = comparison.run(TINY)
    assert "results do not agree" in record["skipped"]["reference"]
    assert "reference" not in record["ratios"]


def _clockwork(used: Callable[[float], float]) -> dict[str, Any]:
    """Return arguments of `wait_until_idle` for a machine in which time passes only in sleep."""
    time = [0.0]
    return {
        "used": lambda process: used(time[0]),
        "now": lambda: time[0],
        "sleep": lambda seconds: time.__setitem__(0, time[0] + seconds),
    }


def test_the_wait_ends_when_every_worker_is_idle() -> None:
    # Spins for 0.3 s, seen by a clock with ticks of 10 ms.
    waited = wait_idle.wait_until_idle([1, 2], **_clockwork(lambda t: 1 + round(min(t, 0.3), 2)))
    assert 0.3 + wait_idle.IDLE <= waited <= 0.3 + 2 * wait_idle.IDLE
    assert wait_idle.wait_until_idle([1], **_clockwork(lambda t: 5.0)) == pytest.approx(wait_idle.IDLE, abs=wait_idle.IDLE / 4)
    assert wait_idle.wait_until_idle([1], **_clockwork(lambda t: 1 + t)) == pytest.approx(wait_idle.LONGEST, abs=wait_idle.IDLE)
    # A system that does not report CPU time.
    assert wait_idle.wait_until_idle([1], **_clockwork(lambda t: 0.0)) == wait_idle.FIXED


def test_a_peer_that_is_not_installed_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XPNET_PEERS", str(tmp_path))
    monkeypatch.setattr("benchmarks.peers.MODULES", {"chainer": "a_module_that_is_not_there"})
    assert interpreter("chainer") == (None, "not installed; python -m benchmarks.peers chainer creates an environment for it")
    with Comparison(["chainer"], FAST, ceilings=False) as comparison:
        assert comparison.peers == []
        assert "not installed" in comparison.skipped["chainer"]


def test_a_peer_that_cannot_run_the_device_is_skipped() -> None:
    with pytest.raises(Unsupported, match="not compared on cuda"):
        Process("sklearn", device="cuda")


@pytest.mark.torch
@pytest.mark.parametrize("case", [SMALL, Case("lstm", "layer", [nets.lstm(3)], 2, (4, 5), "Tests")], ids=lambda c: c.name)
def test_pytorch_agrees(case: Case) -> None:
    from benchmarks.libraries import pytorch

    arrays = arrays_for(case)
    found = [module.prepare(case, arrays, "cpu", "float32", {}).check() for module in (ours, pytorch)]
    assert set(found[0]) == set(found[1]) >= {f"gradient/{path}" for path in weights_of(arrays)}
    worst = {name: distance(found[0][name], found[1][name]) for name in found[0]}
    assert max(worst.values()) < 1e-5, worst


def _record(name: str, ratio: float, **more: Any) -> dict[str, Any]:
    ours_, theirs = summary([1e-3]), summary([ratio * 1e-3])
    return {
        "name": name,
        "kind": "step",
        "group": "Tests",
        "sweep": None,
        "skipped": {},
        "ceilings": {},
        "libraries": {"xpnet": ours_, "torch": theirs},
        "ratios": {"torch": summary([ratio])},
        **more,
    }


def _result(*records: dict[str, Any]) -> dict[str, Any]:
    memory = {"name": "memory net batch 4", "sweep": ["net", 4], "bytes": {"xpnet": 3 << 20, "torch": 2 << 20}, "skipped": {}}
    return {
        "title": "a test",
        "date": "2000-01-01",
        "commit": "abc",
        "device_name": "",
        "skipped": {"jax": "not installed"},
        "machine": {"cores": 2, "system": "Linux", "architecture": "x"},
        "options": {"device": "cpu", "threads": 2, "precision": "float32", "quick": False},
        "workers": {},
        "cases": list(records),
        "memory": [memory],
    }


def test_the_summary_says_where_we_are_slower() -> None:
    result = _result(_record("step a", 2.0), _record("step b", 0.5), _record("step c", 0.1, foreign_cores=1.5))
    text = "\n".join(report.words(result))
    assert "faster in 1, as fast within 5 % in 0, slower in 1" in text
    assert "We are slower in step b (0.50: 1.00 ms against 500 us)" in text
    assert "step c" not in text
    assert "memory net batch 4: we need 3 MiB, torch 2 MiB" in text
    result["cases"][0]["pause_seconds"] = 0.06
    page = report.markdown(result)
    assert "the median pause is 60.0 ms" in page
    assert "| step c\\* |" in page
    assert "jax: not installed" in page


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    sweep = [_record(f"sweep depth {n}", 1.5, sweep=["depth", n], group="Sweeps") for n in (1, 2, 4)]
    result = _result(_record("step a", 2.0), _record("step b", 0.5), *sweep)
    assert plots.draw(result, tmp_path, "t") == ["t-ratios.png", "t-sweeps.png", "t-memory.png"]
    assert all(file.stat().st_size > 1000 for file in tmp_path.glob("*.png"))
    assert not list(tmp_path.glob("*.part"))


def test_gate_verdicts() -> None:
    def entry(ratio: float, yardstick: str = "products") -> dict[str, Any]:
        return {"yardstick": yardstick, "ratio": ratio}

    baseline = {"a": entry(1.0), "b": entry(1.0), "c": entry(1.0), "d": entry(1.0)}
    found = {"a": entry(1.1), "b": entry(1.5), "c": entry(0.5), "d": entry(1.0, "copy"), "e": entry(1.0)}
    assert gate.verdicts(found, baseline) == {"a": "ok", "b": "slower", "c": "faster", "d": "new", "e": "new"}


def test_gate_needs_a_baseline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gate, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(gate, "cases", lambda quick: [TINY])
    assert gate.run(FAST) == 2
    assert gate.run(FAST, update=True) == 0
    kept = json.loads(gate.BASELINE.read_text())["cpu, threads 1, float32, wall clock"]["cases"]["tiny"]
    assert kept["yardstick"] == "products"
    assert kept["ratio"] > 0
    # An unreachable baseline fails the gate.
    spoilt = gate.BASELINE.read_text().replace(f'"ratio": {kept["ratio"]}', '"ratio": 1e-9')
    gate.BASELINE.write_text(spoilt)
    assert gate.run(FAST) == 1
    assert "slower  tiny" in capsys.readouterr().out


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--threads", "1", "--quick", "--budget", "0.01", "--out", str(tmp_path)]
    assert main(["--against", "reference", "--cases", "softmax_cross_entropy 128x10", *settings]) == 0
    (stem,) = {file.stem for file in tmp_path.glob("*.json")}
    assert stem.startswith("cpu-with-")
    assert stem.endswith("-1-thread-float32-quick-some-cases")  # it does not replace the page of a whole run
    saved = json.loads((tmp_path / f"{stem}.json").read_text())
    assert [case["name"] for case in saved["cases"]] == ["layer softmax_cross_entropy 128x10"]
    assert saved["workers"]["xpnet"]["versions"]["numpy"] == np.__version__
    assert "reference" in (tmp_path / f"{stem}.md").read_text()
    resumed = [
        "--against",
        "",
        "--resume",
        str(tmp_path / f"{stem}.json"),
        "--cases",
        "softmax_cross_entropy 128x10|784,30",
        *settings,
    ]
    assert main(resumed) == 0
    result = json.loads((tmp_path / f"{stem}.json").read_text())
    assert [part["cases"] for part in result["resumed"]] == [["layer softmax_cross_entropy 128x10"]]
    both = result["cases"]
    assert [case["name"] for case in both] == ["step mlp [784,30,10] batch 10", "layer softmax_cross_entropy 128x10"]
    with pytest.raises(SystemExit):
        main(["--cases", "no such case", "--against", "", *settings])
    assert "no case matches" in capsys.readouterr().err
    assert parser().parse_args([]).device == "cpu"


def test_without_a_gpu_cuda_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        xn.backend.device("cuda")
    except xn.DeviceError:
        assert main(["--device", "cuda", "--against", "", "--cases", "softmax"]) == 2
        assert "xpnet cannot run here" in capsys.readouterr().err
    else:
        pytest.skip("there is a GPU")


def test_naming_the_folder_runs_the_benchmarks() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks/test_cases.py", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-k", "test_training_step and accelerated and numpy and logistic", "--benchmark-max-time", "0.01"]
    root = Path(__file__).parent.parent
    # pytest-xdist turns benchmarks off in its workers; this process is a separate one.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "benchmark: 1 tests" in done.stdout


def test_every_library_has_a_module() -> None:
    folder = Path(nets.__file__).parent / "libraries"
    assert {library.module for library in LIBRARIES.values()} == {
        f.stem for f in folder.glob("*.py") if f.stem not in ("__init__", "job")
    }


def test_the_input_pipeline_is_measured_on_a_cpu(monkeypatch, tmp_path, capsys):
    from benchmarks import input_pipeline

    line = f"input_pipeline --examples 40 --size 8 --batch 16 --epochs 1 --trace {tmp_path / 'traces'}"
    monkeypatch.setattr("sys.argv", line.split())
    assert input_pipeline.main() == 0
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("in ")]
    assert len(rows) == len(list((tmp_path / "traces").glob("*.json"))) == 3


def test_places_that_learn_differently_are_not_compared(monkeypatch, capsys):
    from benchmarks import input_pipeline

    places = input_pipeline.places

    def wrong(images, *others):
        found = places(images, *others)
        return {**found, "wrong": (found["in memory, floats"][0] * 2, True)}

    monkeypatch.setattr(input_pipeline, "places", wrong)
    monkeypatch.setattr("sys.argv", ["input_pipeline", "--examples", "40", "--size", "8", "--batch", "16", "--epochs", "1"])
    assert input_pipeline.main() == 1
    assert "the losses differ" in capsys.readouterr().out
