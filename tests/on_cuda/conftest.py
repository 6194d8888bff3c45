"""Fixtures of the tests of captured fits and predictions."""

from __future__ import annotations

import os

import pytest

from tests.graphs import scheduled


@pytest.fixture
def recordings(monkeypatch):
    """The number of graphs that were recorded: a list of one number."""
    from xpnet.compiled.cuda_graph import CudaGraphs

    count, record = [0], CudaGraphs.record

    def counting(self, function):
        done = record(self, function)
        count[0] += 1
        return done

    monkeypatch.setattr(CudaGraphs, "record", counting)
    return count


@pytest.fixture(params=[os.environ.get("SOFTWARE_GPU_SCHEDULE") or "eager"])
def schedule(request):
    """When the software device runs submitted work: as the whole run has it, of which there is one for each schedule."""
    with scheduled(request.param):
        yield
