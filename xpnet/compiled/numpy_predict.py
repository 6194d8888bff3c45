"""A small prediction as a list of NumPy calls whose operands are known beforehand.

One image through a small ConvNet is ten NumPy calls of a few microseconds each, and ten times as much Python around them
that finds out the same sizes, views and implementations again. So the first prediction of a shape is *planned*: an
array that stands for the input goes through the model, every operation that meets it adds its calls, on fixed buffers, and
from then on a prediction copies its input into the first buffer and makes the calls.

A plan reads the model's own arrays, so it follows the training of the weights. It is made only for models of layers that
do nothing but operations (no layer of a user's own, no state that is carried on), and made again when anything about them
changes. Small means that the buffers fit the cache: larger inputs gain nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from xpnet.accel.numpy.epilogue import ACTIVATIONS, activate
from xpnet.accel.numpy.linear import SERIAL_PRODUCT
from xpnet.accel.numpy.workspace import FLOATS, Floats, packed_dtype
from xpnet.autograd.tensor import Parameter, Tensor
from xpnet.layers.module import Module
from xpnet.ops.activations import relu
from xpnet.ops.convolution import conv2d, conv_geometry
from xpnet.ops.fused import conv2d_max_pool2d
from xpnet.ops.geometry import Geometry
from xpnet.ops.linear import dense
from xpnet.ops.pooling import max_pool2d, pool_geometry
from xpnet.ops.registry import Op, reference_is_forced
from xpnet.runtime.threads import UFUNC_BUFFER, limit_blas_threads, own_threads_preferred, restore_blas_threads

Call = Callable[[], Any]

LARGEST = 1 << 18
"""Elements of all buffers of a plan, and of its input: about what stays in a core's second-level cache."""

_FEW = 8
"""Channels below which a window's elements are gathered one by one."""


class UnplannableError(Exception):
    """This model, or this input, has to be run the usual way."""


