"""The cases in Chainer (NumPy backend, NCHW; its iDeep extension has no release for these Pythons)."""

from __future__ import annotations

from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

from benchmarks.cases import LEARNING_RATE, MOMENTUM, PREDICT_BATCH, Case
from benchmarks.libraries.job import (
    Arrays,
    Job,
    Unsupported,
    flat_rows_from_nchw,
    flat_rows_to_nchw,
    from_nchw,
    from_oihw,
    to_nchw,
    to_oihw,
    weights_of,
)
from benchmarks.nets import trace


def setup(device: str, precision: str, threads: int) -> dict[str, Any]:
    chainer.config.dtype = np.float32
    # Type checks are on by default, but users turn them off for speed.
    chainer.config.type_check = False
    return {"type_check": False, "ideep": chainer.backends.intel64.is_ideep_available()}


class Layer(chainer.Chain):
    """One layer of nets.py, with the names of its weights."""

    def __init__(self, layer: dict[str, Any], shape: Any, image: Any) -> None:
        super().__init__()
        self.layer, self.image = layer, image
        kind = layer["kind"]
        with self.init_scope():
            if kind == "dense":
                self.link = L.Linear(shape[-1], layer["units"])
            elif kind == "conv":
                self.link = L.Convolution2D(
                    shape[-1],
                    layer["filters"],
                    layer["window"],
                    layer["stride"],
                    layer["padding"],
                    nobias=not layer["bias"],
                    dilate=layer["dilation"],
                    groups=layer["groups"],
                )
            elif kind == "batch_norm":
                self.link = L.BatchNormalization(shape[-1], eps=layer["epsilon"])
            elif kind == "residual":
                self.body = Net(layer["body"], shape)
                self.shortcut = Net(layer["shortcut"], shape)
            elif kind == "lstm":
                raise Unsupported("its NStepLSTM takes lists of sequences; not compared")

    def forward(self, x: Any) -> Any:
        layer, kind = self.layer, self.layer["kind"]
        if kind in ("dense", "conv", "batch_norm"):
            return self.link(x)
        if kind == "relu":
            return F.relu(x)
        if kind == "tanh":
            return F.tanh(x)
        if kind == "max_pool":
            return F.max_pooling_2d(x, layer["window"], layer["stride"], layer["padding"], cover_all=False)
        if kind == "average_pool":
            return F.average_pooling_2d(x, layer["window"], layer["stride"], layer["padding"])
        if kind == "global_average_pool":
            return F.mean(x, axis=(2, 3))
        if kind == "flatten":
            return F.flatten(x) if x.ndim == 1 else F.reshape(x, (len(x), -1))
        return self.shortcut(x) + self.body(x)

    def weight(self, name: str) -> Any:
        return {"kernel": "W", "bias": "b", "scale": "gamma", "offset": "beta"}[name]

    def assign(self, name: str, value: Any) -> None:
        if value.ndim == 4:
            value = to_oihw(value)
        elif value.ndim == 2:
            value = (flat_rows_to_nchw(value, self.image) if self.image else value).T
        getattr(self.link, self.weight(name)).array[...] = value

    def read(self, name: str, gradient: bool) -> Any:
        variable = getattr(self.link, self.weight(name))
        value = variable.grad if gradient else variable.array
        if value.ndim == 4:
            return from_oihw(value)
        if value.ndim == 2:
            value = np.ascontiguousarray(value.T)
            return flat_rows_from_nchw(value, self.image) if self.image else value
        return value.copy()


class Net(chainer.ChainList):
    """A network."""

    def __init__(self, net: list[dict[str, Any]], shape: Any) -> None:
        super().__init__()
        image = None
        for layer in net:
            self.append(Layer(layer, shape, image))
            image = shape if layer["kind"] == "flatten" and len(shape) == 3 else None
            shape = trace([layer], shape).output_shape

    def forward(self, x: Any) -> Any:
        for layer in self.children():
            x = layer(x)
        return x

    def find(self, path: str) -> tuple[Layer, str]:
        """Return the layer and the name of the weight at a path such as "3.body.0.kernel"."""
        number, _, rest = path.partition(".")
        layer = self[int(number)]
        if "." not in rest:
            return layer, rest
        part, _, rest = rest.partition(".")
        return getattr(layer, part).find(rest)

    def arrays(self, paths: list[str], gradient: bool = False) -> Arrays:
        return {path: layer.read(name, gradient) for path in paths for layer, name in [self.find(path)]}


