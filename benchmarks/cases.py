"""The cases to measure, with the same names for every library."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import nets
from benchmarks.nets import Layer, Shape, trace

# Small, because no network may diverge in thousands of steps on the same batch.
LEARNING_RATE, MOMENTUM = 1e-3, 0.9
LOSS_SCALE = 256.0  # initial, in float16: no library may skip updates while results are compared
PREDICT_BATCH = 256
CLASSES = 10
PASSES = {"conv-fprop": "fprop", "conv-dgrad": "dgrad", "conv-wgrad": "wgrad"}
"""The kinds that are a single pass of a convolution: fprop (output), dgrad (gradient of the images), wgrad (of the kernel)."""
HALF = ("float16", "bfloat16")
REPEAT = 8
"""On a GPU so many passes of a convolution form one CUDA graph: the kernel is timed, not its launch."""


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: unique; used in tables, plots and the baseline.
        kind: "step" (forward, loss, backward, SGD with momentum), "layer" (forward, backward to input and weights),
            "forward", "predict" (evaluation mode, in batches of 256), "data" (one shuffled epoch of mini-batches),
            "import" (a fresh interpreter that imports the library), "first_step" (and makes its first training step), or one
            of PASSES.
        net: see nets.py.
        batch: examples.
        shape: of one example.
        group: heading in the tables.
        sweep: (what is varied, its value), for plots of cost against size.
    """

    name: str
    kind: str
    net: list[Layer] = field(hash=False)
    batch: int
    shape: Shape
    group: str
    sweep: tuple[str, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Case:
        values = {**values, "shape": tuple(values["shape"])}
        if values["sweep"]:
            values["sweep"] = tuple(values["sweep"])
        return Case(**values)

    @property
    def is_loss(self) -> bool:
        """Whether the case is a loss alone, whose inputs are logits and labels."""
        return self.net[-1]["kind"] == "softmax_cross_entropy"

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self.shape[-1] if self.is_loss else CLASSES

    def products(self) -> list[tuple[int, int, int]]:
        """Return every matrix product (m, k, n) that the case requires, forward and backward."""
        forward = [(m * self.batch, k, n) for m, k, n in trace(self.net, self.shape).products]
        if self.kind in PASSES:
            return [self._product_of_pass(*product) for product in forward]
        if self.kind in ("forward", "predict"):
            return forward
        if self.kind not in ("step", "layer"):
            return []
        # dW = x^T dy (k, m) (m, n); dx = dy W^T (m, n) (n, k). A training step needs no gradient of its input.
        weight_gradients = [(k, m, n) for m, k, n in forward]
        data_gradients = [(m, n, k) for m, k, n in forward[0 if self.kind == "layer" else 1 :]]
        return forward + weight_gradients + data_gradients

    def _product_of_pass(self, m: int, k: int, n: int) -> tuple[int, int, int]:
        """Return the product of one pass of a convolution whose forward pass is (m, k) (k, n), as in an implicit GEMM.

        The gradient of the images has one row per pixel and the columns of dy; at stride s one tap in s * s counts.
        """
        if self.kind == "conv-fprop":
            return m, k, n
        if self.kind == "conv-wgrad":
            return k, m, n
        pixels, C = self.batch * math.prod(self.shape[:-1]), self.shape[-1]
        return pixels, max(m * k * n // (pixels * C), 1), C

    def floating_point_operations(self) -> int:
        """Count the operations of the products, two per multiply-add."""
        return sum(2 * m * k * n for m, k, n in self.products())

    def bytes_moved(self) -> int | None:
        """Return the least possible memory traffic in bytes; None for whole networks.

        Forward reads x and writes y; backward reads dy (and x, where the gradient needs it) and writes dx.
        """
        if self.kind == "data":
            return 2 * nets.FLOAT * self.batch * math.prod(self.shape)
        if len(self.net) != 1 or self.kind not in ("layer", "forward"):
            return None
        found = trace(self.net, self.shape)
        x, y = math.prod(self.shape) * self.batch, math.prod(found.output_shape) * self.batch
        weights = sum(math.prod(w.shape) for w in found.weights)
        if self.kind == "forward":
            return nets.FLOAT * (x + y + weights)
        return nets.FLOAT * (x + y + (y + x + x) + 3 * weights)


def cases_for(device: str, precision: str, *, quick: bool = False, everything: bool = False) -> list[Case]:
    """Return the cases of a comparison on a device.

    On a CPU all cases. On a GPU training steps, prediction and single passes of convolutions, in half precision those that
    gain from it; or `everything` except start-up and data loading, which belong to the CPU.
    """
    if device == "cpu":
        return all_cases(quick)
    if quick:
        return [c for c in every_case() if c.name in QUICK_GPU and (precision not in HALF or c.kind in PASSES)]
    if everything:
        on_cpu = ("import", "first_step", "data")
        return [*steps(), *gpu_steps(), *passes(), *(c for c in all_cases() if c.kind not in on_cpu and c not in [*steps()])]
    if precision in HALF:
        return [*(c for c in gpu_steps() if "vgg" in c.name), *passes()]
    return [*steps(), *gpu_steps(), *predictions(), *passes()]


def every_case() -> list[Case]:
    """Return every case of every device, without the memory cases."""
    return [*all_cases(), *gpu_steps(), *passes()]


def all_cases(quick: bool = False) -> list[Case]:
    """Return every case of a CPU; the quick ones are training steps, a few layers and latency."""
    if quick:
        return [c for c in [*steps(), *layers(), *predictions()] if c.name in QUICK]
    return [*steps(), *layers(), *predictions(), *loading(), *starting(), *sweeps()]


QUICK = {
    "step mlp [784,30,10] batch 10",
    "step mlp [784,128,10] batch 64",
    "step mlp [784,512,512,10] batch 128",
    "step mnist convnet batch 128",
    "layer conv (64,16,128,128,3)",
    "layer max_pool 2/2 (128,28,32)",
    "layer softmax_cross_entropy 128x10",
    "layer batch_norm (64,32,64)",
    "predict mnist convnet 1",
}
QUICK_GPU = {
    "step mlp [784,128,10] batch 64",
    "step mnist convnet batch 128",
    "step resnet-20 batch 128",
    "conv fprop (64,16,128,128,3)",
    "conv dgrad (64,16,128,128,3)",
    "conv wgrad (64,16,128,128,3)",
}


def _images(name: str, net: list[Layer], batch: int, shape: Shape) -> Case:
    return Case(f"step {name} batch {batch}", "step", net, batch, shape, "Training steps")


def steps() -> Iterator[Case]:
    """Yield whole training steps."""

    def mlp(*units: int, batch: int) -> Case:
        name = f"step mlp [{','.join(map(str, units))}] batch {batch}"
        return Case(name, "step", nets.mlp(*units[1:]), batch, units[:1], "Training steps")

    yield mlp(784, 30, 10, batch=10)
    yield mlp(784, 128, 10, batch=64)
    yield mlp(784, 512, 512, 10, batch=128)
    yield Case("step logistic regression batch 64", "step", nets.mlp(10), 64, (784,), "Training steps")
    yield _images("mnist convnet", nets.convnet(), 128, (28, 28, 1))
    yield _images("lenet-5", nets.lenet5(), 64, (28, 28, 1))
    yield _images("cifar vgg", nets.vgg(), 64, (32, 32, 3))
    yield _images("resnet-20", nets.resnet20(), 128, (32, 32, 3))


def gpu_steps() -> Iterator[Case]:
    """Yield training steps with further batch sizes, which fill a GPU."""
    for batch in (64, 256, 512):
        yield _images("mnist convnet", nets.convnet(), batch, (28, 28, 1))
    for batch in (128, 256, 512):
        yield _images("lenet-5", nets.lenet5(), batch, (28, 28, 1))
    for batch in (128, 256, 512):
        yield _images("cifar vgg", nets.vgg(), batch, (32, 32, 3))


# (label, (N, H = W, C, O, K), settings); the defaults are stride 1 and padding "same".
CONVOLUTIONS: list[tuple[str, tuple[int, int, int, int, int], dict[str, Any]]] = [
    ("", (128, 28, 1, 32, 3), {}),
    ("", (128, 28, 32, 64, 3), {}),
    ("", (64, 32, 3, 32, 5), {}),
    ("", (64, 32, 64, 64, 3), {}),
    ("", (64, 16, 128, 128, 3), {}),
    ("", (64, 8, 256, 256, 3), {}),
    ("", (32, 56, 64, 64, 3), {}),
    ("", (128, 14, 64, 128, 5), {}),
    ("stride 2 ", (64, 32, 64, 128, 3), {"stride": 2}),
    ("dilation 2 ", (64, 32, 64, 64, 3), {"dilation": 2}),
    ("depthwise ", (64, 32, 128, 128, 3), {"groups": 128}),
    ("1x1 ", (64, 32, 64, 128, 1), {}),
]


def passes() -> Iterator[Case]:
    """Yield single passes of convolutions, without bias."""
    for label, (N, H, C, O, K), settings in CONVOLUTIONS:
        for kind, which in PASSES.items():
            net = [nets.conv(O, K, bias=False, **settings)]
            yield Case(f"conv {which} {label}({N},{H},{C},{O},{K})", kind, net, N, (H, H, C), "Convolution kernels")


def layers() -> Iterator[Case]:
    """Yield single layers, forward and backward, and convolutions also forward alone."""
    for kind in ("layer", "forward"):
        for label, (N, H, C, O, K), settings in CONVOLUTIONS:
            net = [nets.conv(O, K, **settings)]
            name = f"{kind} {label}conv ({N},{H},{C},{O},{K})"
            yield Case(name, kind, net, N, (H, H, C), "Convolutions" if kind == "layer" else "Convolutions, forward alone")

    def layer(name: str, layer: Layer, batch: int, shape: Shape) -> Case:
        return Case(f"layer {name}", "layer", [layer], batch, shape, "Other layers")

    yield layer("max_pool 2/2 (128,28,32)", nets.max_pool(2), 128, (28, 28, 32))
    yield layer("max_pool 3/2 (64,32,64)", nets.max_pool(3, 2, 1), 64, (32, 32, 64))
    yield layer("average_pool 2/2 (64,32,64)", nets.average_pool(2), 64, (32, 32, 64))
    yield layer("softmax_cross_entropy 128x10", nets.softmax_cross_entropy(), 128, (10,))
    yield layer("softmax_cross_entropy 4096x32000", nets.softmax_cross_entropy(), 4096, (32000,))
    yield layer("batch_norm (64,32,64)", nets.batch_norm(), 64, (32, 32, 64))
    yield layer("relu (64,32,64)", nets.relu(), 64, (32, 32, 64))
    yield layer("dense (128,512,512)", nets.dense(512), 128, (512,))
    yield layer("lstm batch 32, 64 steps, 128 units", nets.lstm(128), 32, (64, 128))


def predictions() -> Iterator[Case]:
    """Yield predictions of one example and of many."""
    net, shape = nets.convnet(), (28, 28, 1)
    yield Case("predict mlp [784,128,10] 1", "predict", nets.mlp(128, 10), 1, (784,), "Prediction")
    yield Case("predict mnist convnet 1", "predict", net, 1, shape, "Prediction")
    yield Case("predict mnist convnet 10000", "predict", net, 10_000, shape, "Prediction")


def loading() -> Iterator[Case]:
    """Yield an epoch of shuffled mini-batches of 64 from arrays, without a model."""
    yield Case("data 20000 images, batches of 64", "data", [nets.flatten()], 20_000, (28, 28, 1), "Data and start-up")


def starting() -> Iterator[Case]:
    """Yield start-up cases in fresh interpreters."""
    yield Case("start import", "import", nets.mlp(30, 10), 10, (784,), "Data and start-up")
    yield Case("start first step, after import", "first_step", nets.mlp(30, 10), 10, (784,), "Data and start-up")


def sweeps() -> Iterator[Case]:
    """Yield cases that vary one size at a time."""

    def sweep(what: str, value: int, kind: str, net: list[Layer], batch: int, shape: Shape) -> Case:
        return Case(f"sweep {what} {value}", kind, net, batch, shape, "Sweeps", (what, value))

    for batch in (1, 4, 16, 64, 256, 1024):
        yield sweep("mlp batch size", batch, "step", nets.mlp(128, 10), batch, (784,))
    for batch in (1, 4, 16, 64, 256):
        yield sweep("convnet batch size", batch, "step", nets.convnet(), batch, (28, 28, 1))
    for size in (4, 8, 16, 32, 64):
        yield sweep("image size", size, "layer", [nets.conv(32, 3)], 16, (size, size, 32))
    for channels in (4, 16, 64, 256):
        yield sweep("channels", channels, "layer", [nets.conv(channels, 3)], 16, (16, 16, channels))
    for depth in (1, 2, 4, 8, 16, 32):
        yield sweep("depth", depth, "step", nets.mlp(*[64] * depth, 10), 32, (64,))


def memory_cases() -> list[Case]:
    """Return training steps whose peak memory is measured, over the batch size."""
    found = []
    for batch in (16, 64, 256):
        for name, net, shape in (("mnist convnet", nets.convnet(), (28, 28, 1)), ("cifar vgg", nets.vgg(), (32, 32, 3))):
            found.append(Case(f"memory {name} batch {batch}", "step", net, batch, shape, "Memory", (name, batch)))
    return found


def named(name: str) -> Case:
    """Return the case called `name`."""
    for case in [*every_case(), *memory_cases()]:
        if case.name == name:
            return case
    raise KeyError(f"no case is called {name!r}")
