"""Image folders: one folder per class, one file per image, decoded on access."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xpnet.runtime.settings import Checked

from .dataset import DataError, NumpyArray
from .image_files import ENDINGS, beside_folders, folders_within, image_files
from .image_safety import decoding
from .inputs import WHITE
from .sources import SkipExample

_DEEP = {"I;16": 65535.0, "I;16L": 65535.0, "I;16B": 65535.0, "I;16N": 65535.0, "I": 0.0, "F": 1.0}
"""Modes of pillow with more than 8 bits a pixel, and the value of white; 0: it depends on the file."""
_WHITE_IS_ZERO = 262  # a tag of TIFF files
_NEARLY_BLACK = 1 / 16


@dataclass(frozen=True)
class Pixels:
    """A decoded image.

    Attributes:
        values: (H, W, C), uint8, or where the file has more than 8 bits a pixel float32 with white at 255.
        transparent: it was composited on a background.
        frames: the file holds more than this first image.
        size: (H, W) before it was resized.
    """

    values: NumpyArray
    transparent: bool = False
    frames: bool = False
    size: tuple[int, int] = (0, 0)


def read_image(
    path: str | os.PathLike[str],
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    fit: Literal["stretch", "crop"] = "stretch",
    background: tuple[int, int, int] | None = WHITE,
) -> NumpyArray:
    """Read an image file as uint8 (H, W, C), rotated according to its EXIF data.

    Grey images with 16 bits a pixel or of floats in [0, 1] are rounded to 8 bits; :class:`ImageFolder` keeps their precision.

    Args:
        path: a PNG, JPEG, BMP, GIF, TIFF, WebP or PNM file, by what it holds and not by its name.
        channels: 1 (grey), 3 (RGB) or 4 (RGB and alpha).
        size: (H, W) to resize to (bilinear, antialiased); None: as it is.
        fit: "stretch" changes the aspect ratio, "crop" keeps it and cuts off both ends alike.
        background: the colour (R, G, B) behind transparent pixels, None to ignore transparency; with 4 channels it stays.

    Raises:
        DataError: missing, truncated or damaged, or not an image; or its values do not tell what white is (32-bit integers
            above 255, floats beyond [0, 1]). The message names the file.
    """
    values = read_pixels(path, channels=channels, size=size, fit=fit, background=background).values
    if values.dtype == np.uint8:
        return values
    if values.size and 0 < (most := float(values.max())) < 255 * _NEARLY_BLACK:
        warnings.warn(
            f"{path}: 16-bit values up to {most / 255:.1%} of white are rounded to {round(most) + 1} levels of 8 bits; "
            f"ImageFolder keeps them apart",
            RuntimeWarning,
            stacklevel=2,
        )
    return np.rint(values).astype(np.uint8)


def read_pixels(
    path: str | os.PathLike[str],
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    fit: Literal["stretch", "crop"] = "stretch",
    background: tuple[int, int, int] | None = WHITE,
) -> Pixels:
    """Read an image file with the precision that it has; arguments and errors as in :func:`read_image`."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ImportError('image files need pillow: pip install pillow, or "xpnet[plot]"') from None
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise ValueError(f"channels must be 1, 3 or 4, got {channels!r}")
    if fit not in ("stretch", "crop"):
        raise ValueError(f'fit must be "stretch" or "crop", got {fit!r}')
    transparent = False
    with decoding(path) as image:
        frames = bool(getattr(image, "is_animated", False))
        deep = image.mode in _DEEP
        upright: Any = ImageOps.exif_transpose(image)
        clear = None
        if deep:
            clear = _clear(image, upright)
            upright = Image.fromarray(_fractions(path, image, upright))
            if background is not None and clear is not None and channels != 4:
                transparent = bool(clear.any())
                behind = np.array(Image.new("RGB", (1, 1), background).convert("L"), np.float32) / np.float32(255)
                upright = Image.fromarray(np.where(clear, behind, np.asarray(upright)))
        elif channels != 4 and upright.has_transparency_data:
            upright = upright.convert("RGBA")
            if background is not None:
                transparent = upright.getextrema()[3][0] < 255
                below = Image.new("RGBA", upright.size, (*background, 255))
                upright = Image.alpha_composite(below, upright)
            upright = upright.convert(modes[channels])
        else:
            upright = upright.convert(modes[channels])
    before = (upright.size[1], upright.size[0])

    def resized(picture: Any) -> NumpyArray:
        target = picture.size if size is None else (size[1], size[0])
        if picture.size == target:
            return np.asarray(picture)
        if fit == "crop":
            return np.asarray(ImageOps.fit(picture, target, Image.Resampling.BILINEAR))
        return np.asarray(picture.resize(target, Image.Resampling.BILINEAR))

    values = resized(upright)
    if not deep:
        return Pixels(values[..., None] if channels == 1 else values, transparent, frames, before)
    grey = np.multiply(values, np.float32(255))[..., None]
    made = np.repeat(grey, channels, axis=2)
    if channels == 4:
        made[..., 3] = 255 if clear is None else 255 * resized(Image.fromarray((~clear).astype(np.float32)))
    return Pixels(made, transparent, frames, before)