def prepare(case: Case, arrays: Arrays, device: str, precision: str, settings: dict[str, Any]) -> Job:
    if case.kind == "data":
        return _data(arrays)
    x = to_nchw(arrays["x"])
    if case.is_loss:
        return _loss(x, arrays["labels"].astype(np.int32))
    net, paths = Net(case.net, case.shape), list(weights_of(arrays))
    for path, value in weights_of(arrays).items():
        layer, name = net.find(path)
        layer.assign(name, value)
    if case.kind == "step":
        return _step(net, x, arrays["labels"].astype(np.int32), paths)
    if case.kind == "layer":
        return _layer(net, x, to_nchw(arrays["dy"]), paths)

    def predict() -> Any:
        with chainer.using_config("train", False), chainer.no_backprop_mode():
            parts = [net(x[i : i + PREDICT_BATCH]).array for i in range(0, len(x), PREDICT_BATCH)]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def forward() -> Any:
        with chainer.using_config("train", False), chainer.no_backprop_mode():
            return net(x).array

    once = predict if case.kind == "predict" else forward
    return Job(lambda: {"output": from_nchw(once())}, once)


def _step(net: Net, x: Any, labels: Any, paths: list[str]) -> Job:
    optimizer = chainer.optimizers.MomentumSGD(LEARNING_RATE, MOMENTUM)
    optimizer.setup(net)

    def step() -> Any:
        loss = F.softmax_cross_entropy(net(x), labels)
        net.cleargrads()
        loss.backward()
        optimizer.update()
        return loss

    def check() -> Arrays:
        output = net(x)
        loss = F.softmax_cross_entropy(output, labels)
        net.cleargrads()
        loss.backward()
        gradients = net.arrays(paths, gradient=True)
        return {"output": output.array, "loss": loss.array, **{f"gradient/{p}": g for p, g in gradients.items()}}

    return Job(check, step, weights=lambda: {p: w.copy() for p, w in net.arrays(paths).items()})


def _layer(net: Net, x: Any, dy: Any, paths: list[str]) -> Job:
    def once() -> tuple[Any, Any]:
        inputs = chainer.Variable(x)
        net.cleargrads()
        y = net(inputs)
        y.grad = dy
        y.backward()
        return y, inputs

    def check() -> Arrays:
        y, inputs = once()
        gradients = net.arrays(paths, gradient=True)
        found = {"output": from_nchw(y.array), "gradient/x": from_nchw(inputs.grad)}
        return {**found, **{f"gradient/{p}": g for p, g in gradients.items()}}

    return Job(check, once)


def _loss(logits: Any, labels: Any) -> Job:
    def once() -> tuple[Any, Any]:
        inputs = chainer.Variable(logits)
        loss = F.softmax_cross_entropy(inputs, labels)
        loss.backward()
        return loss.array, inputs.grad

    def check() -> Arrays:
        loss, gradient = once()
        return {"output": loss, "gradient/x": gradient}

    return Job(check, once)


def _data(arrays: Arrays) -> Job:
    from chainer.dataset import concat_examples
    from chainer.datasets import TupleDataset
    from chainer.iterators import SerialIterator

    data = TupleDataset(arrays["x"], arrays["labels"])

    def epoch() -> Any:
        return [concat_examples(batch)[1] for batch in SerialIterator(data, 64, repeat=False, shuffle=True)]

    def check() -> Arrays:
        return {"labels in all": np.bincount(np.concatenate(epoch()), minlength=10).astype(np.float64)}

    return Job(check, epoch)
