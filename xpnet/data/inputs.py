"""How the inputs of a model were read: the record in a model file, and the same reading of other files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .dataset import DataError, Dataset, NumpyArray
from .splits import row_hashes

KINDS = ("images", "table", "array")
WHITE = (255, 255, 255)
"""What transparent images are composited on."""

_FAR = 2.0
"""Values so many times beyond the range of the training data are worth a warning."""
_DARK = 0.2
_ABOUT_WHITE = 1.05
"""Floats from resized images go a little beyond 1."""
_MOST_TRAINED_ON = 1 << 17


@dataclass(frozen=True, eq=False)
class InputRecord:
    """How the inputs of a model were read from files.

    Attributes:
        kind: "images" (files, or arrays of pixels), "table" (rows of a file) or "array" (of a .npz file).
        shape: of one example.
        scale: x = value / scale; the value of a white pixel.
        whole: the values in the training files were whole numbers.
        columns: of a table, their titles in the order of the features; () where the file had none.
        target: of a table, the title of the column of classes; "" where the file had none.
        target_column: of a table, the place of that column among the file's, from 0; None where it had none.
        separator, decimal: of a table, what is between its cells and its decimal mark; "" where that is unknown.
        spread: few rows differ, and their repetitions were divided as examples of their own.
        resized: images were resized to `shape`; otherwise all had this size.
        background: the colour (R, G, B) that transparent images are composited on; None: their transparency is ignored.
        in_colour: of images, all in the training files were in colour; False where some were not, or that is unknown.
        by_pixels: of images, `trained_on` are hashes of x, whatever files they were in; False in records of earlier versions:
            there, those of image files are hashes of the bytes of the files.
        low, high: the least and largest x in the training part, (C,) or (F,); None if unknown.
        trained_on: sorted hashes, uint64, of the examples in the training part, or of the part of them with the smallest
            hashes; None if unknown.
        trained_count: how many examples the training part has.
        assumed: nothing is known of the training data; it is never written.
    """

    kind: str
    shape: tuple[int, ...]
    scale: float = 1.0
    whole: bool = False
    columns: tuple[str, ...] = ()
    target: str = ""
    target_column: int | None = None
    separator: str = ""
    decimal: str = ""
    spread: bool = False
    resized: bool = False
    background: tuple[int, int, int] | None = WHITE
    in_colour: bool = False
    by_pixels: bool = True
    low: NumpyArray | None = field(default=None, repr=False)
    high: NumpyArray | None = field(default=None, repr=False)
    trained_on: NumpyArray | None = field(default=None, repr=False)
    trained_count: int = 0
    assumed: bool = False

    @property
    def titled(self) -> bool | None:
        """Whether the training data had titles; None where that is unknown."""
        known = self.kind == "table" and (self.columns or self.target_column is not None)
        return bool(self.columns) if known else None

    def settings(self) -> dict[str, Any]:
        """Return everything but the arrays, as JSON and TOML can hold it."""
        found: dict[str, Any] = {"kind": self.kind, "shape": list(self.shape), "scale": self.scale, "whole": self.whole}
        if self.kind == "table":
            found["columns"], found["target"] = list(self.columns), self.target
            if self.target_column is not None:
                found["target_column"] = self.target_column
            found["separator"], found["decimal"] = self.separator, self.decimal
        if self.spread:
            found["spread"] = True
        if self.kind == "images":
            found["resized"], found["in_colour"], found["by_pixels"] = self.resized, self.in_colour, self.by_pixels
            if self.background is not None:
                found["background"] = list(self.background)
        return {**found, "trained_count": self.trained_count}

    def arrays(self) -> dict[str, NumpyArray]:
        """Return the arrays that are known, by name."""
        found = {"low": self.low, "high": self.high, "trained_on": self.trained_on}
        return {name: array for name, array in found.items() if array is not None}

    def describe(self) -> str:
        """Return one line that says how inputs are read."""
        shape = " x ".join(map(str, self.shape))
        if self.kind == "table":
            words = f"{shape} column{'s' * (shape != '1')}"
            if self.columns:
                shown = ", ".join(self.columns[:8]) + (", ..." if len(self.columns) > 8 else "")
                words += f" by name: {shown}"
            if self.target_column is not None:
                words += f"; the class: {self.target or f'column {self.target_column}'}"
            return words + (f"; divided by {self.scale:g}" if self.scale != 1 else "")
        words = f"{'images' if self.kind == 'images' else 'arrays'} of {shape}" + (", resized" if self.resized else "")
        words += f", {'pixels' if self.kind == 'images' else 'values'} divided by {self.scale:g}" if self.scale != 1 else ""
        return words + (f", transparency on {self.background}" if self.kind == "images" and self.background else "")

    def with_training_part(self, x: NumpyArray, hashes: NumpyArray | None = None) -> InputRecord:
        """Return the record with the range of the training part (N, ...) and the hashes of its examples added."""
        axes = tuple(range(x.ndim - 1))
        low, high = x.min(axis=axes).astype(np.float32), x.max(axis=axes).astype(np.float32)
        if self.low is not None and self.high is not None:
            low, high = np.minimum(low, self.low), np.maximum(high, self.high)
        if hashes is not None and self.trained_on is not None:
            hashes = np.append(hashes, self.trained_on)
        kept = None if hashes is None else np.unique(hashes)[:_MOST_TRAINED_ON]
        return replace(self, low=low, high=high, trained_on=kept, trained_count=len(x))

    def seen(self, hashes: NumpyArray) -> tuple[NumpyArray, NumpyArray]:
        """Tell which examples were trained on.

        Returns:
            two bool arrays (N,): those that were trained on, and those of which it is known whether they were.
        """
        if self.trained_on is None or not len(self.trained_on):
            return np.zeros(len(hashes), bool), np.zeros(len(hashes), bool)
        known = np.ones(len(hashes), bool)
        if len(self.trained_on) == _MOST_TRAINED_ON:
            known = hashes <= self.trained_on[-1]
        return np.isin(hashes, self.trained_on), known

    def to_units(self, x: NumpyArray, place: str, *, text: bool = False) -> tuple[NumpyArray, str]:
        """Convert the values in an array (N, *shape) to the units of the training data.

        Args:
            x: floats, integers or booleans.
            place: the file, for messages.
            text: the values were read from text, so that their dtype does not tell whether they are whole numbers.

        Returns:
            x, float32, and what should be said about the conversion, or "".

        Raises:
            DataError: a value is not finite, or the values have another scale than those of the training data.
        """
        with np.errstate(over="ignore"):  # what float32 cannot hold is reported as not finite
            values = x.astype(np.float32)
        if not np.isfinite(values).all():
            at = int(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0])
            fill = "fill the gaps as in the training data" if self.high is not None else "fill such gaps, or remove the example"
            raise DataError(f"{place}: example {at + 1} holds a number that is not finite; {fill}")
        if x.dtype.kind == "b" or not values.size:
            return values, ""
        if self.assumed:
            divisor, note = self._usual_divisor(x, place, text), ""
        else:
            divisor, note = self._divisor(values, x.dtype, place)
        if divisor != 1:
            values /= np.float32(divisor)
        return values, "; ".join(filter(None, (note, self.far(values, place))))

    def _divisor(self, x: NumpyArray, dtype: np.dtype[Any], place: str) -> tuple[float, str]:
        """Return what the values are divided by, and what should be said about it; of the training data it is the scale."""
        least, most = float(x.min()), float(x.max())
        integers = dtype.kind in "iu"
        known = None if self.high is None else float(np.abs(self.high).max())
        if self.scale == 1:
            if self.kind == "table" or not integers or self.whole or known is None:
                return 1.0, ""
            if most > (1.0 if self.kind == "images" and known <= _ABOUT_WHITE else _FAR * known):
                raise DataError(
                    f"{place}: holds whole numbers up to {most:g}; the model was trained on numbers up to {known:g}: scale "
                    f"them as the training data"
                )
            return 1.0, ""
        if self.kind == "table":
            # The numbers as published, or already divided: what is in the range of the training data.
            if known is not None and most > 1.5 * known >= most / self.scale:
                return self.scale, f"{place}: values are divided by {self.scale:g}, as for training"
            return 1.0, ""
        whole = integers or bool((x == np.rint(x)).all())
        if least < -0.05 * max(most, 1.0):
            raise DataError(
                f"{place}: holds values from {least:g} to {most:g}; the model was trained on pixels from 0 to {self.scale:g}: "
                f"give the pixels, without a preprocessing of your own"
            )
        if most <= 1 or (most <= _ABOUT_WHITE and not whole):
            taken = integers and most == 1 and self.scale > 1
            return 1.0, f"{place}: whole numbers 0 and 1 are taken as black and white" if taken else ""
        if most <= self.scale and not (integers and dtype.itemsize == 1 and self.scale > 255):
            return self.scale, ""
        if most <= 255 and whole:
            words = f"{place}: values up to {most:g} are divided by 255, as pixels of 8 bits"
            return 255.0, f"{words}; the training data had 0 to {self.scale:g}"
        raise DataError(
            f"{place}: holds values up to {most:g}; the model was trained on pixels from 0 to {self.scale:g}: scale them so "
            f"that white is {self.scale:g}, or 1"
        )

    def _usual_divisor(self, x: NumpyArray, place: str, text: bool) -> float:
        """Return the divisor where nothing is known of the training data: pixels are whole numbers up to 255."""
        most = float(x.max())
        if self.kind != "images" or most < 0:
            return 1.0
        if text:
            return self.scale if 1 < most <= 255 and bool((x == np.rint(x)).all()) else 1.0
        if x.dtype.kind not in "iu":
            return 1.0
        if most <= 255:
            return self.scale
        if x.dtype == np.uint16:
            return 65535.0
        raise DataError(f"{place}: holds whole numbers up to {most:g}; expected pixels from 0 to 255, or floats from 0 to 1")

    def without_white(self) -> str:
        """Return why the pixels of an image file have no place in the units of the training data, or "" where they have."""
        if self.low is None or self.high is None:
            return ""
        if float(self.low.min()) < 0:
            return "was trained on arrays with negative values, not on pixels"
        if self.scale == 1 and float(self.high.max()) > _ABOUT_WHITE:
            return f"was trained on arrays with values up to {float(self.high.max()):g}, which do not say what white is"
        return ""

    def far(self, x: NumpyArray, place: str, *, sure: bool = False) -> str:
        """Return a warning where values lie far outside the range of the training data, or ""; `sure`: white is known."""
        if self.low is None or self.high is None or self.low.shape != x.shape[-1:]:
            return ""
        if self.kind == "table":
            span = np.maximum(self.high - self.low, 1e-6 * np.maximum(np.abs(self.high), np.abs(self.low)))
            middle = np.median(x, axis=0)
            far = (middle > self.high + _FAR * span) | (middle < self.low - _FAR * span)
            if not far.any():
                return ""
            k = int(np.flatnonzero(far)[0])
            name = self.columns[k] if k < len(self.columns) else str(k)
            others = f" and {int(far.sum()) - 1} more columns" if far.sum() > 1 else ""
            return (
                f"{place}: column {name}{others}: values around {middle[k]:.4g}, in training {self.low[k]:.4g} to "
                f"{self.high[k]:.4g}; are they in other units?"
            )
        most, known = float(x.max()), float(self.high.max())
        dark = not sure and float(self.low.min()) >= 0 and 0 < most < _DARK * known
        if not dark and (known <= 0 or most <= _FAR * known):
            return ""
        return f"{place}: the largest value is {most:.3g}, in training {known:.3g}, both scaled; have the values another scale?"


def record_of(dataset: Dataset) -> InputRecord:
    """Return the record of a data set, read from its published files."""
    shape, x = dataset.input_shape, dataset.train[0]
    kind = "images" if len(shape) == 3 else "table"
    record = InputRecord(
        kind, shape, dataset.scale, whole=kind == "images", columns=dataset.titles, target=dataset.class_title
    )  # fmt: skip
    return record.with_training_part(x, row_hashes(x))


def default_record(shape: tuple[int, ...]) -> InputRecord:
    """Return the record for a model file that holds none: images are pixels from 0 to 255, other numbers are kept."""
    if len(shape) == 3:
        return InputRecord("images", shape, 255.0, whole=True, background=None, assumed=True)
    return InputRecord("table", shape, assumed=True)


def record_from(settings: Mapping[str, Any], arrays: Mapping[str, NumpyArray] | None = None) -> InputRecord:
    """Return a record from what :meth:`InputRecord.settings` and :meth:`InputRecord.arrays` returned.

    Raises:
        ValueError: it is none.
    """
    found = arrays or {}
    kind, shape, scale = settings["kind"], settings["shape"], settings.get("scale", 1.0)
    target_column, background = settings.get("target_column"), tuple(settings.get("background") or ())
    columns = settings.get("columns", [])
    whole_numbers = [*shape, *background, settings.get("trained_count", 0), target_column or 0]
    if (
        kind not in KINDS
        or not all(type(n) is int and 0 <= n < 2**40 for n in whole_numbers)
        or not isinstance(scale, (int, float))
        or not 0 < scale < float("inf")
        or not isinstance(columns, list)
        or (columns and [len(columns)] != list(shape))
        or len(background) not in (0, 3)
    ):
        raise ValueError("the record of its inputs is damaged")
    for name in ("low", "high"):
        if name in found and found[name].shape != tuple(shape[-1:]):
            raise ValueError(f"the record of its inputs is damaged: {name} has shape {found[name].shape}")
    hashes = found.get("trained_on")
    if hashes is not None and (hashes.dtype != np.uint64 or hashes.ndim != 1):
        raise ValueError("the record of its inputs is damaged: trained_on holds no hashes")
    return InputRecord(
        kind=kind,
        shape=tuple(shape),
        scale=float(scale),
        whole=bool(settings.get("whole", False)),
        columns=tuple(map(str, columns)),
        target=str(settings.get("target", "")),
        target_column=target_column,
        separator=str(settings.get("separator", ""))[:1],
        decimal=str(settings.get("decimal", ""))[:1],
        spread=bool(settings.get("spread", False)),
        resized=bool(settings.get("resized", False)),
        in_colour=bool(settings.get("in_colour", False)),
        by_pixels=kind != "images" or bool(settings.get("by_pixels", False)),
        background=(background[0], background[1], background[2]) if background else None,
        low=found.get("low"),
        high=found.get("high"),
        trained_on=hashes,
        trained_count=int(settings.get("trained_count", 0)),
    )
