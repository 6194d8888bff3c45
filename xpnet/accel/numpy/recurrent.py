"""The LSTM for NumPy: every step in place, in arrays that hold all steps.

The states before and after the steps are rows of one array of T + 1 steps, so that nothing has to be stacked afterwards; the
gates overwrite the product of the inputs, and backward the gradients of the gates overwrite their derivatives.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpnet.accel.numpy.linear import column_sums, kernel_gradient, matmul
from xpnet.accel.numpy.workspace import FLOATS, Floats
from xpnet.ops.recurrent import lstm
from xpnet.runtime.threads import own_threads_preferred


def supported(x: Any, kernel: Any, recurrent: Any, bias: Any, h: Any, c: Any, mask: Any) -> bool:
    """Return whether these inputs are computed here: one dtype, matching shapes, no mask. The reference raises the errors."""
    if mask is not None or x.ndim != 3 or 0 in x.shape or recurrent.ndim != 2 or x.dtype not in FLOATS:
        return False
    H = recurrent.shape[0]
    wanted = ((kernel, (x.shape[2], 4 * H)), (recurrent, (H, 4 * H)), (bias, (4 * H,)), *((s, (x.shape[0], H)) for s in (h, c)))
    return all(a is None or (a.shape == shape and a.dtype == x.dtype) for a, shape in wanted)


@lstm.accelerate("numpy")
def forward(
    xp: Any,
    x: Floats,
    kernel: Floats,
    recurrent_kernel: Floats,
    bias: Floats | None,
    h: Floats | None,
    c: Floats | None,
    mask: Any,
    *,
    reverse: bool,
    save: bool,
) -> Any:
    """Compute one product for all inputs, then one product and nine NumPy calls a step."""
    if not supported(x, kernel, recurrent_kernel, bias, h, c, mask):
        return NotImplemented
    (N, T, _), H, dtype = x.shape, recurrent_kernel.shape[0], x.dtype
    own = own_threads_preferred()
    # sigmoid(z) = tanh(z / 2) / 2 + 1/2, so one tanh serves all gates; halving is exact, so the kernels are halved.
    half = np.repeat(np.array([0.5, 0.5, 1, 0.5], dtype), H)
    rest = 1 - half
    weights = recurrent_kernel * half
    gates = np.empty((T, N, 4 * H), dtype)
    matmul(_rows(x), kernel * half, own, gates.reshape(T * N, 4 * H))
    if bias is not None:
        np.add(gates, bias * half, out=gates)
    # Row t is the state before step t, and row t + 1 the state after it; vice versa if reversed.
    states, cells = np.empty((2, T + 1, N, H), dtype)
    squashed = np.empty((T, N, H), dtype)
    before, after = (1, 0) if reverse else (0, 1)
    first = T if reverse else 0
    states[first] = 0 if h is None else h
    cells[first] = 0 if c is None else c
    z, term = np.empty((N, 4 * H), dtype), np.empty((N, H), dtype)
    for t in range(T - 1, -1, -1) if reverse else range(T):
        a, cell, s = gates[t], cells[t + after], squashed[t]
        np.add(a, states[t + before].dot(weights, z), out=a)
        np.tanh(a, out=a)
        np.multiply(a, half, out=a)
        np.add(a, rest, out=a)
        np.multiply(a[:, H : 2 * H], cells[t + before], out=cell)
        np.add(cell, np.multiply(a[:, :H], a[:, 2 * H : 3 * H], out=term), out=cell)
        np.multiply(a[:, 3 * H :], np.tanh(cell, out=s), out=states[t + after])
    y = np.ascontiguousarray(states[after : T + after].transpose(1, 0, 2))
    last = 0 if reverse else T
    saved = (x, kernel, recurrent_kernel, gates, states, cells, squashed, own) if save else None
    return (y, states[last].copy(), cells[last].copy()), saved


def _rows(x: Floats) -> Floats:
    """Return x (N, T, C) as rows in the order of the steps: (T * N, C)."""
    N, T, C = x.shape
    return np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(T * N, C)


@forward.backward(owns_result=True)
def backward(xp: Any, dys: Any, saved: Any, *, reverse: bool, needs: tuple[bool, ...]) -> Any:
    """Compute one product and six NumPy calls a step, and each kernel's gradient in one product over all steps."""
    x, kernel, recurrent, gates, states, cells, squashed, own = saved
    dy, dlast, dcell = dys
    (N, T, C), H, dtype = x.shape, recurrent.shape[0], x.dtype
    before = 1 if reverse else 0
    # The factors of dc (first three gates) and of dh (the last), for all steps at once; they become dz.
    dz = np.subtract(1, gates)
    blocks, derivatives = gates.reshape(T, N, 4, H), dz.reshape(T, N, 4, H)
    i, f, g, o = (blocks[:, :, k] for k in range(4))
    np.multiply(dz, gates, out=dz)
    derivatives[:, :, 0] *= g
    derivatives[:, :, 1] *= cells[before : T + before]
    np.multiply(g, g, out=derivatives[:, :, 2])
    np.subtract(1, derivatives[:, :, 2], out=derivatives[:, :, 2])
    derivatives[:, :, 2] *= i
    derivatives[:, :, 3] *= squashed
    through = squashed * squashed
    np.subtract(1, through, out=through)
    through *= o
    dh, dc = (np.array(d, dtype, order="C") for d in (dlast, dcell))  # copies, updated in place
    back, term = recurrent.T, np.empty((N, H), dtype)
    for t in range(T) if reverse else range(T - 1, -1, -1):
        np.add(dh, dy[:, t], out=dh)
        np.add(dc, np.multiply(dh, through[t], out=term), out=dc)
        first = derivatives[t, :, :3]
        np.multiply(first, dc[:, None], out=first)
        np.multiply(derivatives[t, :, 3], dh, out=derivatives[t, :, 3])
        dz[t].dot(back, dh)
        np.multiply(dc, f[t], out=dc)
    rows = dz.reshape(T * N, 4 * H)
    dx = dkernel = dweights = dbias = None
    if needs[0]:
        dx = np.ascontiguousarray(matmul(rows, kernel.T, own).reshape(T, N, C).transpose(1, 0, 2))
    if needs[1]:
        dkernel = kernel_gradient(_rows(x), rows, own)
    if needs[2]:
        dweights = kernel_gradient(states[before : T + before].reshape(T * N, H), rows, own)
    if needs[3]:
        dbias = column_sums(rows)
    return dx, dkernel, dweights, dbias, dh, dc, None


