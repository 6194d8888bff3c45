"""The forms of data that a Trainer takes, all turned into Batches; and batches of several inputs or outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Integral
from os import PathLike
from typing import TYPE_CHECKING, Any

from xpnet.autograd.tape import no_grad
from xpnet.backend import to_device
from xpnet.layers.execution import expect_examples
from xpnet.layers.modes import eval_mode, states_of_its_own
from xpnet.layers.module import Module
from xpnet.runtime.given import as_pair, listed
from xpnet.runtime.messages import quoted

if TYPE_CHECKING:
    from xpnet.data import Batches

Data = Any


BATCH_SIZE = 32
"""Of data that are given without one."""


def refuse_unused(who: str, given: Data, made: Batches, batch_size: int | None, shuffle: bool | None, elsewhere: bool) -> None:
    """Raise a ValueError for a batch size or an order that cannot count: for data that bring their own.

    Args:
        who: what takes the data, for messages.
        given, made: the data, and the Batches of them.
        batch_size, shuffle: as given, None: not at all.
        elsewhere: whether other data use the batch size (those of the validation).
    """
    theirs = getattr(given, "batch_size", None) or batch_size  # that of a list or a generator is not known
    if batch_size is not None and batch_size != theirs and not elsewhere:
        raise ValueError(
            f"{who}: batch_size={batch_size} would do nothing, as the data are {type(given).__name__}, which come in batches "
            f"of their own of {theirs}; leave it out, or give the arrays themselves"
        )
    if shuffle is not None and (shuffle != made.shuffle if made is given else shuffle):
        raise ValueError(
            f"{who}: shuffle={shuffle} would do nothing, as the data are {type(given).__name__}, which have an order of their "
            f"own; leave it out, and choose the order where they are made"
        )


def as_batches(data: Data, model: Module, batch_size: int | None, shuffle: bool | None, seed: int, who: str = "fit") -> Batches:
    """Return `data` as Batches on the model's device.

    Args:
        data: a pair (x, y) of arrays, Batches, a sequence of examples, an iterable of batches (x, y), or a function that
            returns one. Tables and labelled arrays (of pandas and others) count as arrays, by position.
        model: determines the device, and what an example may be.
        batch_size, shuffle, seed: of the Batches to make; None means BATCH_SIZE, and True.
        who: what takes the data, for messages.

    Raises:
        ValueError: `data` is neither a pair (x, y) of equal, positive length, nor Batches, nor an iterable of batches; or x is
            one example, without an axis of examples.
        TypeError: something that cannot be converted; x is a tuple or a dict, and the model takes one array.
    """
    from xpnet.data import Batches, Dataset  # importing xpnet does not import the data
    from xpnet.data.arrays import Arrays, adopted_tree, have_examples, tree_leaves
    from xpnet.data.sources import opened

    batch_size = BATCH_SIZE if batch_size is None else batch_size
    shuffle = True if shuffle is None else shuffle
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 and whole, got {quoted(batch_size)}")
    if isinstance(data, Batches):
        if data.drop_last and data.count is not None and data.batch_size is not None and 0 < data.count < data.batch_size:
            raise ValueError(
                f"drop_last=True leaves no batch of {data.count} examples with batch_size={data.batch_size}; use smaller "
                f"batches, or drop_last=False"
            )
        if isinstance(data.source, Arrays) and data.transform is None:
            expect_examples(who, model, as_pair(data.source.tree)[0])
        return data
    device = model.context.device
    if isinstance(data, Dataset):
        raise ValueError("data must be (x, y), got a Dataset; give one of its parts: dataset.train or dataset.test")
    if isinstance(data, (str, bytes, PathLike, Mapping)):
        raise ValueError(f"{who}: data must be (x, y), got {_named(data)}")
    if not isinstance(data, (tuple, list)):
        data = adopted_tree(data, who)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "__iter__"):
        return Batches(data, batch_size, shuffle=shuffle, seed=seed, device=device)  # such as an ImageFolder
    if not isinstance(data, (tuple, list)) or (isinstance(data, list) and data and isinstance(data[0], (tuple, list))):
        if not (hasattr(data, "__iter__") or callable(data)) or hasattr(data, "shape"):
            raise ValueError(f"{who}: data must be (x, y), Batches or an iterable of batches (x, y), got {quoted(data)}")
        made = Batches(lambda epoch: _pairs(opened(data, epoch), model, who), None, seed=seed, device=device)
        made.given = data
        return made
    tree = adopted_tree(tuple(data), who)
    parts = tree_leaves(tree)
    if len(tree) != 2 or not have_examples(parts):
        raise ValueError(
            f"{who}: data must be a pair (x, y) of two arrays with an axis of examples first, got ({listed(data)}); "
            f"convert lists with numpy.asarray"
            + (", and give several inputs as a tuple: ((a, b), y)" if isinstance(data[0], list) else "")
        )
    n, m = parts[0].shape[0], parts[-1].shape[0]
    if n != m or n == 0:
        two = all(isinstance(part, tuple) and len(part) == 2 for part in tree)
        hint = ": are these two parts, as from data.split? give fit the first, and the second as validation" if two else ""
        raise ValueError(f"{who}: x holds {n} examples and y {m}; they must be equal and at least 1{hint}")
    expect_examples(who, model, tree[0])
    return Batches(tree, batch_size, shuffle=shuffle, seed=seed, device=device)


def _named(data: Any) -> str:
    """Return what came instead of a pair, and what to do."""
    if isinstance(data, Mapping):
        names = [str(name) for name in data]
        x, y = ("data", "target") if {"data", "target"} <= set(names) else [*names, "x", "y"][:2]
        return f"a {type(data).__name__} with {', '.join(names[:8])}; give a tuple, such as (data[{x!r}], data[{y!r}])"
    return f"{quoted(data)}; read a file first, for example with numpy.load, or a folder of images with xn.data.ImageFolder"


def _pairs(batches: Any, model: Module, who: str) -> Iterator[tuple[Any, Any]]:
    """Yield the batches of a stream, each as a tuple (x, y): a DataLoader of PyTorch gives lists.

    Raises:
        ValueError: one is no pair; the first one holds single examples, as those of zip(x, y) do.
    """
    from xpnet.data.arrays import adopted_tree

    first = True
    for batch in batches:
        x, y = adopted_tree(as_pair(batch), who)
        if first:
            _expect_batch(x, y, model, who)
            first = False
        yield x, y


def _expect_batch(x: Any, y: Any, model: Module, who: str) -> None:
    """Raise an error unless x and y have a common axis of examples."""
    from xpnet.data.arrays import tree_leaves

    given, target = tree_leaves(x)[0], tree_leaves(y)[0]
    counts = [len(part) if hasattr(part, "__len__") and getattr(part, "shape", True) else 0 for part in (given, target)]
    if target is not None and (not all(counts) or counts[0] != counts[1]):
        raise ValueError(
            f"{who}: the first batch is ({listed((x, y))}), expected x (N, ...) and y (N, ...) with the same N, at least 1; "
            f"single examples, as from zip(x, y), are no batches: give the arrays themselves, (x, y), or "
            f"Batches(list_of_examples, batch_size)"
        )
    expect_examples(who, model, x)


def no_batches(where: str) -> str:
    """Return the message for data without a batch."""
    return (
        f"the data gave no batch in {where}; a generator can be run through only once: pass a function that returns one, a "
        f"list of batches, or arrays (x, y)"
    )


def build(model: Module, batches: Batches) -> None:
    """Let layers that wait for the shape of their input make their parameters, before these are looked at or loaded.

    A stream is left alone: its first batch could be lost.
    """
    from xpnet.data.arrays import tree_map
    from xpnet.data.sources import Stream

    if isinstance(batches.source, Stream) or model._is_built():
        return
    device = model.context.device
    x = tree_map(lambda leaf: to_device(leaf, device), as_pair(next(iter(batches.epoch(0))))[0])
    with no_grad(), eval_mode(model), states_of_its_own(model):
        model(*x) if isinstance(x, tuple) else model(x)
