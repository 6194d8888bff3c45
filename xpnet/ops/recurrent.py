"""Recurrent networks: one operation runs over the whole sequence, with backpropagation through time.

The product of all inputs with the kernel is computed at once, before the loop; so are, after the backward loop, the gradients
of both kernels, of the bias and of the inputs. Only what depends on the previous step is computed step by step.

Shapes: x (N, T, C), states (N, H). With G gates the kernel is (C, G*H), the recurrent kernel (H, G*H) and a bias (G*H,);
each gate is a block of H columns. The blocks are in PyTorch's order: LSTM input, forget, cell, output; GRU reset, update, new.

A mask (N, T) is False where a sequence has no element: there the output is 0 and the state is unchanged. What the inputs hold
there, NaN too, reaches neither a value nor a gradient. With `reverse` the
sequence is processed from its end; the outputs keep the order of the inputs.

Source: Rumelhart et al., 1986; Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers et
al., 2000; Cho et al., 2014 (GRU). Backpropagation through time: Werbos, 1990.
"""

from __future__ import annotations

from typing import Any, cast

from xpnet.backend import Array, Namespace
from xpnet.ops.activations import activate, activation_gradient
from xpnet.ops.registry import op
from xpnet.ops.shapes import ShapeError, zeros_like_shape
from xpnet.ops.sums import row_product, total


def _check(
    operation: str, gates: int, x: Array, kernel: Array, recurrent: Array, mask: Array | None, **vectors: Array | None
) -> None:
    """Raise a ShapeError unless all inputs fit; `vectors` are biases (named "...bias") and states."""
    if x.ndim != 3 or x.shape[1] == 0:
        raise ShapeError(
            f"{operation}: x has shape {tuple(x.shape)}, expected sequences (N, T, C) of at least one step; "
            f"add the missing axis with reshape"
        )
    N, T, C = x.shape
    H = recurrent.shape[0]
    wanted: list[tuple[str, Array, tuple[int, ...]]] = [
        ("kernel", kernel, (C, gates * H)),
        ("recurrent_kernel", recurrent, (H, gates * H)),
    ]
    for name, vector in vectors.items():
        if vector is not None:
            wanted.append((name, vector, (gates * H,) if name.endswith("bias") else (N, H)))
    if mask is not None:
        wanted.append(("mask", mask, (N, T)))
    for name, array, shape in wanted:
        if tuple(array.shape) != shape:
            raise ShapeError(
                f"{operation}: {name} has shape {tuple(array.shape)}, expected {shape} "
                f"for x {tuple(x.shape)} (N, T, C) and {H} units"
            )


def _steps(xp: Namespace, x: Array, kernel: Array, bias: Array | None) -> Array:
    """Compute x @ kernel + bias for all steps: (N, T, C) -> (T, N, G*H), so that each step is contiguous."""
    N, T, C = x.shape
    rows = xp.reshape(xp.permute_dims(x, (1, 0, 2)), (T * N, C))
    z = xp.matmul(rows, kernel)
    return cast(Array, xp.reshape(z if bias is None else z + bias, (T, N, kernel.shape[1])))


def _order(T: int, reverse: bool) -> range:
    return range(T - 1, -1, -1) if reverse else range(T)


def _columns_of(xp: Namespace, mask: Array | None, T: int) -> list[Array] | None:
    """Return the mask (N, T) as one boolean column (N, 1) a step."""
    if mask is None:
        return None
    inside = xp.astype(mask, xp.bool)
    return [inside[:, t : t + 1] for t in range(T)]


def _without_masked(xp: Namespace, x: Array, mask: Array | None) -> Array:
    """Return x (N, T, C) with 0 where the mask is False: a NaN there times a gradient of 0 would still be NaN."""
    if mask is None:
        return x
    return cast(Array, xp.where(xp.astype(mask, xp.bool)[:, :, None], x, xp.zeros_like(x)))


def _sequence(xp: Namespace, values: list[Array], mask: Array | None) -> Array:
    """Return the outputs of all steps as (N, T, H), 0 where the mask is False."""
    y: Array = xp.permute_dims(xp.stack(values, axis=0), (1, 0, 2))
    if mask is not None:
        y = xp.where(xp.astype(mask, xp.bool)[:, :, None], y, xp.zeros_like(y))
    return y


