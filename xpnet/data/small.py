"""The two data sets in the package: iris and digits. Sources and licence: shipped/SOURCES.md."""

from __future__ import annotations

import gzip

import numpy as np

from .dataset import Dataset, NumpyArray

_LICENCE = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"


def _content(name: str) -> bytes:
    from importlib import resources

    return (resources.files("xpnet.data") / "shipped" / name).read_bytes()


def _moments(x: NumpyArray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation over all axes but the last."""
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(np.float64)
    return tuple(wide.mean(axes).tolist()), tuple(wide.std(axes).tolist())


def iris() -> Dataset:
    """Load Fisher's iris flowers: 120 training and 30 test examples of 4 lengths, in units of 10 cm, 3 species."""
    rows = [line.split(",") for line in _content("iris.csv").decode().split()[1:]]
    names = ("setosa", "versicolor", "virginica")
    scale = 10.0
    # A fixed unit instead of the range of the data: nothing is fitted.
    x = (np.array([row[:4] for row in rows], np.float64) / scale).astype(np.float32)
    y = np.array([names.index(row[4]) for row in rows], np.int64)
    test = np.array([row[5] == "1" for row in rows])
    mean, std = _moments(x[~test])
    return Dataset(
        name="iris",
        train=(x[~test], y[~test]),
        test=(x[test], y[test]),
        class_names=names,
        mean=mean,
        std=std,
        source="R. A. Fisher (1936); UCI Machine Learning Repository, https://doi.org/10.24432/C56C76",
        licence=_LICENCE,
        scale=scale,
        notes="sepal length and width, petal length and width, in cm / 10; fixed stratified split, 1/5 test",
    )


def digits() -> Dataset:
    """Load the UCI optical digits: 1,438 training and 359 test images of 8x8x1, 10 classes."""
    table = np.array([line.split(b",") for line in gzip.decompress(_content("digits.csv.gz")).split()]).astype(np.int64)
    scale = 16.0
    x = (table[:, :64] / scale).astype(np.float32).reshape(-1, 8, 8, 1)
    y, test = table[:, 64], table[:, 65] == 1
    mean, std = _moments(x[~test])
    return Dataset(
        name="digits",
        train=(x[~test], y[~test]),
        test=(x[test], y[test]),
        class_names=tuple("0123456789"),
        mean=mean,
        std=std,
        source="E. Alpaydin, C. Kaynak (1998); UCI Machine Learning Repository, https://doi.org/10.24432/C50P49",
        licence=_LICENCE,
        scale=scale,
        notes="grey values 0 to 16, divided by 16; fixed stratified split, a fifth for the test",
    )
