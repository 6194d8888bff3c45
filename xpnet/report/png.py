"""Small PNG images embedded in HTML, without an imaging library."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np

NumpyArray = np.ndarray[Any, Any]


def png(image: NumpyArray) -> bytes:
    """Encode an image as a PNG file.

    Args:
        image: uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).

    Raises:
        ValueError: another dtype or shape.

    Source: PNG specification, third edition.
    """
    if image.ndim == 2:
        image = image[..., None]
    kinds = {1: 0, 3: 2, 4: 6}
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in kinds or not image.size:
        raise ValueError(f"png: expected uint8 (H, W, 1, 3 or 4), got {image.dtype} {image.shape}")
    H, W, C = image.shape
    rows = np.zeros((H, 1 + W * C), np.uint8)  # every row begins with its filter type: 0, none
    rows[:, 1:] = image.reshape(H, W * C)
    header = struct.pack(">IIBBBBB", W, H, 8, kinds[C], 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def data_uri(image: NumpyArray) -> str:
    """Encode an image as a data URI for <img>."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode("ascii")


def as_bytes(images: NumpyArray, low: float | None = None, high: float | None = None) -> NumpyArray:
    """Convert images to uint8: `low` becomes black, `high` white; None: nearly the range of their values."""
    values = np.asarray(images, dtype=np.float64)
    values = np.where(np.isfinite(values), values, 0.0)
    if low is None or high is None:
        ends = np.percentile(values, (0.2, 99.8)) if values.size else (0.0, 1.0)
        low, high = float(ends[0]), float(ends[1])
    scaled = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
