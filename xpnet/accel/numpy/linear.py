"""dense for NumPy: bias and activation in place; in a model with convolutions, large products run on xpnet's own threads.

The threads of BLAS stay asleep there: after a product they wait for the next one in a busy loop for tens of milliseconds, on
the cores that the threads of the convolutions need.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.epilogue import ACTIVATIONS, activate, activation_gradient
from xpnet.accel.numpy.workspace import FLOATS, Floats
from xpnet.ops.linear import dense
from xpnet.ops.sums import LONG, in_blocks, row_product, total
from xpnet.runtime.threads import chunk_count, one_blas_thread, own_threads_preferred, parallel

SERIAL_PRODUCT = 1 << 18
"""Multiply-adds up to which BLAS uses one thread anyway, so its number of threads need not be set."""

_PARALLEL_PRODUCT = 3 << 20
"""Multiply-adds from which waking another thread pays."""


PLAIN_SUMS = 256
"""Rows that are added one after the other for the gradient of a bias: a batch has no more as a rule."""


def matmul(a: Floats, b: Floats, own: bool, out: Floats | None = None) -> Floats:
    """Return a (M, K) @ b (K, N), written to `out` if given, on xpnet's `own` threads or on those of BLAS."""
    M, K = a.shape
    N = b.shape[1]
    work = M * K * N
    if work <= SERIAL_PRODUCT or not own:
        product: Floats = a.dot(b, out)  # half a microsecond less overhead than matmul
        return product
    if out is None:
        out = np.empty((M, N), a.dtype)
    count = chunk_count()
    if work < _PARALLEL_PRODUCT or count == 1:
        with one_blas_thread():
            np.matmul(a, b, out=out)
        return out
    # Split the longer side of the result, aligned to whole vectors.
    size = max(M, N)
    step = -(-size // count)
    step += -step % 16

    def chunk(i: int) -> None:
        part = slice(i * step, (i + 1) * step)
        if M >= N:
            np.matmul(a[part], b, out=out[part])
        else:
            np.matmul(a, b[:, part], out=out[:, part])

    parallel(chunk, -(-size // step))
    return out


def column_sums(x: Floats, out: Floats | None = None) -> Floats:
    """Return the sums over the rows of x (rows, columns), written to `out` if that is given."""
    if len(x) <= PLAIN_SUMS:
        sums: Floats = np.add.reduce(x, axis=0, out=out)
        return sums
    made: Floats = total(np, x, (0,))  # type: ignore[assignment]
    return _written(made, out)


def kernel_gradient(rows: Floats, dy: Floats, own: bool, out: Floats | None = None) -> Floats:
    """Return rows (M, K) transposed @ dy (M, O), written to `out` if that is given."""
    if len(rows) <= LONG or not in_blocks(len(rows), rows.shape[1], dy.shape[1]):
        return matmul(rows.T, dy, own, out)
    made: Floats = row_product(np, rows, dy)  # type: ignore[assignment]
    return _written(made, out)


def _written(made: Floats, out: Floats | None) -> Floats:
    if out is None:
        return made
    np.copyto(out, made)
    return out


@dense.accelerate("numpy")
def forward(xp: Any, x: Floats, kernel: Floats, bias: Floats | None, *, activation: str | None, save: bool) -> Any:
    """Compute one product, and bias and activation in place."""
    dtype = x.dtype
    if (
        dtype not in FLOATS
        or kernel.dtype != dtype
        or kernel.ndim != 2
        or x.ndim == 0
        or x.shape[-1] != kernel.shape[0]
        or activation not in ACTIVATIONS
        or not x.size
        or (bias is not None and (bias.dtype != dtype or bias.shape != (kernel.shape[1],)))
    ):
        return NotImplemented  # the reference computes it, or raises the error
    # All three products have as many multiply-adds; for few, `matmul` does not ask.
    own = x.size * kernel.shape[1] > SERIAL_PRODUCT and own_threads_preferred()
    y = matmul(x if x.ndim == 2 else x.reshape(-1, x.shape[-1]), kernel, own)
    if bias is not None:
        y += bias
    if activation is not None:
        activate(y, activation)
    if x.ndim != 2:
        y = y.reshape(*x.shape[:-1], kernel.shape[1])
    return y, (x, kernel, y if activation else None, own) if save else None


@forward.backward(owns_result=True)
def backward(
    xp: Any, dy: Floats, saved: Any, *, activation: str | None, needs: tuple[bool, bool, bool], into: Any = (None,) * 3
) -> Any:
    """Compute two products and a sum."""
    x, kernel, y, own = saved
    if dy.dtype != x.dtype:
        dy = dy.astype(x.dtype)
    if activation is not None:
        dz = np.empty(dy.shape, dy.dtype)
        activation_gradient(dy, y, activation, dz)
        dy = dz
    rows = x
    if x.ndim != 2:
        dy = dy.reshape(-1, kernel.shape[1])
        rows = x.reshape(-1, kernel.shape[0])
    dx = None
    if needs[0]:
        dx = matmul(dy, kernel.T, own)
        if x.ndim != 2:
            dx = dx.reshape(x.shape)
    return (
        dx,
        kernel_gradient(rows, dy, own, into[1]) if needs[1] else None,
        column_sums(dy, into[2]) if needs[2] else None,
    )


# -- what it allocates, on fake arrays --


@forward.footprint
def _footprint(xp: Any, x: Any, kernel: Any, bias: Any, *, activation: str | None, save: bool) -> Any:
    if x.dtype not in FLOATS or kernel.dtype != x.dtype or activation not in ACTIVATIONS or not x.size:
        return NotImplemented
    if x.shape[-1:] != kernel.shape[:1]:
        return NotImplemented
    y = xp.empty((*x.shape[:-1], kernel.shape[1]), dtype=x.dtype)
    return y, (x, kernel, y if activation else None) if save else None


@_footprint.backward
def _(xp: Any, dy: Any, saved: Any, *, activation: str | None, needs: tuple[bool, ...], into: Any = (None,) * 3) -> Any:
    x, kernel, y = saved
    if activation is not None:
        dy = xp.empty_like(dy)
        xp.temporary(np.bool if activation == "relu" else y.dtype, dy.shape)
    return (
        xp.empty_like(x) if needs[0] else None,
        (xp.empty_like(kernel) if into[1] is None else into[1]) if needs[1] else None,
        (xp.empty(kernel.shape[1:], dtype=x.dtype) if into[2] is None else into[2]) if needs[2] else None,
    )
