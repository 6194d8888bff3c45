"""Elementwise arithmetic. Shapes broadcast as in NumPy; a gradient is summed over the broadcast axes."""

# The operations have the names of the functions that they compute, some of them Python's own.

from __future__ import annotations

from typing import Any

from xpnet.backend import Array, Namespace, refuse_subclass
from xpnet.ops.registry import in_float32_on_cpu, op
from xpnet.ops.shapes import unbroadcast


def _shape(x: Any) -> tuple[int, ...]:
    """Return the shape of an input that may be a Python number."""
    return tuple(getattr(x, "shape", ()))


def _reduce(xp: Namespace, dy: Array, shape: tuple[int, ...], need: bool) -> Array | None:
    return unbroadcast(xp, dy, shape) if need else None


@op(half=in_float32_on_cpu, broadcasts=True, linear=True)
def add(xp: Namespace, x: Array, y: Array) -> Any:
    """Compute x + y."""
    return x + y, (_shape(x), _shape(y))


@add.backward
def _(xp: Namespace, dz: Array, saved: Any, *, needs: tuple[bool, ...]) -> Any:
    return tuple(_reduce(xp, dz, shape, need) for shape, need in zip(saved, needs))


@op(half=in_float32_on_cpu, broadcasts=True, linear=True)
def subtract(xp: Namespace, x: Array, y: Array) -> Any:
    """Compute x - y."""
    return x - y, (_shape(x), _shape(y))


@subtract.backward
def _(xp: Namespace, dz: Array, saved: Any, *, needs: tuple[bool, ...]) -> Any:
    return _reduce(xp, dz, saved[0], needs[0]), _reduce(xp, -dz, saved[1], needs[1]) if needs[1] else None


@op(half=in_float32_on_cpu, broadcasts=True)
def multiply(xp: Namespace, x: Array, y: Array) -> Any:
    """Compute x * y."""
    return x * y, (x, y)


@multiply.backward
def _(xp: Namespace, dz: Array, saved: Any, *, needs: tuple[bool, ...]) -> Any:
    x, y = saved
    return (
        unbroadcast(xp, dz * y, _shape(x)) if needs[0] else None,
        unbroadcast(xp, dz * x, _shape(y)) if needs[1] else None,
    )


@op(broadcasts=True)
def divide(xp: Namespace, x: Array, y: Array) -> Any:
    """Compute x / y."""
    return x / y, (x, y)


@divide.backward
def _(xp: Namespace, dz: Array, saved: Any, *, needs: tuple[bool, ...]) -> Any:
    x, y = saved
    dx = dz / y
    return (
        unbroadcast(xp, dx, _shape(x)) if needs[0] else None,
        unbroadcast(xp, -dx * (x / y), _shape(y)) if needs[1] else None,
    )


@op(broadcasts=True)
def power(xp: Namespace, x: Array, y: Array) -> Any:
    """Compute x ** y. The gradient with respect to y is defined where x > 0, and is 0 at x = 0."""
    return x**y, (x, y)


@power.backward
def _(xp: Namespace, dz: Array, saved: Any, *, needs: tuple[bool, ...]) -> Any:
    x, y = saved
    dx = dy = None
    if needs[0]:
        if isinstance(y, (int, float)):
            slope = y * x ** (y - 1) if y != 0 else x * 0
        else:
            # At y = 0 the derivative is 0 for every x; x**-1 would make it nan at x = 0.
            slope = xp.where(y == 0, xp.zeros_like(x * y), y * x ** xp.where(y == 0, xp.ones_like(y), y - 1))
        dx = unbroadcast(xp, dz * slope, _shape(x))
    if needs[1]:
        base = xp.asarray(x, dtype=y.dtype, device=y.device) if isinstance(x, (int, float)) else x
        positive = base > 0
        logarithm = xp.where(positive, xp.log(xp.where(positive, base, xp.ones_like(base))), xp.zeros_like(base))
        dy = unbroadcast(xp, dz * base**y * logarithm, _shape(y))
    return dx, dy


@op(half=in_float32_on_cpu, broadcasts=True, integers="keep")
def maximum(xp: Namespace, x: Array, y: Array) -> Any:
    """Return the larger of x and y; where they are equal each gets half of the gradient."""
    x_, y_ = _arrays(xp, x, y)
    return xp.maximum(x_, y_), (x_, y_)


@op(half=in_float32_on_cpu, broadcasts=True, integers="keep")
def minimum(xp: Namespace, x: Array, y: Array) -> Any:
    """Return the smaller of x and y; where they are equal each gets half of the gradient."""
    x_, y_ = _arrays(xp, x, y)
    return xp.minimum(x_, y_), (x_, y_)


