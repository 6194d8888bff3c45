"""The roofline of the hardware: the same matrix products in plain NumPy (on a GPU in cuBLAS), and copies of the same bytes.

Not a library that trains, but prepared and timed like one, in turns with the others. It is also the yardstick of the
regression gate.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.cases import HALF, PASSES, REPEAT, Case
from benchmarks.libraries.job import Arrays, Job, Unsupported

ROWS = 8192
"""Longer products are cut into pieces of this many rows, to measure the speed of the processor, not of memory."""
COPY = 64 << 20
"""The largest copy that measures bandwidth, in bytes: larger than any cache."""
LEAST_PARALLEL = 1 << 18
"""The least elements of a copy that is split over threads."""

_threads = 1


def setup(device: str, precision: str, threads: int) -> dict[str, Any]:
    global _threads
    if device == "cpu":
        threadpool_limits(threads)
        _threads = threads
        return {}
    import xpnet as xn

    try:
        xn.backend.device(device)
    except xn.DeviceError as error:
        raise Unsupported(str(error)) from None
    xn.set_matmul_precision("tf32" if precision == "tf32" else "float32")
    return {"products": "cuBLAS", "tf32": precision == "tf32"}


def prepare(case: Case, arrays: Arrays, device: str, precision: str, settings: dict[str, Any]) -> Job:
    xp, synchronize = _namespace(device)
    kind = settings.get("ceiling", "products")
    if kind == "copy":
        return _copy(case, xp, synchronize)
    if device != "cpu":
        return _products_on_gpu(case, precision)
    return _products(case)


def _namespace(device: str) -> tuple[Any, Any]:
    if device == "cpu":
        return np, lambda: None
    import cupy

    return cupy, lambda: cupy.cuda.get_current_stream().synchronize()


def _products_of(case: Case) -> list[tuple[int, int, int]]:
    products = case.products()
    if not products:
        raise Unsupported("it has no matrix product")
    return products


def _products_on_gpu(case: Case, precision: str) -> Job:
    """Prepare all products in cuBLAS at the precision of the run, as one CUDA graph. (CuPy's matmul has no bfloat16.)"""
    import xpnet as xn
    from benchmarks.conv_algorithms import captured, not_captured, to_device
    from xpnet.accel.cupy.gemm import gemm

    where = xn.backend.device("cuda")
    xp, dtype = where.xp, precision if precision in HALF else "float32"
    block = xp.asarray(_values(1024, 1024).ravel())

    def values(rows: int, columns: int) -> Any:
        copies = -(-rows * columns // block.size)
        return to_device(xp.tile(block, copies)[: rows * columns].reshape(rows, columns), where, dtype)

    operands = []
    for m, k, n in _products_of(case):
        # wgrad is a product with the transposed im2col matrix.
        a = values(k, m).T if k > m and k > n else values(m, k)
        operands.append((a, values(k, n), to_device(xp.zeros((m, n), dtype=xp.float32), where, dtype)))
    repeat = REPEAT if case.kind in PASSES else 1

    def once() -> None:
        for _ in range(repeat):
            for a, b, c in operands:
                gemm(xp, a, b, c)

    run = captured(once)
    return Job(dict, run, synchronize=where.synchronize, units=repeat, remark=not_captured(run))


def _products(case: Case) -> Job:
    pieces = []
    for m, k, n in _products_of(case):
        # The long axis is the first one forward (im2col rows), and the inner one in the gradient of the weights.
        rows, inner = min(m, ROWS), min(k, ROWS)
        if m > ROWS and k > ROWS:
            raise Unsupported(f"the product {m} x {k} x {n} is long in two axes")
        a, b = _values(rows, inner), _values(inner, n)
        out = np.empty((rows, n), np.float32)
        whole, rest = divmod(m, rows)
        if k > inner:
            whole, rest = divmod(k, inner)
            tail = (a[:, :rest], b[:rest]) if rest else None
            pieces.append((a, b, out, whole, tail, out))
        else:
            tail = (a[:rest], b) if rest else None
            pieces.append((a, b, out, whole, tail, out[:rest]))

    def once() -> None:
        for a, b, out, whole, tail, tail_out in pieces:
            for _ in range(whole):
                np.matmul(a, b, out=out)
            if tail is not None:
                np.matmul(*tail, out=tail_out)

    return Job(dict, once)


def _values(rows: int, columns: int) -> Any:
    """Return normal numbers: zeros and denormals run at other speeds."""
    return np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)


def _copy(case: Case, xp: Any, synchronize: Any) -> Job:
    """Prepare copies that move as many bytes as the case has to: half of them read, half written."""
    moved = case.bytes_moved()
    if moved is None:
        raise Unsupported("memory traffic is counted for single layers only")
    size = max(min(moved, 2 * COPY) // 2, 4) // 4
    source = xp.asarray(np.random.default_rng(0).standard_normal(size, dtype=np.float32))
    target = xp.empty_like(source)
    times, rest = divmod(moved // 8, size)

    parts = _threads if xp is np and size >= LEAST_PARALLEL else 1
    edges = [size * i // parts for i in range(parts + 1)]

    def copy(part: int) -> None:
        where = slice(edges[part], edges[part + 1])
        for _ in range(times):
            target[where] = source[where]
        if rest:
            # The last round copies part of the array, split over threads as well.
            where = slice(rest * part // parts, rest * (part + 1) // parts)
            target[where] = source[where]

    if parts == 1:
        return Job(dict, lambda: copy(0), synchronize=synchronize)
    pool = ThreadPoolExecutor(parts)

    def once() -> None:
        list(pool.map(copy, range(parts)))

    return Job(dict, once, synchronize=synchronize)
