"""Activation functions, elementwise: the output has the shape and dtype of x. All are numerically stable: no exponential of a
positive number is taken."""

from __future__ import annotations

import math
from typing import Any, cast

from xpnet.backend import Array, Namespace, dtype_name, kind_of
from xpnet.ops.registry import op

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


@op(integers="keep")
def step(xp: Namespace, x: Array) -> Any:
    """Return 1 where x > 0, else 0: the perceptron's activation. Its gradient is 0 everywhere, so none is defined."""
    return xp.astype(x > 0, x.dtype), None


@op(integers="keep")
def relu(xp: Namespace, x: Array) -> Any:
    """Compute max(x, 0). The gradient at 0 is 0. Source: Nair and Hinton, 2010."""
    y = xp.where(x < 0, xp.zeros_like(x), x)  # not `x > 0`: a nan must stay one
    return y, y


@relu.backward
def _(xp: Namespace, dy: Array, y: Array) -> Any:
    return xp.where(y > 0, dy, xp.zeros_like(dy))


@op
def leaky_relu(xp: Namespace, x: Array, *, slope: float = 0.01) -> Any:
    """Compute max(x, slope * x) for a slope below 1. Source: Maas et al., 2013."""
    mask = x > 0
    return xp.where(mask, x, slope * x), mask


@leaky_relu.backward
def _(xp: Namespace, dy: Array, mask: Array, *, slope: float) -> Any:
    return xp.where(mask, dy, slope * dy)


@op
def elu(xp: Namespace, x: Array, *, alpha: float = 1.0) -> Any:
    """Compute x where x > 0, else alpha * (exp(x) - 1). Source: Clevert et al., 2015."""
    positive = x > 0
    y = xp.where(positive, x, alpha * xp.expm1(xp.where(positive, xp.zeros_like(x), x)))
    return y, x


@elu.backward
def _(xp: Namespace, dy: Array, x: Array, *, alpha: float) -> Any:
    # Not from y: far below 0 it is rounded to -alpha.
    positive = x > 0
    return xp.where(positive, dy, dy * (alpha * xp.exp(xp.where(positive, xp.zeros_like(x), x))))


@op
def selu(xp: Namespace, x: Array) -> Any:
    """Compute scale * elu(x, alpha), with the constants that keep mean 0 and variance 1. Source: Klambauer et al., 2017."""
    positive = x > 0
    y = SELU_SCALE * xp.where(positive, x, SELU_ALPHA * xp.expm1(xp.where(positive, xp.zeros_like(x), x)))
    return y, x


@selu.backward
def _(xp: Namespace, dy: Array, x: Array) -> Any:
    positive = x > 0
    slope = (SELU_SCALE * SELU_ALPHA) * xp.exp(xp.where(positive, xp.zeros_like(x), x))
    return xp.where(positive, SELU_SCALE * dy, dy * slope)


def _sigmoid(xp: Namespace, x: Array) -> Array:
    """Compute 1 / (1 + exp(-x)) from exp(-|x|), which lies in (0, 1]."""
    small = xp.exp(-xp.abs(x))
    y: Array = xp.where(x < 0, small, xp.ones_like(x)) / (1 + small)
    return y


@op
def sigmoid(xp: Namespace, x: Array) -> Any:
    """Compute 1 / (1 + exp(-x))."""
    y = _sigmoid(xp, x)
    return y, y


@sigmoid.backward
def _(xp: Namespace, dy: Array, y: Array) -> Any:
    return dy * y * (1 - y)


@op
def tanh(xp: Namespace, x: Array) -> Any:
    """Compute the hyperbolic tangent, 2 sigmoid(2x) - 1."""
    y = xp.tanh(x)
    return y, y


@tanh.backward
def _(xp: Namespace, dy: Array, y: Array) -> Any:
    return dy * (1 - y * y)


@op
def softplus(xp: Namespace, x: Array) -> Any:
    """Compute log(1 + exp(x)), a smooth relu."""
    return xp.where(x > 0, x, xp.zeros_like(x)) + xp.log1p(xp.exp(-xp.abs(x))), x


@softplus.backward
def _(xp: Namespace, dy: Array, x: Array) -> Any:
    return dy * _sigmoid(xp, x)


@op
def softsign(xp: Namespace, x: Array) -> Any:
    """Compute x / (1 + |x|)."""
    return x / (1 + xp.abs(x)), x


@softsign.backward
def _(xp: Namespace, dy: Array, x: Array) -> Any:
    width = 1 + xp.abs(x)
    return dy / width / width


@op
def hard_sigmoid(xp: Namespace, x: Array) -> Any:
    """Clip x/6 + 1/2 to [0, 1], as PyTorch and Keras 3 do. Source: Howard et al., "MobileNetV3", 2019."""
    inside = (x > -3) & (x < 3)
    outside = xp.astype(x >= 3, x.dtype)
    return xp.where((x <= -3) | (x >= 3), outside, x / 6 + 0.5), inside  # a nan is neither, and must stay one


