"""The notation for cases of the contract: inputs as shapes, settings as they are passed.

A case is one line::

    case("dense", X(4, 3), P(3, 5), P(5), activation="relu")

`X` is an input whose first axis counts examples, `P` one without (a parameter); both are normal numbers unless a keyword
says otherwise. `I` holds integers, `B` booleans. Numbers and None are passed unchanged. The tests make the arrays, for any
number of examples, dtype and library. A setting that depends on the number of examples is a function of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests import oracles
from xpnet import ops
from xpnet.ops.registry import registry


@dataclass(frozen=True)
class Input:
    """The description of an array."""

    shape: tuple[int, ...]
    batched: bool
    kind: str = "normal"
    high: int = 2
    grad: bool = True

    def make(self, examples: int | None, seed: Any, dtype: str) -> np.ndarray:
        shape = (examples, *self.shape[1:]) if self.batched and examples is not None else self.shape
        random = np.random.default_rng(seed)
        if self.kind == "integers":
            return random.integers(0, self.high, shape)
        if self.kind == "booleans":
            return random.random(shape) < 0.5
        values = random.standard_normal(shape)
        if self.kind == "positive":
            values = np.abs(values) + 0.3
        elif self.kind == "probabilities":
            values = np.exp(values)
            values /= values.sum(axis=-1, keepdims=True)
        elif self.kind == "fractions":
            values = random.random(shape)
        return values.astype(dtype)


def X(*shape: int, kind: str = "normal", grad: bool = True) -> Input:
    """Describe floats whose first axis counts examples."""
    return Input(shape, True, kind, grad=grad)


def P(*shape: int, kind: str = "normal", grad: bool = True) -> Input:
    """Describe floats without an axis of examples."""
    return Input(shape, False, kind, grad=grad)


def I(*shape: int, high: int, batched: bool = True) -> Input:  # noqa: E743
    """Describe integers from 0 to high - 1."""
    return Input(shape, batched, "integers", high, grad=False)


def B(*shape: int, batched: bool = True) -> Input:
    """Describe booleans."""
    return Input(shape, batched, "booleans", grad=False)


@dataclass(frozen=True)
class Case:
    """One example of an operation."""

    name: str
    inputs: tuple[Any, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    oracle: Callable[..., Any] | None = None
    function: Callable[..., Any] | None = None

    @property
    def id(self) -> str:
        def short(value: Any) -> str:
            if isinstance(value, Input):
                return "x".join(map(str, value.shape)) or "0d"
            if callable(value):
                return "f"
            return str(value).replace(" ", "")

        shown = [short(i) for i in self.inputs] + [f"{k}={short(v)}" for k, v in self.settings.items()]
        return f"{self.name}({','.join(shown)})"

    @property
    def batched(self) -> bool:
        return any(isinstance(i, Input) and i.batched for i in self.inputs)

    @property
    def differentiable(self) -> bool:
        operation = registry.get(self.name)
        return operation is None or operation.differentiable

    def arrays(self, examples: int | None = None, dtype: str = "float64", seed: int = 0) -> list[Any]:
        """Make the inputs as NumPy arrays."""
        base = zlib.crc32(self.id.encode())
        return [i.make(examples, (seed, base, n), dtype) if isinstance(i, Input) else i for n, i in enumerate(self.inputs)]

    def options(self, examples: int | None = None, dtype: str = "float64", asarray: Any = np.array) -> dict[str, Any]:
        """Make the settings; arrays among them are converted with `asarray`."""
        count = next((i.shape[0] for i in self.inputs if isinstance(i, Input) and i.batched), 0)
        count = count if examples is None else examples

        def made(name: str, value: Any) -> Any:
            if isinstance(value, Input):
                return asarray(value.make(examples, (zlib.crc32(name.encode()), *value.shape), dtype))
            if isinstance(value, tuple) and any(isinstance(v, Input) for v in value):
                return tuple(made(f"{name}{i}", v) for i, v in enumerate(value))
            return value(count) if callable(value) else value

        return {name: made(name, value) for name, value in self.settings.items()}

    def call(self, arrays: list[Any], options: dict[str, Any]) -> Any:
        """Call the operation on native arrays or Tensors."""
        function = self.function or getattr(ops, self.name, None) or registry[self.name]
        operation = registry.get(self.name)
        if operation is not None and operation.variadic:
            return function(arrays, **options)
        return function(*arrays, **options)

    def expected(self, arrays: list[Any], options: dict[str, Any]) -> tuple[np.ndarray, ...]:
        """Return the outputs of the oracle."""
        result = (self.oracle or getattr(oracles, self.name))(*arrays, **options)
        return result if isinstance(result, tuple) else (result,)


def case(name: str, *inputs: Any, oracle: Any = None, function: Any = None, **settings: Any) -> Case:
    """Make a case, as in the docstring of this module; the default oracle has the same name in tests/oracles.py."""
    return Case(name, inputs, settings, oracle, function)


@dataclass(frozen=True)
class Wrong:
    """A call that must raise a ValueError whose message matches all of `says`."""

    name: str
    inputs: tuple[Any, ...]
    says: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def id(self) -> str:
        return Case(self.name, self.inputs, self.settings).id


def wrong(name: str, *inputs: Any, says: tuple[str, ...] | str, **settings: Any) -> Wrong:
    """Make a call that must fail, with what its message must contain besides the name of the operation."""
    return Wrong(name, inputs, (says,) if isinstance(says, str) else says, settings)