class Plan:
    """The calls that one shape of input takes.

    Args:
        model: in evaluation mode.
        x: an input of that shape.

    Raises:
        UnplannableError: the buffers would be large, or something was computed that no operation has seen.
    """

    def __init__(self, model: Module, x: Floats) -> None:
        self.calls: list[Call] = []
        self.room = LARGEST
        self.input = self.buffer(x.shape, x.dtype)
        np.copyto(self.input, x)
        self.lock = threading.Lock()
        self.heavy = False
        y = model(Planned(self.input, self))
        if type(y) is not Planned:
            raise UnplannableError
        self.output = y.array
        # The first call of a model may have made its parameters.
        self.version, self.changes = model._version, model._version.changes
        self.parameters = [(p, p.array) for p in model.parameters().values()]
        self.buffers = [(m._buffers, name, array) for m in model.modules() for name, array in m._buffers.items()]

    def holds(self) -> bool:
        """Whether the model is still what was planned."""
        if self.version.changes != self.changes or reference_is_forced():
            return False
        for parameter, array in self.parameters:
            if parameter.array is not array:
                return False
        return all(table.get(name) is array for table, name, array in self.buffers)

    def run(self, x: Floats) -> Floats:
        """The model's output for x."""
        np.copyto(self.input, x)
        before = np.setbufsize(UFUNC_BUFFER)
        try:
            if self.heavy:
                limit_blas_threads()
            try:
                for call in self.calls:
                    call()
            finally:
                if self.heavy:
                    restore_blas_threads()
        finally:
            np.setbufsize(before)
        y: Floats = self.output.copy()
        return y

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Floats:
        """An array of this plan's, all zeros."""
        array = np.zeros(shape, dtype)
        self.room -= array.size
        if self.room < 0:
            raise UnplannableError
        return array

    def product(self, a: Floats, b: Floats, out: Floats) -> None:
        """Add a matrix product."""
        self.calls.append(partial(np.dot, a, b, out))
        # What takes less than a hundred microseconds is not worth waking another thread, which BLAS would do.
        self.heavy = self.heavy or (own_threads_preferred() and a.shape[0] * b.size > SERIAL_PRODUCT)

    def add(self, op: Op, inputs: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        """Compute an operation and keep the calls that compute it again."""
        arrays = []
        for value in inputs:
            if isinstance(value, Tensor) and not isinstance(value, (Planned, Parameter)):
                raise UnplannableError
            arrays.append(value.array if isinstance(value, Tensor) else value)
        calls = len(self.calls)
        make = _MAKERS.get(op)
        made = None if make is None else make(self, *arrays, **settings)
        if made is None:
            return self._other(op, tuple(arrays), settings)
        for call in self.calls[calls:]:
            call()
        return Planned(made, self)

    def _other(self, op: Op, arrays: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        """An operation that has no calls of its own here: it is run as always, into a buffer."""
        result = op.run(np, arrays, settings, False)[0]
        if type(result) is tuple:
            raise UnplannableError
        if any(isinstance(a, np.ndarray) and np.may_share_memory(result, a) for a in arrays):
            return Planned(result, self)  # a view of a buffer, such as a reshape: there is nothing to be done
        out = self.buffer(result.shape, result.dtype)
        np.copyto(out, result)

        def call() -> None:
            np.copyto(out, op.run(np, arrays, settings, False)[0])

        self.calls.append(call)
        return Planned(out, self)


class Planned(Tensor):
    """A buffer of a plan on its way through the model."""

    __slots__ = ("plan",)

    def __init__(self, array: Floats, plan: Plan) -> None:
        super().__init__(array)
        self.plan = plan

    def _record(self, op: Op, inputs: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        return self.plan.add(op, inputs, settings)


def _finish(plan: Plan, y: Floats, bias: Floats | None, activation: str | None) -> None:
    """Bias and activation in place."""
    if bias is not None:
        # NumPy's loops run along the last axis: a row of pixels is a longer run than the channels of one.
        run = y.shape[-2] if y.ndim > 2 and y.shape[-1] < 256 else 1
        if run > 1:
            row = plan.buffer((run, y.shape[-1]), y.dtype)
            plan.calls.append(partial(np.copyto, row, bias))
            bias = row.reshape(-1)
        rows = y.reshape(-1, run * y.shape[-1])
        plan.calls.append(partial(np.add, rows, bias, out=rows))
    if activation == "relu":
        _maximum_with_zero(plan, y, y)
    elif activation is not None:
        plan.calls.append(partial(activate, y, activation))


def _maximum_with_zero(plan: Plan, x: Floats, out: Floats) -> None:
    # Against an array of zeros NumPy's maximum is three times faster than against a scalar.
    plan.calls.append(partial(np.maximum, x, plan.buffer(x.shape, x.dtype), out=out))


def _fits(x: Floats, kernel: Floats, bias: Floats | None, activation: str | None) -> bool:
    return (
        x.dtype in FLOATS
        and kernel.dtype == x.dtype
        and (bias is None or bias.dtype == x.dtype)
        and activation in ACTIVATIONS
        and x.flags.c_contiguous
        and kernel.flags.c_contiguous
    )


def _dense(plan: Plan, x: Floats, kernel: Floats, bias: Floats | None, *, activation: str | None) -> Floats | None:
    if not _fits(x, kernel, bias, activation) or x.ndim != 2 or kernel.shape[:1] != x.shape[1:]:
        return None
    y = plan.buffer((x.shape[0], kernel.shape[1]), x.dtype)
    plan.product(x, kernel, y)
    _finish(plan, y, bias, activation)
    return y


def _columns(plan: Plan, x: Floats, g: Geometry) -> Floats:
    """The windows of x as a matrix (N * OH * OW, KH * KW * C)."""
    (N, H, W, C), h, w = x.shape, g.h, g.w
    M = N * h.out * w.out
    if h.window == w.window == h.stride == w.stride == 1 and (h.out, w.out) == (H, W):
        return x.reshape(M, C)
    P = x
    if h.before or h.after or w.before or w.after:
        P = plan.buffer((N, H + max(0, h.before) + max(0, h.after), W + max(0, w.before) + max(0, w.after), C), x.dtype)
        plan.calls.append(partial(np.copyto, P[:, h.before : h.before + H, w.before : w.before + W], x))
    b0, b1, b2, b3 = P.strides
    K = h.window * w.window * C
    spread: tuple[int, ...] = (N, h.out, w.out, h.window, w.window, C)
    strides: tuple[int, ...] = (b0, h.stride * b1, w.stride * b2, h.dilation * b1, w.dilation * b2, b3)
    if C < _FEW:
        # Copied a row of one element at a time: longer runs than the elements of one window. The product takes it turned.
        spread, strides = (*spread[3:], *spread[:3]), (*strides[3:], *strides[:3])
        columns = plan.buffer((K, M), x.dtype)
        plan.calls.append(partial(np.copyto, columns.reshape(spread), np.ndarray(spread, P.dtype, P, 0, strides)))
        return columns.T
    columns = plan.buffer((M, K), x.dtype)
    if w.dilation == 1:  # the elements of a window's row lie side by side
        item, spread, strides = packed_dtype(w.window * C, x.dtype), spread[:4], strides[:4]
    else:
        item, spread, strides = packed_dtype(C, x.dtype), spread[:5], strides[:5]
    plan.calls.append(partial(np.copyto, columns.view(item).reshape(spread), np.ndarray(spread, item, P, 0, strides)))
    return columns


def _convolution(
    plan: Plan,
    x: Floats,
    kernel: Floats,
    bias: Floats | None,
    pool: dict[str, Any] | None,
    activation: str | None,
    **windows: Any,
) -> Floats | None:
    if not _fits(x, kernel, bias, activation) or windows["groups"] != 1 or not x.size:
        return None
    g = conv_geometry(x, kernel, bias, windows["stride"], windows["padding"], windows["dilation"], 1)
    if min(g.h.out, g.w.out) < 1 or min(g.h.before, g.h.after, g.w.before, g.w.after) < 0:
        return None
    y = plan.buffer((x.shape[0], g.h.out, g.w.out, kernel.shape[3]), x.dtype)
    columns = _columns(plan, x, g)
    plan.product(columns, kernel.reshape(-1, kernel.shape[3]), y.reshape(-1, kernel.shape[3]))
    if pool is not None:
        # No activation decreases, and the bias is the same for the whole window: both can come after the maximum.
        y = _pooled(plan, y, **pool)
    _finish(plan, y, bias, activation)
    return y


def _conv2d(
    plan: Plan, x: Floats, kernel: Floats, bias: Floats | None, *, activation: str | None, **windows: Any
) -> Floats | None:
    return _convolution(plan, x, kernel, bias, None, activation, **windows)


def _conv2d_max_pool2d(
    plan: Plan,
    x: Floats,
    kernel: Floats,
    bias: Floats | None,
    *,
    window: Any,
    pool_stride: Any,
    pool_padding: Any,
    **settings: Any,
) -> Floats | None:
    pool = {"window": window, "stride": pool_stride, "padding": pool_padding}
    return _convolution(plan, x, kernel, bias, pool, **settings)


def _pooled(plan: Plan, x: Floats, *, window: Any, stride: Any, padding: Any) -> Floats:
    """Max pooling: over the rows of the windows first, where runs are long."""
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    (N, H, W, C), h, w = x.shape, g.h, g.w
    if h.before or h.after or w.before or w.after:
        P = plan.buffer((N, H + h.before + h.after, W + w.before + w.after, C), x.dtype)
        P[...] = -np.inf
        plan.calls.append(partial(np.copyto, P[:, h.before : h.before + H, w.before : w.before + W], x))
        x = P
    down, across = (h.out - 1) * h.stride + 1, (w.out - 1) * w.stride + 1
    rows = [x[:, k : k + down : h.stride, : across + w.window - 1] for k in range(h.window)]
    total = _largest(plan, rows)
    return _largest(plan, [total[:, :, k : k + across : w.stride] for k in range(w.window)], last=True)


def _largest(plan: Plan, parts: list[Floats], last: bool = False) -> Floats:
    """The elementwise maximum of views, in a buffer; of one view the view itself unless it is the last."""
    if len(parts) == 1 and not last:
        return parts[0]
    out = plan.buffer(parts[0].shape, parts[0].dtype)
    if len(parts) == 1:
        plan.calls.append(partial(np.copyto, out, parts[0]))
    for i, part in enumerate(parts[1:]):
        plan.calls.append(partial(np.maximum, out if i else parts[0], part, out=out))
    return out


def _max_pool2d(plan: Plan, x: Floats, *, window: Any, stride: Any, padding: Any) -> Floats | None:
    return _pooled(plan, x, window=window, stride=stride, padding=padding) if x.dtype in FLOATS and x.size else None


def _relu(plan: Plan, x: Floats) -> Floats | None:
    if x.dtype not in FLOATS:
        return None
    y = plan.buffer(x.shape, x.dtype)
    _maximum_with_zero(plan, x, y)
    return y


_MAKERS: dict[Op, Callable[..., Floats | None]] = {
    dense: _dense,
    conv2d: _conv2d,
    conv2d_max_pool2d: _conv2d_max_pool2d,
    max_pool2d: _max_pool2d,
    relu: _relu,
}