@hard_sigmoid.backward
def _(xp: Namespace, dy: Array, inside: Array) -> Any:
    return xp.where(inside, dy / 6, xp.zeros_like(dy))


@op
def silu(xp: Namespace, x: Array) -> Any:
    """Compute x * sigmoid(x), also called swish. Source: Elfwing et al., 2017."""
    s = _sigmoid(xp, x)
    return x * s, (x, s)


@silu.backward
def _(xp: Namespace, dy: Array, saved: Any) -> Any:
    x, s = saved
    return dy * s * (1 + x * (1 - s))


@op(integers="refuse")
def gelu(xp: Namespace, x: Array, *, approximate: bool = False) -> Any:
    """Compute x * Phi(x), Phi the normal distribution's CDF. Source: Hendrycks and Gimpel, 2016.

    Args:
        x: any shape, floating.
        approximate: use 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) instead of the exact Phi.
    """
    return x * _phi(xp, x, approximate), x


def _phi(xp: Namespace, x: Array, approximate: bool) -> Array:
    if approximate:
        return cast(Array, 0.5 * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))))
    return _normal_cdf(xp, x)


def _normal_cdf(xp: Namespace, x: Array) -> Array:
    """Compute Phi(x) = erfc(-x / sqrt 2) / 2. The Array API has no erf.

    A Chebyshev fit for erfc with relative error below 1.2e-7 everywhere (Press et al., "Numerical Recipes", 2nd ed.,
    section 6.2) suffices for float32; float64 uses a series and a continued fraction.
    """
    z = xp.abs(x) / math.sqrt(2)
    upper = (_erfc_double if xp.finfo(x.dtype).bits > 32 else _erfc_single)(xp, z) / 2
    return cast(Array, xp.where(x > 0, 1 - upper, upper))


_ERFC = (
    -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806,
    0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277,
)  # fmt: skip


def _erfc_single(xp: Namespace, z: Array) -> Array:
    t = 1 / (1 + 0.5 * z)
    total = t * _ERFC[-1]
    for coefficient in _ERFC[-2:0:-1]:
        total = t * (total + coefficient)
    return cast(Array, t * xp.exp(-z * z + (total + _ERFC[0])))


def _erfc_double(xp: Namespace, z: Array) -> Array:
    """Compute erfc(z) for z >= 0: the Maclaurin-type series of erf below 2.5, a continued fraction (Lentz, backwards) above."""
    low = xp.where(z < 2.5, z, xp.zeros_like(z))
    term = low * (2 / math.sqrt(math.pi)) * xp.exp(-low * low)
    series = term
    for n in range(1, 60):  # erf(z) = 2/sqrt(pi) exp(-z^2) sum 2^n z^(2n+1) / (2n+1)!!
        term = term * (2 * low * low / (2 * n + 1))
        series = series + term
    high = xp.where(z < 2.5, xp.full_like(z, 2.5), z)
    fraction = high
    for n in range(60, 0, -1):
        fraction = high + (n / 2) / fraction
    return cast(Array, xp.where(z < 2.5, 1 - series, xp.exp(-high * high) / (math.sqrt(math.pi) * fraction)))


@gelu.backward
def _(xp: Namespace, dy: Array, x: Array, *, approximate: bool) -> Any:
    if approximate:
        c = math.sqrt(2 / math.pi)
        t = xp.tanh(c * (x + 0.044715 * x * x * x))
        return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x))
    density = xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return dy * (_normal_cdf(xp, x) + x * density)


ACTIVATIONS_FROM_OUTPUT = ("relu", "sigmoid", "tanh")
"""Activations whose derivative is a function of their output, which dense and conv2d can fuse."""


def activate(xp: Namespace, x: Array, activation: str | None) -> Array:
    """Apply one of ACTIVATIONS_FROM_OUTPUT, or nothing for None."""
    if activation is not None and kind_of(x.dtype) == "complex":
        raise TypeError(
            f"{activation}: got complex numbers of dtype {dtype_name(x)}, which have no order; leave the activation out"
        )
    if activation == "relu":
        x = relu.reference.forward(xp, x)[0]
    elif activation == "sigmoid":
        x = _sigmoid(xp, x)
    elif activation == "tanh":
        x = xp.tanh(x)
    elif activation is not None:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS_FROM_OUTPUT)}, got {activation!r}")
    return x


def activation_gradient(xp: Namespace, dy: Array, y: Array, activation: str | None) -> Array:
    """Return the gradient of the activation's input, from that of its output y."""
    if activation is None:
        return dy
    if activation == "relu":
        dx: Array = xp.where(y > 0, dy, xp.zeros_like(dy))
        return dx
    return dy * y * (1 - y) if activation == "sigmoid" else dy * (1 - y * y)
