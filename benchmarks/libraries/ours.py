"""The cases in xpnet."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

import xpnet as xn
from benchmarks import conv_algorithms
from benchmarks.cases import HALF, LEARNING_RATE, LOSS_SCALE, MOMENTUM, PASSES, PREDICT_BATCH, Case
from benchmarks.conv_algorithms import host
from benchmarks.libraries.job import Arrays, Job, Unsupported, weights_of
from xpnet.ops.registry import reference_is_forced
from xpnet.training.trainer import captured_steps

FUSED = ("dense", "conv")


def setup(device: str, precision: str, threads: int) -> dict[str, Any]:
    """Apply the settings of the run, and return them."""
    try:
        xn.backend.device(device)
    except xn.DeviceError as error:
        raise Unsupported(str(error)) from None
    xn.set_num_threads(threads)
    if device == "cuda":
        import cupy

        xn.set_matmul_precision("tf32" if precision == "tf32" else "float32")
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        return {"tf32": precision == "tf32", "steps": "CUDA graphs", "device_name": name}
    return {"reference": reference_is_forced()}


class Net:
    """A network of xpnet's layers, with its parameters under the paths of nets.py."""

    def __init__(self, case: Case, arrays: Arrays, device: str, dtype: str) -> None:
        self.modules: dict[str, Any] = {}
        try:
            self.model = xn.Sequential(self._layers(case.net, ""), input_shape=case.shape, device=device, dtype=dtype)
        except (ValueError, TypeError, xn.DeviceError) as error:
            if dtype not in HALF:
                raise
            raise Unsupported(f"no network in {dtype}: {error}") from None
        self.parameters = {
            f"{path}.{name}": parameter for path, module in self.modules.items() for name, parameter in _named(module)
        }
        given = weights_of(arrays)
        if set(given) != set(self.parameters):
            raise RuntimeError(f"weights {sorted(given)} were given, the model has {sorted(self.parameters)}")
        for path, values in given.items():
            moved: Any = xn.to_device(values, device)
            self.parameters[path].array[...] = moved.astype(self.parameters[path].array.dtype)

    def _layers(self, net: list[dict[str, Any]], prefix: str) -> list[Any]:
        made = []
        skip = False
        for i, layer in enumerate(net):
            if skip:
                skip = False
                continue
            # As users write it: Dense(128, "relu").
            following = net[i + 1]["kind"] if i + 1 < len(net) else ""
            activation = following if layer["kind"] in FUSED and following in ("relu", "tanh") else None
            skip = activation is not None
            path = f"{prefix}{i}"
            made.append(self._layer(layer, path, activation))
            self.modules[path] = made[-1]
        return made

    def _layer(self, layer: dict[str, Any], path: str, activation: str | None) -> Any:
        kind = layer["kind"]
        if kind == "dense":
            return xn.Dense(layer["units"], activation)
        if kind == "conv":
            names = ("stride", "padding", "dilation", "groups")
            return xn.Conv2D(
                layer["filters"],
                layer["window"],
                activation=activation,
                use_bias=layer["bias"],
                **{name: layer[name] for name in names},
            )
        if kind in ("max_pool", "average_pool"):
            made = xn.MaxPool2D if kind == "max_pool" else xn.AveragePool2D
            return made(layer["window"], layer["stride"], layer["padding"])
        if kind == "residual":
            body = self._layers(layer["body"], f"{path}.body.")
            shortcut = self._layers(layer["shortcut"], f"{path}.shortcut.")
            return xn.Residual(body, xn.Sequential(shortcut) if shortcut else None)
        if kind == "batch_norm":
            return xn.BatchNorm(epsilon=layer["epsilon"])
        if kind == "lstm":
            return xn.LSTM(layer["units"], return_sequences=True)
        simple = {"relu": xn.ReLU, "tanh": xn.Tanh, "flatten": xn.Flatten, "global_average_pool": xn.GlobalAveragePool2D}
        return simple[kind]()


def _named(module: Any) -> list[tuple[str, Any]]:
    """Return the parameters of one layer, under the names of nets.py."""
    own = {name: value for name, value in vars(module).items() if isinstance(value, xn.Parameter)}
    if type(module).__name__ == "LSTM":
        return [({"recurrent_kernel": "recurrent"}.get(name, name), value) for name, value in own.items()]
    return list(own.items())


