"""The forms of data that a Trainer takes, all turned into Batches; and batches of several inputs or outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from xpnet.layers.module import Module

if TYPE_CHECKING:
    from xpnet.data import Batches

Data = Any


def as_batches(data: Data, model: Module, batch_size: int, shuffle: bool, seed: int) -> Batches:
    """Return `data` as Batches on the model's device.

    Args:
        data: a pair (x, y) of arrays, Batches, a sequence of examples, an iterable of batches (x, y), or a function that
            returns one.
        model: determines the device.
        batch_size, shuffle, seed: of the Batches to make.

    Raises:
        ValueError: `data` is neither a pair (x, y) of equal, positive length, nor Batches, nor an iterable of batches.
    """
    from xpnet.data import Batches, Dataset  # importing xpnet does not import the data
    from xpnet.data.arrays import tree_leaves

    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 and whole, got {batch_size!r}")
    if isinstance(data, Batches):
        if data.drop_last and data.count is not None and data.batch_size is not None and 0 < data.count < data.batch_size:
            raise ValueError(
                f"drop_last=True leaves no batch of {data.count} examples with batch_size={data.batch_size}; use smaller "
                f"batches, or drop_last=False"
            )
        return data
    device = model.context.device
    if isinstance(data, Dataset):
        raise ValueError("data must be (x, y), got a Dataset; give one of its parts: dataset.train or dataset.test")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "__iter__"):
        return Batches(data, batch_size, shuffle=shuffle, seed=seed, device=device)  # such as an ImageFolder
    if not isinstance(data, (tuple, list)) or (isinstance(data, list) and data and isinstance(data[0], (tuple, list))):
        if not (hasattr(data, "__iter__") or callable(data)) or hasattr(data, "shape"):
            raise ValueError(f"data must be (x, y), Batches or an iterable of batches (x, y), got {type(data).__name__}")
        made = Batches(lambda: _pairs(data() if callable(data) else data), None, seed=seed, device=device)
        made.given = data
        return made
    parts = tree_leaves(tuple(data))
    if len(data) != 2 or not all(hasattr(part, "shape") and len(part.shape) for part in parts):
        raise ValueError(
            f"data must be a pair (x, y) of two arrays with an axis of examples first, got ({kinds(data)}); convert lists "
            f"with numpy.asarray"
        )
    n, m = parts[0].shape[0], parts[-1].shape[0]
    if n != m or n == 0:
        raise ValueError(f"x holds {n} examples and y {m}; they must be equal and at least 1")
    return Batches(tuple(data), batch_size, shuffle=shuffle, seed=seed, device=device)


def _pairs(batches: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the batches of a stream, each as a tuple (x, y): a DataLoader of PyTorch gives lists."""
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            what = f"({kinds(batch)})" if isinstance(batch, (tuple, list)) else kinds([batch])
            raise ValueError(f"each batch of the data must be a pair (x, y), got {what}")
        yield batch[0], batch[1]


def kinds(parts: Sequence[Any]) -> str:
    """Return the types and shapes of some values, for a message."""
    return ", ".join(f"{type(p).__name__}{f' {tuple(p.shape)}' if hasattr(p, 'shape') else ''}" for p in parts[:4])


def no_batches(where: str) -> str:
    """Return the message for data without a batch."""
    return (
        f"the data gave no batch in {where}; a generator can be run through only once: pass a function that returns one, a "
        f"list of batches, or arrays (x, y)"
    )
