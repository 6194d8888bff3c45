"""The LSTM for CuPy: a product and a kernel (``kernels/cuda/recurrent.cu``) a step, in arrays that hold all steps.

The states before and after the steps are rows of one array of T + 1 steps, so that nothing has to be stacked afterwards; the
gates overwrite the product of the inputs.
"""

from __future__ import annotations

from typing import Any

from xpnet.accel.cupy.activation import bias_and_activation_gradients
from xpnet.accel.cupy.gemm import gemm
from xpnet.accel.cupy.launch import INT32_LIMIT, THREADS, grid_size, launch
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import c_name, contiguous, out_buffer, supported
from xpnet.ops.recurrent import lstm

Array = Any

_step = Kernel("recurrent", "lstm_step", FLOATS)
_step_backward = Kernel("recurrent", "lstm_step_backward", FLOATS)


def _fits(
    x: Array, kernel: Array, recurrent: Array, bias: Array | None, h: Array | None, c: Array | None, mask: Array | None
) -> bool:
    """Return whether the inputs have one dtype and matching shapes: the reference raises the errors."""
    if x.ndim != 3 or 0 in x.shape or recurrent.ndim != 2 or not supported(x, kernel, recurrent, bias, h, c):
        return False
    (N, T, C), H = x.shape, recurrent.shape[0]
    wanted = ((kernel, (C, 4 * H)), (recurrent, (H, 4 * H)), (bias, (4 * H,)), (h, (N, H)), (c, (N, H)), (mask, (N, T)))
    return all(a is None or tuple(a.shape) == shape for a, shape in wanted) and 0 < N * H < INT32_LIMIT


@lstm.accelerate("cupy")
def _lstm(
    xp: Any, x: Array, kernel: Array, recurrent_kernel: Array, bias: Array | None = None, h: Array | None = None,
    c: Array | None = None, mask: Array | None = None, *, reverse: bool, save: bool,
) -> Any:  # fmt: skip
    if not _fits(x, kernel, recurrent_kernel, bias, h, c, mask):
        return NotImplemented
    (N, T, C), H, dtype = x.shape, recurrent_kernel.shape[0], x.dtype
    bias, c = contiguous(xp, bias), contiguous(xp, c)
    steps = xp.permute_dims(x, (1, 0, 2))
    inside = None
    if mask is not None:
        inside = xp.ascontiguousarray(xp.astype(mask, xp.bool).T)
        # A NaN where the mask is False times 0 would still be NaN.
        steps = xp.where(inside[:, :, None], steps, xp.zeros((), dtype=dtype))
        inside = inside.view(xp.uint8)
    rows = xp.reshape(contiguous(xp, steps), (T * N, C))
    gates = xp.empty((T, N, 4 * H), dtype=dtype)
    gemm(xp, rows, kernel, xp.reshape(gates, (T * N, 4 * H)))
    # Row t is the state before step t, and row t + 1 the state after it; vice versa if reversed.
    states = xp.empty((T + 1, N, H), dtype=dtype)
    cells, y = xp.empty((T, N, H), dtype=dtype), None if inside is None else xp.empty((T, N, H), dtype=dtype)
    h_last, c_last = (xp.empty((N, H), dtype=dtype) for _ in range(2))
    before, after = (1, 0) if reverse else (0, 1)
    first, last = (T - 1, 0) if reverse else (0, T - 1)
    states[first + before] = 0 if h is None else h
    for t in range(T - 1, -1, -1) if reverse else range(T):
        gemm(xp, states[t + before], recurrent_kernel, gates[t], beta=1.0)
        launch(
            _step[(c_name(x),)], grid_size(N * H), THREADS, gates[t], bias, states[t + before],
            c if t == first else cells[t + before - after], states[t + after], cells[t], None if y is None else y[t],
            h_last if t == last else None, c_last if t == last else None, None if inside is None else inside[t], N * H, H,
        )  # fmt: skip
    saved = (rows, kernel, recurrent_kernel, c, states, cells, gates, inside) if save else None
    return (xp.permute_dims(states[after : T + after] if y is None else y, (1, 0, 2)), h_last, c_last), saved


@_lstm.backward
def _(xp: Any, dys: Any, saved: Any, *, reverse: bool, needs: tuple[bool, ...], into: Any = (None,) * 7) -> Any:
    rows, kernel, recurrent, c, states, cells, gates, inside = saved
    (T, N, H), C, dtype = cells.shape, rows.shape[1], rows.dtype
    dy = None if dys[0] is None else contiguous(xp, xp.permute_dims(dys[0], (1, 0, 2)))
    dh, dc = (contiguous(xp, d) for d in dys[1:])
    dz = xp.empty((T, N, 4 * H), dtype=dtype)
    # Those of the states before and after a step take turns: a launch may not read what it writes.
    buffers = [xp.empty((2, N, H), dtype=dtype) for _ in range(2)]
    before, after = (1, 0) if reverse else (0, 1)
    first = T - 1 if reverse else 0
    for t in range(T) if reverse else range(T - 1, -1, -1):
        dh_before, dc_before = buffers[t % 2]
        launch(
            _step_backward[(c_name(rows),)], grid_size(N * H), THREADS, gates[t],
            c if t == first else cells[t + before - after], cells[t], None if dy is None else dy[t], dh, dc, dz[t],
            None if inside is None else dh_before, dc_before, None if inside is None else inside[t], N * H, H,
        )  # fmt: skip
        if t != first or needs[4]:
            gemm(xp, dz[t], recurrent.T, dh_before, beta=0.0 if inside is None else 1.0)
        dh, dc = dh_before, dc_before
    # The other gradients from one product each, over all steps.
    flat = xp.reshape(dz, (T * N, 4 * H))
    dx = dkernel = drecurrent = dbias = None
    if needs[0]:
        dx = gemm(xp, flat, kernel.T, xp.empty((T * N, C), dtype=dtype))
        dx = xp.permute_dims(xp.reshape(dx, (T, N, C)), (1, 0, 2))
    if needs[1]:
        dkernel = gemm(xp, rows.T, flat, out_buffer(xp, kernel.shape, kernel, into[1]))
    if needs[2]:
        known = xp.reshape(states[before : T + before], (T * N, H))
        drecurrent = gemm(xp, known.T, flat, out_buffer(xp, recurrent.shape, recurrent, into[2]))
    if needs[3]:
        dbias = bias_and_activation_gradients(xp, flat, None, None, True, into[3])[1]
    return dx, dkernel, drecurrent, dbias, dh, dc, None