def _arrays(xp: Namespace, x: Any, y: Any) -> tuple[Array, Array]:
    """Return both inputs as arrays: the Array API's maximum takes no Python numbers."""
    if isinstance(x, (int, float)):
        x = xp.asarray(x, dtype=y.dtype, device=y.device)
    if isinstance(y, (int, float)):
        y = xp.asarray(y, dtype=x.dtype, device=x.device)
    return x, y


def _chosen(xp: Namespace, dz: Array, x: Array, y: Array, larger: Array, needs: tuple[bool, ...]) -> Any:
    share = xp.where(x == y, xp.asarray(0.5, dtype=dz.dtype, device=dz.device), xp.astype(larger, dz.dtype))
    share = xp.astype(share, dz.dtype, copy=False)  # CuPy's `where` of bfloat16 is float32
    return (
        unbroadcast(xp, dz * share, tuple(x.shape)) if needs[0] else None,
        unbroadcast(xp, dz * (1 - share), tuple(y.shape)) if needs[1] else None,
    )


@maximum.backward
def _(xp: Namespace, dz: Array, saved: Any, *, needs: tuple[bool, ...]) -> Any:
    x, y = saved
    return _chosen(xp, dz, x, y, (x > y) | (x != x), needs)  # a NaN is the maximum


@minimum.backward
def _(xp: Namespace, dz: Array, saved: Any, *, needs: tuple[bool, ...]) -> Any:
    x, y = saved
    return _chosen(xp, dz, x, y, (x < y) | (x != x), needs)


@op(linear=True)
def negative(xp: Namespace, x: Array) -> Any:
    """Compute -x."""
    return -x, None


@negative.backward
def _(xp: Namespace, dy: Array, saved: Any) -> Any:
    return -dy


@op
def abs(xp: Namespace, x: Array) -> Any:
    """Compute the absolute value; its gradient at 0 is 0."""
    return xp.abs(x), x


@abs.backward
def _(xp: Namespace, dy: Array, x: Array) -> Any:
    return dy * xp.sign(x)


@op
def exp(xp: Namespace, x: Array) -> Any:
    """Compute e ** x."""
    y = xp.exp(x)
    return y, y


@exp.backward
def _(xp: Namespace, dy: Array, y: Array) -> Any:
    return dy * y


@op
def log(xp: Namespace, x: Array) -> Any:
    """Compute the natural logarithm."""
    return xp.log(x), x


@log.backward
def _(xp: Namespace, dy: Array, x: Array) -> Any:
    return dy / x


@op
def sqrt(xp: Namespace, x: Array) -> Any:
    """Compute the square root."""
    y = xp.sqrt(x)
    return y, y


@sqrt.backward
def _(xp: Namespace, dy: Array, y: Array) -> Any:
    return 0.5 * dy / y


@op
def square(xp: Namespace, x: Array) -> Any:
    """Compute x * x."""
    return x * x, x


@square.backward
def _(xp: Namespace, dy: Array, x: Array) -> Any:
    return 2.0 * dy * x


@op
def clip(xp: Namespace, x: Array, low: float | None = None, high: float | None = None) -> Any:
    """Limit x to [low, high]; the gradient passes where x is inside."""
    inside = xp.ones(x.shape, dtype=xp.bool, device=x.device)
    y = x
    if low is not None:
        inside, y = inside & (x >= low), xp.where(y < low, xp.asarray(low, dtype=x.dtype, device=x.device), y)
    if high is not None:
        inside, y = inside & (x <= high), xp.where(y > high, xp.asarray(high, dtype=x.dtype, device=x.device), y)
    return y, inside


@clip.backward
def _(xp: Namespace, dy: Array, inside: Array, *, low: float | None, high: float | None) -> Any:
    return xp.where(inside, dy, xp.zeros_like(dy))


@op(integers="keep", linear=True)
def select(xp: Namespace, x: Array, y: Array, condition: Any) -> Any:
    """Return x where `condition` is true, else y: :func:`where` with the differentiable inputs first."""
    refuse_subclass(condition)
    x_, y_ = _arrays(xp, x, y)
    return xp.where(condition, x_, y_), (_shape(x_), _shape(y_))


@select.backward
def _(xp: Namespace, dz: Array, shapes: Any, *, condition: Any, needs: tuple[bool, ...]) -> Any:
    zero = xp.zeros_like(dz)
    return (
        unbroadcast(xp, xp.where(condition, dz, zero), shapes[0]) if needs[0] else None,
        unbroadcast(xp, xp.where(condition, zero, dz), shapes[1]) if needs[1] else None,
    )


def where(condition: Any, x: Any, y: Any) -> Any:
    """Return x where `condition` (a boolean array) is true, else y."""
    return select(x, y, condition)
