"""The benchmarks on a GPU: cases, variants, passes of convolutions, pages."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from benchmarks import compare, conv_algorithms, nets, plots, report, speed_targets
from benchmarks.__main__ import main, parser, precisions_of
from benchmarks.agreement import LOOSEST, TOLERANCE, arrays_for, distance, summary, tolerance_of
from benchmarks.cases import PASSES, REPEAT, Case, cases_for, every_case, named
from benchmarks.compare import Comparison, Options
from benchmarks.libraries import LIBRARIES, TORCH_ON_GPU, chosen, ours, roofline
from benchmarks.libraries.job import Unsupported
from tests.gpu import Watched
from tests.graphs import captured_steps

FAST = Options(threads=1, budget=0.01, rounds=2, turn=1e-4, verbose=False)
LAYERS = [nets.conv(8, 3, bias=False), nets.conv(4, 3, stride=2, bias=False), nets.conv(4, 3, dilation=2, bias=False)]


def one_pass(kind: str, layer: dict[str, Any], channels: int = 4) -> Case:
    return Case(f"conv {PASSES[kind]} tiny", kind, [layer], 2, (7, 6, channels), report.PASSES_GROUP)


def test_a_gpu_is_measured_on_what_fills_it() -> None:
    names = {case.name for case in cases_for("cuda", "tf32")}
    wanted = [f"step {net} batch {n}" for net in ("mnist convnet", "lenet-5") for n in (64, 128, 256, 512)]
    wanted += [f"step cifar vgg batch {n}" for n in (128, 256, 512)] + ["step resnet-20 batch 128"]
    assert set(wanted) < names
    assert len([name for name in names if name.startswith("step mlp")]) == 3
    half = cases_for("cuda", "bfloat16")
    assert {c.batch for c in half if c.kind == "step"} == {128, 256, 512}
    for cases in (half, cases_for("cuda", "tf32")):
        assert {kind: sum(c.kind == kind for c in cases) for kind in PASSES} == dict.fromkeys(PASSES, 12)
    everything = cases_for("cuda", "tf32", everything=True)
    assert names < {c.name for c in everything}
    assert not {"import", "first_step", "data"} & {c.kind for c in everything}
    assert 3 < len(cases_for("cuda", "tf32", quick=True)) < 10
    every = [case.name for case in every_case()]
    assert len(every) == len(set(every))


def test_every_speed_target_is_about_a_case() -> None:
    for target in speed_targets.TARGETS:
        cases = cases_for(target.device, "float32" if target.device == "cpu" else "tf32")
        assert any(re.match(target.cases, case.name) for case in cases), target
        assert set(target.peers) <= {*chosen(["torch", "chainer", "sklearn"], target.device)}


def test_the_product_of_a_pass_by_hand() -> None:
    products = {which: named(f"conv {which} stride 2 (64,32,64,128,3)").products() for which in PASSES.values()}
    assert products == {
        "fprop": [(64 * 16 * 16, 9 * 64, 128)],
        "dgrad": [(64 * 32 * 32, 9 * 128 // 4, 64)],  # one tap in four meets an output
        "wgrad": [(9 * 64, 64 * 16 * 16, 128)],
    }
    assert named("conv dgrad (64,16,128,128,3)").products() == [(64 * 16 * 16, 9 * 128, 128)]
    assert len({named(f"conv {w} (64,32,3,32,5)").floating_point_operations() for w in PASSES.values()}) == 1


def test_tolerances_stay_below_what_unrelated_arrays_differ_by() -> None:
    assert tolerance_of(named("step mnist convnet batch 128"), "tf32") == TOLERANCE["tf32"]
    assert tolerance_of(named("step cifar vgg batch 128"), "bfloat16") == LOOSEST < 1.4


def test_pytorch_is_four_variants() -> None:
    assert chosen(["torch"], "cuda") == list(TORCH_ON_GPU)
    assert set(TORCH_ON_GPU[1:]) == set(speed_targets.GRAPHS_OR_COMPILED)
    assert set(plots.COLOURS) == set(LIBRARIES) - {"ceiling"}


@pytest.mark.torch
@pytest.mark.parametrize("layer", LAYERS, ids=["plain", "stride", "dilation"])
@pytest.mark.parametrize("kind", PASSES)
def test_passes_agree_with_pytorch(kind: str, layer: dict[str, Any]) -> None:
    from benchmarks.libraries import pytorch

    case = one_pass(kind, layer)
    arrays = arrays_for(case)
    found = [module.prepare(case, arrays, "cpu", "float32", {}).check()["output"] for module in (ours, pytorch)]
    assert distance(*found) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_the_same_work_as_autocast(precision: str) -> None:
    pytest.importorskip("ml_dtypes")
    from benchmarks.libraries import pytorch

    net = [nets.conv(8, 3), nets.relu(), nets.max_pool(2), nets.flatten(), nets.dense(10)]
    case = Case("small", "step", net, 8, (8, 8, 1), "Tests")
    arrays, found = arrays_for(case), []
    for module in (ours, pytorch):
        job = module.prepare(case, arrays, "cpu", precision, {})
        results, before = job.check(), job.weights()
        for _ in range(4):
            job.once()
        found.append({**results, **{f"change/{path}": after - before[path] for path, after in job.weights().items()}})
    assert set(found[0]) == set(found[1])
    worst = {name: distance(found[0][name], found[1][name]) for name in found[0]}
    assert max(worst.values()) <= tolerance_of(case, precision), worst
    # Not float32 under another name.
    exact = ours.prepare(case, arrays, "cpu", "float32", {}).check()
    assert distance(found[0]["output"], exact["output"]) > 1e-4


def test_passes_are_compared_and_reported() -> None:
    with Comparison([], FAST) as comparison:
        records = [comparison.run(one_pass(kind, LAYERS[0])) for kind in PASSES]
    for record in records:
        assert set(record["ceilings"]) == {"products"}
        assert record["libraries"]["xpnet"]["median"] > 0
    page = report.markdown(_result(*records, device="cpu"))
    assert "| pass | product in NumPy | chosen |" in page
    assert page.count("conv fprop tiny") == 1


@pytest.mark.parametrize("kind", PASSES)
def test_an_algorithm_can_be_forced(gpu: Watched, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Capture, which would keep the process on a stream of its own, is tested elsewhere.
    monkeypatch.setattr(conv_algorithms, "repeated", lambda once: once)
    monkeypatch.setattr(conv_algorithms, "not_captured", lambda function: str)
    place = xn.backend.device("cuda")
    case = one_pass(kind, LAYERS[0])
    arrays = arrays_for(case)
    found, launches = {}, {}
    for algorithm in ("im2col", "implicit"):
        gpu.launches.clear()
        found[algorithm] = conv_algorithms.prepare(case, arrays, place, "float32", algorithm).check()["output"]
        launches[algorithm] = " ".join(gpu.launches)
    assert "implicit_gemm" in launches["implicit"]
    assert "implicit_gemm" not in launches["im2col"]
    with pytest.raises(Unsupported, match="no candidate here: there are im2col, implicit"):
        conv_algorithms.prepare(case, arrays, place, "float32", "cudnn")
    depthwise = one_pass(kind, nets.conv(4, 3, groups=4, bias=False))
    with pytest.raises(Unsupported, match="dedicated kernel"):
        conv_algorithms.prepare(depthwise, arrays_for(depthwise), place, "float32", "im2col")
    expected = ours.prepare(case, arrays, "cpu", "float32", {}).check()["output"]
    for output in found.values():
        assert distance(output, expected) < 1e-5


@pytest.mark.parametrize("kind", ["step", *PASSES])
def test_the_roofline_on_a_gpu_is_these_products(gpu: Watched, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_algorithms, "captured", lambda function: function)
    monkeypatch.setattr(conv_algorithms, "not_captured", lambda function: str)
    case = one_pass(kind, LAYERS[0]) if kind in PASSES else Case("s", "step", nets.mlp(5, 10), 16, (4,), "")
    job = roofline.prepare(case, {}, "cuda", "tf32", {"ceiling": "products"})
    job.once()
    # cuBLAS is column-major: our rows are its columns.
    found = [(product.n, product.k, product.m) for product in gpu.products]
    assert found == case.products() * (REPEAT if kind in PASSES else 1)
    assert job.units == (REPEAT if kind in PASSES else 1)
    transposed = [product.transpose_b for product in gpu.products]
    assert transposed == [k > m and k > n for m, k, n in found]


def test_on_a_cpu_there_is_one_algorithm() -> None:
    case = one_pass("conv-fprop", LAYERS[0])
    with pytest.raises(Unsupported, match="one algorithm only"):
        ours.prepare(case, arrays_for(case), "cpu", "float32", {"algorithm": "im2col"})


@pytest.mark.cuda
def test_steps_on_a_gpu_are_captured_as_in_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def steps(trainer: xn.Trainer) -> Any:
        found, graphs = captured_steps(trainer)
        made.append(graphs)
        return found

    case = Case("tiny", "step", nets.mlp(5, 10), 3, (4,), "Tests")
    arrays = arrays_for(case)
    with monkeypatch.context() as patch:
        patch.setattr(ours, "captured_steps", lambda _: None)
        plain = ours.prepare(case, arrays, "cuda", "float32", {})
    monkeypatch.setattr(ours, "captured_steps", steps)
    job = ours.prepare(case, arrays, "cuda", "float32", {})
    checks = [plain.check(), job.check()]
    for _ in range(4):
        plain.once()
        job.once()
    assert (made[0].recorded, made[0].replayed) == (1, 3)
    assert job.remark() == ""
    for before, after in zip(checks[0].values(), checks[1].values()):
        np.testing.assert_array_equal(before, after)
    assert plain.weights is not None
    assert job.weights is not None
    for path, values in plain.weights().items():
        np.testing.assert_array_equal(values, job.weights()[path])
    job.close()


@pytest.mark.torch
def test_the_warm_up_of_pytorchs_graph_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from benchmarks.libraries import pytorch

    class Graph:
        """Capture nothing; replay runs launch by launch."""

        def replay(self) -> None:
            replayed[0]()

    replayed: Any = []
    stream = type("Stream", (), {"wait_stream": lambda self, other: None})
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    known: Any = pytorch._graph
    monkeypatch.setattr(pytorch, "_graph", lambda step, *rest: (replayed.append(step), known(step, *rest))[1])
    case = Case("tiny", "step", [nets.dense(6), nets.relu(), nets.dense(10)], 3, (4,), "Tests")
    jobs = [pytorch.prepare(case, arrays_for(case), "cpu", "float32", {"mode": mode}) for mode in ("eager", "graphs")]
    for _ in range(4):
        for job in jobs:
            job.once()
    before, after = (cast(Any, job.weights)() for job in jobs)
    assert {path: distance(after[path], before[path]) for path in before} == dict.fromkeys(before, 0.0)


def test_half_precision_that_is_refused_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise ValueError(f"no dtype {settings['dtype']}")

    monkeypatch.setattr(xn, "Sequential", refuse)
    case = Case("tiny", "step", nets.mlp(5, 10), 3, (4,), "Tests")
    with pytest.raises(Unsupported, match="no network in bfloat16: no dtype bfloat16"):
        ours.prepare(case, arrays_for(case), "cpu", "bfloat16", {})
    with pytest.raises(ValueError, match="no dtype float32"):
        ours.prepare(case, arrays_for(case), "cpu", "float32", {})


def _record(name: str, kind: str, group: str, **more: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"sweep": None, "skipped": {}, "ceilings": {}, "libraries": {}, "ratios": {}}
    return {**empty, "name": name, "kind": kind, "group": group, **more}


def _step(name: str, **ratios: float) -> dict[str, Any]:
    peers = {peer.replace("_", "-"): ratio for peer, ratio in ratios.items()}
    libraries = {"xpnet": summary([1e-3]), **{peer: summary([ratio * 1e-3]) for peer, ratio in peers.items()}}
    return _record(
        name, "step", "Training steps", libraries=libraries, ratios={peer: summary([r]) for peer, r in peers.items()}
    )


def _result(*records: dict[str, Any], device: str = "cuda") -> dict[str, Any]:
    options = {"device": device, "threads": 2, "precision": "tf32" if device == "cuda" else "float32", "quick": False}
    return {
        "title": "a test",
        "date": "2000-01-01",
        "commit": "abc",
        "device_name": "NVIDIA Test" if device == "cuda" else "",
        "skipped": {},
        "machine": {"cores": 2, "system": "Linux", "architecture": "x"},
        "options": options,
        "workers": {},
        "cases": list(records),
        "memory": [],
    }


def test_the_page_of_a_gpu() -> None:
    kernel = _record(
        "conv fprop (64,16,128,128,3)",
        "conv-fprop",
        report.PASSES_GROUP,
        libraries={"xpnet": summary([1e-4]), "torch": summary([0.8e-4])},
        ratios={"torch": summary([0.8])},
        ways={"im2col": {**summary([2e-4]), "ratio": 2.0}, "implicit": {**summary([1e-4]), "ratio": 1.0}},
        ceilings={"products": {"seconds": 0.6e-4, "fraction": summary([0.6]), "gflops": 161_000.0}},
        skipped={"xpnet cudnn": "no candidate here: there are im2col, implicit"},
    )
    bare = _record(
        "conv fprop depthwise (64,32,128,128,3)", "conv-fprop", report.PASSES_GROUP, libraries={"xpnet": summary([1e-4])}
    )
    refused = _record("step cifar vgg batch 256", "step", "Training steps", skipped={"xpnet": "no network in bfloat16"})
    slow = _step("step lenet-5 batch 64", torch=2.5, torch_graphs=1.2, torch_compile=0.8)
    fast = _step("step resnet-20 batch 128", torch=1.6, torch_graphs=0.95)
    slow["remarks"] = {"xpnet": "the training step ran launch by launch"}
    page = report.markdown(_result(slow, fast, refused, kernel, bare))
    assert "| pass | product in cuBLAS | chosen | im2col | implicit | torch (cuDNN) |" in page
    row = "| 161.0 TFLOP/s | **60%** (100 us) | **30%** (200 us) | **60%** (100 us) | **75%** (80.0 us) |"
    assert f"| conv fprop (64,16,128,128,3) {row}" in page
    assert "| conv fprop depthwise (64,32,128,128,3) | - | 100 us | - | - | - |" in page
    assert "* 2 of 4 speed targets are met." in page
    assert "* Target missed: step lenet-5 batch 64 against torch: 2.50, the target is 3." in page
    assert "* Target missed: step lenet-5 batch 64 against torch-compile: 0.80, the target is 1." in page
    assert "resnet-20 batch 128 against" not in page
    assert "* 0 of 1 passes of convolutions reach 70% of the product in cuBLAS." in page
    assert "* Below 70% of the product: conv fprop (64,16,128,128,3): 60%." in page
    assert "| step cifar vgg batch 256 | no network in bfloat16 |" in page
    assert "* xpnet, step lenet-5 batch 64: the training step ran launch by launch." in page
    assert "NVIDIA Test" in page


def test_precisions() -> None:
    def found(*words: str) -> list[str]:
        made = parser()
        return precisions_of(made.parse_args(words), made)

    assert found() == ["float32"]
    assert found("--device", "cuda") == ["tf32", "bfloat16"]
    assert found("--device", "cuda", "--precision", "float32,float16") == ["float32", "float16"]
    for wrong in (["--precision", "tf32"], ["--device", "cuda", "--precision", "tf33"]):
        with pytest.raises(SystemExit):
            found(*wrong)


def test_a_run_ends_at_its_limit_and_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["--threads", "1", "--budget", "0.01", "--against", "", "--no-memory", "--out", str(tmp_path)]
    settings += ["--cases", r"conv fprop \(128,28,1,|predict mlp|step mlp \[784,30"]
    clock = iter([0.0, 1.0, 99.0, *[99.0] * 50])
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.__main__.time.monotonic", lambda: next(clock))
        assert main([*settings, "--limit", "10"]) == 0
    (file,) = tmp_path.glob("*.json")
    first = json.loads(file.read_text())
    assert first["interrupted"]
    assert len(first["cases"]) == 1
    assert main([*settings, "--resume", str(file)]) == 0
    second = json.loads(file.read_text())
    assert "interrupted" not in second
    assert len(second["cases"]) == 3
    assert any(case["kind"] == "conv-fprop" for case in second["cases"])


@pytest.mark.parametrize("words", [["benchmarks"], ["benchmarks", "--quick"], ["benchmarks.records", "cifar10"]])
def test_without_a_gpu_there_is_one_line(words: list[str]) -> None:
    import subprocess

    try:
        xn.backend.device("cuda")
    except xn.DeviceError:
        command = [sys.executable, "-m", *words, "--device", "cuda"]
        root = Path(__file__).parent.parent
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.strip().splitlines()) == 1
        assert "cannot run here" in done.stderr
    else:
        pytest.skip("there is a GPU")


def test_algorithms_are_not_peers() -> None:
    assert not set(compare.ALGORITHMS) & set(TORCH_ON_GPU)
    record = _step("step a", torch=2.0)
    record["ways"] = {"im2col": {**summary([1e-3]), "ratio": 1.0}}
    assert report.peers_of(_result(record)) == ["torch"]