def _clear(image: Any, upright: Any) -> NumpyArray | None:
    """Return which pixels of a grey image with 16 bits are transparent, (H, W), or None: its PNG file may name one value."""
    value = image.info.get("transparency")
    return np.asarray(upright) == value if isinstance(value, int) else None


def _fractions(path: str | os.PathLike[str], image: Any, upright: Any) -> NumpyArray:
    """Return a grey image with more than 8 bits a pixel as float32 (H, W) with white at 1."""
    values = np.asarray(upright).astype(np.float32)
    white = _DEEP[image.mode]
    least, most = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not white:
        # PNG and PNM files of 16 bits; where 32-bit integers hold 8 bits, white is 255.
        white = 65535.0 if image.format in ("PNG", "PPM") else 255.0
    if not (least >= 0 and most <= white):  # also NaN
        what = "floats" if image.mode == "F" else "integers"
        raise DataError(
            f"{path}: holds {what} from {least:g} to {most:g}, and does not say what white is; expected 8 or 16 bits a pixel, "
            f"or floats from 0 to 1: scale the values and save it again"
        )
    values /= np.float32(white)
    if image.format == "TIFF" and white == 65535 and image.tag_v2.get(_WHITE_IS_ZERO) == 0:
        values = 1 - values
    return values


class ImageFolder(Checked):
    """The images in `path/CLASS/NAME.png` (or .jpg, ...) with class indices: a sequence of examples for `Batches`.

    Example i is `(x, y)`: x float32 (H, W, C) in [0, 1], y the class index. Classes are the subfolders in the order of
    their names, images within a class, also in deeper folders, in the order of their paths. Hidden files and folders of
    systems and editors (`.ipynb_checkpoints`, `__MACOSX`, `._*`) and the folders of runs (`xpnet train`) are passed over,
    symbolic links are followed. Files are listed once and decoded on every access.

    Args:
        path: the folder.
        size: (H, W) to resize to; None: as they are, then all images of a batch must have one size.
        channels: 1, 3 or 4.
        fit: "stretch" or "crop", see :func:`read_image`.
        on_bad: "raise" stops at an image that cannot be read; "skip" leaves it out, with a warning.
        classes: names of the subfolders to use, in the order of their labels; None: all.
        scale: x = pixel / scale; None gives uint8.
        background: the colour (R, G, B) behind transparent pixels; None to ignore transparency.

    Attributes:
        left_out: how many files and folders were passed over, by the reason.

    Raises:
        DataError: the folder is missing, or holds no images.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        size: tuple[int, int] | None = None,
        channels: int = 3,
        fit: Literal["stretch", "crop"] = "stretch",
        on_bad: Literal["raise", "skip"] = "raise",
        classes: Sequence[str] | None = None,
        scale: float | None = 255.0,
        background: tuple[int, int, int] | None = WHITE,
    ):
        if on_bad not in ("raise", "skip"):
            raise ValueError(f'on_bad must be "raise" or "skip", got {on_bad!r}')
        root = Path(path).expanduser()
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; expected one with a subfolder for each class")
        inside, runs = folders_within(root)
        found = [p.name for p in inside]
        if classes is not None and (missing := [name for name in classes if name not in found]):
            raise DataError(f"{root} has no subfolders {', '.join(missing)}; it has {', '.join(found) or 'none'}")
        self.class_names = tuple(found if classes is None else classes)
        self.left_out: Counter[str] = beside_folders(root)[1] + runs
        self.paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self.class_names):
            files, passed = image_files(root / name)
            self.left_out += passed
            self.paths += files
            labels += [label] * len(files)
        if not self.paths:
            endings = ", ".join(ENDINGS)
            raise DataError(f"{root} holds no images: expected CLASS/NAME with one of the endings {endings}")
        self.labels = np.array(labels, np.int64)
        self.size, self.channels, self.fit, self.on_bad, self.scale = size, channels, fit, on_bad, scale
        self.background = background

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[NumpyArray, int]:
        path = self.paths[i]
        try:
            pixels = self.read(i).values
        except DataError as error:
            if self.on_bad == "skip":
                raise SkipExample(str(path), str(error).removeprefix(f"{path}: ")) from None
            raise
        if self.scale is None:
            return (pixels if pixels.dtype == np.uint8 else np.rint(pixels).astype(np.uint8)), int(self.labels[i])
        return np.divide(pixels, np.float32(self.scale), dtype=np.float32), int(self.labels[i])

    def read(self, i: int) -> Pixels:
        """Decode image i, of whatever kind, without scaling it."""
        return read_pixels(self.paths[i], channels=self.channels, size=self.size, fit=self.fit, background=self.background)

    def __repr__(self) -> str:
        return f"ImageFolder({len(self)} images in {len(self.class_names)} classes)"
