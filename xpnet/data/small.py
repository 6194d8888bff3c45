"""The two data sets in the package: iris and digits. Sources and licence: shipped/SOURCES.md."""

from __future__ import annotations

import gzip
from typing import Any

import numpy as np

from .dataset import Dataset, NumpyArray

_LICENCE = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"


def _content(name: str) -> bytes:
    from importlib import resources

    return (resources.files("xpnet.data") / "shipped" / name).read_bytes()


def _split(x: NumpyArray, y: NumpyArray, test: NumpyArray, **facts: Any) -> Dataset:
    """Split the examples where the bool array `test` is true; mean and deviation are over all axes but the last."""
    axes = tuple(range(x.ndim - 1))
    wide = x[~test].astype(np.float64)
    mean, std = tuple(wide.mean(axes).tolist()), tuple(wide.std(axes).tolist())
    return Dataset(train=(x[~test], y[~test]), test=(x[test], y[test]), mean=mean, std=std, licence=_LICENCE, **facts)


def iris() -> Dataset:
    """Load Fisher's iris flowers: 120 training and 30 test examples of 4 lengths, in units of 10 cm, 3 species."""
    rows = [line.split(",") for line in _content("iris.csv").decode().split()[1:]]
    names = ("setosa", "versicolor", "virginica")
    scale = 10.0
    # A fixed unit instead of the range of the data: nothing is fitted.
    x = np.array([row[:4] for row in rows], np.float32) / np.float32(scale)  # as numbers of a user's file are divided
    y = np.array([names.index(row[4]) for row in rows], np.int64)
    test = np.array([row[5] == "1" for row in rows])
    return _split(
        x,
        y,
        test,
        name="iris",
        class_names=names,
        source="R. A. Fisher (1936); UCI Machine Learning Repository, https://doi.org/10.24432/C56C76",
        scale=scale,
        notes="sepal length and width, petal length and width, in cm / 10; fixed stratified split, 1/5 test",
        titles=("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"),
        class_title="species",
    )


def digits() -> Dataset:
    """Load the UCI optical digits: 1,438 training and 359 test images of 8x8x1, 10 classes."""
    table = np.array([line.split(b",") for line in gzip.decompress(_content("digits.csv.gz")).split()]).astype(np.int64)
    scale = 16.0
    x = (table[:, :64] / scale).astype(np.float32).reshape(-1, 8, 8, 1)
    return _split(
        x,
        table[:, 64],
        table[:, 65] == 1,
        name="digits",
        class_names=tuple("0123456789"),
        source="E. Alpaydin, C. Kaynak (1998); UCI Machine Learning Repository, https://doi.org/10.24432/C50P49",
        scale=scale,
        notes="grey values 0 to 16, divided by 16; fixed stratified split, a fifth for the test",
    )
