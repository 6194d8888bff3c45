"""The cases in scikit-learn: MLPClassifier only."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from benchmarks.cases import CLASSES, LEARNING_RATE, MOMENTUM, Case
from benchmarks.libraries.job import Arrays, Job, Unsupported, weights_of

BATCHES = 50
"""Batches per call of partial_fit, which trains an epoch: they share its overhead per call."""


def setup(device: str, precision: str, threads: int) -> dict[str, Any]:
    warnings.simplefilter("ignore", ConvergenceWarning)
    return {}


def prepare(case: Case, arrays: Arrays, device: str, precision: str, settings: dict[str, Any]) -> Job:
    kinds = [layer["kind"] for layer in case.net]
    hidden = [layer["units"] for layer in case.net[:-1] if layer["kind"] == "dense"]
    if case.kind == "predict":
        raise Unsupported("its predictions are probabilities, ours here logits: not compared")
    if case.kind not in ("step", "first_step") or set(kinds) - {"dense", "relu"} or not hidden:
        raise Unsupported("it has multi-layer perceptrons only")
    x, weights = arrays["x"], weights_of(arrays)
    labels = arrays["labels"]
    model = _model(case, hidden, x, labels, weights)
    # A copy of the batch for every step of an epoch: the same work as on new data.
    many, many_labels = np.tile(x, (BATCHES, 1)), np.tile(labels, BATCHES)

    def check() -> Arrays:
        single = _model(case, hidden, x, labels, weights)
        before = [w.copy() for w in (*single.coefs_, *single.intercepts_)]
        single.partial_fit(x, labels)
        after = [*single.coefs_, *single.intercepts_]
        # Without velocity the first update is -learning_rate * gradient.
        gradients = [(b - a) / LEARNING_RATE for a, b in zip(after, before)]
        depth = len(single.coefs_)
        found = {"loss": np.asarray(single.loss_)}
        for i in range(depth):
            found[f"gradient/{2 * i}.kernel"] = gradients[i]
            found[f"gradient/{2 * i}.bias"] = gradients[depth + i]
        return found

    return Job(check, lambda: model.partial_fit(many, many_labels), units=BATCHES)


def _model(case: Case, hidden: list[int], x: Any, labels: Any, weights: Arrays) -> MLPClassifier:
    model = MLPClassifier(
        hidden,
        solver="sgd",
        alpha=0.0,
        batch_size=case.batch,
        learning_rate_init=LEARNING_RATE,
        momentum=MOMENTUM,
        nesterovs_momentum=False,
        shuffle=False,
    )
    with warnings.catch_warnings():
        # The rows that make it allocate its arrays do not fill a batch.
        warnings.filterwarnings("ignore", message="Got `batch_size`", category=UserWarning)
        model.partial_fit(x[:1], labels[:1], classes=np.arange(CLASSES))
    for i, (kernel, bias) in enumerate(zip(model.coefs_, model.intercepts_)):
        kernel[...] = weights[f"{2 * i}.kernel"]
        bias[...] = weights[f"{2 * i}.bias"]
    for velocity in model._optimizer.velocities:
        velocity[...] = 0
    return model
