"""Planned predictions: a small forward pass as a list of NumPy calls with fixed operands.

One image through a small ConvNet is ten NumPy calls of a few microseconds each, and ten times as much Python around them,
which works out the same sizes, views and implementations every time. So the first prediction of a shape is *planned*: a
tensor that represents the input is passed through the model, every operation on it adds its calls, on fixed buffers, and from
then on a prediction copies its input into the first buffer and makes the calls.

A plan reads the model's own arrays, so it follows the training of the weights. It is made only for layers that are
`plannable`: that do nothing but call operations, and carry no state. It is made again when anything about the model changes.
Small means that the buffers fit the cache: larger inputs gain nothing.
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
from xpnet.autograd.parameter import Parameter
from xpnet.autograd.tensor import Tensor
from xpnet.backend import without_scalars
from xpnet.compiled.derived import Derived
from xpnet.layers.module import Module
from xpnet.ops.activations import relu
from xpnet.ops.convolution import conv2d, conv_geometry
from xpnet.ops.fused import conv2d_max_pool2d
from xpnet.ops.geometry import Geometry
from xpnet.ops.linear import dense
from xpnet.ops.pooling import max_pool2d, pool_geometry
from xpnet.ops.registry import Op, customized
from xpnet.runtime.threads import UFUNC_BUFFER, limit_blas_threads, own_threads_preferred, restore_blas_threads

Call = Callable[[], Any]

MAX_ELEMENTS = 1 << 18
"""Most elements of all buffers of a plan together, and of its input: about what fits a core's second-level cache."""

_FEW_CHANNELS = 8
"""Below this im2col copies the elements of a window one by one."""


class UnplannableError(Exception):
    """The model or the input has to be run layer by layer."""


