"""Every wait of xpnet on a GPU is needed: without it, a program gives wrong values on the software device."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.accel import wait_programs
from tests.accel.wait_mutants import places, remove
from tests.accel.waits import BETWEEN_GPUS, NOT_HERE, WAITS, Wait, page
from tests.software_gpu import device
from xpnet.accel.cupy.gemm import gemm

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu-waits.md"
SCHEDULES = ("lazy", "others-first", "early-copies", "early-kernels", "random:1", "random:2", "random:3")
PROGRAMS = sorted({wait.program for wait in WAITS}, key=lambda program: program.__name__)


def name_of(wait: Wait) -> str:
    return f"{wait.place.function}-{wait.place.what}-{wait.place.number}".replace(" ", "_")


def run(program: Any, schedule: str) -> list[Any]:
    import cupy

    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()  # new memory holds no values of an earlier run
    with device.schedule(schedule):
        result = program()
    return result if isinstance(result, list) else [result]


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b))


def test_every_wait_is_in_the_table():
    found = list(places())
    known = [wait.place for wait in WAITS] + [place for place, _ in BETWEEN_GPUS] + list(NOT_HERE)
    assert len(set(known)) == len(known)
    assert sorted(set(known) - set(found)) == []
    assert sorted(set(found) - set(known)) == []


def test_the_page_is_that_of_the_table():
    assert PAGE.read_text(encoding="utf-8") == page()  # python -m tests.accel.waits > docs/gpu-waits.md


@pytest.mark.cuda
@pytest.mark.usefixtures("software_gpu")
@pytest.mark.parametrize("wait", WAITS, ids=name_of)
def test_a_wait_that_is_missing_shows(wait, monkeypatch):
    expected = run(wait.program, "eager")
    assert same(run(wait.program, wait.schedule), expected)
    remove(wait.place, monkeypatch, wait.instead)
    try:
        found = run(wait.program, wait.schedule)
    except Exception:  # whatever the device, CuPy or the loop makes of it
        return
    finally:
        monkeypatch.undo()
        with device.schedule("eager"):
            pass
    assert not same(found, expected)


@pytest.mark.cuda
@pytest.mark.usefixtures("software_gpu")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "program",
    [*PROGRAMS, wait_programs.training_with_workers, wait_programs.training_on_a_stream_of_a_thread],
    ids=lambda program: program.__name__,
)
def test_every_program_is_right_in_every_order(program, schedule):
    assert same(run(program, schedule), run(program, "eager"))


@pytest.mark.cuda
@pytest.mark.usefixtures("software_gpu")
def test_a_stream_deleted_during_a_capture_does_not_end_it():
    import cupy

    def product() -> Any:
        a = cupy.ones((8, 8), np.float32)
        gemm(cupy, a, a, out)

    out = cupy.empty((8, 8), np.float32)
    old, stream = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    for each in (old, stream):
        with each:
            product()
    pool = cupy.cuda.MemoryPool()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        product()
        del old, each
        gc.collect()
        product()
        graph = stream.end_capture()
    graph.launch(stream)
    assert out.get(stream=stream)[0, 0] == 8


@pytest.mark.cuda
@pytest.mark.usefixtures("software_gpu")
def test_copies_between_two_gpus_wait():
    environment = os.environ | {"SOFTWARE_GPU_COUNT": "2", "SOFTWARE_GPU_SCHEDULE": "lazy"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.accel.two_gpus"],
        cwd=PAGE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
