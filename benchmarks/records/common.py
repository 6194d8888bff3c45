"""What the records share: a recipe, its runs over seeds, and their summary."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import xpnet as xn

HALF = ("float16", "bfloat16")
WARM_BATCHES = 3
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Setting:
    """Where and how to run.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        precision: "float32", "tf32", "float16" or "bfloat16".
        epochs: None for the recipe's own.
        steps: end every run after so many batches; None: do the whole run. The learning-rate schedule stays that of the whole
            run.
        width: a factor of the numbers of channels; 1 is the recipe.
        holdout: hold out so many training images at the end, and measure on them instead of the test images.
    """

    device: str = "cpu"
    precision: str = "float32"
    epochs: int | None = None
    steps: int | None = None
    width: float = 1.0
    holdout: int = 0

    @property
    def dtype(self) -> str:
        return self.precision if self.precision in HALF else "float32"

    @property
    def altered(self) -> str:
        """What differs from the recipe, in words; "" if nothing does."""
        found = [f"{self.epochs} epochs"] * (self.epochs is not None) + [f"ended after {self.steps} steps"] * bool(self.steps)
        found += [f"{self.width:g} times the channels"] * (self.width != 1)
        found += [f"measured on {self.holdout} held-out training images"] * bool(self.holdout)
        return ", ".join(found)


@dataclass(frozen=True)
class Recipe:
    """One record.

    Attributes:
        name: for the command line and files.
        title: for the page.
        what: network, optimizer, augmentation, schedule, in words.
        anchors: published results, in words.
        accuracy: the target for the mean of the runs.
        seconds: the target for training on a GPU.
        epochs, batch: of one run.
        model: (setting, seed) -> the network.
        trainer: (model, steps of the run, seed) -> its Trainer.
        augment: of the training images, on their device; or None.
        mirrored: whether to report also the accuracy of the mean over each image and its mirror image.
        remark: (training images) -> a sentence about these data, or "".
    """

    name: str
    title: str
    what: str
    anchors: str
    accuracy: float
    seconds: float
    epochs: int
    batch: int
    model: Callable[[Setting, int], xn.Sequential]
    trainer: Callable[[xn.Sequential, int, int], xn.Trainer]
    augment: Any = None
    mirrored: bool = False
    remark: Callable[[Any], str] = lambda images: ""


class Data:
    """The images of a recipe as bytes on the device, and their labels.

    Attributes:
        train, test: (images, labels).
        few: the first training images, for the warm-up.
        test_name: the name of the images that accuracies are measured on.
        remark: see Recipe.
    """

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        data = xn.data.load(recipe.name)
        (x, y), self.test_name = data.train, "test"
        held = data.test
        if setting.holdout:
            held, (x, y) = (x[-setting.holdout :], y[-setting.holdout :]), (x[: -setting.holdout], y[: -setting.holdout])
            self.test_name = "held-out training"
        self.remark = recipe.remark(x)
        self._device, self._spec = xn.backend.device(setting.device), data
        self.train, self.test = self._to_device(x, y), self._to_device(*held)
        count = WARM_BATCHES * recipe.batch
        self.few = self._to_device(x[:count], y[:count])

    def _to_device(self, x: Any, y: Any) -> Pair:
        # The published files hold bytes; load() returns them as fractions of 255.
        images = np.rint(x * self._spec.scale).astype(np.uint8)
        kept = xn.data.ByteImages(images, mean=self._spec.mean, std=self._spec.std, device=self._device)
        return kept, xn.to_device(y, self._device)


class EndAfter(xn.Callback):
    """End `fit` after so many batches, and record losses."""

    def __init__(self, steps: int, every: int) -> None:
        self.steps, self.every = steps, every
        self.losses: list[tuple[int, float]] = []

    def on_step_end(self, trainer: xn.Trainer) -> None:
        if trainer.iteration % self.every == 0 or trainer.iteration == self.steps:
            self.losses.append((trainer.iteration, float(trainer.last_loss)))
        trainer.stop = trainer.iteration >= self.steps


def batches_of(data: Pair, recipe: Recipe, setting: Setting, seed: int) -> xn.data.Batches:
    """Return full batches in the order of the seed, augmented on the device."""
    device = xn.backend.device(setting.device)
    return xn.data.Batches(data, recipe.batch, shuffle=True, seed=seed, drop_last=True, augment=recipe.augment, device=device)


def one_run(recipe: Recipe, setting: Setting, data: Data, seed: int) -> dict[str, Any]:
    """Train once and return {"seed", "seconds", "accuracy", ...}; `fit` is timed, until the device has finished."""
    epochs = setting.epochs or recipe.epochs
    device = xn.backend.device(setting.device)
    model = recipe.model(setting, seed)
    batches = batches_of(data.train, recipe, setting, seed)
    trainer = recipe.trainer(model, epochs * len(batches), seed)
    ends = [EndAfter(setting.steps, max(setting.steps // 20, 1))] if setting.steps else []
    trainer.callbacks += ends
    device.synchronize()
    start = time.perf_counter()
    history = trainer.fit(batches, epochs=epochs, verbose=False)
    device.synchronize()
    found: dict[str, Any] = {"seed": seed, "seconds": time.perf_counter() - start, "steps": trainer.iteration}
    found["losses"] = [list(pair) for pair in ends[0].losses] if ends else [float(v) for v in history["loss"]]
    if history.interrupted:
        raise KeyboardInterrupt
    found["accuracy"], mirrored = accuracies(model, data.test, recipe.mirrored)
    if mirrored is not None:
        found["accuracy_mirrored"] = mirrored
    return found


def accuracies(model: xn.Sequential, data: Pair, mirrored: bool, batch: int = 500) -> tuple[float, float | None]:
    """Return the accuracy, and that of the mean of probabilities over an image and its mirror image."""
    images, labels = data
    xp = xn.backend.namespace(images.images)
    correct = both = 0
    for start in range(0, len(images), batch):
        x, y = images[start : start + batch], labels[start : start + batch]
        logits = xp.astype(model.predict(x), xp.float32)
        correct += int(xp.sum(xp.argmax(logits, axis=-1) == y))
        if mirrored:
            other = xp.astype(model.predict(xp.flip(x, axis=2)), xp.float32)
            shares = xn.ops.softmax(logits) + xn.ops.softmax(other)
            both += int(xp.sum(xp.argmax(shares, axis=-1) == y))
    return correct / len(images), both / len(images) if mirrored else None


def warm_up(recipe: Recipe, setting: Setting, data: Data) -> float:
    """Train a temporary network on a few batches, so that kernels are compiled and autotuned; return the seconds."""
    start = time.perf_counter()
    device = xn.backend.device(setting.device)
    model = recipe.model(setting, 0)
    batches = batches_of(data.few, recipe, setting, 0)
    recipe.trainer(model, 1000, 0).fit(batches, epochs=1, verbose=False)
    accuracies(model, data.few, recipe.mirrored)
    device.synchronize()
    return time.perf_counter() - start


def summary(recipe: Recipe, runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return mean, spread and worst of the runs."""
    accuracy = [run["accuracy"] for run in runs]
    found = {
        "runs": len(runs),
        "mean_accuracy": statistics.fmean(accuracy),
        "worst_accuracy": min(accuracy),
        "best_accuracy": max(accuracy),
        "accuracy_deviation": statistics.stdev(accuracy) if len(runs) > 1 else 0.0,
        "median_seconds": statistics.median(run["seconds"] for run in runs),
    }
    if recipe.mirrored:
        found["mean_accuracy_mirrored"] = statistics.fmean(run["accuracy_mirrored"] for run in runs)
    return found
