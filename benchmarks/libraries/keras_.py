"""The cases in Keras: `train_on_batch` and `predict_on_batch` of a compiled model, on the backend that is installed."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

# Keras reads this once, on import; the default is TensorFlow.
if "KERAS_BACKEND" not in os.environ:
    os.environ["KERAS_BACKEND"] = "jax" if importlib.util.find_spec("jax") is not None else "torch"

import keras
import numpy as np
from keras import layers

from benchmarks.cases import LEARNING_RATE, MOMENTUM, PREDICT_BATCH, Case
from benchmarks.libraries.job import Arrays, Job, Unsupported, weights_of

NAMES = {"dense": ("kernel", "bias"), "conv": ("kernel", "bias"), "batch_norm": ("scale", "offset")}


def setup(device: str, precision: str, threads: int) -> dict[str, Any]:
    if precision not in ("float32", "tf32"):
        raise Unsupported("compared in float32 and TF32 only")
    found: dict[str, Any] = {"backend": keras.backend.backend()}
    if found["backend"] == "torch":
        import torch

        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    else:
        import jax

        jax.config.update("jax_platforms", "cuda" if device == "cuda" else "cpu")
        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if precision == "tf32" else "highest")
    return found


def prepare(case: Case, arrays: Arrays, device: str, precision: str, settings: dict[str, Any]) -> Job:
    if case.kind not in ("step", "predict", "forward"):
        raise Unsupported("compared on whole networks only")
    owners: dict[str, Any] = {}
    inputs = keras.Input(case.shape)
    model = keras.Model(inputs, _build(case.net, inputs, "", owners))
    weights = weights_of(arrays)
    for path, value in weights.items():
        owners[path].assign(value)
    x = arrays["x"]
    if case.kind != "step":

        def predict() -> Any:
            size = PREDICT_BATCH if case.kind == "predict" else len(x)
            return np.concatenate([model.predict_on_batch(x[i : i + size]) for i in range(0, len(x), size)])

        return Job(lambda: {"output": predict()}, predict)
    labels = arrays["labels"]
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def read() -> Arrays:
        return {path: np.array(variable) for path, variable in owners.items()}

    def check() -> Arrays:
        # It does not expose gradients: the output is compared here, the updates by the worker.
        return {"output": np.asarray(model.predict_on_batch(x))} if not _normalises(case.net) else {}

    return Job(check, lambda: model.train_on_batch(x, labels), weights=read)


def _normalises(net: list[dict[str, Any]]) -> bool:
    """Return whether outputs in evaluation differ from those in training."""
    return any(l["kind"] == "batch_norm" or _normalises(l.get("body", [])) for l in net)


def _build(net: list[dict[str, Any]], x: Any, prefix: str, owners: dict[str, Any]) -> Any:
    for i, layer in enumerate(net):
        path, kind = f"{prefix}{i}", layer["kind"]
        if kind == "residual":
            body = _build(layer["body"], x, f"{path}.body.", owners)
            x = layers.add([_build(layer["shortcut"], x, f"{path}.shortcut.", owners), body])
            continue
        made = _layer(layer)
        if kind == "conv" and layer["padding"]:
            x = layers.ZeroPadding2D(layer["padding"])(x)
        x = made(x)
        for name, variable in zip(NAMES.get(kind, ()), made.trainable_variables):
            owners[f"{path}.{name}"] = variable
    return x


def _layer(layer: dict[str, Any]) -> Any:
    kind = layer["kind"]
    if kind == "dense":
        return layers.Dense(layer["units"])
    if kind == "conv":
        return layers.Conv2D(
            layer["filters"],
            layer["window"],
            layer["stride"],
            "valid",
            dilation_rate=layer["dilation"],
            groups=layer["groups"],
            use_bias=layer["bias"],
        )
    if kind == "max_pool" and not layer["padding"]:
        return layers.MaxPooling2D(layer["window"], layer["stride"])
    if kind == "average_pool" and not layer["padding"]:
        return layers.AveragePooling2D(layer["window"], layer["stride"])
    if kind == "batch_norm":
        return layers.BatchNormalization(epsilon=layer["epsilon"])
    simple = {"relu": layers.ReLU, "flatten": layers.Flatten, "global_average_pool": layers.GlobalAveragePooling2D}
    if kind not in simple:
        raise Unsupported(f"{kind} with these settings is not compared")
    return simple[kind]()
