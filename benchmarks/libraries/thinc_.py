"""The cases in thinc: multi-layer perceptrons with its SGD, which has no momentum (only the gradients are compared)."""

from __future__ import annotations

from typing import Any

import numpy as np
from thinc.api import SGD, Linear, NumpyOps, Relu, chain, set_current_ops

from benchmarks.cases import LEARNING_RATE, Case
from benchmarks.libraries.job import Arrays, Job, Unsupported, weights_of


def setup(device: str, precision: str, threads: int) -> dict[str, Any]:
    set_current_ops(NumpyOps())
    return {"momentum": 0.0}


def prepare(case: Case, arrays: Arrays, device: str, precision: str, settings: dict[str, Any]) -> Job:
    kinds = {layer["kind"] for layer in case.net}
    if case.kind not in ("step", "predict", "first_step") or kinds - {"dense", "relu"}:
        raise Unsupported("compared on multi-layer perceptrons only")
    units = [layer["units"] for layer in case.net if layer["kind"] == "dense"]
    sizes = [case.shape[-1], *units]
    layers = [Relu(o, i) for i, o in zip(sizes[:-2], units[:-1])] + [Linear(units[-1], sizes[-2])]
    x = arrays["x"]
    model = layers[0] if len(layers) == 1 else chain(*layers)
    model.initialize(X=x)
    weights = weights_of(arrays)
    for i, layer in enumerate(layers):
        layer.set_param("W", np.ascontiguousarray(weights[f"{2 * i}.kernel"].T))
        layer.set_param("b", weights[f"{2 * i}.bias"].copy())
    if case.kind == "predict":
        return Job(lambda: {"output": model.predict(x)}, lambda: model.predict(x))
    optimizer = SGD(LEARNING_RATE, grad_clip=0.0, use_averages=False)
    labels, rows = arrays["labels"], np.arange(len(x))

    def gradients() -> tuple[Any, float]:
        # The gradient of the loss is written out here: thinc's loss takes probabilities.
        output, backward = model.begin_update(x)
        shifted = output - output.max(axis=1, keepdims=True)
        p = np.exp(shifted)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        loss = float(np.mean(np.log(total[:, 0]) - shifted[rows, labels]))
        p[rows, labels] -= 1
        p /= len(x)
        backward(p)
        return output, loss

    def step() -> None:
        gradients()
        model.finish_update(optimizer)

    def check() -> Arrays:
        output, loss = gradients()
        found = {"output": output.copy(), "loss": np.asarray(loss)}
        for i, layer in enumerate(layers):
            found[f"gradient/{2 * i}.kernel"] = layer.get_grad("W").T.copy()
            found[f"gradient/{2 * i}.bias"] = layer.get_grad("b").copy()
            layer.set_grad("W", np.zeros_like(layer.get_grad("W")))
            layer.set_grad("b", np.zeros_like(layer.get_grad("b")))
        return found

    return Job(check, step)
