"""How an operation cuts its work: chunks that fit the caches, one per thread only where the work pays for it."""

from __future__ import annotations

from typing import TypeAlias

from xpnet.runtime.threads import chunk_count

Chunk: TypeAlias = tuple[int, int, int, int]
"""First and last image, first and last row."""

MAC_SECONDS = 2.2e-11
"""Seconds that one multiplication of a matrix product takes in one thread, about."""

PASS_SECONDS = 1.5e-10
"""Seconds an element for one call of NumPy's arithmetic, about. These two only say what is worth a second thread."""

ELEMENTWISE_CHUNK = 1 << 18
"""Elements of a chunk where only arithmetic is done.

A thread that returns from a call of NumPy waits for Python's lock if the other holds it, and is woken some ten microseconds
later. So calls of that length do not run faster on two threads; they have to be much longer, even if the chunk then
leaves the second-level cache.
"""

MIN_PARALLEL_SECONDS = 5e-4
"""Seconds of work up to which it is not cut into pieces for the threads: one thread is the faster way; see xpnet/threads.py."""


def balanced_chunk_size(N: int, images: int, seconds: float) -> int:
    """About `images` images a chunk, but the same for all chunks and a multiple of the threads in number.

    The latter where the work takes one thread more than a moment, by what its sizes say.
    """
    threads = chunk_count() if seconds > MIN_PARALLEL_SECONDS else 1
    rounds = -(-N // (images * threads))
    chunks = rounds * threads
    return -(-N // chunks)


def image_row_chunks(N: int, lines: int, line_bytes: int, wanted: int, seconds: float) -> list[Chunk]:
    """Chunks of about `wanted` bytes: several images, or some lines of one. (first, last image, first, last line)

    They are nearly equal, and at least one for each thread as long as there are enough images.
    """
    many = max(1, wanted // max(1, line_bytes))
    if many >= 2 * lines:
        images = balanced_chunk_size(N, many // lines, seconds)
        return [(n, min(n + images, N), 0, lines) for n in range(0, N, images)]
    many = -(-lines // -(-lines // min(many, lines)))
    return [(n, n + 1, r, min(r + many, lines)) for n in range(N) for r in range(0, lines, many)]
