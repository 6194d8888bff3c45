"""CIFAR-10: a small ConvNet, and the templates of a linear classifier as images.

The weights of each class of a linear classifier have the shape of an image: the template of the class (CS231n, "Linear
classification"). A ConvNet of three convolutions is better but harder to interpret; its first filters are shown.
Data: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the binary version, from $XPNET_DATA, the
cache or any folder of .bin files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import xpnet as xn
from xpnet.data import DataError, cifar, load
from xpnet.data.preprocessing import Standardize
from xpnet.examples._report import Folder, Report, picture

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Pair = tuple[Any, Any]


def read_folder(folder: str | Path) -> tuple[Pair, Pair]:
    """Read (training, test) from files of the format, of any size: test_batch.bin, and all others for training."""
    files = sorted(Path(folder).glob("*.bin"))
    training = [cifar.read(file) for file in files if file.name != "test_batch.bin"]
    test = [cifar.read(file) for file in files if file.name == "test_batch.bin"]
    if not training or not test:
        raise DataError(f"{folder}: expected data_batch_1.bin, ... and test_batch.bin, found {[f.name for f in files]}")
    (x, y), (xt, yt) = ([np.concatenate(a) for a in zip(*pairs)] for pairs in (training, test))
    return (x.astype(np.float32) / 255, y), (xt.astype(np.float32) / 255, yt)


def linear(seed: int = 0) -> xn.Sequential:
    """Return softmax regression on pixels."""
    small = xn.initializers.Normal(0.001)
    layers = [xn.Flatten(), xn.Dense(10, kernel_initializer=small, kernel_regularizer=xn.regularizers.L2(0.1))]
    return xn.Sequential(layers, input_shape=(32, 32, 3), seed=seed)


def convnet(seed: int = 0, filters: int = 32) -> xn.Sequential:
    """Return three blocks of convolution, ReLU and pooling, and a dense layer."""
    # Small initial weights: what the filters show afterwards was learnt.
    small = xn.initializers.Normal(0.02)
    first = xn.Conv2D(filters, 5, padding="same", activation="relu", kernel_initializer=small)
    layers: list[Any] = [first, xn.MaxPool2D(2)]
    for _ in range(2):
        layers += [xn.Conv2D(filters, 3, padding="same", activation="relu"), xn.MaxPool2D(2)]
    return xn.Sequential([*layers, xn.Flatten(), xn.Dropout(0.3), xn.Dense(10)], input_shape=(32, 32, 3), seed=seed)


def learn(model: xn.Sequential, train: Pair, test: Pair, *, rate: float, epochs: int, seed: int) -> xn.History:
    """Train with Adam on softmax cross entropy."""
    optimizer = xn.optim.Adam(rate)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, metrics=["accuracy"], seed=seed)
    return trainer.fit(train, validation=test, epochs=epochs, batch_size=64)


def run(out: Folder = None, path: str = "", examples: int = 10_000, epochs: int = 5, seed: int = 0) -> Report:
    """Train both networks on the first images.

    Args:
        out: folder for the pictures.
        path: a folder of .bin files; "" looks where `xpnet.data.load("cifar10")` does.
        examples: how many training images to use; 0 uses all.
        epochs: passes over the training images.
        seed: of weights and shuffling.
    """
    report = Report("CIFAR-10")
    try:
        if path:
            train, test = read_folder(path)
        else:
            data = load("cifar10")
            train, test = data.train, data.test
    except (DataError, OSError) as error:
        report.found("no data", f"{str(error).splitlines()[0]} (set $XPNET_DATA, or path=FOLDER)")
        return report
    n = min(examples or len(train[0]), len(train[0]))
    standard = Standardize().fit(train[0][:n])
    (x, y), (xt, yt) = (standard(train[0][:n]), train[1][:n]), (standard(test[0]), test[1])
    x, xt = x.astype(np.float32), xt.astype(np.float32)
    chance = 100 * float(np.bincount(yt, minlength=10).max() / len(yt))

    flat, deep = linear(seed), convnet(seed)
    a = learn(flat, (x, y), (xt, yt), rate=0.001, epochs=epochs, seed=seed)
    b = learn(deep, (x, y), (xt, yt), rate=0.002, epochs=epochs, seed=seed)
    report.found("images for training and test", f"{len(x)} {len(xt)}")
    report.found("first losses (ln 10 = 2.303)", f"{a['loss'][0]:.3f} {b['loss'][0]:.3f}")
    report.found("always the most common class (%)", f"{chance:.1f}")
    report.found("linear, held out (%)", f"{100 * a['val_accuracy'][-1]:.1f}")
    report.found("ConvNet, held out (%)", f"{100 * b['val_accuracy'][-1]:.1f}")
    report.at_least("ConvNet above chance (%)", round(chance + 5, 1), 100 * b["val_accuracy"][-1])

    def draw_templates(figure: Any) -> None:
        for axes, template, name in zip(figure.subplots(2, 5).ravel(), xn.inspect.templates(flat), NAMES):
            axes.imshow(xn.inspect.tile(template[None]))
            axes.set_title(name, fontsize=9, loc="center", fontweight="normal")
            axes.axis("off")

    def draw_filters(figure: Any) -> None:
        left, middle, right = figure.subplots(1, 3)
        left.imshow(xn.inspect.filters_image(deep))
        left.set_title("filters of the first convolution")
        image = xt[[int(np.flatnonzero(yt == k)[0]) for k in np.unique(yt)[:9]]]  # one of each class
        middle.imshow(xn.inspect.tile(standard.inverse(image)))
        middle.set_title("images")
        right.imshow(xn.inspect.tile(xn.inspect.saliency(deep, image)[..., None], gap=1)[..., 0], cmap="gray")
        right.set_title("saliency: the pixels that matter")
        for axes in (left, middle, right):
            axes.axis("off")

    picture(out, "cifar10_templates.png", draw_templates, 7.0, 3.2)
    picture(out, "cifar10_filters.png", draw_filters, 10.0, 3.5)
    return report
