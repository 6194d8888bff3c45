"""The overhead of the Trainer over a hand-written loop, for the MNIST ConvNet: ``python -m benchmarks.trainer_overhead``.

Both loops take the same examples in the same order and end with the same weights, bit for bit; that is checked. They alternate
batch by batch, so that other load on the machine affects both alike, and the median of the ratios is printed. The exit code is
1 if it is above the limit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import xpnet as xn
from xpnet.data import Batches

LIMIT = 1.05
BATCH = 128


def convnet(device: str) -> xn.Sequential:
    """Return the MNIST ConvNet, 34,826 parameters."""
    return xn.models.cnn((28, 28, 1), 10, 0, device)


def tiny(device: str) -> xn.Sequential:
    """Return a network so small that the time of the loop remains."""
    return xn.Sequential([xn.Flatten(), xn.Dense(2)], input_shape=(2, 2, 1), device=device)


def by_hand(x: Any, y: Any, net: xn.Sequential, epochs: int, size: int) -> Iterator[None]:
    """Train in a hand-written loop; yield after every batch."""
    optimizer = xn.optim.Adam(0.001)
    net.train()
    for epoch in range(epochs):
        order = xn.random.permutation(0, epoch, len(x))
        for start in range(0, len(x), size):
            batch = order[start : start + size]
            loss = xn.losses.softmax_cross_entropy(net(x[batch]), y[batch])
            loss.backward()
            optimizer.step(net)
            yield


class Stepwise(xn.Callback):
    """Time every batch of `fit`, and let the other loop do one in between."""

    def __init__(self, turn: Callable[[], None]) -> None:
        self.turn = turn
        self.times: list[float] = []
        self._start = 0.0

    def on_fit_begin(self, trainer: xn.Trainer) -> None:
        self._start = time.perf_counter()

    def on_checkpoint(self, trainer: xn.Trainer, epoch_ended: bool) -> None:
        if epoch_ended:  # the cost of the epoch's end counts for the next batch
            return
        now = time.perf_counter()
        self.times.append(now - self._start)
        self.turn()  # the other loop's batch
        self._start = time.perf_counter()


def measure(
    make: Callable[[str], xn.Sequential], batches: int, size: int, device: str, metrics: list[str]
) -> tuple[list[float], list[float]]:
    """Return the seconds of each batch: (hand-written loop, Trainer)."""
    rng = np.random.default_rng(0)
    one, other = make(device), make(device)
    assert one.input_shape is not None
    x = xn.to_device(rng.random((50 * size, *one.input_shape), dtype=np.float32), device)
    y = xn.to_device(rng.integers(0, 2, 50 * size), device)
    epochs = -(-batches // 50)
    hand = by_hand(x, y, one, epochs, size)
    times: list[float] = []

    def turn() -> None:
        start = time.perf_counter()
        next(hand, None)
        one.context.device.synchronize()
        times.append(time.perf_counter() - start)

    watch = Stepwise(turn)
    trainer = xn.Trainer(
        other, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.001), metrics=metrics, callbacks=[watch], capture=False
    )
    trainer.fit(Batches((x, y), size, seed=0), epochs=epochs, verbose=False)
    next(hand, None)
    if not np.array_equal(xn.to_numpy(one.flat_parameters.values), xn.to_numpy(other.flat_parameters.values)):
        raise RuntimeError("the two loops ended with different weights")
    return times[3:], watch.times[3:]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    worst = 0.0
    for metrics in ([], ["accuracy"]):
        hand, ours = measure(convnet, arguments.batches, BATCH, arguments.device, metrics)
        # The median over pairs of neighbouring batches is robust against slow spells of the machine.
        ratio = statistics.median(b / a for a, b in zip(hand, ours))
        what = "with accuracy" if metrics else "loss alone"
        print(
            f"{what:<14} by hand {1e3 * statistics.median(hand):7.2f} ms per batch, Trainer "
            f"{1e3 * statistics.median(ours):7.2f} ms: median of the pairs' ratios {ratio:.3f} ({len(hand)} batches of {BATCH})"
        )
        if not metrics:
            worst = ratio
    hand, ours = measure(tiny, 2000, 1, arguments.device, [])
    print(f"the Trainer's own time: {1e6 * (statistics.median(ours) - statistics.median(hand)):.0f} us per batch")
    if worst > LIMIT:
        print(f"the Trainer costs more than {LIMIT - 1:.0%} over the loop by hand")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
