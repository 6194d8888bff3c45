"""Chunk sizes: small enough for the caches, and at least one chunk a thread where the work pays for several threads."""

from __future__ import annotations

from typing import TypeAlias

from xpnet.runtime.threads import chunk_count

Chunk: TypeAlias = tuple[int, int, int, int]
"""First and last image, first and last row."""

MAC_SECONDS = 2.2e-11
"""Approximate seconds for one multiply-add of a matrix product on one thread."""

PASS_SECONDS = 1.5e-10
"""Approximate seconds an element for one elementwise NumPy call. Both only decide what is worth a second thread."""

ELEMENTWISE_CHUNK = 1 << 18
"""Elements of a chunk with elementwise work only.

A thread that returns from a NumPy call waits for the GIL if another thread holds it, and wakes some ten microseconds later.
Calls that short gain nothing from a second thread; they have to be much longer, even if the chunk leaves the L2 cache.
"""

MIN_PARALLEL_SECONDS = 5e-4
"""Estimated seconds up to which work is not split for the threads: one thread is faster; see xpnet/runtime/threads.py."""


def balanced_chunk_size(N: int, images: int, seconds: float) -> int:
    """Return a chunk size of about `images`, equal for all chunks.

    If the work is estimated to take more than `MIN_PARALLEL_SECONDS`, the number of chunks is a multiple of the threads.
    """
    threads = chunk_count() if seconds > MIN_PARALLEL_SECONDS else 1
    rounds = -(-N // (images * threads))
    return -(-N // (rounds * threads))


def image_row_chunks(N: int, rows: int, row_size: int, chunk_size: int, seconds: float) -> list[Chunk]:
    """Split N images of `rows` rows into nearly equal chunks of about `chunk_size`: several images, or rows of one.

    The sizes are in bytes, or in any other unit. There is at least one chunk a thread if there are enough images.
    """
    size = max(1, chunk_size // max(1, row_size))
    if size >= 2 * rows:
        images = balanced_chunk_size(N, size // rows, seconds)
        return [(n, min(n + images, N), 0, rows) for n in range(0, N, images)]
    size = -(-rows // -(-rows // min(size, rows)))
    return [(n, n + 1, r, min(r + size, rows)) for n in range(N) for r in range(0, rows, size)]
