"""The cases in PyTorch: channels_last for images, as its own guide advises on a CPU and on tensor cores."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.cases import HALF, LEARNING_RATE, LOSS_SCALE, MOMENTUM, PASSES, PREDICT_BATCH, REPEAT, Case
from benchmarks.libraries.job import Arrays, Job, Unsupported, from_oihw, to_oihw, weights_of
from benchmarks.nets import trace

WARM_UP = 11  # steps before a CUDA graph is captured, as in PyTorch's notes


def setup(device: str, precision: str, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    found: dict[str, Any] = {"num_threads": torch.get_num_threads()}
    if device == "cuda":
        if not torch.cuda.is_available():
            raise Unsupported("this PyTorch sees no GPU")
        allowed = precision == "tf32"
        # The default is off for products and on for convolutions; here it is the same for both.
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed
        torch.backends.cudnn.benchmark = True
        found.update(tf32=allowed, cudnn=torch.backends.cudnn.version(), cudnn_benchmark=True, layout="channels_last")
        found.update(optimizer="fused", device_name=torch.cuda.get_device_name())
    return found


class Flatten(nn.Module):
    """Flatten in NHWC order: a view with channels_last, where x.flatten(1) would copy."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class GlobalAveragePool(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x if self.shortcut is None else self.shortcut(x)) + self.body(x)


class LSTM(nn.LSTM):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]


class Net:
    """A network of torch.nn, with its weights under the paths of nets.py."""

    def __init__(self, case: Case, arrays: Arrays, device: str) -> None:
        self.parts: dict[str, tuple[nn.Module, dict[str, Any]]] = {}
        self.module = self._sequential(case.net, case.shape, "")[0]
        for path, value in weights_of(arrays).items():
            self._assign(path, value)
        self.module.to(device)
        if len(case.shape) == 3:
            self.module.to(memory_format=torch.channels_last)

    def _sequential(self, net: list[dict[str, Any]], shape: Any, prefix: str) -> tuple[nn.Sequential, Any]:
        made = []
        for i, layer in enumerate(net):
            path = f"{prefix}{i}"
            module = self._layer(layer, shape, path)
            self.parts[path] = (module, layer)
            made.append(module)
            shape = trace([layer], shape).output_shape
        return nn.Sequential(*made), shape

    def _layer(self, layer: dict[str, Any], shape: Any, path: str) -> nn.Module:
        kind = layer["kind"]
        if kind == "dense":
            return nn.Linear(shape[-1], layer["units"])
        if kind == "conv":
            settings = {name: layer[name] for name in ("stride", "padding", "dilation", "groups", "bias")}
            return nn.Conv2d(shape[-1], layer["filters"], layer["window"], **settings)
        if kind == "max_pool":
            return nn.MaxPool2d(layer["window"], layer["stride"], layer["padding"])
        if kind == "average_pool":
            return nn.AvgPool2d(layer["window"], layer["stride"], layer["padding"])
        if kind == "batch_norm":
            return nn.BatchNorm2d(shape[-1], eps=layer["epsilon"])
        if kind == "lstm":
            return LSTM(shape[-1], layer["units"], batch_first=True)
        if kind == "residual":
            body = self._sequential(layer["body"], shape, f"{path}.body.")[0]
            shortcut = self._sequential(layer["shortcut"], shape, f"{path}.shortcut.")[0] if layer["shortcut"] else None
            return Residual(body, shortcut)
        simple = {"relu": nn.ReLU, "tanh": nn.Tanh, "flatten": Flatten, "global_average_pool": GlobalAveragePool}
        return simple[kind]()

    def _tensor(self, path: str) -> tuple[torch.Tensor, str]:
        place, name = path.rsplit(".", 1)
        module, layer = self.parts[place]
        attribute = {
            "dense": {"kernel": "weight", "bias": "bias"},
            "conv": {"kernel": "weight", "bias": "bias"},
            "batch_norm": {"scale": "weight", "offset": "bias"},
            "lstm": {"kernel": "weight_ih_l0", "recurrent": "weight_hh_l0", "bias": "bias_ih_l0"},
        }[layer["kind"]][name]
        return getattr(module, attribute), layer["kind"]

    def _assign(self, path: str, value: Any) -> None:
        tensor, kind = self._tensor(path)
        if kind == "conv" and value.ndim == 4:
            value = to_oihw(value)
        elif kind in ("dense", "lstm") and value.ndim == 2:
            value = value.T
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(value)))
            if kind == "lstm" and path.endswith("bias"):
                self.parts[path.rsplit(".", 1)[0]][0].bias_hh_l0.zero_()  # one bias is enough

    def arrays(self, paths: Any, gradient: bool = False) -> Arrays:
        """Return weights, or their gradients, in xpnet's layouts."""
        found = {}
        for path in paths:
            tensor, kind = self._tensor(path)
            value = (tensor.grad if gradient else tensor).detach().float().cpu().numpy()
            if kind == "conv" and value.ndim == 4:
                value = from_oihw(value)
            elif kind in ("dense", "lstm") and value.ndim == 2:
                value = value.T
            found[path] = np.array(value)
        return found


