"""Gradients of functions of plain arrays, in dicts, lists and tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnet.autograd.tensor import Tensor
from xpnet.backend import namespace


def value_and_grad(function: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """Return a function that computes `function`'s value and its gradient with respect to the first argument.

    Args:
        function: takes parameters (one array, or arrays nested in dicts, lists and tuples) and further arguments;
            returns a loss with one element.
        has_aux: the function returns (loss, anything); the result is then ((loss, anything), gradients).

    Returns:
        g(params, *args, **keywords) -> (value, gradients): value a native 0-d array, gradients native arrays in the
        structure of `params`, zeros where the loss does not depend on one.
    """

    def wrapped(params: Any, *args: Any, **keywords: Any) -> Any:
        leaves: list[Tensor] = []

        def lift(array: Any) -> Tensor:
            leaf = Tensor(array, requires_grad=True)
            leaves.append(leaf)
            return leaf

        lifted = map_structure(lift, params)
        result = function(lifted, *args, **keywords)
        loss, aux = result if has_aux else (result, None)
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"value_and_grad: the function must return a Tensor made from its first argument, got {type(loss).__name__}"
            )
        if loss.node is not None or loss.requires_grad:
            loss.backward()
        gradients = map_structure(lambda t: namespace(t.array).zeros_like(t.array) if t.grad is None else t.grad, lifted)
        return ((loss.array, aux) if has_aux else loss.array), gradients

    return wrapped


def map_structure(function: Callable[[Any], Any], structure: Any) -> Any:
    """Return `structure` (nested dicts, lists and tuples) with `function` applied to every leaf."""
    if isinstance(structure, dict):
        return {name: map_structure(function, part) for name, part in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(map_structure(function, part) for part in structure))
    if isinstance(structure, (list, tuple)):
        return type(structure)(map_structure(function, part) for part in structure)
    return function(structure)
