"""The cases in JAX: pure functions under jit, NHWC, SGD with momentum written out."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import LEARNING_RATE, MOMENTUM, PREDICT_BATCH, Case
from benchmarks.libraries.job import Arrays, Job, Unsupported, weights_of

PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32"}


def setup(device: str, precision: str, threads: int) -> dict[str, Any]:
    jax.config.update("jax_platforms", "cuda" if device == "cuda" else "cpu")
    if precision not in PRECISIONS:
        raise Unsupported("compared in float32 and TF32 only")
    jax.config.update("jax_default_matmul_precision", PRECISIONS[precision])
    return {"devices": str(jax.devices()), "jit": True}


def apply(net: list[dict[str, Any]], weights: dict[str, Any], x: Any, training: bool, prefix: str = "") -> Any:
    for i, layer in enumerate(net):
        path = f"{prefix}{i}"
        x = _layer(layer, path, weights, x, training)
    return x


def _layer(layer: dict[str, Any], path: str, weights: dict[str, Any], x: Any, training: bool) -> Any:
    kind = layer["kind"]
    if kind == "dense":
        return x @ weights[f"{path}.kernel"] + weights[f"{path}.bias"]
    if kind == "conv":
        p, d = layer["padding"], layer["dilation"]
        y = jax.lax.conv_general_dilated(
            x,
            weights[f"{path}.kernel"],
            (layer["stride"],) * 2,
            [(p, p), (p, p)],
            rhs_dilation=(d, d),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=layer["groups"],
        )
        return y + weights[f"{path}.bias"] if layer["bias"] else y
    if kind in ("max_pool", "average_pool"):
        k, s, p = layer["window"], layer["stride"], layer["padding"]
        how = ((1, k, k, 1), (1, s, s, 1), [(0, 0), (p, p), (p, p), (0, 0)])
        if kind == "max_pool":
            return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *how)
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, *how) / (k * k)
    if kind == "batch_norm":
        if not training:
            raise Unsupported("this module keeps no running statistics of batch norm")
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        normal = (x - mean) * jax.lax.rsqrt(variance + layer["epsilon"])
        return normal * weights[f"{path}.scale"] + weights[f"{path}.offset"]
    if kind == "residual":
        body = apply(layer["body"], weights, x, training, f"{path}.body.")
        return apply(layer["shortcut"], weights, x, training, f"{path}.shortcut.") + body
    if kind == "lstm":
        return _lstm(layer, path, weights, x)
    if kind == "flatten":
        return x.reshape(len(x), -1)
    if kind == "global_average_pool":
        return x.mean((1, 2))
    return {"relu": jax.nn.relu, "tanh": jnp.tanh}[kind](x)


def _lstm(layer: dict[str, Any], path: str, weights: dict[str, Any], x: Any) -> Any:
    recurrent = weights[f"{path}.recurrent"]
    projected = x @ weights[f"{path}.kernel"] + weights[f"{path}.bias"]

    def step(state: Any, now: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(now + h @ recurrent, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((len(x), layer["units"]), x.dtype)
    return jax.lax.scan(step, (zero, zero), projected.swapaxes(0, 1))[1].swapaxes(0, 1)


def cross_entropy(logits: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


def prepare(case: Case, arrays: Arrays, device: str, precision: str, settings: dict[str, Any]) -> Job:
    if case.kind == "data":
        raise Unsupported("it has no data loader")
    x = jnp.asarray(arrays["x"])
    weights = {path: jnp.asarray(w) for path, w in weights_of(arrays).items()}
    if case.is_loss:
        labels = jnp.asarray(arrays["labels"])
        both = jax.jit(jax.value_and_grad(cross_entropy))
        return _job(lambda: both(x, labels), lambda r: {"output": r[0], "gradient/x": r[1]})
    if case.kind == "step":
        return _step(case, x, jnp.asarray(arrays["labels"]), weights)
    forward = jax.jit(functools.partial(apply, case.net, training=case.kind == "layer"))
    if case.kind == "layer":
        dy = jnp.asarray(arrays["dy"])

        @jax.jit
        def both_ways(w: Any, inputs: Any) -> Any:
            y, pull = jax.vjp(lambda w, i: apply(case.net, w, i, True), w, inputs)
            return y, pull(dy)

        def named(result: Any) -> Arrays:
            y, (dw, dx) = result
            return {"output": y, "gradient/x": dx, **{f"gradient/{p}": g for p, g in dw.items()}}

        return _job(lambda: both_ways(weights, x), named)
    parts = [x[i : i + PREDICT_BATCH] for i in range(0, len(x), PREDICT_BATCH)] if case.kind == "predict" else [x]
    return _job(lambda: [forward(weights, part) for part in parts], lambda ys: {"output": np.concatenate(ys)})


def _job(once: Any, named: Any) -> Job:
    def check() -> Arrays:
        return {name: np.asarray(value) for name, value in named(once()).items()}

    return Job(check, lambda: jax.block_until_ready(once()))


def _step(case: Case, x: Any, labels: Any, weights: dict[str, Any]) -> Job:
    def loss_of(w: Any) -> Any:
        output = apply(case.net, w, x, True)
        return cross_entropy(output, labels), output

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(w: Any, v: Any) -> Any:
        (loss, _), g = gradient(w)
        v = jax.tree.map(lambda v, g: MOMENTUM * v - LEARNING_RATE * g, v, g)
        return jax.tree.map(jnp.add, w, v), v, loss

    state = [jax.tree.map(jnp.array, weights), jax.tree.map(jnp.zeros_like, weights)]

    def once() -> None:
        state[0], state[1], loss = update(*state)
        loss.block_until_ready()

    def check() -> Arrays:
        (loss, output), g = jax.jit(gradient)(state[0])
        return {
            "output": np.asarray(output),
            "loss": np.asarray(loss),
            **{f"gradient/{p}": np.asarray(a) for p, a in g.items()},
        }

    return Job(check, once, weights=lambda: {p: np.array(w) for p, w in state[0].items()})
