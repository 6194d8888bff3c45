"""Measurements of a trained model for its report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from xpnet.autograd.tape import no_grad
from xpnet.backend import Array, to_numpy
from xpnet.data.arrays import is_array
from xpnet.layers.hooks import leaves
from xpnet.layers.modes import eval_mode
from xpnet.layers.module import Module
from xpnet.report.png import as_bytes, data_uri

if TYPE_CHECKING:
    from xpnet.data import Batches

NumpyArray = np.ndarray[Any, Any]

MISTAKES = 24
POINTS = 1500
THUMBNAIL = 96  # pixels; larger images are subsampled


class PredictionSummary:
    """A model's predictions over a data set: confusion of classes, or predictions against truth; the worst mistakes.

    Args:
        logits: whether a single output unit is a logit; None decides by its values.
    """

    def __init__(self, logits: bool | None = None) -> None:
        self.logits = logits
        self.kind: str | None = None
        self.confusion: NumpyArray | None = None
        self.count = 0
        self.worst: list[tuple[float, int, NumpyArray, Any, Any]] = []  # how bad, index, example, truth, prediction
        self.points: list[tuple[float, float]] = []
        self.sums = np.zeros(4)  # of squared errors, of absolute errors, of truth, of its squares

    def add(self, x: NumpyArray, y: NumpyArray, prediction: NumpyArray) -> None:
        """Add one batch."""
        self.kind = self.kind or _kind(y, prediction)
        if self.kind == "classes":
            self._classes(x, y, prediction)
        elif self.kind == "numbers":
            self._numbers(x, y, prediction)
        self.count += len(x)

    def _classes(self, x: NumpyArray, y: NumpyArray, prediction: NumpyArray) -> None:
        truth, p = self._probabilities(y, prediction)
        K = p.shape[1]
        if self.confusion is None:
            self.confusion = np.zeros((K, K), np.int64)
        predicted = p.argmax(axis=1)
        np.add.at(self.confusion, (truth, predicted), 1)
        sure = p[np.arange(len(p)), predicted]
        for i in np.flatnonzero(predicted != truth):
            answer = {"predicted": int(predicted[i]), "probability": float(sure[i]), "of_truth": float(p[i, truth[i]])}
            self.worst.append((float(sure[i]), self.count + int(i), x[i], int(truth[i]), answer))
        self._keep_worst()

    def _probabilities(self, y: NumpyArray, prediction: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
        """Return class indices (N,) and probabilities (N, K)."""
        z = prediction.astype(np.float64)
        if z.ndim == 1 or z.shape[1] == 1:
            z = z.reshape(len(z), 1)
            inside = bool(((z >= 0) & (z <= 1)).all())
            p = z if self.logits is False or (self.logits is None and inside) else 1 / (1 + np.exp(-np.clip(z, -500, 500)))
            return (y.reshape(len(y)) > 0.5).astype(np.int64), np.concatenate([1 - p, p], axis=1)
        truth = y.astype(np.int64) if y.ndim == 1 else y.argmax(axis=1)
        if ((z >= 0) & (z <= 1)).all():  # the model ends with softmax or sigmoid
            return truth, z
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return truth, e / e.sum(axis=1, keepdims=True)

    def _numbers(self, x: NumpyArray, y: NumpyArray, prediction: NumpyArray) -> None:
        truth = y.reshape(len(y), -1).astype(np.float64)
        found = prediction.reshape(len(y), -1).astype(np.float64)
        error = found - truth
        size = np.abs(error).mean(axis=1)
        self.sums += (np.square(error).sum(), np.abs(error).sum(), truth.sum(), np.square(truth).sum())
        if len(self.points) < POINTS:
            self.points += list(zip(truth[:, 0].tolist(), found[:, 0].tolist()))[: POINTS - len(self.points)]
        for i in np.argsort(-size)[:MISTAKES]:
            answer = {"predicted": found[i, :4].tolist()}
            self.worst.append((float(size[i]), self.count + int(i), x[i], truth[i, :4].tolist(), answer))
        self._keep_worst()

    def _keep_worst(self) -> None:
        self.worst = sorted(self.worst, key=lambda entry: (-entry[0], entry[1]))[:MISTAKES]

    def record(self, ordered: bool = True) -> dict[str, Any]:
        """Return what the report shows; `ordered`: examples came in order, so that their indices mean something."""
        found: dict[str, Any] = {"kind": self.kind, "examples": self.count}
        if self.kind == "classes" and self.confusion is not None:
            found["confusion"] = self.confusion.tolist()
        if self.kind == "numbers" and self.count:
            n = self.count
            variance = self.sums[3] / n - (self.sums[2] / n) ** 2
            found["points"] = self.points
            found["root_mean_squared_error"] = float(np.sqrt(self.sums[0] / n))
            found["mean_absolute_error"] = float(self.sums[1] / n)
            found["explained"] = float(1 - self.sums[0] / n / variance) if variance > 0 else None
        shapes = [entry[2].shape for entry in self.worst]
        alike = len(set(shapes)) == 1 and len(shapes[0]) == 3 and shapes[0][2] in (1, 3)
        images = thumbnails(np.stack([entry[2] for entry in self.worst])) if alike else None
        found["mistakes"] = [
            {
                "index": index if ordered else None,
                "truth": truth,
                **answer,
                **({"image": images[i]} if images else {"example": np.ravel(example)[:8].tolist()}),
            }
            for i, (_, index, example, truth, answer) in enumerate(self.worst)
        ]
        return found


def _kind(y: NumpyArray, prediction: NumpyArray) -> str | None:
    if prediction.ndim == 2 and prediction.shape[1] > 1:
        one_hot = y.shape == prediction.shape and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()
        if one_hot or (y.ndim == 1 and y.dtype.kind in "iu"):
            return "classes"
    elif y.size and y.size == len(prediction) and np.isin(y, (0, 1)).all() and prediction.size == len(prediction):
        return "classes"
    return "numbers" if y.shape == prediction.shape and y.dtype.kind in "fiu" else None


def class_counts(batches: Batches | None, classes: int) -> NumpyArray | None:
    """Return how many examples of each class there are to train on (K,); None where the labels are not at hand."""
    source = None if batches is None else batches.source
    tree, data = getattr(source, "tree", None), getattr(source, "data", None)
    labels = tree[1] if isinstance(tree, tuple) and len(tree) == 2 else getattr(data, "labels", None)
    if not is_array(labels):
        return None
    y = to_numpy(labels)
    if y.ndim != 1 or y.dtype.kind not in "iu" or not y.size or y.min() < 0 or y.max() >= classes:
        return None
    return np.bincount(y, minlength=classes)


def thumbnails(images: NumpyArray) -> list[str]:
    """Convert images (N, H, W, 1 or 3) to data URIs on one grey scale; large ones are subsampled."""
    step = max(1, -(-max(images.shape[1:3]) // THUMBNAIL))
    return [data_uri(image) for image in as_bytes(images[:, ::step, ::step])]


def summarize_predictions(model: Module, batches: Batches, *, logits: bool | None = None, most: int = 20_000) -> dict[str, Any]:
    """Summarize predictions in evaluation mode, on up to `most` examples of `batches`."""
    summary = PredictionSummary(logits)
    with no_grad(), eval_mode(model):
        for x, y in batches.epoch(0):
            summary.add(to_numpy(x), to_numpy(y), to_numpy(model(x).array))
            if summary.count >= most:
                break
    return summary.record(ordered=not batches.shuffle)


def filters(model: Module, most: int = 64) -> dict[str, Any] | None:
    """Return the first convolution's kernels, or a first dense layer's weights, as images; None if they are not images."""
    from xpnet.inspect.images import first_filters, templates

    for find, what in ((first_filters, "filters"), (templates, "weights")):
        try:
            images = find(model)
        except ValueError:  # no such layer, or its input is not images
            continue
        if images.shape[-1] not in (1, 3) or min(images.shape[1:3]) < 2:
            continue
        reach = float(np.abs(images).max()) or 1.0
        return {
            "kind": what,
            "count": len(images),
            "images": [data_uri(image) for image in as_bytes(images[:most], -reach, reach)],
        }
    return None


def layers(model: Module, loss: str | Callable[[Any, Any], Any], x: Array, y: Array) -> list[dict[str, Any]]:
    """Measure every layer on one batch: its output, the gradient of its output, its time and the memory kept for backward.

    Parameters, running statistics, random counters and gradients are restored afterwards.
    """
    from xpnet.inspect.activity import activations, layer_gradients
    from xpnet.inspect.profile import profile

    outputs = activations(model, x)
    gradients = layer_gradients(model, loss, x, y).outputs
    times = {layer.path: layer for layer in profile(model, x, y, loss, steps=5, warmup=1).layers}

    def statistics(values: Array | None) -> dict[str, Any] | None:
        if values is None:
            return None
        array = to_numpy(values)
        if array.dtype.kind != "f" or not array.size or not np.isfinite(array).all():
            return None
        # A few outliers would squeeze all others into one bar.
        ends = np.percentile(array, (0.25, 99.75))
        counts, edges = np.histogram(np.clip(array, *ends), bins=40)
        return {
            "counts": counts.tolist(),
            "low": float(edges[0]),
            "high": float(edges[-1]),
            "mean": float(array.mean(dtype=np.float64)),
            "std": float(array.std(dtype=np.float64)),
            "zeros": float(np.mean(array == 0)),
            "rms": float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))),
        }

    found = []
    for layer in leaves(model):
        path = layer.path or type(layer).__name__
        time = times.get(layer.path or "")
        found.append(
            {
                "path": layer.path or "",
                "kind": type(layer).__name__,
                "description": repr(layer),
                "shape": list(outputs[path].shape[1:]) if path in outputs else None,
                "parameters": layer.count_parameters(),
                "activations": statistics(outputs.get(path)),
                "gradients": statistics(gradients.get(path)),
                "forward": time.forward if time else 0.0,
                "backward": time.backward if time else 0.0,
                "kept": time.saved if time else 0,
            }
        )
    rest = times.get("")
    if rest is not None and rest.kind.startswith("loss"):
        found.append({"path": "", "kind": rest.kind, "forward": rest.forward, "backward": rest.backward, "kept": rest.saved})
    return found


def peak_memory() -> int | None:
    """Return the peak memory of the process in bytes; None if the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