# -- what it allocates, on fake arrays --


@forward.footprint
def _footprint(
    xp: Any, x: Any, kernel: Any, recurrent_kernel: Any, bias: Any, h: Any, c: Any, mask: Any, *, reverse: bool, save: bool
) -> Any:
    if not supported(x, kernel, recurrent_kernel, bias, h, c, mask):
        return NotImplemented
    (N, T, _), H, dtype = x.shape, recurrent_kernel.shape[0], x.dtype
    gates = xp.empty((T, N, 4 * H), dtype=dtype)
    xp.temporary(dtype, x.shape, kernel.shape, recurrent_kernel.shape)
    states, squashed = xp.empty((2, T + 1, N, H), dtype=dtype), xp.empty((T, N, H), dtype=dtype)
    xp.temporary(dtype, recurrent_kernel.shape, (N, 4 * H))
    y, last, cell = xp.empty((N, T, H), dtype=dtype), xp.empty((N, H), dtype=dtype), xp.empty((N, H), dtype=dtype)
    return (y, last, cell), (x, kernel, recurrent_kernel, gates, states, squashed) if save else None


@_footprint.backward
def _(xp: Any, dys: Any, saved: Any, *, reverse: bool, needs: tuple[bool, ...]) -> Any:
    x, kernel, recurrent, gates, states, squashed = saved
    dz, through = xp.empty_like(gates), xp.empty_like(squashed)
    dh, dc = xp.empty(states.shape[2:], dtype=x.dtype), xp.empty(states.shape[2:], dtype=x.dtype)
    dx = dkernel = dweights = dbias = None
    if needs[0]:
        xp.temporary(x.dtype, x.shape, x.shape)
        dx = xp.empty_like(x)
    if needs[1]:
        xp.temporary(x.dtype, x.shape)
        dkernel = xp.empty_like(kernel)
    if needs[2]:
        dweights = xp.empty_like(recurrent)
    if needs[3]:
        dbias = xp.empty(kernel.shape[1:], dtype=x.dtype)
    del dz, through
    return dx, dkernel, dweights, dbias, dh, dc, None