def _kernel_gradients(
    xp: Namespace, x: Array, kernel: Array, before: Array, dz: Array, needs: tuple[bool, ...], drecurrent: Array | None = None
) -> tuple[Array | None, ...]:
    """Return the gradients of x, kernel, recurrent kernel and bias, each from one product over all steps.

    `dz` (T, N, G*H) is the gradient of the gates' inputs, `before` (T, N, H) the state before each step; `drecurrent` is the
    gradient of before @ recurrent where it differs from dz (in a GRU).
    """
    N, T, C = x.shape
    rows = xp.reshape(dz, (T * N, dz.shape[2]))
    dx = dkernel = dweights = dbias = None
    if needs[0]:
        dx = xp.permute_dims(xp.reshape(xp.matmul(rows, xp.matrix_transpose(kernel)), (T, N, C)), (1, 0, 2))
    if needs[1]:
        inputs = xp.reshape(xp.permute_dims(x, (1, 0, 2)), (T * N, C))
        dkernel = row_product(xp, inputs, rows)
    if needs[2]:
        states = xp.reshape(before, (T * N, before.shape[2]))
        inner = rows if drecurrent is None else xp.reshape(drecurrent, rows.shape)
        dweights = row_product(xp, states, inner)
    if needs[3]:
        dbias = total(xp, rows, (0,))
    return dx, dkernel, dweights, dbias


def _arriving(xp: Namespace, dy: Array, dh: Array, inside: Array | None) -> tuple[Array, Array | None]:
    """Return the gradient of a step's result, and the part that bypasses the step because its mask is False.

    `dy` is the gradient of the step's output, `dh` that of the state after it. The output of a masked step is the constant 0.
    """
    if inside is None:
        return dh + dy, None
    zero = xp.zeros_like(dh)
    return xp.where(inside, dh + dy, zero), xp.where(inside, zero, dh)


def _of_step(xp: Namespace, dz: Array, inside: Array | None) -> Array:
    """Return the gradient of a step's product, 0 where its mask is False: a state that is NaN there times 0 would be NaN."""
    return dz if inside is None else cast(Array, xp.where(inside, dz, xp.zeros_like(dz)))


@op(indices=("mask",))
def rnn(
    xp: Namespace,
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    h: Array | None = None,
    mask: Array | None = None,
    *,
    activation: str | None = "tanh",
    reverse: bool = False,
    save: bool = True,
) -> Any:
    """Run a simple recurrent network: h_t = activation(x_t @ kernel + h_{t-1} @ recurrent_kernel + bias).

    Args:
        x: (N, T, C).
        kernel: (C, H).
        recurrent_kernel: (H, H).
        bias: (H,), or None.
        h: (N, H), the initial state; None means 0.
        mask: (N, T), False where a sequence has no element; None means True everywhere.
        activation: "tanh", "relu", "sigmoid" or None.
        reverse: process the sequence from its end.

    Returns:
        y: (N, T, H), the state after every step, 0 where masked.
        h: (N, H), the last state.
    """
    _check("rnn", 1, x, kernel, recurrent_kernel, mask, bias=bias, h=h)
    T, inside = x.shape[1], _columns_of(xp, mask, x.shape[1])
    x = _without_masked(xp, x, mask)
    steps = _steps(xp, x, kernel, bias)
    h = zeros_like_shape(xp, steps, (x.shape[0], kernel.shape[1])) if h is None else h
    before: list[Any] = [None] * T
    after: list[Any] = [None] * T
    for t in _order(T, reverse):
        before[t] = h
        after[t] = activate(xp, steps[t, ...] + xp.matmul(h, recurrent_kernel), activation)
        h = after[t] if inside is None else xp.where(inside[t], after[t], h)
    saved = (x, kernel, recurrent_kernel, before, after, inside) if save else None
    return (_sequence(xp, after, mask), h), saved


@rnn.backward
def _(xp: Namespace, dys: Any, saved: Any, *, activation: str | None, reverse: bool, needs: tuple[bool, ...]) -> Any:
    x, kernel, recurrent, before, after, inside = saved
    dy, dh = dys
    T = x.shape[1]
    back = xp.matrix_transpose(recurrent)
    dz: list[Any] = [None] * T
    for t in _order(T, not reverse):
        column = inside[t] if inside else None
        dh, passed = _arriving(xp, dy[:, t, :], dh, column)
        dz[t] = _of_step(xp, activation_gradient(xp, dh, after[t], activation), column)
        dh = xp.matmul(dz[t], back)
        dh = dh if passed is None else dh + passed
    gradients = _kernel_gradients(xp, x, kernel, xp.stack(before, axis=0), xp.stack(dz, axis=0), needs)
    return *gradients, dh, None


