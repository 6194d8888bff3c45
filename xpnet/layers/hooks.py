"""Watching the layers of a model while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from xpnet.backend import namespace
from xpnet.layers.module import Module

Run = Callable[..., Any]
Wrapper = Callable[[Module, Run, tuple[Any, ...], dict[str, Any]], Any]


def leaves(model: Module) -> list[Module]:
    """The Modules that have no Modules below them, in the order of the tree: what people call the layers."""
    return [module for module in model.modules() if not module._children]


@contextlib.contextmanager
def unchanged(model: Module) -> Iterator[None]:
    """Within the block the model may be run in training mode; afterwards its running statistics, random counters, gradients,
    the states of recurrent layers and the mode of every layer are what they were. Weights are not looked after.
    """
    modes = [(module, module.training, module.__dict__.get("carried")) for module in model.modules()]
    counters = model.counters()
    # A buffer of a model that has not seen its input yet has no values; the first ones stay.
    buffers = {name: _copy(array) for name, array in model.buffers().items() if array is not None}
    gradients = {name: _copy(p.grad) for name, p in model.parameters().items() if p.grad is not None}
    try:
        yield
    finally:
        model.load_state(buffers, strict=False)
        model.load_counters(counters)
        model.zero_grad()
        parameters = model.parameters()
        for name, gradient in gradients.items():
            parameters[name].set_gradient(gradient)
        for module, training, state in modes:
            module.training = training
            if "carried" in module.__dict__:
                module.__dict__["carried"] = state


def _copy(array: Any) -> Any:
    return namespace(array).asarray(array, copy=True)


@contextlib.contextmanager
def wrapped(model: Module, wrapper: Wrapper) -> Iterator[None]:
    """Within the block every layer's forward runs as ``wrapper(layer, forward, inputs, keywords)``.

    The counters of random layers are put back afterwards, so that looking does not change a training run.
    """
    layers = leaves(model)
    counters = [(layer, layer.counter) for layer in layers]
    for layer in layers:

        def run(*inputs: Any, _layer: Module = layer, _forward: Run = layer.forward, **keywords: Any) -> Any:
            return wrapper(_layer, _forward, inputs, keywords)

        layer.__dict__["forward"] = run
        layer._version.changed()  # a planned prediction would not call it
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # from here on it may be planned again
        for layer, counter in counters:
            layer.counter = counter
