"""Whether two Batches hold the same data in the same batches: an epoch that was cut short can be continued on such only.

Arrays are the same if they are the same memory, or have the same content; large ones are compared in some of their rows. Other
data are compared by what names them: the files of a folder, or else their kind and number. Transforms and augmentations are
compared by their names and settings: arguments of a partial, and what a class keeps of the parameters of its constructor.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Mapping
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from xpnet.backend import to_numpy
from xpnet.runtime.messages import quoted

from .arrays import Arrays, tree_leaves
from .byte_images import ByteImages
from .loader import Batches
from .sources import Examples, Stream

WHOLE = 1 << 24
"""Arrays up to this many bytes are compared as a whole."""

_ROWS = 256

_WORDS = {
    "kind": "the kind of data", "count": "examples", "batch_size": "batch_size", "seed": "seed", "shuffle": "shuffle",
    "drop_last": "drop_last", "buffer": "buffer", "weights": "weights", "transform": "the transform",
    "augment": "the augmentation", "transform_settings": "the transform", "augment_settings": "the augmentation",
    "class": "the class of Batches", "values": "the values of bytes", "shapes": "shapes", "content": "content",
}  # fmt: skip


def describe(batches: Batches) -> dict[str, Any]:
    """Return a description of data and batches, for JSON."""
    return {**_form(batches), "content": _content(batches)}


def difference(known: Batches | dict[str, Any], batches: Batches) -> str | None:
    """Return what differs between data and those of earlier, which may be a description of them; None: nothing."""
    if known is batches:
        return None
    if isinstance(known, Batches):
        # Without a digest where that is not needed: the data may be large, and those of a user may take long.
        different = _different(_form(known), _form(batches))
        if different is not None or _same_objects(known, batches):
            return different
        if isinstance(batches.source, Stream):
            return "another stream"
        ours, theirs = _content(batches), _content(known)
        return None if ours is not None and ours == theirs else "other content"
    return _different(known, describe(batches))


def _different(known: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    for name, word in _WORDS.items():
        if name in known and name in ours and known[name] != ours[name]:
            return "other content" if name == "content" else f"{word} was {quoted(known[name])}, is {quoted(ours[name])}"
    return None


def _form(batches: Batches) -> dict[str, Any]:
    """Return everything but the content."""
    source, weights = batches.source, batches._weights
    data = getattr(source, "data", None)
    kind = "arrays" if isinstance(source, Arrays) else "stream" if isinstance(source, Stream) else type(data).__name__
    return {
        "kind": kind,
        "count": None if batches.count is None else int(batches.count),
        "batch_size": None if batches.batch_size is None else int(batches.batch_size),
        "seed": batches.seed,
        "shuffle": batches.shuffle,
        "drop_last": batches.drop_last,
        "buffer": source.buffer if isinstance(source, Stream) else 0,
        "weights": None if weights is None else hashlib.blake2b(weights.tobytes(), digest_size=16).hexdigest(),
        "transform": _name(batches.transform),
        "augment": _name(batches.augment),
        "transform_settings": _settings(batches.transform),
        "augment_settings": _settings(batches.augment),
        "class": _name(type(batches)),
        "values": [_values(part) for part in _parts(batches) if isinstance(part, ByteImages)],
        "shapes": [[str(leaf.dtype), *(int(n) for n in leaf.shape)] for leaf in _leaves(batches)],
    }


def _parts(batches: Batches) -> list[Any]:
    return tree_leaves(batches.source.tree) if isinstance(batches.source, Arrays) else []


def _leaf(part: Any) -> Any:
    return part.images if isinstance(part, ByteImages) else part


def _leaves(batches: Batches) -> list[Any]:
    return [_leaf(part) for part in _parts(batches)]


def _name(function: Any) -> str | None:
    """Return what a transform or an augmentation is called."""
    while hasattr(function, "func"):
        function = function.func
    if function is None:
        return None
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _values(images: ByteImages) -> str:
    """Return a description of what ByteImages make of their bytes."""
    return f"{_name(type(images))}({', '.join(map(_settings, (images.scale, images.mean, images.std, images.dtype)))})"


def _settings(thing: Any, depth: int = 4) -> str:
    """Return a description of the settings of a transform, an augmentation, or a part of one.

    A function has none, except where it is a partial or a method. Of an object these are what it keeps of the parameters of its
    constructor, under their names: a counter is no setting.
    """
    if thing is None or isinstance(thing, (bool, int, float, str, bytes, np.generic, np.dtype)):
        return repr(thing)
    if isinstance(thing, np.ndarray):
        found = hashlib.blake2b(digest_size=16)
        _add(found, thing)
        return f"{thing.dtype} {thing.shape} {found.hexdigest()}"
    given: dict[Any, Any] = {}
    if depth and isinstance(thing, (tuple, list, functools.partial)):
        given = dict(enumerate(thing.args if isinstance(thing, functools.partial) else thing))
    if depth and isinstance(thing, (Mapping, functools.partial)):
        given |= thing if isinstance(thing, Mapping) else thing.keywords
    elif depth and isinstance(thing, MethodType):
        given = {"self": thing.__self__}
    elif depth and hasattr(thing, "__dict__") and not isinstance(thing, (type, FunctionType)):
        constructor: Any = type(thing).__init__
        names = inspect.signature(constructor).parameters if isinstance(constructor, FunctionType) else ()
        given |= {name: value for name, value in vars(thing).items() if name in names}
    named = ("" if isinstance(name, int) else f"{name}=" for name in given)
    listed = ", ".join(f"{name}{_settings(value, depth - 1)}" for name, value in zip(named, given.values()))
    return f"{'' if isinstance(thing, (tuple, list)) else _name(thing)}({listed})"


def _same_objects(a: Batches, b: Batches) -> bool:
    """Return whether both have their data from the same objects, or the same memory."""
    if isinstance(a.source, Arrays):
        ours, theirs = _leaves(a), _leaves(b)
        return len(ours) == len(theirs) and all(map(_same_memory, ours, theirs))
    if isinstance(a.source, Stream) and isinstance(b.source, Stream):
        first, second = a.given, b.given
        if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
            return all(x is y or _same_pair(x, y) for x, y in zip(first, second))
        return first is second or (callable(first) and bool(first == second))  # methods of one object are equal
    return getattr(a.source, "data", a) is getattr(b.source, "data", b)


def _same_pair(x: Any, y: Any) -> bool:
    """Return whether two batches of a list hold the same arrays."""
    ours, theirs = tree_leaves(tuple(x)), tree_leaves(tuple(y))
    return len(ours) == len(theirs) and all(map(_same_memory, ours, theirs))


def _same_memory(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        return False
    return a.__array_interface__ == b.__array_interface__


def _content(batches: Batches) -> str | None:
    """Return a digest of the examples; None where nothing tells them from others."""
    if batches.digest is None:
        batches.digest = (_digest(batches),)
    return batches.digest[0]


def _digest(batches: Batches) -> str | None:
    found = hashlib.blake2b(digest_size=16)
    data: Any = getattr(batches.source, "data", None)
    if isinstance(batches.source, Arrays):
        for leaf in _leaves(batches):
            _add(found, leaf)
    elif isinstance(batches.source, Examples) and hasattr(data, "paths"):
        for path in data.paths:  # without the folder: it may have been moved
            found.update("/".join(getattr(path, "parts", (str(path),))[-2:]).encode() + b"\0")
        if hasattr(data, "labels"):
            _add(found, np.asarray(data.labels))
    elif isinstance(batches.source, Examples) and isinstance(data, list) and all(_plain(part) for part in data[:_ROWS]):
        for i in _rows(len(data)):
            for leaf in tree_leaves(data[i]):
                _add(found, np.asarray(leaf))
    else:
        return None
    return found.hexdigest()


def _plain(example: Any) -> bool:
    return all(isinstance(leaf, (np.ndarray, np.generic, int, float)) for leaf in tree_leaves(example))


def _rows(count: int) -> list[int]:
    """Return the rows of a large array that are compared."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(_ROWS, count))}) if count else []


def _add(found: Any, array: Any) -> None:
    """Add an array, or some of its rows, to a digest."""
    itemsize = getattr(array.dtype, "itemsize", 8)
    size = int(np.prod(array.shape, dtype=np.int64)) * itemsize
    whole = size <= WHOLE and (isinstance(array, np.ndarray) or hasattr(array, "__dlpack__"))
    for part in [array] if whole else (array[i] for i in _rows(int(array.shape[0]))):
        host = np.asarray(to_numpy(part))
        found.update(repr(host.tolist()).encode() if host.dtype.hasobject else np.ascontiguousarray(host).tobytes())
