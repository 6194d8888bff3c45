"""cuBLAS handles of our own: a fixed workspace, the precision in each call, usable while a CUDA graph is captured."""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from collections import defaultdict, deque
from typing import Any

from xpnet.accel.cupy.gemm import Product
from xpnet.backend import DeviceError

WORKSPACE = 32 << 20
"""Bytes of workspace per handle, as NVIDIA recommends for compute capability 9.0."""

# Values of the enumerations cudaDataType and cublasComputeType_t.
_DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_32F_FAST_TF32 = 68, 70, 77
_DEFAULT_ALGORITHM = -1
_ATOMICS_NOT_ALLOWED = 0
_DOUBLE: Any = ctypes.c_double
_FLOAT: Any = ctypes.c_float
_STATUS = {
    1: "not initialized", 3: "out of memory", 7: "invalid value", 8: "not supported by this device",
    11: "mapping error", 13: "execution failed", 14: "internal error", 15: "not supported",
}  # fmt: skip


@functools.cache
def _library() -> Any:
    """Load cuBLAS and declare the argument types of the functions used."""
    library = ctypes.CDLL(_path())
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
    library.cublasCreate_v2.argtypes = [ctypes.POINTER(pointer)]
    library.cublasSetAtomicsMode.argtypes = [pointer, integer]
    library.cublasSetStream_v2.argtypes = [pointer, pointer]
    library.cublasSetWorkspace_v2.argtypes = [pointer, pointer, ctypes.c_size_t]
    library.cublasGemmEx.argtypes = [
        pointer, integer, integer, integer, integer, integer, pointer, pointer, integer, integer,
        pointer, integer, integer, pointer, pointer, integer, integer, integer, integer,
    ]  # fmt: skip
    library.cublasGemmStridedBatchedEx.argtypes = [
        pointer, integer, integer, integer, integer, integer, pointer, pointer, integer, integer, long,
        pointer, integer, integer, long, pointer, pointer, integer, integer, long, integer, integer, integer,
    ]  # fmt: skip
    return library


def _path() -> str:
    """Find cuBLAS: as CuPy finds it, else by name on the system's search path."""
    reason = "cuda-pathfinder, which comes with CuPy, is not installed"
    try:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
    except ImportError:
        pass
    else:
        try:
            path = load_nvidia_dynamic_lib("cublas").abs_path
            if path:
                return str(path)
        except (DynamicLibNotFoundError, RuntimeError, OSError) as error:
            reason = str(error)
    import cupy

    major = cupy.cuda.nvrtc.getVersion()[0]
    for name in (f"libcublas.so.{major}", f"cublas64_{major}.dll", "libcublas.so"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return name
    raise DeviceError(
        f'products on device "cuda" need cuBLAS {major}, which was not found: '
        f'pip install "xpnet[cuda{major}]" installs it ({reason})'
    )


def _check(status: int, what: str) -> None:
    if status == 3:
        raise MemoryError(f"cuBLAS: {what}: out of memory")
    if status:
        raise RuntimeError(f"cuBLAS: {what} failed with status {status} ({_STATUS.get(status, 'unknown')})")


class _Handles(threading.local):
    """One handle per thread, device and stream: streams must not share a workspace."""

    def __init__(self) -> None:
        self.of: dict[tuple[int, int], tuple[Any, Any]] = {}


_handles = _Handles()

_spare: defaultdict[int, deque[Any]] = defaultdict(deque)
"""Handles of deleted streams, by device, to be used again: destroying one would wait for the device, which ends any capture
in progress, and the garbage collector deletes a stream whenever it likes."""


def _handle(device: int, stream: Any) -> Any:
    known = _handles.of.get((device, stream.ptr))
    if known is None:
        import cupy

        library = _library()
        try:
            handle = _spare[device].popleft()
        except IndexError:
            handle = ctypes.c_void_p()
            _check(library.cublasCreate_v2(ctypes.byref(handle)), "creating a handle")
        workspace = cupy.cuda.alloc(WORKSPACE)
        # The default, stated because it keeps results deterministic.
        _check(library.cublasSetAtomicsMode(handle, _ATOMICS_NOT_ALLOWED), "forbidding atomics")
        _check(library.cublasSetStream_v2(handle, stream.ptr), "setting the stream")
        # After the stream: setting the stream resets the workspace.
        _check(library.cublasSetWorkspace_v2(handle, workspace.ptr, WORKSPACE), "setting the workspace")
        known = _handles.of[device, stream.ptr] = handle, workspace
        # A captured graph keeps its stream alive, and with it the workspace whose address it holds.
        weakref.finalize(stream, _drop, _handles.of, (device, stream.ptr)).atexit = False
    return known[0]


def _drop(handles: dict[tuple[int, int], tuple[Any, Any]], key: tuple[int, int]) -> None:
    """Keep the handle of a deleted stream for another one. CuPy's pool frees the workspace in the order of the stream."""
    handle, _ = handles.pop(key)
    _spare[key[0]].append(handle)


def run(product: Product, device: int, stream: Any) -> None:
    """Run one strided batched GEMM on a stream (a CuPy object) of the current device."""
    p = product
    if p.dtype == "float64":
        compute, scale = _COMPUTE_64F, _DOUBLE
    else:
        compute, scale = (_COMPUTE_32F_FAST_TF32 if p.tf32 else _COMPUTE_32F), _FLOAT
    kind, c_kind = _DATA_TYPES[p.dtype], _DATA_TYPES[p.c_dtype]
    alpha, beta = scale(p.alpha), scale(p.beta)
    head = (_handle(device, stream), int(p.transpose_a), int(p.transpose_b), p.m, p.n, p.k, ctypes.byref(alpha))
    a, b, c = p.a.data.ptr, p.b.data.ptr, p.c.data.ptr
    if p.batch == 1:  # not as a batch of one: only GemmEx uses split-K
        status = _library().cublasGemmEx(
            *head, a, kind, p.lda, b, kind, p.ldb, ctypes.byref(beta), c, c_kind, p.ldc, compute, _DEFAULT_ALGORITHM
        )
    else:
        status = _library().cublasGemmStridedBatchedEx(
            *head, a, kind, p.lda, p.stride_a, b, kind, p.ldb, p.stride_b, ctypes.byref(beta), c, c_kind, p.ldc,
            p.stride_c, p.batch, compute, _DEFAULT_ALGORITHM,
        )  # fmt: skip
    if status:
        _check(status, f"the product ({p.n}, {p.k}) @ ({p.k}, {p.m}), batch {p.batch}, {p.dtype}")
