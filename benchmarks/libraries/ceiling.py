"""What the hardware gives: the same matrix products in plain NumPy (or CuPy), and copies of the same bytes.

Not a library that trains, but prepared and timed like one, in turns with the others: the yardstick of the ceilings and
of the regression gate.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.cases import Case
from benchmarks.libraries.job import Arrays, Job, Unsupported

ROWS = 8192
"""Longer products are cut into pieces of this many rows: what is asked for is the processor's speed, not memory's."""
COPY = 64 << 20
"""Bytes of the copy that measures bandwidth, where a case moves more: larger than any cache."""
WORTH_THREADS = 1 << 18
"""Elements from which on a copy is shared out over threads."""

_threads = 1


def setup(device: str, precision: str, threads: int) -> dict[str, Any]:
    global _threads
    if device == "cpu":
        threadpool_limits(threads)
        _threads = threads
    return {}


def prepare(case: Case, arrays: Arrays, device: str, precision: str, settings: dict[str, Any]) -> Job:
    xp, synchronize = _namespace(device)
    kind = settings.get("ceiling", "products")
    if kind == "copy":
        return _copy(case, xp, synchronize)
    return _products(case, xp, synchronize, precision)


def _namespace(device: str) -> tuple[Any, Any]:
    if device == "cpu":
        return np, lambda: None
    import cupy

    return cupy, lambda: cupy.cuda.get_current_stream().synchronize()


def _products(case: Case, xp: Any, synchronize: Any, precision: str) -> Job:
    products = case.products()
    if not products:
        raise Unsupported("no matrix product in it")
    dtype = {"float16": np.float16, "bfloat16": np.float16}.get(precision, np.float32)
    pieces = []
    for m, k, n in products:
        # The long axis is the first one forward (rows of images), the inner one in the gradient of the weights.
        rows, inner = min(m, ROWS), min(k, ROWS)
        if m > ROWS and k > ROWS:
            raise Unsupported(f"the product {m} x {k} x {n} is long in two axes")
        a = _values(xp, (rows, inner), dtype)
        b = _values(xp, (inner, n), dtype)
        out = xp.empty((rows, n), dtype)
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
                xp.matmul(a, b, out=out)
            if tail is not None:
                xp.matmul(*tail, out=tail_out)

    return Job(dict, once, synchronize=synchronize)


def _values(xp: Any, shape: tuple[int, int], dtype: Any) -> Any:
    """Numbers of ordinary size: zeros and denormal numbers run at other speeds."""
    rng = np.random.default_rng(0)
    return xp.asarray(rng.standard_normal(shape, dtype=np.float32).astype(dtype))


def _copy(case: Case, xp: Any, synchronize: Any) -> Job:
    """Moves as many bytes as the case has to: half of them read, half written."""
    moved = case.bytes_moved()
    if moved is None:
        raise Unsupported("traffic with memory is counted for single layers only")
    size = max(min(moved, 2 * COPY) // 2, 4) // 4
    source = xp.asarray(np.random.default_rng(0).standard_normal(size, dtype=np.float32))
    target = xp.empty_like(source)
    times, rest = divmod(moved // 8, size)

    parts = _threads if xp is np and size >= WORTH_THREADS else 1
    edges = [size * i // parts for i in range(parts + 1)]

    def copy(part: int) -> None:
        where = slice(edges[part], edges[part + 1])
        for _ in range(times):
            target[where] = source[where]
        if rest:
            # The last round is only part of the array; every thread copies its share of that.
            where = slice(rest * part // parts, rest * (part + 1) // parts)
            target[where] = source[where]

    if parts == 1:
        return Job(dict, lambda: copy(0), synchronize=synchronize)
    pool = ThreadPoolExecutor(parts)

    def once() -> None:
        list(pool.map(copy, range(parts)))

    return Job(dict, once, synchronize=synchronize)
