"""Matrix products."""

from __future__ import annotations

from typing import Any

from xpnet.backend import Array, Namespace
from xpnet.ops.activations import activate, activation_gradient
from xpnet.ops.registry import op
from xpnet.ops.shapes import ShapeError, conjugate, unbroadcast
from xpnet.ops.sums import row_product, total


@op(linear=True)
def matmul(xp: Namespace, x: Array, y: Array) -> Any:
    """Compute the matrix product x @ y over the last two axes, the others broadcast; vectors as in numpy.matmul.

    Integers are computed in the dtype of what is floating, or in float32. Complex factors are not conjugated forward; the
    gradients are those of the adjoint, dx = dz @ conj(y).T and dy = conj(x).T @ dz.

    Raises:
        ShapeError: a 0-d input, or inner sizes that differ.
    """
    inner = y.shape[0] if y.ndim == 1 else y.shape[-2] if y.ndim else None
    if x.ndim == 0 or x.shape[-1] != inner:
        raise ShapeError(f"matmul: shapes {tuple(x.shape)} and {tuple(y.shape)} do not fit: the inner sizes must be equal")
    return xp.matmul(x, y), (x, y)


@matmul.backward
def _(xp: Namespace, dz: Array, saved: Any, *, needs: tuple[bool, ...]) -> Any:
    x, y = (conjugate(xp, a) for a in saved)
    # A vector is a matrix of one row (left) or one column (right).
    rows = x[None, :] if x.ndim == 1 else x
    columns = y[:, None] if y.ndim == 1 else y
    if x.ndim == 1:
        dz = dz[..., None, :] if y.ndim > 1 else dz[..., None]
    if y.ndim == 1:
        dz = dz[..., None]
    dx = dy = None
    if needs[0]:
        dx = xp.matmul(dz, xp.matrix_transpose(columns))
        dx = xp.reshape(unbroadcast(xp, dx, tuple(rows.shape)), x.shape)
    if needs[1]:
        dy = row_product(xp, rows, dz)
        dy = xp.reshape(unbroadcast(xp, dy, tuple(columns.shape)), y.shape)
    return dx, dy


@op(linear=True)
def dense(
    xp: Namespace,
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    save: bool = True,
) -> Any:
    """Compute activation(x @ kernel + bias).

    Args:
        x: (..., in).
        kernel: (in, out).
        bias: (out,), or None.
        activation: None, "relu", "sigmoid" or "tanh", fused into the operation.

    Integers are computed in the dtype of what is floating, or in float32; complex numbers, without an activation, as in
    :func:`matmul`.

    Returns:
        (..., out), in the dtype of x.

    Raises:
        ShapeError: sizes do not fit.
    """
    if kernel.ndim != 2 or x.ndim == 0 or x.shape[-1] != kernel.shape[0]:
        raise ShapeError(
            f"dense: x has shape {tuple(x.shape)} and the kernel {tuple(kernel.shape)}; expected x (..., in) and kernel "
            f"(in, out) with one `in`: flatten or reshape x so that its last axis has {kernel.shape[0]} elements"
        )
    if bias is not None and tuple(bias.shape) != (kernel.shape[1],):
        raise ShapeError(f"dense: bias has shape {tuple(bias.shape)}, expected ({kernel.shape[1]},)")
    rows = xp.reshape(x, (_leading(x), x.shape[-1])) if x.ndim != 2 else x
    y = xp.matmul(rows, kernel)
    if bias is not None:
        y = y + bias
    y = activate(xp, y, activation)
    y = xp.reshape(y, (*x.shape[:-1], kernel.shape[1])) if x.ndim != 2 else y
    return y, (x, kernel, y if activation else None) if save else None


def _leading(x: Array) -> int:
    """Return the product of all sizes of x but the last."""
    count = 1
    for n in x.shape[:-1]:
        count *= n
    return count


@dense.backward
def _(xp: Namespace, dy: Array, saved: Any, *, activation: str | None, needs: tuple[bool, ...]) -> Any:
    x, kernel, y = saved
    x, kernel = conjugate(xp, x), conjugate(xp, kernel)
    dy = activation_gradient(xp, dy, y, activation)
    count = _leading(x)
    dy = xp.reshape(dy, (count, kernel.shape[1]))
    rows = xp.reshape(x, (count, kernel.shape[0]))
    return (
        xp.reshape(xp.matmul(dy, xp.matrix_transpose(kernel)), x.shape) if needs[0] else None,
        row_product(xp, rows, dy) if needs[1] else None,
        total(xp, dy, (0,)) if needs[2] else None,
    )
