"""What a GPU will do in a step is counted without one, and is what `benchmarks/gpu_budget.json` says."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

from benchmarks import gpu_budget, gpu_kernels, gpu_model, gpu_nets, gpu_page, nets
from benchmarks.__main__ import main
from benchmarks.gpu_budget import Change
from benchmarks.gpu_kernels import Instruction
from benchmarks.gpu_model import A100, H100
from benchmarks.gpu_nets import PREDICT, STEP, Counted, least_bytes
from benchmarks.gpu_steps import COPY, CUPY, OWN, PRODUCT, Node, Steps, nodes_of_every_step
from tests.software_gpu.build import MissingError

needs_compilers = [pytest.mark.nvrtc, pytest.mark.bfloat16]


@pytest.fixture(scope="module")
def budget() -> dict[str, Any]:
    return gpu_budget.load()


@pytest.fixture(scope="module")
def steps(request: pytest.FixtureRequest) -> Steps:
    """The nodes of every step, recorded now."""
    if request.config.getoption("--software-gpu"):
        pytest.skip("starts the software GPU itself, and needs NVIDIA's compiler beside it")
    try:
        return nodes_of_every_step()
    except MissingError as error:
        missing = str(error)
    if os.environ.get("XPNET_REQUIRE_ALL", "") not in ("", "0"):
        pytest.fail(f"XPNET_REQUIRE_ALL is set, and {missing}", pytrace=False)
    pytest.skip(missing)


def fail_for(changes: list[Change], budget: dict[str, Any]) -> None:
    if changes:
        pytest.fail(gpu_budget.verdict(changes, budget["made with"]), pytrace=False)


class TestTheBudget:
    pytestmark = needs_compilers

    def test_nodes_bytes_and_products_of_all_steps(self, steps, budget):
        fail_for(gpu_budget.step_changes(gpu_budget.counts_of(steps), budget["steps"]), budget)

    def test_registers_shared_memory_and_spills_of_the_kernels(self, steps, budget):
        version = budget["made with"]["NVRTC"]
        if gpu_kernels.nvrtc_version() != version:
            pytest.skip(f"the budget is of NVRTC {version}, this is {gpu_kernels.nvrtc_version()}")
        tool = gpu_kernels.nvdisasm()
        if tool is not None and gpu_kernels.disassembler_version(tool) != budget["made with"]["nvdisasm"]:
            tool = None
        found = gpu_kernels.compiled(gpu_budget.launched(steps), tool=tool)
        fail_for(gpu_budget.kernel_changes(found, budget["kernels"]), budget)
        if tool is not None:
            for name, by_architecture in found.items():
                for architecture, made in by_architecture.items():
                    assert made == budget["kernels"][name][architecture], f"{name}: {gpu_budget.WRITE}"

    def test_the_estimates_are_of_these_counts(self, steps, budget):
        assert gpu_budget.estimates(steps, budget["kernels"]) == budget["estimated"], f"write them again: {gpu_budget.WRITE}"

    def test_a_prediction_launches_what_its_layers_need(self, steps):
        first, second = steps["MLP 784-128-10", "float32", PREDICT]  # small products, with their biases and activations
        assert all(node.kind == OWN and node.name.startswith("implicit_gemm<float,") for node in (first, second))
        assert (first.operations, first.precision) == (2 * 64 * 784 * 128, "float32")
        assert (second.operations, second.precision) == (2 * 64 * 128 * 10, "float32")
        assert first.bytes >= 4 * (64 * 784 + 784 * 128 + 128 + 64 * 128)  # and the parts of the inner dimension
        products = {node.name: node for node in steps["VGG-style", "float32", STEP] if node.kind == PRODUCT}
        assert products["1 x 4096,10,64"].bytes == 4 * (64 * 4096 + 4096 * 10 + 64 * 10)

    def test_convolutions_compute_what_their_shapes_say(self, steps):
        def computed(precision: str) -> list[tuple[str, int]]:
            nodes = [n for n in steps["MNIST ConvNet", precision, PREDICT] if n.kind == OWN and n.operations]
            return [(n.precision, n.operations) for n in nodes[:2]]

        first, second = 2 * 128 * 26 * 26 * 9 * 32, 2 * 128 * 11 * 11 * 9 * 32 * 64
        assert computed("tf32") == [("float32", first), ("tf32", second)]  # one channel has no tensor cores
        assert computed("bfloat16") == [("float32", first), ("bfloat16", second)]
        in_tiles = [n.in_tiles for n in steps["MNIST ConvNet", "tf32", PREDICT] if n.in_tiles]
        assert in_tiles[:2] == [2 * first, second]  # tiles have 64 columns, of which the first convolution uses 32


def test_the_page_is_up_to_date(budget):
    assert gpu_budget.PAGE.read_text(encoding="utf-8") == gpu_page.render(budget), f"write it again: {gpu_budget.WRITE}"


def test_the_budget_is_as_it_is_written(budget):
    assert gpu_budget.BUDGET.read_text(encoding="utf-8") == gpu_budget.dump(budget)


def test_the_page_of_a_budget_without_nvdisasm(budget):
    kernels = {name: {a: dict(made) for a, made in row.items()} for name, row in budget["kernels"].items()}
    without = {**budget, "kernels": kernels, "made with": {**budget["made with"], "nvdisasm": ""}}
    for row in kernels.values():
        for made in row.values():
            for key in ("loop", "operations", "ahead", "moved", "widths"):
                made.pop(key, None)
    page = gpu_page.render(without)
    assert "nvdisasm was not found: no instructions" in page
    assert "around" not in page.partition("## Kernels on architectures")[2]


def test_no_time_is_called_measured(budget):
    page = gpu_page.render(budget)
    heads = [cell for line in page.splitlines() if "least us" in line for cell in line.split("|")]
    assert any("estimated us" in head for head in heads)
    assert "nothing here was measured on a GPU" in page
    assert page.count("measured") == 2  # both times in that sentence, of the page and of the model


def test_a_number_that_rises_and_one_that_falls():
    before = {"LeNet-5, prediction in tf32": {"nodes": {"all": 10, "copies": 1}, "kernels": {"relu<float, 4>": 2}}}
    after = {"LeNet-5, prediction in tf32": {"nodes": {"all": 11, "copies": 0}, "kernels": {"relu<float, 8>": 2}}}
    assert gpu_budget.verdict(gpu_budget.step_changes(before, before)) == ""
    text = gpu_budget.verdict(gpu_budget.step_changes(after, before))
    worse, _, better = text.partition("Well done")
    assert "  LeNet-5, prediction in tf32: nodes: was 10, is 11; kernels relu<float, 8>: was 0, is 2\n" in worse
    assert "  LeNet-5, prediction in tf32: nodes copies: was 1, is 0; kernels relu<float, 4>: was 2, is 0\n" in better
    assert "on purpose: python -m benchmarks gpu-budget --write" in text
    only = gpu_budget.verdict([Change("LeNet-5", "nodes", 5, 4)])
    assert "Well done" in only
    assert "Please write it down" in only
    assert "on purpose" not in only


@pytest.mark.nvrtc
def test_another_version_of_cupy_is_named():
    changes = [Change("LeNet-5", "nodes", 5, 6)]
    assert "made with CuPy 1.0" in gpu_budget.verdict(changes, {"CuPy": "1.0"})
    assert "CuPy" not in gpu_budget.verdict(changes, {"CuPy": gpu_budget.cupy_version()})


def test_the_command_where_something_is_missing(monkeypatch, capsys):
    def missing() -> Steps:
        raise MissingError("the software device needs g++")

    monkeypatch.setattr(gpu_budget, "nodes_of_every_step", missing)
    assert main(["gpu-budget"]) == 2
    assert "nothing can be counted here: the software device needs g++" in capsys.readouterr().out


def test_a_step_that_the_budget_does_not_have():
    (change,) = gpu_budget.step_changes({"new": {"nodes": {"all": 3}}}, {})
    assert "new: nodes: was 0, is 3" in gpu_budget.verdict([change])


def test_a_kernel_with_more_registers_or_another_block():
    def one(registers: int, block: int) -> gpu_kernels.Kernels:
        return {"relu<float>": {"90": {"registers": registers, "shared": 0, "spills": 0, "block": block}}}

    (more,) = gpu_budget.kernel_changes(one(40, 256), one(32, 256))
    assert more.worse
    assert "  relu<float>: registers on 9.0: was 32, is 40\n" in gpu_budget.verdict([more])
    (other,) = gpu_budget.kernel_changes(one(32, 128), one(32, 256))
    assert not other.worse
    assert "differ" in gpu_budget.verdict([other])
    (new,) = gpu_budget.kernel_changes(one(32, 256), {})
    assert new.worse


# ---- the least bytes --------------------------------------------------------------------------------------------------


def test_the_least_bytes_of_dense_layers():
    counted = Counted("", [nets.dense(8), nets.relu(), nets.dense(10)], (16,), 4)
    weights = 16 * 8 + 8 + 8 * 10 + 10
    forward = 4 * (4 * (16 + 8) + 4 * (8 + 10) + weights)
    assert least_bytes(counted, "float32", PREDICT) == forward
    loss = 4 * 2 * 4 * 10 + 8 * 4
    backward = 4 * (4 * (8 + 16) + 4 * (10 + 8 + 8) + (8 * 10 + 10)) + 4 * weights  # dy and x; dy, x, weights and dx
    assert least_bytes(counted, "tf32", STEP) == forward + loss + backward + 3 * 4 * weights


def test_the_least_bytes_of_half_precision():
    counted = Counted("", [nets.dense(10)], (16,), 4)
    weights = 16 * 10 + 10
    assert least_bytes(counted, "bfloat16", PREDICT) == 4 * 4 * 16 + 2 * (4 * 10 + weights)


def test_the_least_bytes_of_pooling_and_normalisation():
    def step(layers: list[nets.Layer]) -> int:
        return least_bytes(Counted("", layers, (4, 4, 2), 3), "float32", STEP)

    base = [nets.conv(2, 3), nets.flatten(), nets.dense(10)]
    size, quarter = 3 * 4 * 4 * 2, 3 * 2 * 2 * 2
    norm = step([base[0], nets.batch_norm(), *base[1:]]) - step(base)
    assert norm == 4 * (2 * size + 3 * size) + (4 + 4 + 4 + 3 * 4) * 2 * 2
    pooled = [base[0], nets.max_pool(2), nets.flatten()]
    moved = step(pooled) - step([base[0], nets.flatten()])
    assert moved == 4 * (size + quarter) + quarter + quarter + 4 * (quarter + size)  # values, and a byte for each maximum


def test_the_least_bytes_of_a_residual_block():
    def step(layers: list[nets.Layer]) -> int:
        return least_bytes(Counted("", layers, (4, 4, 2), 3), "float32", STEP)

    body = [nets.conv(2, 3, bias=False)]
    first, size = nets.conv(2, 3), 4 * 3 * 4 * 4 * 2
    assert step([first, nets.residual(body)]) - step([first, *body]) == 2 * size


# ---- the model of time ------------------------------------------------------------------------------------------------


def test_memory_takes_its_bytes_over_the_bandwidth_or_over_what_is_under_way():
    peak = H100.bandwidth * gpu_model.REACHED.value
    assert gpu_model.memory_seconds(H100, 1e9, 0) == pytest.approx(1e9 / peak)
    assert gpu_model.memory_seconds(H100, 1e9, 1e9) == pytest.approx(1e9 / peak)
    assert gpu_model.memory_seconds(H100, 1e6, 1024) == pytest.approx(1e6 / 1024 * 270 / 1.83e9)


def test_issue_takes_a_cycle_for_each_instruction_of_a_quarter():
    assert gpu_model.issue_seconds(H100, 4 * 132 * 1000, 500) == pytest.approx(1000 / 1.83e9)
    assert gpu_model.issue_seconds(H100, 4 * 132 * 1000, 1) == pytest.approx(132 * 1000 / 1.83e9)
    assert gpu_model.issue_seconds(A100, 400, 0) == pytest.approx(100 / 1.41e9)


def test_instructions_follow_from_operations_or_from_bytes():
    loop = {"instructions": 100}
    assert gpu_model.warp_instructions(loop, 4096, 0, (40960, 7)) == 1000
    assert gpu_model.warp_instructions(loop, 64, 32, (0, 32 * 32 * 5)) == 500
    assert gpu_model.warp_instructions(loop, 0, 0, (10, 10)) == 0


def test_the_time_of_a_node_is_its_cost_and_the_longest_of_its_parts():
    cost = gpu_model.NODE_SECONDS.value + 2 * 270 / 1.83e9
    assert gpu_model.node_seconds(H100, Node(COPY, "copy", bytes=0)) == pytest.approx(cost)
    copy = Node(COPY, "copy", bytes=3_015_000)
    assert gpu_model.node_seconds(H100, copy) == pytest.approx(cost + 1e-6)
    product = Node(PRODUCT, "", bytes=100, operations=int(494e6), precision="tf32")
    assert gpu_model.node_seconds(H100, product) == pytest.approx(cost + 1e-6)
    elementwise = Node(CUPY, "cupy_add", blocks=1, threads=128, bytes=128 * 16)
    assert gpu_model.node_seconds(H100, elementwise) == pytest.approx(cost + 270 / 1.83e9)
    padded = product._replace(in_tiles=int(988e6))
    assert gpu_model.node_seconds(H100, padded) == pytest.approx(cost + 2e-6)
    kernel = {"blocks": 2, "loop": {"instructions": 128}, "operations": 64, "moved": 0, "ahead": 0}
    issuing = Node(OWN, "f", blocks=132, threads=256, bytes=1, operations=64 * 4 * 132 * 10, precision="float32")
    assert gpu_model.node_seconds(H100, issuing, kernel) == pytest.approx(cost + 1280 / 1.83e9)


def test_the_least_time_of_a_step():
    assert gpu_model.least_seconds(H100, 3_015_000, {}) == pytest.approx(3.5e-6)
    assert gpu_model.least_seconds(A100, 1, {"float32": int(19.5e6), "bfloat16": int(312e6)}) == pytest.approx(4.5e-6)


@pytest.mark.parametrize("constant", [gpu_model.ISSUE, gpu_model.REACHED, gpu_model.L2_CYCLES, gpu_model.NODE_SECONDS])
def test_every_constant_names_its_source(constant):
    assert "(" in constant.source


# ---- what the compilers make of kernels -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "architecture", "blocks"),
    [
        (32, 0, 256, 90, 8),  # threads
        (32, 0, 256, 89, 6),
        (33, 0, 256, 90, 6),  # 40 registers a thread are allocated
        (96, 36864, 256, 90, 2),
        (255, 0, 256, 80, 1),
        (16, 0, 32, 90, 32),  # blocks
        (16, 0, 32, 120, 24),
        (32, 48 << 10, 256, 80, 3),  # shared memory, of which each block takes 1 KiB more
        (32, 49 << 10, 128, 89, 2),
    ],
)
def test_how_many_blocks_a_multiprocessor_holds(registers, shared, threads, architecture, blocks):
    assert gpu_kernels.resident_blocks(registers, shared, threads, architecture) == blocks


def test_the_log_of_ptxas():
    log = (
        "ptxas info    : Compiling entry function '_Z1fv' for 'sm_90'\n"
        "ptxas         .     8 bytes stack frame, 24 bytes spill stores, 20 bytes spill loads\n"
        "ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem\n"
        "ptxas info    : Compiling entry function '_Z1gv' for 'sm_90'\n"
        "ptxas info    : Used 7 registers\n"
    )
    assert gpu_kernels.usage(log) == {
        "_Z1fv": {"registers": 32, "shared": 1024, "spills": 44},
        "_Z1gv": {"registers": 7, "shared": 0, "spills": 0},
    }


ASSEMBLY = """
.text._Z1fv:
_Z1fv:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.U8.CONSTANT R4, desc[UR6][R2.64] ;
.L_x_1:
        /*0020*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR6][R2.64] ;
.L_x_2:
        /*0030*/                   LDSM.16.M88.4 R8, [R4] ;
        /*0040*/                   HMMA.16816.F32.BF16 R8, R8, R4, R8 ;
        /*0050*/              @!P0 IMAD.WIDE R2, R3, 0x4, R2 ;
        /*0060*/                   UIADD3 UR4, UR4, 0x1, URZ ;
        /*0070*/               @P0 BRA `(.L_x_2) ;
        /*0080*/                   FFMA R1, R1, R2, R3 ;
        /*0090*/              @!P1 BRA `(.L_x_1) ;
