"""Train on a data set larger than memory: ``python -m benchmarks.large_data``.

The file holds 4 GB but is sparse on the disk; reading it costs memory like any other file. Trains one shuffled epoch and prints
the peak memory of the process; the exit code is 1 if that is above the limit.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import xpnet as xn
from xpnet.data import Batches

SHAPE = (32, 32, 3)


def peak() -> float:
    """Return the peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> int:
    """Write the file, train, and print the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--limit", type=float, default=1.0, help="gigabytes of memory")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    count = int(arguments.gigabytes * 1e9) // (4 * int(np.prod(SHAPE)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, *SHAPE))
        made[:: max(1, count // 1000)] = 0.5  # a few examples that are not 0
        made.flush()
        del made
        x = np.load(path, mmap_mode="r")
        y = np.arange(count) % 10
        model = xn.Sequential([xn.AveragePool2D(4), xn.Flatten(), xn.Dense(10)], input_shape=SHAPE)
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.01), metrics=["accuracy"])
        before = peak()
        start = time.perf_counter()
        trainer.fit(Batches((x, y), 256, workers=arguments.workers), epochs=1, verbose=False)
        seconds = time.perf_counter() - start
        size = path.stat().st_size / 1e9
    found = peak()
    print(
        f"{count:,} examples, {size:.2f} GB: one epoch in {seconds:.0f} s ({size / seconds:.2f} GB/s); memory {before:.2f} GB "
        f"before, {found:.2f} GB at most"
    )
    return 1 if found > arguments.limit else 0


if __name__ == "__main__":
    raise SystemExit(main())