class Plan(Derived):
    """The calls of a prediction for one shape of input.

    Args:
        model: in evaluation mode.
        x: an input of that shape.

    Raises:
        UnplannableError: the buffers would be too large, or something was computed without an operation.
    """

    def __init__(self, model: Module, x: Floats) -> None:
        self.calls: list[Call] = []
        self.budget = MAX_ELEMENTS
        self.input = self.buffer(x.shape, x.dtype)
        np.copyto(self.input, x)
        self.lock = threading.Lock()
        self.limits_blas = False
        y = model(PlannedTensor(self.input, self))
        if type(y) is not PlannedTensor:
            raise UnplannableError
        self.output: Any = y.array
        # The first call of a model may have created its parameters.
        self.remember(model)

    def run(self, x: Floats) -> Floats:
        """Return the model's output for x."""
        np.copyto(self.input, x)
        before = np.setbufsize(UFUNC_BUFFER)
        try:
            if self.limits_blas:
                limit_blas_threads()
            try:
                for call in self.calls:
                    call()
            finally:
                if self.limits_blas:
                    restore_blas_threads()
        finally:
            np.setbufsize(before)
        y: Floats = self.output.copy()
        return y

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Floats:
        """Return a new buffer of this plan, all zeros."""
        array = np.zeros(shape, dtype)
        self.budget -= array.size
        if self.budget < 0:
            raise UnplannableError
        return array

    def product(self, a: Floats, b: Floats, out: Floats) -> None:
        """Add a matrix product."""
        self.calls.append(partial(np.dot, a, b, out))
        # BLAS would wake another thread, which is not worth it below a hundred microseconds.
        self.limits_blas = self.limits_blas or (own_threads_preferred() and a.shape[0] * b.size > SERIAL_PRODUCT)

    def add(self, op: Op, inputs: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        """Compute an operation and keep the calls that compute it again."""
        if not op.reference.ours or op in customized:
            raise UnplannableError  # a user's may do something else each time: return its input, or another shape
        arrays = []
        for value in inputs:
            if isinstance(value, Tensor) and not isinstance(value, (PlannedTensor, Parameter)):
                raise UnplannableError
            arrays.append(value.array if isinstance(value, Tensor) else value)
        arrays = list(without_scalars(arrays))
        calls = len(self.calls)
        make = _PLANNERS.get(op)
        made = None if make is None else make(self, *arrays, **settings)
        if made is None:
            return self._other(op, tuple(arrays), settings)
        for call in self.calls[calls:]:
            call()
        return PlannedTensor(made, self)

    def _other(self, op: Op, arrays: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        """Add an operation that has no planned form: it is run as usual, and its result copied to a buffer."""
        result = op.run(np, arrays, settings, False)[0]
        if type(result) is tuple:
            raise UnplannableError
        if any(isinstance(a, np.ndarray) and np.may_share_memory(result, a) for a in arrays):
            return PlannedTensor(result, self)  # a view of a buffer, such as a reshape: nothing to compute
        out = self.buffer(result.shape, result.dtype)
        np.copyto(out, result)

        def call() -> None:
            np.copyto(out, op.run(np, arrays, settings, False)[0])

        self.calls.append(call)
        return PlannedTensor(out, self)


class PlannedTensor(Tensor):
    """A buffer of a plan as a Tensor, passed through the model to record the plan."""

    __slots__ = ("plan",)

    def __init__(self, array: Floats, plan: Plan) -> None:
        super().__init__(array)
        self.plan = plan

    def _record(self, op: Op, inputs: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        return self.plan.add(op, inputs, settings)


def _epilogue(plan: Plan, y: Floats, bias: Floats | None, activation: str | None) -> None:
    """Add bias and activation, in place: the epilogue."""
    if bias is not None:
        # NumPy's inner loop runs along the last axis: a row of pixels is longer than the channels of one pixel.
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
    # NumPy's maximum is three times faster against an array of zeros than against a scalar.
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
    _epilogue(plan, y, bias, activation)
    return y


def _im2col(plan: Plan, x: Floats, g: Geometry) -> Floats:
    """Return the windows of x as a matrix (N * OH * OW, KH * KW * C)."""
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
    if C < _FEW_CHANNELS:
        # Copy one element of all windows at a time: longer runs than one window has. The product takes the transpose.
        spread, strides = (*spread[3:], *spread[:3]), (*strides[3:], *strides[:3])
        columns = plan.buffer((K, M), x.dtype)
        plan.calls.append(partial(np.copyto, columns.reshape(spread), np.ndarray(spread, P.dtype, P, 0, strides)))
        return columns.T
    columns = plan.buffer((M, K), x.dtype)
    if w.dilation == 1:  # the elements of a window's row are contiguous
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
    *,
    activation: str | None,
    groups: int,
    stride: Any,
    padding: Any,
    dilation: Any,
    **pool: Any,
) -> Floats | None:
    """Add a convolution; with the settings of conv2d_max_pool2d also the pooling behind it."""
    if not _fits(x, kernel, bias, activation) or groups != 1 or not x.size:
        return None
    g = conv_geometry(x, kernel, bias, stride, padding, dilation, 1)
    if min(g.h.out, g.w.out) < 1 or min(g.h.before, g.h.after, g.w.before, g.w.after) < 0:
        return None
    y = plan.buffer((x.shape[0], g.h.out, g.w.out, kernel.shape[3]), x.dtype)
    columns = _im2col(plan, x, g)
    plan.product(columns, kernel.reshape(-1, kernel.shape[3]), y.reshape(-1, kernel.shape[3]))
    if pool:
        # Activations are monotonic, and the bias is the same for the whole window: both can come after the maximum.
        y = _max_pooling(plan, y, window=pool["window"], stride=pool["pool_stride"], padding=pool["pool_padding"])
    _epilogue(plan, y, bias, activation)
    return y


def _max_pooling(plan: Plan, x: Floats, *, window: Any, stride: Any, padding: Any) -> Floats:
    """Add max pooling: over the rows of the windows first, where runs are long."""
    g = pool_geometry("max_pool2d", x, window, stride, padding)
    (N, H, W, C), h, w = x.shape, g.h, g.w
    if h.before or h.after or w.before or w.after:
        P = plan.buffer((N, H + h.before + h.after, W + w.before + w.after, C), x.dtype)
        P[...] = -np.inf
        plan.calls.append(partial(np.copyto, P[:, h.before : h.before + H, w.before : w.before + W], x))
        x = P
    down, across = (h.out - 1) * h.stride + 1, (w.out - 1) * w.stride + 1
    rows = [x[:, k : k + down : h.stride, : across + w.window - 1] for k in range(h.window)]
    total = _maximum(plan, rows)
    return _maximum(plan, [total[:, :, k : k + across : w.stride] for k in range(w.window)], last=True)


def _maximum(plan: Plan, parts: list[Floats], last: bool = False) -> Floats:
    """Add the elementwise maximum of views, in a buffer; a single view is returned as it is unless it is the `last`."""
    if len(parts) == 1 and not last:
        return parts[0]
    out = plan.buffer(parts[0].shape, parts[0].dtype)
    if len(parts) == 1:
        plan.calls.append(partial(np.copyto, out, parts[0]))
    for i, part in enumerate(parts[1:]):
        plan.calls.append(partial(np.maximum, out if i else parts[0], part, out=out))
    return out


def _max_pool2d(plan: Plan, x: Floats, *, window: Any, stride: Any, padding: Any) -> Floats | None:
    return _max_pooling(plan, x, window=window, stride=stride, padding=padding) if x.dtype in FLOATS and x.size else None


def _relu(plan: Plan, x: Floats) -> Floats | None:
    if x.dtype not in FLOATS:
        return None
    y = plan.buffer(x.shape, x.dtype)
    _maximum_with_zero(plan, x, y)
    return y


_PLANNERS: dict[Op, Callable[..., Floats | None]] = {
    dense: _dense,
    conv2d: _convolution,
    conv2d_max_pool2d: _convolution,
    max_pool2d: _max_pool2d,
    relu: _relu,
}
