"""Image folders: one folder per class, one file per image, decoded on access."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .dataset import DataError, NumpyArray
from .image_safety import decoding
from .sources import SkipExample

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def read_image(
    path: str | os.PathLike[str],
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    fit: Literal["stretch", "crop"] = "stretch",
) -> NumpyArray:
    """Read an image file as uint8 (H, W, C), rotated according to its EXIF data.

    Args:
        path: a PNG, JPEG, BMP, GIF, TIFF, WebP or PNM file, by what it holds and not by its name.
        channels: 1 (grey), 3 (RGB) or 4 (RGB and alpha).
        size: (H, W) to resize to (bilinear, antialiased); None: as it is.
        fit: "stretch" changes the aspect ratio, "crop" keeps it and cuts off both ends alike.

    Raises:
        DataError: missing, truncated or damaged, or not an image. The message names the file.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ImportError('image files need pillow: pip install pillow, or "xpnet[plot]"') from None
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise ValueError(f"channels must be 1, 3 or 4, got {channels!r}")
    if fit not in ("stretch", "crop"):
        raise ValueError(f'fit must be "stretch" or "crop", got {fit!r}')
    with decoding(path) as image:
        upright: Any = ImageOps.exif_transpose(image).convert(modes[channels])
    if size is not None:
        target = (size[1], size[0])
        if fit == "crop":
            upright = ImageOps.fit(upright, target, Image.Resampling.BILINEAR)
        elif upright.size != target:
            upright = upright.resize(target, Image.Resampling.BILINEAR)
    pixels = np.asarray(upright)
    return pixels[..., None] if channels == 1 else pixels


class ImageFolder:
    """The images in `path/CLASS/NAME.png` (or .jpg, ...) with class indices: a sequence of examples for `Batches`.

    Example i is `(x, y)`: x float32 (H, W, C) in [0, 1], y the class index. Classes are the subfolders in the order of
    their names, images within a class, also in deeper folders, in the order of their paths. Files are listed once and
    decoded on every access.

    Args:
        path: the folder.
        size: (H, W) to resize to; None: as they are, then all images of a batch must have one size.
        channels: 1, 3 or 4.
        fit: "stretch" or "crop", see :func:`read_image`.
        on_bad: "raise" stops at an image that cannot be read; "skip" leaves it out, with a warning.
        classes: names of the subfolders to use, in the order of their labels; None: all.
        scale: x = pixel / scale; None gives uint8.

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
    ):
        if on_bad not in ("raise", "skip"):
            raise ValueError(f'on_bad must be "raise" or "skip", got {on_bad!r}')
        root = Path(path).expanduser()
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; expected one with a subfolder for each class")
        found = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if classes is not None and (missing := [name for name in classes if name not in found]):
            raise DataError(f"{root} has no subfolders {', '.join(missing)}; it has {', '.join(found) or 'none'}")
        self.class_names = tuple(found if classes is None else classes)
        self.paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self.class_names):
            files = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
            self.paths += files
            labels += [label] * len(files)
        if not self.paths:
            endings = ", ".join(ENDINGS)
            raise DataError(f"{root} holds no images: expected CLASS/NAME with one of the endings {endings}")
        self.labels = np.array(labels, np.int64)
        self.size, self.channels, self.fit, self.on_bad, self.scale = size, channels, fit, on_bad, scale

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[NumpyArray, int]:
        path = self.paths[i]
        try:
            pixels = read_image(path, channels=self.channels, size=self.size, fit=self.fit)
        except DataError as error:
            if self.on_bad == "skip":
                raise SkipExample(str(path), str(error).removeprefix(f"{path}: ")) from None
            raise
        x = pixels if self.scale is None else np.divide(pixels, np.float32(self.scale), dtype=np.float32)
        return x, int(self.labels[i])

    def __repr__(self) -> str:
        return f"ImageFolder({len(self)} images in {len(self.class_names)} classes)"