def _input(x: Any, device: str) -> torch.Tensor:
    tensor = torch.from_numpy(x).to(device)
    # A view: channels_last is NHWC in memory.
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def _output(y: torch.Tensor) -> Any:
    y = y.detach().float()
    return np.array((y.permute(0, 2, 3, 1) if y.ndim == 4 else y).cpu().numpy())


def _synchronize(device: str) -> Any:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def _cast(device: str, precision: str) -> Any:
    """Return a function that makes the context of mixed precision."""
    if precision not in HALF:
        return contextlib.nullcontext
    return lambda: torch.autocast(device, dtype=getattr(torch, precision))


def prepare(case: Case, arrays: Arrays, device: str, precision: str, settings: dict[str, Any]) -> Job:
    mode = settings.get("mode", "eager")
    if mode != "eager" and case.kind not in ("step", "predict"):
        raise Unsupported(f"{mode} is compared on whole networks only")
    if case.kind == "data":
        return _data(arrays)
    if case.kind in PASSES:
        return _pass(case, arrays, device, precision)
    x = _input(arrays["x"], device)
    if case.is_loss:
        return _loss(x, torch.from_numpy(arrays["labels"]).to(device), device)
    net = Net(case, arrays, device)
    cast = _cast(device, precision)
    if case.kind == "step":
        return _step(net, x, torch.from_numpy(arrays["labels"]).to(device), arrays, device, cast, mode, precision)
    if case.kind == "predict":
        return _predict(net, x, device, cast, mode)
    return _layer(case, net, x, arrays, device, cast)


def _step(net: Net, x: Any, labels: Any, arrays: Arrays, device: str, cast: Any, mode: str, precision: str) -> Job:
    module, paths = net.module.train(), list(weights_of(arrays))
    # One kernel for the whole update on a GPU; on a CPU the default is the faster one.
    fused = True if device == "cuda" else None
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, fused=fused)
    loss_function = nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler(device, init_scale=LOSS_SCALE) if precision == "float16" else None

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        with cast():
            output = module(x)
            return output, loss_function(output, labels)

    if mode.startswith("compile"):
        torch._dynamo.reset()  # after recompiling this function eight times it would fall back to eager mode
    compiled = torch.compile(forward) if mode.startswith("compile") else forward
    as_graph = mode in ("graphs", "compile-graphs")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = compiled()[1]
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        return loss

    def check() -> Arrays:
        optimizer.zero_grad()
        output, loss = forward()
        loss.backward()
        found = {"output": _output(output), "loss": _output(loss)}
        found.update({f"gradient/{path}": g for path, g in net.arrays(paths, gradient=True).items()})
        optimizer.zero_grad()
        return found

    def weights() -> Arrays:
        return net.arrays(paths)

    if not as_graph:
        return Job(check, step, synchronize=_synchronize(device), weights=weights)
    if scaler is not None:
        raise Unsupported("a step with a loss scaler reads from the device, which a CUDA graph cannot")
    once = _graph(step, [x, labels], lambda: _state(module, optimizer))
    return Job(check, once, synchronize=_synchronize(device), weights=weights)


