"""Recurrent networks for CuPy: a product and a kernel (``kernels/cuda/recurrent.cu``) a step, in arrays that hold all steps.

The states before and after the steps are rows of one array of T + 1 steps, so that nothing has to be stacked afterwards; the
gates overwrite the product of the inputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xpnet.accel.cupy.activation import ACTIVATION_IDS, bias_and_activation_gradients
from xpnet.accel.cupy.gemm import gemm
from xpnet.accel.cupy.launch import INT32_LIMIT, THREADS, grid_size, launch
from xpnet.accel.cupy.source import FLOATS, Kernel
from xpnet.accel.cupy.support import c_name, contiguous, out_buffer, supported
from xpnet.ops.recurrent import gru, lstm, rnn

Array = Any

_IDS = tuple(ACTIVATION_IDS.values())
_rnn_step = Kernel("recurrent", "rnn_step", FLOATS, _IDS)
_rnn_step_backward = Kernel("recurrent", "rnn_step_backward", FLOATS, _IDS)
_lstm_step = Kernel("recurrent", "lstm_step", FLOATS)
_lstm_step_backward = Kernel("recurrent", "lstm_step_backward", FLOATS)
_gru_step = Kernel("recurrent", "gru_step", FLOATS)
_gru_step_backward = Kernel("recurrent", "gru_step_backward", FLOATS)


def _fits(
    gates: int, x: Array, kernel: Array, recurrent: Array, biases: tuple[Any, ...], states: tuple[Any, ...], mask: Array | None
) -> bool:
    """Return whether the inputs have one dtype and matching shapes: the reference raises the errors."""
    if x.ndim != 3 or 0 in x.shape or recurrent.ndim != 2 or not supported(x, kernel, recurrent, *biases, *states):
        return False
    (N, T, C), H = x.shape, recurrent.shape[0]
    wanted: list[tuple[Any, tuple[int, ...]]] = [(kernel, (C, gates * H)), (recurrent, (H, gates * H)), (mask, (N, T))]
    wanted += [*((bias, (gates * H,)) for bias in biases), *((state, (N, H)) for state in states)]
    return all(a is None or tuple(a.shape) == shape for a, shape in wanted) and 0 < N * H < INT32_LIMIT


class _Sequence(NamedTuple):
    """What the steps of a forward pass read and write.

    Attributes:
        rows: the inputs (T*N, C), in the order of the steps, 0 where the mask is False.
        z: (T, N, G*H), their product with the kernel.
        states: (T + 1, N, H): row t is the state before step t, and row t + 1 the state after it; vice versa if reversed.
        y: (T, N, H), the outputs where they are not the states; None without a mask.
        last: (N, H), for the last state.
        inside: (T, N), the mask as bytes.
        order: the steps in the order of the computation.
        before, after: where the states of a step are, from its number on.
    """

    rows: Array
    z: Array
    states: Array
    y: Array | None
    last: Array
    inside: Array | None
    order: range
    before: int
    after: int

    def of_step(self, t: int) -> tuple[Array | None, Array | None, Array | None]:
        """Return the output and the last state as a step writes them, and its mask; None for what it does not have."""
        y = None if self.y is None else self.y[t]
        return y, self.last if t == self.order[-1] else None, None if self.inside is None else self.inside[t]

    def output(self, xp: Any) -> Array:
        """Return the outputs as (N, T, H)."""
        T = len(self.order)
        return xp.permute_dims(self.states[self.after : T + self.after] if self.y is None else self.y, (1, 0, 2))


def _begin(xp: Any, x: Array, kernel: Array, H: int, h: Array | None, mask: Array | None, reverse: bool) -> _Sequence:
    (N, T, C), dtype = x.shape, x.dtype
    steps = xp.permute_dims(x, (1, 0, 2))
    inside = y = None
    if mask is not None:
        chosen = xp.ascontiguousarray(xp.astype(mask, xp.bool).T)
        # A NaN where the mask is False times 0 would still be NaN.
        steps = xp.where(chosen[:, :, None], steps, xp.zeros((), dtype=dtype))
        inside, y = chosen.view(xp.uint8), xp.empty((T, N, H), dtype=dtype)
    rows = xp.reshape(contiguous(xp, steps), (T * N, C))
    z = xp.empty((T, N, kernel.shape[1]), dtype=dtype)
    gemm(xp, rows, kernel, xp.reshape(z, (T * N, kernel.shape[1])))
    states = xp.empty((T + 1, N, H), dtype=dtype)
    states[T if reverse else 0] = 0 if h is None else h
    order = range(T - 1, -1, -1) if reverse else range(T)
    return _Sequence(rows, z, states, y, xp.empty((N, H), dtype=dtype), inside, order, *((1, 0) if reverse else (0, 1)))


def _arriving(xp: Any, dys: Any) -> list[Any]:
    """Return the gradients of the outputs as (T, N, H) and of the last states; None where there are none."""
    dy = None if dys[0] is None else contiguous(xp, xp.permute_dims(dys[0], (1, 0, 2)))
    return [dy, *(contiguous(xp, d) for d in dys[1:])]


def _finish(
    xp: Any, s: _Sequence, kernel: Array, recurrent: Array, dz: Array, db: Array, needs: tuple[bool, ...], into: Any
) -> tuple[Array | None, ...]:
    """Return the gradients of x, both kernels and the bias, each from one product over all steps.

    dz, db: (T, N, G*H), the gradients of what the inputs and what the states were multiplied to.
    """
    T, N, width = dz.shape
    H, C = recurrent.shape[0], kernel.shape[0]
    flat = xp.reshape(dz, (T * N, width))
    dx = dkernel = drecurrent = dbias = None
    if needs[0]:
        dx = gemm(xp, flat, kernel.T, xp.empty((T * N, C), dtype=dz.dtype))
        dx = xp.permute_dims(xp.reshape(dx, (T, N, C)), (1, 0, 2))
    if needs[1]:
        dkernel = gemm(xp, s.rows.T, flat, out_buffer(xp, kernel.shape, kernel, into[1]))
    if needs[2]:
        known = xp.reshape(s.states[s.before : T + s.before], (T * N, H))
        place = out_buffer(xp, recurrent.shape, recurrent, into[2])
        drecurrent = gemm(xp, known.T, xp.reshape(db, (T * N, width)), place)
    if needs[3]:
        dbias = bias_and_activation_gradients(xp, flat, None, None, True, into[3])[1]
    return dx, dkernel, drecurrent, dbias


@rnn.accelerate("cupy")
def _rnn(
    xp: Any, x: Array, kernel: Array, recurrent_kernel: Array, bias: Array | None = None, h: Array | None = None,
    mask: Array | None = None, *, activation: str | None, reverse: bool, save: bool,
) -> Any:  # fmt: skip
    if activation not in ACTIVATION_IDS or not _fits(1, x, kernel, recurrent_kernel, (bias,), (h,), mask):
        return NotImplemented
    N, H = x.shape[0], recurrent_kernel.shape[0]
    bias = contiguous(xp, bias)
    s = _begin(xp, x, kernel, H, h, mask, reverse)
    instance = _rnn_step[c_name(x), ACTIVATION_IDS[activation]]
    for t in s.order:
        before = s.states[t + s.before]
        gemm(xp, before, recurrent_kernel, s.z[t], beta=1.0)
        launch(instance, grid_size(N * H), THREADS, s.z[t], bias, before, s.states[t + s.after], *s.of_step(t), N * H, H)
    return (s.output(xp), s.last), (s, kernel, recurrent_kernel) if save else None


@_rnn.backward
def _(
    xp: Any, dys: Any, saved: Any, *, activation: str | None, reverse: bool, needs: tuple[bool, ...], into: Any = (None,) * 6
) -> Any:
    s, kernel, recurrent = saved
    dy, dh = _arriving(xp, dys)
    _, N, H = s.z.shape
    dz = xp.empty_like(s.z)
    # Those of the states before and after a step take turns: a launch may not read what it writes.
    buffers = xp.empty((2, N, H), dtype=dz.dtype)
    instance = _rnn_step_backward[c_name(dz), ACTIVATION_IDS[activation]]
    for t in reversed(s.order):
        dh_before, inside = buffers[t % 2], s.of_step(t)[2]
        passed = None if inside is None else dh_before
        launch(instance, grid_size(N * H), THREADS, s.z[t], None if dy is None else dy[t], dh, dz[t], passed, inside, N * H, H)
        gemm(xp, dz[t], recurrent.T, dh_before, beta=0.0 if inside is None else 1.0)
        dh = dh_before
    return *_finish(xp, s, kernel, recurrent, dz, dz, needs, into), dh, None


@lstm.accelerate("cupy")
def _lstm(
    xp: Any, x: Array, kernel: Array, recurrent_kernel: Array, bias: Array | None = None, h: Array | None = None,
    c: Array | None = None, mask: Array | None = None, *, reverse: bool, save: bool,
) -> Any:  # fmt: skip
    if not _fits(4, x, kernel, recurrent_kernel, (bias,), (h, c), mask):
        return NotImplemented
    (N, T, _), H = x.shape, recurrent_kernel.shape[0]
    bias, c = contiguous(xp, bias), contiguous(xp, c)
    s = _begin(xp, x, kernel, H, h, mask, reverse)
    cells, c_last = xp.empty((T, N, H), dtype=x.dtype), xp.empty((N, H), dtype=x.dtype)
    instance, cell = _lstm_step[(c_name(x),)], c
    for t in s.order:
        before = s.states[t + s.before]
        gemm(xp, before, recurrent_kernel, s.z[t], beta=1.0)
        y, last, inside = s.of_step(t)
        launch(
            instance, grid_size(N * H), THREADS, s.z[t], bias, before, cell, s.states[t + s.after], cells[t], y, last,
            None if last is None else c_last, inside, N * H, H,
        )  # fmt: skip
        cell = cells[t]
    return (s.output(xp), s.last, c_last), (s, kernel, recurrent_kernel, c, cells) if save else None


@_lstm.backward
def _(xp: Any, dys: Any, saved: Any, *, reverse: bool, needs: tuple[bool, ...], into: Any = (None,) * 7) -> Any:
    s, kernel, recurrent, c, cells = saved
    dy, dh, dc = _arriving(xp, dys)
    _, N, H = cells.shape
    dz = xp.empty_like(s.z)
    buffers = xp.empty((2, 2, N, H), dtype=dz.dtype)  # taking turns, as in rnn
    instance = _lstm_step_backward[(c_name(dz),)]
    for t in reversed(s.order):
        (dh_before, dc_before), inside = buffers[t % 2], s.of_step(t)[2]
        launch(
            instance, grid_size(N * H), THREADS, s.z[t], c if t == s.order[0] else cells[t + s.before - s.after], cells[t],
            None if dy is None else dy[t], dh, dc, dz[t], None if inside is None else dh_before, dc_before, inside, N * H, H,
        )  # fmt: skip
        gemm(xp, dz[t], recurrent.T, dh_before, beta=0.0 if inside is None else 1.0)
        dh, dc = dh_before, dc_before
    return *_finish(xp, s, kernel, recurrent, dz, dz, needs, into), dh, dc, None


@gru.accelerate("cupy")
def _gru(
    xp: Any, x: Array, kernel: Array, recurrent_kernel: Array, bias: Array | None = None, recurrent_bias: Array | None = None,
    h: Array | None = None, mask: Array | None = None, *, reverse: bool, save: bool,
) -> Any:  # fmt: skip
    if not _fits(3, x, kernel, recurrent_kernel, (bias, recurrent_bias), (h,), mask):
        return NotImplemented
    N, H = x.shape[0], recurrent_kernel.shape[0]
    bias, recurrent_bias = contiguous(xp, bias), contiguous(xp, recurrent_bias)
    s = _begin(xp, x, kernel, H, h, mask, reverse)
    b = xp.empty_like(s.z)
    instance = _gru_step[(c_name(x),)]
    for t in s.order:
        before = s.states[t + s.before]
        gemm(xp, before, recurrent_kernel, b[t])
        launch(
            instance, grid_size(N * H), THREADS, s.z[t], b[t], bias, recurrent_bias, before, s.states[t + s.after],
            *s.of_step(t), N * H, H,
        )  # fmt: skip
    return (s.output(xp), s.last), (s, kernel, recurrent_kernel, b) if save else None


@_gru.backward
def _(xp: Any, dys: Any, saved: Any, *, reverse: bool, needs: tuple[bool, ...], into: Any = (None,) * 7) -> Any:
    s, kernel, recurrent, b = saved
    dy, dh = _arriving(xp, dys)
    (T, N, width), H = s.z.shape, recurrent.shape[0]
    dz, db = xp.empty_like(s.z), xp.empty_like(s.z)
    buffers = xp.empty((2, N, H), dtype=dz.dtype)  # taking turns, as in rnn
    instance = _gru_step_backward[(c_name(dz),)]
    for t in reversed(s.order):
        dh_before = buffers[t % 2]
        launch(
            instance, grid_size(N * H), THREADS, s.z[t], b[t], s.states[t + s.before], None if dy is None else dy[t], dh, dz[t],
            db[t], dh_before, s.of_step(t)[2], N * H, H,
        )  # fmt: skip
        gemm(xp, db[t], recurrent.T, dh_before, beta=1.0)
        dh = dh_before
    gradients = _finish(xp, s, kernel, recurrent, dz, db, needs, into)
    dinner = None
    if needs[4]:
        dinner = bias_and_activation_gradients(xp, xp.reshape(db, (T * N, width)), None, None, True, into[4])[1]
    return *gradients, dinner, dh, None
