"""How long training waits for its batches: ``python -m benchmarks.input_pipeline --device cuda --trace traces``.

The same images, network and seed, with the data in different places:

    on the device, bytes            ByteImages(images, device=...): selected, augmented and converted within the captured step
    on the device, floats           arrays of the device
    in memory, bytes                ByteImages(images): prefetched as bytes, augmented and converted within the captured step
    in memory, floats               NumPy arrays: prefetched
    in a file, floats               a memory-mapped file: read and prefetched
    in memory, floats, no capture   NumPy arrays, launch by launch: copied when a step needs them

For each it prints the seconds per epoch, the fraction of the time in which a step was running, the fraction of the copies that
overlapped with one, and the time that the loop waited for batches. All must end with the same loss; that is checked. On a CPU
there are fewer places, and no copies. --trace FOLDER writes a Chrome trace of each (chrome://tracing, ui.perfetto.dev).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import xpnet as xn
from xpnet.data import Batches, ByteImages
from xpnet.data.augment import Compose, Crop, Cutout, Flip

AUGMENT = Compose(Crop(4), Flip(), Cutout(8))


def network(size: int, device: str) -> xn.Sequential:
    """Return a network of three convolutions."""
    layers: list[Any] = []
    for filters in (32, 64, 128):
        layers += [xn.Conv2D(filters, 3, padding="same", activation="relu"), xn.MaxPool2D(2)]
    return xn.Sequential([*layers, xn.Flatten(), xn.Dense(10)], input_shape=(size, size, 3), device=device)


def places(images: Any, y: Any, device: str, folder: Path) -> dict[str, tuple[Any, bool]]:
    """Return x in each place, and whether to capture steps."""
    floats = ByteImages(images)[:]
    np.save(folder / "x.npy", xn.to_numpy(floats))
    mapped = np.load(folder / "x.npy", mmap_mode="r")
    found: dict[str, tuple[Any, bool]] = {}
    if device != "cpu":
        found["on the device, bytes"] = ByteImages(images, device=device), True
        found["on the device, floats"] = xn.to_device(floats, device), True
    found["in memory, bytes"] = ByteImages(images), True
    found["in memory, floats"] = floats, True
    found["in a file, floats"] = mapped, True
    if device != "cpu":
        found["in memory, floats, no capture"] = floats, False
    return found


def main() -> int:
    """Train with the data in each place, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--examples", type=int, default=0, help="default: 50,000 on a GPU, 2,000 on a CPU")
    parser.add_argument("--size", type=int, default=32, help="image side in pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=5, help="timed epochs, after one to warm up")
    parser.add_argument("--trace", type=Path, help="folder for Chrome traces of the last epoch")
    arguments = parser.parse_args()
    place = xn.backend.device(arguments.device)
    count = arguments.examples or (50_000 if place.kind == "cuda" else 2_000)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, arguments.size, arguments.size, 3), dtype=np.uint8)
    y = (images[:, 0, 0, 0] // 26).astype(np.int64)
    print(f"{count:,} images of {arguments.size} x {arguments.size}, batches of {arguments.batch}, on {place}")
    print(f"{'the data are':<32}{'s per epoch':>12}{'step runs':>11}{'copies hidden':>15}{'waited ms':>11}")
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (x, capture) in places(images, y, arguments.device, Path(folder)).items():
            model = network(arguments.size, arguments.device)
            optimizer = xn.optim.SGD(0.001, momentum=0.9)
            trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, capture=capture)
            batches = Batches((x, y), arguments.batch, augment=AUGMENT, device=arguments.device)
            times: list[float] = []

            def ended(*_: Any, times: list[float] = times) -> None:
                place.synchronize()
                times.append(time.perf_counter())

            trainer.callbacks.append(xn.training.LambdaCallback(epoch_end=ended))
            trainer.fit(batches, epochs=1 + arguments.epochs, verbose=False)
            with xn.inspect.Timeline() as line:  # separate, because recording events takes time
                history = trainer.fit(batches, epochs=2, verbose=False)
            losses[name] = history["loss"][-1]
            epoch = statistics.median(np.diff(times[: 1 + arguments.epochs]))
            waited = 1e3 * line.seconds("waiting")
            hidden = f"{line.hidden('copies'):.1%}" if line.lane("copies") else "none"
            print(f"{name:<32}{epoch:>12.3f}{line.busy():>11.1%}{hidden:>15}{waited:>11.1f}", flush=True)
            if arguments.trace is not None:
                arguments.trace.mkdir(parents=True, exist_ok=True)
                line.save(arguments.trace / f"{name.replace(', ', '-').replace(' ', '-')}.json")
    # The same examples, order, augmentation and kernels must give the same bits.
    if len(set(losses.values())) > 1:
        print(f"the losses differ: {losses}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
