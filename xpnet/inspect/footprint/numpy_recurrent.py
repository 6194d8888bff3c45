"""Recurrent networks for NumPy, on fake arrays."""

from __future__ import annotations

from typing import Any

from xpnet.accel.numpy.recurrent import supported
from xpnet.inspect.footprint.fake_array import FakeArray
from xpnet.inspect.footprint.numpy_workspace import moment
from xpnet.ops.recurrent import lstm


@lstm.accelerate("fake_numpy")
def _lstm(
    xp: Any,
    x: FakeArray,
    kernel: FakeArray,
    recurrent_kernel: FakeArray,
    bias: Any,
    h: Any,
    c: Any,
    mask: Any,
    *,
    reverse: bool,
    save: bool,
) -> Any:
    if not supported(x, kernel, recurrent_kernel, bias, h, c, mask):
        return NotImplemented
    (N, T, _), H, dtype = x.shape, recurrent_kernel.shape[0], x.dtype
    gates = xp.empty((T, N, 4 * H), dtype=dtype)
    moment(dtype, x.shape, kernel.shape, recurrent_kernel.shape)
    states, squashed = xp.empty((2, T + 1, N, H), dtype=dtype), xp.empty((T, N, H), dtype=dtype)
    moment(dtype, recurrent_kernel.shape, (N, 4 * H))
    y, last, cell = xp.empty((N, T, H), dtype=dtype), xp.empty((N, H), dtype=dtype), xp.empty((N, H), dtype=dtype)
    return (y, last, cell), (x, kernel, recurrent_kernel, gates, states, squashed) if save else None


@_lstm.backward
def _(xp: Any, dys: Any, saved: Any, *, reverse: bool, needs: tuple[bool, ...]) -> Any:
    x, kernel, recurrent, gates, states, squashed = saved
    dz, through = xp.empty_like(gates), xp.empty_like(squashed)
    dh, dc = xp.empty(states.shape[2:], dtype=x.dtype), xp.empty(states.shape[2:], dtype=x.dtype)
    dx = dkernel = dweights = dbias = None
    if needs[0]:
        moment(x.dtype, x.shape, x.shape)
        dx = xp.empty_like(x)
    if needs[1]:
        moment(x.dtype, x.shape)
        dkernel = xp.empty_like(kernel)
    if needs[2]:
        dweights = xp.empty_like(recurrent)
    if needs[3]:
        dbias = xp.empty(kernel.shape[1:], dtype=x.dtype)
    del dz, through
    return dx, dkernel, dweights, dbias, dh, dc, None
