"""Forward hooks: watching the layers of a model while it runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from xpnet.autograd.checkpointing import recompute
from xpnet.backend import namespace
from xpnet.layers.module import Module
from xpnet.layers.state import counter_of, set_counter

Run = Callable[..., Any]
Hook = Callable[[Module, Run, tuple[Any, ...], dict[str, Any]], Any]
"""Called as hook(layer, forward, inputs, keywords) instead of forward(*inputs, **keywords); its result is the output."""


def leaves(model: Module) -> list[Module]:
    """Return the Modules that have no Modules below them, in the order of the tree: its layers in the usual sense."""
    return [module for module in model.modules() if not module._children]


@contextlib.contextmanager
def unchanged(model: Module) -> Iterator[None]:
    """Restore a model after the block, within which it may be run in training mode.

    Restored are running statistics, random counters, gradients, the states of recurrent layers and the mode of every layer;
    not the weights.
    """
    modes = [(module, module.training, module.__dict__.get("carried")) for module in model.modules()]
    counters = model.rng_counters()
    # A buffer of a model that has not seen its input yet has no values; the first ones stay.
    buffers = {name: _copy(array) for name, array in model.buffers().items() if array is not None}
    gradients = {name: _copy(p.grad) for name, p in model.parameters().items() if p.grad is not None}
    try:
        yield
    finally:
        model.load_state(buffers, strict=False)
        model.load_rng_counters(counters)
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
def hooked(layers: Iterable[Module], hook: Hook) -> Iterator[None]:
    """Run each of `layers` through `hook` within the block; of several hooks the last one is the outermost."""
    layers = list(layers)
    hook = functools.partial(hook)  # an object of its own, for the same hook may be there twice
    _set_hooks({layer: (*layer._forward_hooks, hook) for layer in layers})
    try:
        yield
    finally:
        _set_hooks({layer: tuple(kept for kept in layer._forward_hooks if kept is not hook) for layer in layers})


def recomputing(layer: Module, forward: Run, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Compute the layer again in the backward pass (a hook); see :func:`xpnet.recompute`."""
    return recompute(forward)(*inputs, **keywords)


def _set_hooks(hooks: dict[Module, tuple[Hook, ...]]) -> None:
    for layer, value in hooks.items():
        layer._forward_hooks = value
        layer._tree_version.changed()  # a plan does not call hooks


@contextlib.contextmanager
def wrapped(model: Module, hook: Hook) -> Iterator[None]:
    """Run every layer of a model through `hook` within the block, and restore the counters of random layers afterwards.

    Observing a model does not change a training run then.
    """
    layers = leaves(model)
    counters = [(layer, counter_of(layer)) for layer in layers]
    try:
        with hooked(layers, hook):
            yield
    finally:
        for layer, counter in counters:
            set_counter(layer, counter)
