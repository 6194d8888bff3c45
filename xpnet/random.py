"""Counter-based random numbers: every number is a pure function of a key and a counter, the same on every backend.

The generator is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), with the bits of
``numpy.random.Philox``. A *key* comes from a seed and a path of names, so that every layer has a stream of its own and
adding a layer changes no other; a *step* selects a fresh part of the stream. The step is the only state.
"""

from __future__ import annotations

import hashlib
import math
from operator import index
from typing import Any, NamedTuple

import numpy as np

from xpnet.backend import Array, Namespace
from xpnet.runtime.messages import quoted

LANES = 4
"""16-bit lanes in one 64-bit word: a mask uses one lane for each element."""


class Key(NamedTuple):
    """A Philox key: two 64-bit words."""

    low: int
    high: int


def key(seed: int, *path: str | int) -> Key:
    """Return the key for `path` under `seed`: the seed's bits, and a hash of the path (BLAKE2b, 64 bits).

    Args:
        seed: any integer; taken modulo 2**64.
        path: names that identify the use, such as a parameter's path.
    """
    digest = hashlib.blake2b("\0".join(map(str, path)).encode(), digest_size=8).digest()
    try:
        return Key(index(seed) % 2**64, int.from_bytes(digest, "little"))
    except TypeError:
        raise TypeError(f"seed must be a whole number, got {quoted(seed)}") from None


def philox(key: Key, step: int = 0) -> np.random.Philox:
    """Return NumPy's bit generator at the beginning of part `step` of the stream of `key`.

    The counter's four words are (block, 0, step, 0); NumPy adds one to the block before it computes the first four words.
    """
    counter = np.array([0, 0, int(step), 0], dtype=np.uint64)  # a counter on a device is read
    return np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter)


def generator(key: Key, step: int = 0) -> np.random.Generator:
    """Return a NumPy Generator over :func:`philox`, for distributions drawn on the host (initial weights, shuffles)."""
    return np.random.Generator(philox(key, step))


def permutation(seed: int, epoch: int, n: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the order of `n` examples in an epoch: int64 (n,), a pure function of seed and epoch."""
    return generator(key(seed, "shuffle"), epoch).permutation(n)


def threshold(rate: float) -> int:
    """Return how many of the 65,536 values of a lane mean "drop": the rate in steps of 2**-16."""
    return round(rate * 65536)


def keep_mask(xp: Namespace, key: Key, step: int, shape: tuple[int, ...], rate: float, *, device: Any = None) -> Array:
    """Return a boolean array that is False with probability `rate`, to within 2**-17.

    Element i (in C order) is kept where 16-bit lane i % 4, lowest first, of 64-bit word i // 4 of the stream is at least
    round(rate * 65536).

    Args:
        xp: the namespace of the result.
        key: the stream.
        step: the part of the stream.
        shape: the result's shape.
        rate: the probability of False, in [0, 1].
        device: of the result, in the library's own terms; None is its current one.
    """
    count = math.prod(shape)
    words = philox(key, step).random_raw(-(-count // LANES)).astype("<u8", copy=False)
    mask = (words.view("<u2")[:count] >= threshold(rate)).reshape(shape)
    return mask if xp is np else xp.asarray(mask, device=device)