@op(indices=("mask",))
def lstm(
    xp: Namespace,
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    h: Array | None = None,
    c: Array | None = None,
    mask: Array | None = None,
    *,
    reverse: bool = False,
    save: bool = True,
) -> Any:
    """Run a long short-term memory. With z = x_t @ kernel + h_{t-1} @ recurrent_kernel + bias in blocks zi, zf, zg, zo:

        i, f, o = sigmoid(zi), sigmoid(zf), sigmoid(zo);  g = tanh(zg)
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(c_t)

    Args:
        x: (N, T, C).
        kernel: (C, 4H).
        recurrent_kernel: (H, 4H).
        bias: (4H,), or None. (PyTorch has two, which are added.)
        h, c: (N, H), the initial states; None means 0.
        mask, reverse: as in `rnn`.

    Returns:
        y: (N, T, H), h after every step, 0 where masked.
        h, c: (N, H), the last states.
    """
    _check("lstm", 4, x, kernel, recurrent_kernel, mask, bias=bias, h=h, c=c)
    N, T, H = x.shape[0], x.shape[1], recurrent_kernel.shape[0]
    inside = _columns_of(xp, mask, T)
    x = _without_masked(xp, x, mask)
    # sigmoid(z) = tanh(z / 2) / 2 + 1/2, so one tanh computes all gates; the kernels are halved, which is exact.
    half = _blocks(xp, x, H, (0.5, 0.5, 1.0, 0.5))
    rest = 1 - half
    steps = _steps(xp, x, kernel * half, None if bias is None else bias * half)
    weights = recurrent_kernel * half
    h = zeros_like_shape(xp, steps, (N, H)) if h is None else h
    c = zeros_like_shape(xp, steps, (N, H)) if c is None else c
    empty: list[Any] = [None] * T
    hs, cs, ys, gates, squashed = (empty[:] for _ in range(5))  # the states before each step, the outputs, ...
    for t in _order(T, reverse):
        a = xp.tanh(steps[t, ...] + xp.matmul(h, weights)) * half + rest
        now = a[:, H : 2 * H] * c + a[:, :H] * a[:, 2 * H : 3 * H]
        s = xp.tanh(now)
        y = a[:, 3 * H :] * s
        hs[t], cs[t], gates[t], squashed[t], ys[t] = h, c, a, s, y
        h, c = (y, now) if inside is None else (xp.where(inside[t], y, h), xp.where(inside[t], now, c))
    saved = (x, kernel, recurrent_kernel, hs, cs, gates, squashed, inside) if save else None
    return (_sequence(xp, ys, mask), h, c), saved


def _blocks(xp: Namespace, like: Array, H: int, values: tuple[float, ...]) -> Array:
    """Return a vector of blocks of H equal values, in the dtype and on the device of `like`."""
    return cast(Array, xp.concat([xp.full((H,), value, dtype=like.dtype, device=like.device) for value in values], axis=0))


@lstm.backward
def _(xp: Namespace, dys: Any, saved: Any, *, reverse: bool, needs: tuple[bool, ...]) -> Any:
    x, kernel, recurrent, hs, cs, gates, squashed, inside = saved
    dy, dh, dc = dys
    N, T, H = x.shape[0], x.shape[1], recurrent.shape[0]
    a = xp.reshape(xp.stack(gates, axis=0), (T, N, 4, H))
    i, f, g, o = (a[:, :, k, :] for k in range(4))
    s, before = xp.stack(squashed, axis=0), xp.stack(cs, axis=0)
    # The factors of dc and dh, for all steps at once.
    slope = a * (1 - a)
    cell = xp.stack((g * slope[:, :, 0, :], before * slope[:, :, 1, :], i * (1 - g * g)), axis=2)  # (T, N, 3, H)
    output = s * slope[:, :, 3, :]
    through = o * (1 - s * s)
    back = xp.matrix_transpose(recurrent)
    dz: list[Any] = [None] * T
    for t in _order(T, not reverse):
        column = inside[t] if inside else None
        dh, passed_h = _arriving(xp, dy[:, t, :], dh, column)
        dc, passed_c = _arriving(xp, dh * through[t, ...], dc, column)
        product = xp.concat((xp.reshape(dc[:, None, :] * cell[t, ...], (N, 3 * H)), dh * output[t, ...]), axis=1)
        dz[t] = _of_step(xp, product, column)
        dh = xp.matmul(dz[t], back)
        dc = _of_step(xp, dc * f[t, ...], column)
        if passed_h is not None:
            dh, dc = dh + passed_h, dc + passed_c
    gradients = _kernel_gradients(xp, x, kernel, xp.stack(hs, axis=0), xp.stack(dz, axis=0), needs)
    return *gradients, dh, dc, None


