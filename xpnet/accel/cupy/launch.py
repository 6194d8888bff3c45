"""Launching kernels: arguments typed as the kernel declares them, and one object that runs them.

Everything that this package does on a device goes through :data:`runtime`: the launch of a kernel and a matrix product.
Tests put another runtime in its place (`use_runtime`) that runs the same kernels on NumPy arrays.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from typing import Any

from xpnet.accel.cupy.runtime import Array, Size3
from xpnet.accel.cupy.runtime import Runtime as Runtime
from xpnet.accel.cupy.runtime import runtime as runtime
from xpnet.accel.cupy.runtime import use_runtime as use_runtime
from xpnet.accel.cupy.runtime import use_runtime_here as use_runtime_here
from xpnet.accel.cupy.source import Instance, dtype_of


class _Buffers(threading.local):
    """Per thread and kernel: the packed arguments and the pointers to them. The driver copies them at the launch."""

    def __init__(self) -> None:
        self.of: dict[Instance, tuple[Any, Any]] = {}


_buffers = _Buffers()


def launch(instance: Instance, grid: int | Size3, block: int | Size3, *arguments: Any) -> None:
    """Launch one kernel.

    Args:
        instance: the kernel with its template arguments.
        grid: number of blocks; nothing happens where it is 0.
        block: threads per block.
        arguments: one per parameter of the kernel: a C-contiguous array of the declared dtype (or None), or a number,
            which becomes the integer or float that the kernel declares; a Divisor takes an int.

    Raises:
        TypeError, ValueError: the arguments do not fit the kernel's parameters.
    """
    parameters = instance.parameters
    if len(arguments) != len(parameters):
        raise TypeError(f"{instance.expression} takes {len(parameters)} arguments, got {len(arguments)}")
    grid3 = (grid, 1, 1) if isinstance(grid, int) else grid
    block3 = (block, 1, 1) if isinstance(block, int) else block
    if 0 in grid3:
        return
    arrays = []
    for argument, parameter in zip(arguments, parameters):
        if parameter.dtype is not None:
            if argument is not None:
                _check(instance, parameter.name, parameter.dtype, argument)
            arrays.append(argument)
    runner = runtime()
    addresses = iter(runner.addresses(instance, arrays))
    values: list[Any] = []
    for argument, parameter in zip(arguments, parameters):
        if parameter.dtype is not None:
            values.append(next(addresses))
        elif parameter.is_divisor:
            values.extend(divisor(argument))
        else:
            values.append(float(argument) if parameter.is_float else argument)
    known = _buffers.of.get(instance)
    if known is None:
        packed = ctypes.create_string_buffer(instance.size)
        base = ctypes.addressof(packed)
        pointers = (ctypes.c_void_p * len(parameters))(*(base + offset for offset in instance.offsets))
        known = _buffers.of[instance] = packed, pointers
    packed, pointers = known
    instance.pack_into(packed, values)
    runner.launch(instance, grid3, block3, pointers)


def _check(instance: Instance, name: str, dtype: str, array: Array) -> None:
    if dtype_of(array) != dtype and not (dtype == "bfloat16" and dtype_of(array) == "uint16"):
        raise TypeError(f"{instance.expression}: {name} must be {dtype}, got {dtype_of(array)}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{instance.expression}: {name} must be C-contiguous, got strides {array.strides}")


@functools.lru_cache(maxsize=4096)
def divisor(d: int) -> tuple[int, int, int]:
    """(d, magic, shift) such that n // d == (((n * magic) >> 32) + n) >> shift for 0 <= n < 2^31.

    Source: T. Granlund, P. Montgomery, "Division by invariant integers using multiplication", PLDI 1994.
    """
    d = max(int(d), 1)  # an empty array has no element that would be divided
    if d >= 1 << 31:
        raise ValueError(f"a size of {d} is too large for 32-bit indices")
    shift = (d - 1).bit_length()
    magic = ((1 << 32) * ((1 << shift) - d)) // d + 1
    return d, magic, shift


THREADS = 256
"""Threads per block of the elementwise kernels."""

LIMIT = 1 << 31
"""Kernels that split indices with 32-bit arithmetic run over fewer elements than this in one launch."""


def blocks_for(work: int, threads: int = THREADS, waves: int = 16) -> int:
    """Blocks for a grid-stride loop over `work` items: enough to fill the device `waves` times over, not more."""
    return int(min(-(-work // threads), runtime().multiprocessors * waves))


def vector_width(items: int, *arrays: Array) -> int:
    """How many neighbours travel in one 16-byte access: 16 bytes' worth, or 1 where size or alignment forbid it.

    Args:
        items: the length of the contiguous runs; it must be divisible by the width.
        arrays: what is accessed. The widest dtype among them decides.
    """
    width = 16 // max(array.dtype.itemsize for array in arrays)
    if width < 2 or items % width:
        return 1
    return width if all(address(array) % (array.dtype.itemsize * width) == 0 for array in arrays) else 1


def address(array: Array) -> int:
    """The address of an array's data, of CuPy or NumPy."""
    try:
        return int(array.data.ptr)
    except (AttributeError, ValueError):  # NumPy's; it shows no memory of dtypes that are not its own
        return int(array.ctypes.data)