def prepare(case: Case, arrays: Arrays, device: str, precision: str, settings: dict[str, Any]) -> Job:
    dtype = precision if precision in HALF else "float32"
    where = xn.backend.device(device)
    if case.kind == "data":
        return _data(arrays)
    if case.kind in PASSES:
        return conv_algorithms.prepare(case, arrays, where, dtype, settings.get("algorithm"))
    x = xn.to_device(arrays["x"], where)
    if case.is_loss:
        return _loss(x, xn.to_device(arrays["labels"], where), where)
    net = Net(case, arrays, device, dtype)
    if case.kind == "step":
        return _step(net, x, xn.to_device(arrays["labels"], where), where)
    if case.kind == "predict":
        model = net.model
        return Job(
            lambda: {"output": host(model.predict(x, batch_size=PREDICT_BATCH))},
            lambda: model.predict(x, batch_size=PREDICT_BATCH),
            synchronize=where.synchronize,
        )
    return _layer(case, net, x, arrays, where)


def _gradients(net: Net) -> Arrays:
    return {f"gradient/{path}": host(p.grad) for path, p in net.parameters.items()}


def _step(net: Net, x: Any, labels: Any, where: Any) -> Job:
    trainer = xn.Trainer(
        net.model,
        loss="softmax_cross_entropy",
        optimizer=xn.optim.SGD(LEARNING_RATE, momentum=MOMENTUM),
        loss_scale=xn.optim.LossScale(LOSS_SCALE) if net.model.context.dtype == "float16" else None,
    )

    def check() -> Arrays:
        net.model.train()
        output = net.model(x)
        loss = xn.losses.softmax_cross_entropy(output, labels)
        loss.backward()
        found = {"output": host(output.array), "loss": host(loss.array), **_gradients(net)}
        net.model.flat_parameters.zero_grad()
        return found

    def weights() -> Arrays:
        return {path: host(p.array) for path, p in net.parameters.items()}

    captured = captured_steps(trainer)
    if captured is None:
        return Job(check, lambda: trainer.step(x, labels), synchronize=where.synchronize, weights=weights)
    # As `fit` does on a GPU: steps are replayed on their own stream.
    context = contextlib.ExitStack()
    entered = False

    def step() -> Any:
        nonlocal entered
        if not entered:
            context.enter_context(captured)
            entered = True
        return captured.step(x, labels)

    remark = conv_algorithms.not_captured(captured._captured)
    return Job(check, step, synchronize=where.synchronize, weights=weights, remark=remark, close=context.close)


def _layer(case: Case, net: Net, x: Any, arrays: Arrays, where: Any) -> Job:
    model, parameters = net.model, list(net.parameters.values())
    # The layer itself: a network of one layer would add overhead to every call.
    layer = model.layers[0]
    if case.kind == "forward":
        model.eval()

        def forward() -> Any:
            with xn.no_grad():
                return layer(x)

        return Job(lambda: {"output": host(_native(forward()))}, forward, synchronize=where.synchronize)
    dy = xn.to_device(arrays["dy"], where)

    def once() -> tuple[Any, Any]:
        inputs = xn.Tensor(x, requires_grad=True)
        for parameter in parameters:
            parameter.grad = None
        y = layer(inputs)
        y.backward(dy)
        return y.array, inputs.grad

    def check() -> Arrays:
        y, dx = once()
        return {"output": host(y), "gradient/x": host(dx), **_gradients(net)}

    return Job(check, once, synchronize=where.synchronize)


def _native(value: Any) -> Any:
    return value.array if isinstance(value, xn.Tensor) else value


def _loss(logits: Any, labels: Any, where: Any) -> Job:
    def once() -> tuple[Any, Any]:
        inputs = xn.Tensor(logits, requires_grad=True)
        loss = xn.losses.softmax_cross_entropy(inputs, labels)
        loss.backward()
        return loss.array, inputs.grad

    def check() -> Arrays:
        loss, gradient = once()
        return {"output": host(loss), "gradient/x": host(gradient)}

    return Job(check, once, synchronize=where.synchronize)


def _data(arrays: Arrays) -> Job:
    batches = xn.data.Batches((arrays["x"], arrays["labels"]), 64, seed=0)

    def epoch() -> tuple[int, int]:
        examples = total = 0
        for x, labels in batches:
            examples += len(x)
            total += int(labels[0])
        return examples, total

    def check() -> Arrays:
        labels = np.concatenate([np.asarray(y) for _, y in batches])
        return {"labels in all": np.bincount(labels, minlength=10).astype(np.float64)}

    return Job(check, epoch)