@op(indices=("mask",))
def gru(
    xp: Namespace,
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    recurrent_bias: Array | None = None,
    h: Array | None = None,
    mask: Array | None = None,
    *,
    reverse: bool = False,
    save: bool = True,
) -> Any:
    """Run a gated recurrent unit. With a = x_t @ kernel + bias and b = h_{t-1} @ recurrent_kernel + recurrent_bias in blocks:

        r, u = sigmoid(ar + br), sigmoid(au + bu)
        n = tanh(an + r * bn)
        h_t = (1 - u) * n + u * h_{t-1}

    The reset gate is applied after the product, as in PyTorch and cuDNN, not before it as in the paper.

    Args:
        x: (N, T, C).
        kernel: (C, 3H).
        recurrent_kernel: (H, 3H).
        bias, recurrent_bias: (3H,), or None.
        h, mask, reverse: as in `rnn`.

    Returns:
        y: (N, T, H), h after every step, 0 where masked.
        h: (N, H), the last state.
    """
    _check("gru", 3, x, kernel, recurrent_kernel, mask, bias=bias, recurrent_bias=recurrent_bias, h=h)
    N, T, H = x.shape[0], x.shape[1], recurrent_kernel.shape[0]
    inside = _columns_of(xp, mask, T)
    x = _without_masked(xp, x, mask)
    steps = _steps(xp, x, kernel, bias)
    h = zeros_like_shape(xp, steps, (N, H)) if h is None else h
    empty: list[Any] = [None] * T
    hs, ys, gates, inner, news = (empty[:] for _ in range(5))
    for t in _order(T, reverse):
        b = xp.matmul(h, recurrent_kernel)
        b = b if recurrent_bias is None else b + recurrent_bias
        z = steps[t, ...]
        a = 0.5 * xp.tanh(0.5 * (z[:, : 2 * H] + b[:, : 2 * H])) + 0.5  # the sigmoid
        n = xp.tanh(z[:, 2 * H :] + a[:, :H] * b[:, 2 * H :])
        y = n + a[:, H:] * (h - n)
        hs[t], gates[t], inner[t], news[t], ys[t] = h, a, b[:, 2 * H :], n, y
        h = y if inside is None else xp.where(inside[t], y, h)
    saved = (x, kernel, recurrent_kernel, hs, gates, inner, news, inside) if save else None
    return (_sequence(xp, ys, mask), h), saved


@gru.backward
def _(xp: Namespace, dys: Any, saved: Any, *, reverse: bool, needs: tuple[bool, ...]) -> Any:
    x, kernel, recurrent, hs, gates, inner, news, inside = saved
    dy, dh = dys
    N, T, H = x.shape[0], x.shape[1], recurrent.shape[0]
    a, n, before = xp.stack(gates, axis=0), xp.stack(news, axis=0), xp.stack(hs, axis=0)
    r, u = a[:, :, :H], a[:, :, H:]
    # The factors of dh, for all steps at once.
    new = (1 - u) * (1 - n * n)
    reset = new * xp.stack(inner, axis=0) * r * (1 - r)
    update = (before - n) * u * (1 - u)
    factors = xp.stack((reset, update, new * r), axis=2)  # (T, N, 3, H), to the gradient of b
    back = xp.matrix_transpose(recurrent)
    dhs: list[Any] = [None] * T
    db: list[Any] = [None] * T
    for t in _order(T, not reverse):
        column = inside[t] if inside else None
        dhs[t], passed = _arriving(xp, dy[:, t, :], dh, column)
        db[t] = _of_step(xp, xp.reshape(dhs[t][:, None, :] * factors[t, ...], (N, 3 * H)), column)
        dh = xp.matmul(db[t], back) + _of_step(xp, dhs[t] * u[t, ...], column)
        dh = dh if passed is None else dh + passed
    dall, dsteps = xp.stack(db, axis=0), xp.stack(dhs, axis=0)
    dnew = _of_step(xp, dsteps * new, xp.stack(inside, axis=0) if inside else None)
    dz = xp.concat((dall[:, :, : 2 * H], dnew), axis=2)
    gradients = _kernel_gradients(xp, x, kernel, before, dz, needs, dall)
    return *gradients, total(xp, dall, (0, 1)) if needs[4] else None, dh, None
