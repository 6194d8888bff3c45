"""Opening image files that may be damaged or hostile: known formats only, no more memory than a file can fill, one error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .dataset import DataError, check_regular

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM")
"""What pillow may take a file for, whatever its name: others would start a program (EPS: Ghostscript), read files that they
name, or are no pictures."""

LARGEST = 1 << 25
"""Pixels. A file that announces more has to be as large as so many pixels make it."""
_PIXELS_A_BYTE = 200  # of one colour they compress better; such a picture of more than `LARGEST` pixels is a decompression bomb


@contextlib.contextmanager
def decoding(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open an image with pillow for a `with` block that decodes it.

    Raises:
        DataError: missing, truncated or damaged, not an image of one of the `FORMATS`, or a decompression bomb. Whatever pillow
            raises on damaged bytes within the block, too. The message names the file.
        ImportError: pillow is missing.
    """
    from PIL import Image, UnidentifiedImageError

    check_regular(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            length = Path(path).stat().st_size
            if width * height > max(LARGEST, _PIXELS_A_BYTE * length):
                raise DataError(
                    f"{path}: announces {width:,} x {height:,} pixels in {length:,} bytes: damaged, or a decompression bomb; "
                    f"if it is a picture, save it smaller"
                )
            yield image
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a readable image: damaged, or none of {', '.join(FORMATS)}") from None
    except MemoryError:
        raise DataError(f"{path}: not a readable image: it would not fit into memory") from None
    except Exception as error:  # pillow raises SyntaxError for a damaged PNG, and whatever happens to fail for other formats
        raise DataError(f"{path}: not a readable image: {error or type(error).__name__}") from error
