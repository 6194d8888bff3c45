"""Copies between two GPUs, with and without their waits: a program, as the number of devices is that of the process.

Run by tests/accel/test_cupy_waits.py with SOFTWARE_GPU_COUNT=2 SOFTWARE_GPU_SCHEDULE=lazy.
"""

from __future__ import annotations

from typing import Any

import cupy
import pytest

import xpnet as xn
from tests.accel.wait_mutants import remove
from tests.accel.waits import BETWEEN_GPUS


def copied(used_again: bool) -> bool:
    """Copy an array that is not computed yet to the other GPU, and use its memory again; return whether the copy is right."""
    first, second = xn.backend.device("cuda:0"), xn.backend.device("cuda:1")
    with second:
        there = cupy.cuda.Stream(non_blocking=True)
    with first, cupy.cuda.Stream(non_blocking=True) as here:
        x = cupy.zeros(256, cupy.float32) + 3
        with second, there:
            y: Any = xn.to_device(x, second)
        del x
        if used_again:
            others = [cupy.full(256, 9, cupy.float32) for _ in range(3)]
            here.synchronize()
            del others
    with second, there:
        return bool((y.get() == 3).all())


def main() -> None:
    """Print what is wrong."""
    for used_again in (False, True):
        if not copied(used_again):
            print("a copy between two GPUs is wrong")
    for place, instead in BETWEEN_GPUS:
        for device in (0, 1):  # new memory does not hold the values of an earlier copy
            with cupy.cuda.Device(device):
                cupy.get_default_memory_pool().free_all_blocks()
        with pytest.MonkeyPatch.context() as patch:
            remove(place, patch, instead)
            if copied(False) and copied(True):
                print(f"nothing shows that {place} is missing")
    print("done")


if __name__ == "__main__":
    main()
