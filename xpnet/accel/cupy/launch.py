"""Kernel launches: arguments are checked and packed as the kernel declares them.

Everything that this package does on a device goes through `runtime()`: kernel launches and GEMMs. Tests put another runtime in
its place (`use_runtime`), which looks after every launch and passes it on.
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
from xpnet.accel.cupy.runtime import use_thread_runtime as use_thread_runtime
from xpnet.accel.cupy.source import Instance, dtype_of


class _PackedArguments(threading.local):
    """Per thread and kernel: the packed arguments and the pointers to them. The driver copies the arguments at launch."""

    def __init__(self) -> None:
        self.of: dict[Instance, tuple[Any, Any]] = {}


_packed_arguments = _PackedArguments()


def launch(instance: Instance, grid: int | Size3, block: int | Size3, *arguments: Any) -> None:
    """Launch one kernel.

    Args:
        instance: the kernel with its template arguments.
        grid: number of blocks; 0 launches nothing.
        block: threads per block.
        arguments: one per parameter of the kernel: a C-contiguous array of the declared dtype (or None), or a number,
            converted to the integer or float that the kernel declares; an int for a FastDivmod.

    Raises:
        TypeError, ValueError: the arguments do not match the kernel's parameters.
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
        elif parameter.is_divmod:
            values.extend(fast_divmod(argument))
        else:
            values.append(float(argument) if parameter.is_float else argument)
    known = _packed_arguments.of.get(instance)
    if known is None:
        packed = ctypes.create_string_buffer(instance.size)
        base = ctypes.addressof(packed)
        pointers = (ctypes.c_void_p * len(parameters))(*(base + offset for offset in instance.offsets))
        known = _packed_arguments.of[instance] = packed, pointers
    packed, pointers = known
    instance.pack_into(packed, values)
    runner.launch(instance, grid3, block3, pointers)


def _check(instance: Instance, name: str, dtype: str, array: Array) -> None:
    if dtype_of(array) != dtype and not (dtype == "bfloat16" and dtype_of(array) == "uint16"):
        raise TypeError(f"{instance.expression}: {name} must be {dtype}, got {dtype_of(array)}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{instance.expression}: {name} must be C-contiguous, got strides {array.strides}")


@functools.lru_cache(maxsize=4096)
def fast_divmod(d: int) -> tuple[int, int, int]:
    """Return (d, magic, shift) such that n // d == (((n * magic) >> 32) + n) >> shift for 0 <= n < 2^31.

    Source: T. Granlund, P. Montgomery, "Division by invariant integers using multiplication", PLDI 1994.
    """
    d = max(int(d), 1)  # in an empty array nothing is divided
    if d >= 1 << 31:
        raise ValueError(f"a size of {d} is too large for 32-bit indices")
    shift = (d - 1).bit_length()
    magic = ((1 << 32) * ((1 << shift) - d)) // d + 1
    return d, magic, shift


def counters(count: int) -> Array:
    """Return `count` counters of 0, which kernels with `is_last_block` (``last_block.cuh``) leave at 0: one for each reduction.

    Launches of one stream share them, as they run one after the other.
    """
    return runtime().counters(count)


THREADS = 256
"""Threads per block of the elementwise kernels."""

INT32_LIMIT = 1 << 31
"""Kernels with 32-bit index arithmetic process fewer elements than this in a launch."""


def grid_size(work: int, threads: int = THREADS, waves: int = 16) -> int:
    """Return the number of blocks for a grid-stride loop over `work` items: at most `waves` for each multiprocessor."""
    return int(min(-(-work // threads), runtime().multiprocessors * waves))


def vector_width(items: int, *arrays: Array) -> int:
    """Return the width of vectorised loads and stores: 16 bytes of elements, or 1 if size or alignment forbid it.

    Args:
        items: the length of the contiguous runs; it must be divisible by the width.
        arrays: those accessed. The widest dtype among them decides.
    """
    width = 16 // max(array.dtype.itemsize for array in arrays)
    if width < 2 or items % width:
        return 1
    return width if all(address(array) % (array.dtype.itemsize * width) == 0 for array in arrays) else 1


def address(array: Array) -> int:
    """Return the address of the data of a CuPy or NumPy array."""
    try:
        return int(array.data.ptr)
    except (AttributeError, ValueError):  # NumPy's; there is no memoryview of foreign dtypes
        return int(array.ctypes.data)


def aligned(array: Array) -> Array:
    """Return the array itself if its address is a multiple of 16 bytes, else a copy."""
    return array if address(array) % 16 == 0 else array.copy()
