"""Watching the layers of a model while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from xpnet.layers.module import Module

Run = Callable[..., Any]
Wrapper = Callable[[Module, Run, tuple[Any, ...], dict[str, Any]], Any]


def leaves(model: Module) -> list[Module]:
    """The Modules that have no Modules below them, in the order of the tree: what people call the layers."""
    return [module for module in model.modules() if not module._children]


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
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]
        for layer, counter in counters:
            layer.counter = counter