def _state(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return everything that a step changes."""
    momenta = [s["momentum_buffer"] for s in optimizer.state.values() if s.get("momentum_buffer") is not None]
    return [*module.parameters(), *module.buffers(), *momenta]


def _graph(step: Any, inputs: list[torch.Tensor], state: Any) -> Any:
    """Return a function that replays `step` as one CUDA graph, captured at the first call.

    Capture follows the warm-up of PyTorch's notes, and restores everything that the warm-up changed. Every call copies the
    batch into the graph's buffers, as a training loop has to.
    """
    graph = torch.cuda.CUDAGraph()
    batch = [tensor.clone(memory_format=torch.preserve_format) for tensor in inputs]
    captured = False

    def capture() -> None:
        before = {id(tensor): tensor.detach().clone() for tensor in state()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            step()
        restore(state(), before)

    def once() -> None:
        nonlocal captured
        if not captured:
            capture()
            captured = True
        for buffer, tensor in zip(inputs, batch):
            buffer.copy_(tensor)
        graph.replay()

    return once


def restore(tensors: list[torch.Tensor], before: dict[int, torch.Tensor]) -> None:
    """Restore tensors from copies by identity; those that did not exist then (momenta) become zero."""
    with torch.no_grad():
        for tensor in tensors:
            if id(tensor) in before:
                tensor.copy_(before[id(tensor)])
            else:
                tensor.zero_()


def _pass(case: Case, arrays: Arrays, device: str, precision: str) -> Job:
    """Prepare a single pass of a convolution (on a GPU in cuDNN), as PyTorch calls it."""
    layer, dtype = case.net[0], getattr(torch, precision) if precision in HALF else torch.float32
    x, dy = (_input(arrays[name], device).to(dtype) for name in ("x", "dy"))
    weight = torch.from_numpy(to_oihw(arrays["weight/0.kernel"])).to(device, dtype, memory_format=torch.channels_last)
    stride, padding, dilation = ([layer[name]] * 2 for name in ("stride", "padding", "dilation"))
    which = PASSES[case.kind]
    mask = [which == "dgrad", which == "wgrad", False]

    def forward() -> torch.Tensor:
        return nn.functional.conv2d(x, weight, None, stride, padding, dilation, layer["groups"])

    def gradient() -> torch.Tensor:
        found = torch.ops.aten.convolution_backward(
            dy, x, weight, None, stride, padding, dilation, False, [0, 0], layer["groups"], mask
        )
        return found[mask.index(True)]

    run = forward if which == "fprop" else gradient

    def check() -> Arrays:
        with torch.no_grad():
            found = run().detach().float()
        # Images go back to NHWC, kernels from (O, C, KH, KW) to (KH, KW, C, O).
        order = (2, 3, 1, 0) if which == "wgrad" else (0, 2, 3, 1)
        return {"output": np.array(found.permute(*order).cpu().numpy())}

    if device == "cpu":
        return Job(check, torch.no_grad()(run))

    def several() -> None:
        with torch.no_grad():
            for _ in range(REPEAT):
                run()

    return Job(check, _graph(several, [], list), synchronize=_synchronize(device), units=REPEAT)


def _predict(net: Net, x: torch.Tensor, device: str, cast: Any, mode: str) -> Job:
    module = net.module.eval()
    if mode not in ("eager", "compile"):
        raise Unsupported("prediction is compared in eager mode and compiled")
    if mode == "compile":
        torch._dynamo.reset()
    called = torch.compile(module) if mode == "compile" else module

    def once() -> torch.Tensor:
        with torch.inference_mode(), cast():
            if len(x) <= PREDICT_BATCH:
                return called(x)
            return torch.cat([called(x[i : i + PREDICT_BATCH]) for i in range(0, len(x), PREDICT_BATCH)])

    return Job(lambda: {"output": _output(once())}, once, synchronize=_synchronize(device))


def _layer(case: Case, net: Net, x: torch.Tensor, arrays: Arrays, device: str, cast: Any) -> Job:
    layer, paths = net.module[0], list(weights_of(arrays))
    if case.kind == "forward":
        layer.eval()

        def forward() -> torch.Tensor:
            with torch.inference_mode(), cast():
                return layer(x)

        return Job(lambda: {"output": _output(forward())}, forward, synchronize=_synchronize(device))
    dy, parameters = _input(arrays["dy"], device), list(layer.parameters())

    def once() -> tuple[torch.Tensor, torch.Tensor]:
        inputs = x.detach().requires_grad_()
        for parameter in parameters:
            parameter.grad = None
        with cast():
            y = layer(inputs)
        y.backward(dy.to(y.dtype))
        return y, inputs.grad

    def check() -> Arrays:
        y, dx = once()
        gradients = net.arrays(paths, gradient=True)
        return {"output": _output(y), "gradient/x": _output(dx), **{f"gradient/{p}": g for p, g in gradients.items()}}

    return Job(check, once, synchronize=_synchronize(device))


def _loss(logits: torch.Tensor, labels: torch.Tensor, device: str) -> Job:
    def once() -> tuple[torch.Tensor, torch.Tensor]:
        inputs = logits.detach().requires_grad_()
        loss = nn.functional.cross_entropy(inputs, labels)
        loss.backward()
        return loss, inputs.grad

    def check() -> Arrays:
        loss, gradient = once()
        return {"output": _output(loss), "gradient/x": _output(gradient)}

    return Job(check, once, synchronize=_synchronize(device))


def _data(arrays: Arrays) -> Job:
    from torch.utils.data import DataLoader, TensorDataset

    data = TensorDataset(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["labels"]))
    loader = DataLoader(data, batch_size=64, shuffle=True)

    def epoch() -> tuple[int, int]:
        examples = total = 0
        for x, labels in loader:
            examples += len(x)
            total += int(labels[0])
        return examples, total

    def check() -> Arrays:
        labels = np.concatenate([y.numpy() for _, y in loader])
        return {"labels in all": np.bincount(labels, minlength=10).astype(np.float64)}

    return Job(check, epoch)
