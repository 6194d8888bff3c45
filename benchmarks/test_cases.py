"""The cases of the comparison, xpnet alone: layers, whole training steps, prediction, data loading, start-up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.agreement import arrays_for
from benchmarks.cases import Case, all_cases
from benchmarks.libraries import ours
from benchmarks.peers import ROOT

ALL = [case for case in all_cases() if case.sweep is None]
FRESH = ("import", "first_step")


def _params(*kinds: str) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in ALL if case.kind in kinds]


def _run(case: Case, device: str, benchmark: Any) -> None:
    job = ours.prepare(case, arrays_for(case), device, "float32", {})

    def once() -> None:
        job.once()
        job.synchronize()

    benchmark(once)


@pytest.mark.parametrize("case", _params("layer", "forward"))
def test_layer(case: Case, device: str, implementation: str, benchmark: Any) -> None:
    _run(case, device, benchmark)


@pytest.mark.parametrize("case", _params("step"))
def test_training_step(case: Case, device: str, implementation: str, benchmark: Any) -> None:
    _run(case, device, benchmark)


@pytest.mark.parametrize("case", _params("predict"))
def test_prediction(case: Case, device: str, implementation: str, benchmark: Any) -> None:
    _run(case, device, benchmark)


@pytest.mark.parametrize("case", _params("data"))
def test_data_loading(case: Case, benchmark: Any) -> None:
    _run(case, "cpu", benchmark)


@pytest.mark.parametrize("case", _params(*FRESH))
def test_start(case: Case, benchmark: Any, tmp_path: Path) -> None:
    """Time fresh interpreters, including the start of Python."""
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, **arrays_for(case))
    command = [sys.executable, "-m", "benchmarks.startup", "xpnet", case.kind, json.dumps(case.as_dict()), str(arrays), "wall"]
    done = benchmark(subprocess.run, command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) > 0
