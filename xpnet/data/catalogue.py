"""`load`: data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable

from xpnet.runtime.messages import quoted
from xpnet.runtime.settings import checked

from . import published, small
from .dataset import DataError, Dataset

_SHIPPED: dict[str, Callable[[], Dataset]] = {"iris": small.iris, "digits": small.digits}
_PUBLISHED = {spec.name: spec for spec in (*published.MNIST_LIKE, *published.CIFARS)}


def names() -> tuple[str, ...]:
    """Return the names that :func:`load` knows."""
    return (*_SHIPPED, *_PUBLISHED)


def shipped() -> tuple[str, ...]:
    """Return the names of the data sets in the package, which need no files."""
    return tuple(_SHIPPED)


@checked
def load(name: str, path: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set, split into a training and a test part.

    * "iris": 120 training and 30 test examples of 4 lengths, in units of 10 cm; in the package.
    * "digits": 1,438 and 359 images (8, 8, 1), the UCI optical digits, grey values / 16; in the package.
    * "mnist", "fashion-mnist": 60,000 and 10,000 images (28, 28, 1); four IDX files, md5 sums checked.
    * "cifar10", "cifar100" (the fine labels): 50,000 and 10,000 images (32, 32, 3); the binary version. The
      md5 sum of the archive is checked; of loose files, whose sums are unpublished, size and labels.

    Args:
        name: one of the above.
        path: a folder that holds the published files, or a folder of that data set's name which does. None:
            the folder in $XPNET_DATA, then the cache, then a download (see :mod:`xpnet.data.files` for the
            settings). The data sets in the package need no files and ignore `path`.

    Returns:
        A :class:`Dataset`: `.train` and `.test` are `(x, y)`, x float32 in [0, 1], y int64.

    Raises:
        DataError: unknown name; files missing, damaged or other than the published ones. The message names the file
            and the folder it belongs in.
    """
    if name in _SHIPPED:
        return _SHIPPED[name]()
    if name in _PUBLISHED:
        return _PUBLISHED[name].load(path)
    import difflib

    close = difflib.get_close_matches(str(name).lower().replace("_", "-"), names(), 1)
    hint = f'; did you mean "{close[0]}"?' if close else ""
    raise DataError(f"unknown data set {quoted(name)}: expected one of {', '.join(names())}{hint}")
