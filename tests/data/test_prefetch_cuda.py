"""Batches on their way to a GPU: the right ones in the right memory, whichever stream is slow.

Copies run on a stream of their own, computations on the current one. On the software device the tests run by every schedule
that streams and events allow, on a GPU in its own order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graphs import SCHEDULES, scheduled
from xpnet.backend import Device
from xpnet.data.prefetch import Prefetcher

from .test_prefetch import check, made

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module", autouse=True)
def kernels():
    """Compile what `computed` launches: that waits for the device."""
    import cupy

    for dtype in (np.float32, np.int64):
        cupy.zeros(3, dtype) + 0


def transfers(**replaced):
    """Return the transfers of the GPU, with some methods replaced."""
    from xpnet.accel.cupy.transfers import CudaTransfers

    return type("Transfers", (CudaTransfers,), replaced)(Device("cuda"))


def computed(x, y, results):
    """Let the current stream look at a batch, when it comes to it."""
    results.append((x + 0, y + 0))


def on_host(results):
    return [tuple(a.get() for a in batch) for batch in results]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_every_computation_sees_its_batch(schedule, thread, slots):
    import cupy

    results: list[Any] = []
    with scheduled(schedule), cupy.cuda.Stream(non_blocking=True):
        prefetcher = Prefetcher(transfers(), thread, slots)
        for _ in range(2):
            for number, ((x, y), others) in enumerate(prefetcher.run(made())):
                assert others == [number]
                computed(x, y, results)
            prefetcher.close()
            check(on_host(results))
            results.clear()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_that_is_stopped_waits_for_what_is_on_its_way(schedule):
    """The buffers are freed: copies into them, and computations on them, have to be over."""
    results: list[Any] = []
    with scheduled(schedule):
        prefetcher = Prefetcher(transfers())
        for (x, y), _ in prefetcher.run(made(1000)):
            computed(x, y, results)
            if len(results) == 5:
                break
        prefetcher.close()
        check(on_host(results), 5)
        results.clear()
        for (x, y), _ in prefetcher.run(made()):  # the same slots serve again
            computed(x, y, results)
        prefetcher.close()
        check(on_host(results))


def test_slots_are_used_again():
    prefetcher = Prefetcher(transfers())
    batch = np.ones((8, 3), np.float32), np.arange(8)
    same = ((item, None) for item in [batch] * 20)
    assert len({x.data.ptr for (x, _), _ in prefetcher.run(same)}) == 3
    prefetcher.close()


def test_arrays_that_are_there_and_dicts_and_empty_ones():
    import cupy

    there = cupy.arange(6.0).reshape(2, 3)
    big = np.arange(6, dtype=">f4").reshape(2, 3)[:, ::-1]
    prefetcher = Prefetcher(transfers())
    batch, others = next(prefetcher.run(item for item in [({"a": big, "b": np.zeros((0, 3)), "c": there}, "others")]))
    assert batch["a"].dtype == np.dtype("=f4")
    np.testing.assert_array_equal(batch["a"].get(), big)
    assert batch["b"].shape == (0, 3)
    np.testing.assert_array_equal(batch["c"].get(), there.get())
    assert batch["c"].data.ptr != there.data.ptr  # a copy: the array's memory is its maker's
    assert others == "others"
    prefetcher.close()


# -- without one of the waits the device, by some schedule, computes wrong numbers --


def nothing(*_):
    pass


class Hasty(Prefetcher):
    """Does not wait until page-locked memory was copied before it is written again."""

    def _stage(self, slot, batch):
        slot.copied = None
        return super()._stage(slot, batch)


@pytest.mark.usefixtures("software_gpu")
@pytest.mark.parametrize(
    ("schedule", "kind", "replaced"),
    [
        ("early-kernels", Prefetcher, {"computations_wait": nothing}),
        ("early-copies", Prefetcher, {"copies_wait": nothing}),
        ("lazy", Hasty, {}),
    ],
    ids=["computations", "copies", "host"],
)
@pytest.mark.parametrize("thread", [False, True])
def test_a_wait_that_is_missing_shows(schedule, kind, replaced, thread):
    results: list[Any] = []
    with scheduled(schedule):
        prefetcher = kind(transfers(**replaced), thread)
        for (x, y), _ in prefetcher.run(made()):
            computed(x, y, results)
        prefetcher.close()
        with pytest.raises(AssertionError):
            check(on_host(results))