.L_x_3:
        /*00a0*/                   LDG.E.64 R4, desc[UR6][R2.64] ;
        /*00b0*/                   FADD R1, R1, R4 ;
        /*00c0*/                   MUFU.EX2 R1, R1 ;
        /*00d0*/                   STG.E [R2.64], R1 ;
        /*00e0*/                   FADD R1, R1, R4 ;
        /*00f0*/                   FADD R1, R1, R4 ;
        /*0100*/               @P0 BRA `(.L_x_3) ;
        /*0110*/                   EXIT ;
.L_x_4:
        /*0120*/                   BRA `(.L_x_4);
        /*0130*/                   NOP;
"""


def test_the_main_loop_is_the_innermost_one_with_tensor_instructions():
    ((code, labels),) = gpu_kernels.parse(ASSEMBLY).values()
    found = gpu_kernels.instructions_of(code, labels)
    assert found["loop"] == {
        "instructions": 5, "around": 3, "tensor": 1, "float": 0, "shared loads": 1, "global loads": 0, "integer": 2, "other": 1
    }  # fmt: skip
    assert found["operations"] == 2 * 16 * 8 * 16
    assert found["widths"] == {"1": 1, "8": 1, "16": 1}
    assert (found["ahead"], found["moved"]) == (0, 0)


def test_the_main_loop_without_tensor_instructions_loads_from_global_memory():
    ((code, labels),) = gpu_kernels.parse(ASSEMBLY.replace("HMMA.16816.F32.BF16", "FFMA")).values()
    found = gpu_kernels.instructions_of(code, labels)
    assert (found["loop"]["instructions"], found["loop"]["around"], found["loop"]["float"]) == (7, 0, 3)
    assert (found["ahead"], found["moved"]) == (8, 12)


def test_a_kernel_without_a_loop_is_its_own_main_loop():
    ((code, labels),) = gpu_kernels.parse(".text.f:\n  /*0000*/  FADD R1, R1, R2 ;\n  /*0010*/  EXIT ;\n").values()
    assert [i.opcode for i in gpu_kernels.main_loop(code, labels)[0]] == ["FADD", "EXIT"]


@pytest.mark.parametrize(
    ("opcode", "modifiers", "count"),
    [
        ("HMMA", ("1688", "F32", "TF32"), 2048),
        ("HGMMA", ("64x128x16", "F32"), 65536),
        ("FFMA", ("FTZ",), 64),
        ("FADD", (), 0),
        ("LDG", ("E", "128"), 0),
    ],
)
def test_the_operations_of_an_instruction(opcode, modifiers, count):
    assert gpu_kernels.operations(Instruction(opcode, modifiers)) == count


def test_where_nvdisasm_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("NVDISASM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert gpu_kernels.nvdisasm() is None
    within = tmp_path / "triton" / "backends" / "nvidia" / "bin"
    within.mkdir(parents=True)
    (tmp_path / "triton" / "__init__.py").write_text("")
    (within / "nvdisasm").write_text("")
    assert gpu_kernels.nvdisasm() == str(within / "nvdisasm")
    on_path = tmp_path / "nvdisasm"
    on_path.write_text("")
    on_path.chmod(0o755)
    assert gpu_kernels.nvdisasm() == str(on_path)
    monkeypatch.setenv("NVDISASM", "/given/nvdisasm")
    assert gpu_kernels.nvdisasm() == "/given/nvdisasm"


@pytest.mark.nvrtc
def test_a_kernel_that_no_file_declares():
    with pytest.raises(ValueError, match="no_such_kernel"):
        gpu_kernels.compiled({"no_such_kernel<float>": 256}, (90,))


def test_every_network_is_in_the_budget(budget):
    wanted = {
        gpu_budget.step_title(counted.name, precision, kind)
        for counted in gpu_nets.networks()
        for precision in gpu_nets.PRECISIONS
        for kind in (STEP, PREDICT)
    }
    assert set(budget["steps"]) == set(budget["estimated"]) == wanted
    assert json.loads(gpu_budget.dump(budget)) == budget
