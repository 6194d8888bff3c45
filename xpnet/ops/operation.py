"""Operations: a forward function, a backward function, and accelerated versions of both for some array libraries.

    @op
    def leaky_relu(xp, x: Array, *, slope: float = 0.01):
        mask = x > 0
        return xp.where(mask, x, slope * x), mask          # the output, and what backward needs

    @leaky_relu.backward
    def _(xp, dy, mask, *, slope):
        return xp.where(mask, dy, slope * dy)              # one gradient per array input

The array inputs are the positional parameters annotated ``Array`` (or ``Array | None``; ``*arrays: Array`` takes any
number); all other parameters are settings, constants for backward, which forward and backward both receive by keyword.
Three optional keywords let an implementation save work: a forward with a parameter `save` is told whether to keep anything
for a backward pass; a backward with a parameter `needs` gets one bool per array input and may return None where it is False;
one with a parameter `into` gets an array per input, or None, which it may fill with the gradient and return.

``@leaky_relu.accelerate("numpy")`` registers another implementation for the arrays of one library. Several are tried in
order: each may return ``NotImplemented`` for a case that it does not cover, and the reference is the last.
``XPNET_REFERENCE=1`` turns all of them off. What belongs to one operation is declared at it: how it takes 16-bit floats,
integers and complex numbers (``@op(half=..., integers=..., linear=...)``), and what an acceleration allocates
(``@implementation.footprint``).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import itertools
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from xpnet.backend import (
    UNUSUAL_NUMBERS,
    Array,
    Namespace,
    array_types,
    as_array,
    kind_of,
    name_of,
    namespace,
    namespaces,
    plain_settings,
    without_scalars,
)
from xpnet.ops.checks import check_backward, check_gradients, checked_result, plain_numbers
from xpnet.ops.errors import NAMED, explain_inputs, explain_library, explain_memory
from xpnet.ops.implementation import Implementation
from xpnet.ops.shapes import ShapeError
from xpnet.runtime.dtypes import FLOAT32, FLOAT64
from xpnet.runtime.environment import setting

Gradients = Sequence[Array | None]


class Recordable:
    """Base class of array wrappers that record operations (`xpnet.Tensor`)."""

    __slots__ = ()
    node: Any

    def _record(self, op: Op, inputs: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        """Record the call and return its output; called instead of computing when any array input of `op` is a Recordable."""
        raise TypeError(f"{type(self).__name__} does not define how it takes part in operations")


Policy = Callable[["Op", Namespace, tuple[Any, ...]], Implementation]
"""Chooses the implementation for inputs of some dtypes where no accelerated one takes them."""

HalfPolicy = Policy


def as_is(operation: Op, xp: Namespace, inputs: tuple[Any, ...]) -> Implementation:
    """Return the reference, of an operation that only moves elements, whatever their dtype."""
    return operation.reference


class Op:
    """An operation. Calling it computes the output on native arrays, or records itself when an input is a Tensor."""

    def __init__(
        self,
        function: Callable[..., Any],
        half: HalfPolicy = as_is,
        broadcasts: bool = False,
        *,
        integers: str = "keep",
        linear: bool = False,
        indices: Sequence[str] = (),
        absent: bool = False,
        suited: Policy = as_is,
    ) -> None:
        self.half = half
        self.broadcasts = broadcasts
        self.integers = integers
        self.linear = linear
        self.indices = frozenset(indices)
        self.absent = absent
        self.suited = suited  # chooses the implementation for dtypes other than one of float32 and float64
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__
        self.__doc__ = function.__doc__
        self.__wrapped__ = function
        self.reference = Implementation(function)
        self.accelerated: dict[str, Implementation] = {}
        self._chosen: dict[Namespace, Implementation] = {}
        self._plain_forms: set[tuple[Any, ...]] = set()
        self.differentiable = False
        self.recorded = not self.reference.ours  # also without a gradient: one that is asked for is an error, not 0

        parameters = [p for p in list(inspect.signature(function).parameters.values())[1:] if p.name != "save"]
        # An array that must be given by keyword (running statistics) is a setting: it has no gradient.
        arrays = [p for p in parameters if _is_array(p.annotation) and p.kind is not p.KEYWORD_ONLY]
        rest = [p for p in parameters if p not in arrays]
        if parameters[: len(arrays)] != arrays or not arrays:
            got = ", ".join(map(str, parameters))
            raise TypeError(
                f"{function.__name__}: the array inputs must come first, after xp, and be annotated xpnet.ops.Array (or "
                f"Array | None), as in def {function.__name__}(xp, x: Array, *, slope: float = 0.01); got ({got})"
            )
        self.variadic = arrays[0].kind is inspect.Parameter.VAR_POSITIONAL
        self.input_names = tuple(p.name for p in arrays)
        self.several = self.variadic or len(arrays) > 1
        self.required = sum(p.default is inspect.Parameter.empty for p in arrays)
        self.setting_names = tuple(p.name for p in rest)
        self.numbers = tuple(p.name for p in rest if _is_number(p.annotation))  # the settings that are computed with
        self.declared_numbers = tuple(p.name for p in rest if p.name in self.numbers and p.annotation is not p.empty)
        self._positional = tuple(p.name for p in rest if self.variadic or p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self._defaults = {p.name: p.default for p in rest if p.default is not inspect.Parameter.empty}
        self.__signature__ = inspect.Signature(parameters)

    def __repr__(self) -> str:
        return f"<op {self.__name__}{self.__signature__}>"

    def __reduce__(self) -> str:
        """Return the name: there is one object of each operation, which copies of models share."""
        return self.__qualname__

    def backward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register the backward function of the reference implementation (a decorator)."""
        check_backward(self, function)
        self.differentiable = self.recorded = True
        for implementation in itertools.chain.from_iterable(map(self.implementations, self.accelerated)):
            if implementation.backward_function is self.reference.backward_function:
                raise TypeError(f"{self.__name__}: register backward before accelerating")
        return self.reference.backward(function)

    def accelerate(self, library: str, *, first: bool = False) -> Callable[[Callable[..., Any]], Implementation]:
        """Register a faster implementation for the arrays of one library (a decorator).

        A call runs the first implementation that does not return NotImplemented, and the reference where all do. They are
        tried in the order in which they were registered, but those from outside this package before its own, which cover most
        calls.

        Args:
            library: "numpy" or "cupy".
            first: try it before those registered earlier, not after them.
        """

        def register(function: Callable[..., Any]) -> Implementation:
            load_accelerations(library)  # so that the order does not depend on what ran before
            implementation = Implementation(function, self.reference)
            implementation.takes_half = library == "cupy"
            if not implementation.ours:
                customized.append(self)
            earlier = [] if first else [made for made in self.implementations(library) if implementation.ours or not made.ours]
            if earlier:
                earlier[-1].fallback, implementation.fallback = implementation, earlier[-1].fallback
            else:
                implementation.fallback = self.accelerated.get(library)
                self.accelerated[library] = implementation
            self._chosen.clear()
            return implementation

        return register

    def implementations(self, library: str) -> list[Implementation]:
        """Return the accelerated implementations for one library, in the order in which they are tried."""
        found = []
        implementation = self.accelerated.get(library)
        while implementation is not None:
            found.append(implementation)
            implementation = implementation.fallback
        return found

    def implementation(self, xp: Namespace) -> Implementation:
        """Return the implementation that is tried first for arrays of namespace `xp` now."""
        try:
            chosen = self._chosen[xp]
        except KeyError:
            name = name_of(xp)
            load_accelerations(name)
            chosen = self._chosen[xp] = self.accelerated.get(name, self.reference)
        return self.reference if _reference_only else chosen

    def bind(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Split a call's arguments into the array inputs and the full settings; raise TypeErrors like Python's."""
        settings = {**self._defaults, **keywords} if keywords or self._defaults else {}
        if self.variadic:
            # concat([a, b]) and concat([a, b], -1), as in NumPy: one sequence of arrays, then settings.
            if len(args) == 0 or not isinstance(args[0], (list, tuple)) or not args[0]:
                raise TypeError(f"{self.__name__}() needs a list or tuple of at least one array first")
            inputs = tuple(args[0])
            settings.update(zip(self._positional, args[1:]))
        else:
            count = len(self.input_names)
            inputs = args[:count]
            if len(args) > count:
                names = self._positional[: len(args) - count]
                if len(args) - count > len(names):
                    raise TypeError(f"{self.__name__}() takes at most {count + len(self._positional)} positional arguments")
                for name, value in zip(names, args[count:]):
                    if name in keywords:
                        raise TypeError(f"{self.__name__}() got two values for {name!r}")
                    settings[name] = value
            elif len(args) < count:
                inputs = (*args, *(settings.pop(name, None) for name in self.input_names[len(args) :]))
        if len(settings) != len(self.setting_names) or any(input_ is None for input_ in inputs[: self.required]):
            self._explain(args, settings, inputs)
        return inputs, settings

    def _explain(self, args: tuple[Any, ...], settings: dict[str, Any], inputs: tuple[Any, ...]) -> None:
        unknown = [name for name in settings if name not in self.setting_names]
        if unknown:
            raise TypeError(
                f"{self.__name__}() got an unexpected argument {unknown[0]!r}; it takes "
                f"{', '.join(self.input_names + self.setting_names)}"
            )
        for name, value in zip(self.input_names[: self.required], args):
            if value is None:
                raise TypeError(f"{self.__name__}() got None for {name}; did what computes it return nothing?")
        missing = [n for n in self.setting_names if n not in settings]
        missing += [n for n, value in zip(self.input_names[: self.required], inputs) if value is None]
        raise TypeError(f"{self.__name__}() needs {', '.join(missing)}")

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Compute the operation: native arrays in, native arrays out; Tensors in, a Tensor out."""
        form = (len(args), *keywords)
        if form in self._plain_forms and args[self.required - 1] is not None and args[0] is not None:
            inputs, settings = args, ({**self._defaults, **keywords} if keywords else self._defaults)
        else:
            inputs, settings = self.bind(args, keywords)
            # The next call with all arrays by position and these keywords needs no binding.
            if not self.variadic and len(args) == len(self.input_names):
                self._plain_forms.add(form)
        if self.numbers and settings is not self._defaults:
            for name in self.numbers:
                if type(settings[name]) in UNUSUAL_NUMBERS:
                    settings = plain_numbers(self, settings)
                    break
        for value in inputs:
            if isinstance(value, Recordable):
                return value._record(self, inputs, settings)
        kinds = tuple(map(type, inputs))
        xp = namespaces.get(kinds)
        if xp is None:
            inputs = without_scalars(inputs)  # their types are never in the table
            xp = namespaces[tuple(map(type, inputs))] = namespace(*inputs)
        return self.run(xp, inputs, settings, False)[0]

    def run(
        self, xp: Namespace, inputs: tuple[Any, ...], settings: dict[str, Any], save: bool
    ) -> tuple[Any, Any, Implementation]:
        """Run forward on native arrays; return the output, what backward needs, and the implementation that ran."""
        implementation = self._chosen.get(xp)
        if implementation is None or _reference_only:
            implementation = self.implementation(xp)
        dtype = getattr(inputs[0], "dtype", None)
        if dtype is None and self.several:  # a number
            dtype = getattr(inputs[1], "dtype", None)
        if dtype is not FLOAT32 and dtype is not FLOAT64:
            if implementation is self.reference or (dtype is not None and not implementation.takes_half and _is_half(dtype)):
                implementation = next(self._fallbacks(implementation, xp, inputs))
        elif self.several and implementation is self.reference:  # the accelerated ones look for themselves
            if len(inputs) == 2:  # beside the addition of two small arrays a loop counts
                if getattr(inputs[1], "dtype", dtype) is not dtype:
                    implementation = self.suited(self, xp, inputs)
            else:
                for other in inputs:
                    if getattr(other, "dtype", dtype) is not dtype:
                        implementation = self.suited(self, xp, inputs)
                        break
        try:
            if implementation.wants_save:  # `compute`, without the call
                result = implementation.forward(xp, *inputs, save=save, **settings)
            else:
                result = implementation.forward(xp, *inputs, **settings)
            if result is NotImplemented:
                others = self._fallbacks(implementation, xp, inputs)
                for implementation in others:
                    result = implementation.compute(xp, inputs, settings, save)
                    if result is not NotImplemented:
                        break
        except MemoryError as error:
            explain_memory(xp, error, self.__name__, inputs)
            raise
        except ShapeError as error:
            if NAMED.match(str(error)):
                raise
            raise ShapeError(f"{self.__name__}: {error}") from None
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            if isinstance(error, NotImplementedError):
                explain_library(self, xp, error, inputs)
            explain_inputs(self, xp, error, inputs, settings)
            raise
        except AttributeError as error:
            explain_library(self, xp, error, inputs)
            raise
        output, saved = result if implementation.ours else checked_result(self, result, inputs)
        kind = type(output)
        if kind is tuple:
            first = output[0]
        elif kind in array_types:
            first = output
        else:
            output = first = as_array(xp, output)
        if first.dtype is not dtype and (dtype is FLOAT32 or dtype is FLOAT64):
            # Something that is no array has widened the result.
            plain = plain_settings(settings)
            if plain is not settings:
                return self.run(xp, inputs, plain, save)
            if any(type(value) is complex for value in inputs):
                implementation = self.suited(self, xp, inputs)
                output, saved = implementation.compute(xp, inputs, settings, save)
        return output, saved, implementation

    def _fallbacks(self, implementation: Implementation, xp: Namespace, inputs: tuple[Any, ...]) -> Iterator[Implementation]:
        """Yield the implementations to try after one that does not cover a call; the reference is the last."""
        dtype = getattr(inputs[0], "dtype", None)
        half = dtype is not None and _is_half(dtype)
        following = implementation.fallback
        while following is not None:
            if following.takes_half or not half:
                yield following
            following = following.fallback
        yield self.suited(self, xp, inputs)

    def gradients(
        self,
        implementation: Implementation,
        xp: Namespace,
        dy: Any,
        saved: Any,
        settings: dict[str, Any],
        needs: tuple[bool, ...],
        into: tuple[Array | None, ...] | None = None,
    ) -> Gradients:
        """Run backward on native arrays; return a gradient per array input, None where `needs` is False or none exists."""
        function = implementation.backward_function
        if function is None:
            raise TypeError(
                f"{self.__name__} has no gradient: register its backward function with @{self.__name__}.backward, or call it "
                f"with x.detach() or under no_grad()"
            )
        if not implementation.ours:
            saved, shapes = saved
        try:
            if implementation.wants_into:
                result = function(xp, dy, saved, needs=needs, into=into or (None,) * len(needs), **settings)
            elif implementation.wants_needs:
                result = function(xp, dy, saved, needs=needs, **settings)
            else:
                result = function(xp, dy, saved, **settings)
        except MemoryError as error:
            explain_memory(xp, error, f"the backward pass of {self.__name__}", (dy,))
            raise
        except (AttributeError, NotImplementedError) as error:
            explain_library(self, xp, error, dy if type(dy) is tuple else (dy,))
            raise
        gradients = result if type(result) in (tuple, list) else (result,)
        if not implementation.ours:
            check_gradients(self, gradients, shapes, needs)
        return gradients


def _is_array(annotation: Any) -> bool:
    """Return whether a parameter's annotation is Array, or Array or None: an object, or text where it is not evaluated."""
    if isinstance(annotation, str):
        names = {name.rpartition(".")[2] for name in re.findall(r"[\w.]+", annotation)}
        return "Array" in names and names <= {"Array", "None", "Optional", "Union"}
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return all(part is type(None) or _is_array(part) for part in typing.get_args(annotation))
    return annotation is Array


def _is_number(annotation: Any) -> bool:
    """Return whether a parameter's annotation is that of a number, or there is none."""
    if annotation is inspect.Parameter.empty:
        return True
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return bool(set(re.split(r"\W+", text)) <= {"float", "int", "None", ""})


def _is_half(dtype: Any) -> bool:
    return kind_of(dtype) == "half"


registry: dict[str, Op] = {}
"""Every operation by name."""


def register(operation: Op) -> Op:
    """Add an operation to the registry and return it.

    Raises:
        TypeError: there is one of this name.
    """
    if operation.__name__ in registry:
        raise TypeError(f"an operation named {operation.__name__} exists already")
    registry[operation.__name__] = operation
    return operation


_reference_only: bool = setting("XPNET_REFERENCE")
_loaded: set[str] = set()

customized: list[Op] = []
"""Operations with accelerations of users, one entry for each: what is planned knows those of this package only."""


def load_accelerations(library: str) -> None:
    """Import ``xpnet.accel.<library>``, once: the first array of that library calls this."""
    if library in _loaded:
        return
    _loaded.add(library)
    name = f"xpnet.accel.{library}"
    if library.isidentifier() and importlib.util.find_spec(name) is not None:
        importlib.import_module(name)
        for operation in registry.values():
            operation._chosen.clear()


def reference_is_forced() -> bool:
    """Return whether accelerated implementations are turned off now."""
    return _reference_only


@contextlib.contextmanager
def reference_only(on: bool = True) -> Iterator[None]:
    """Run the reference implementation of every operation within the block, as under ``XPNET_REFERENCE=1``."""
    global _reference_only
    before, _reference_only = _reference_only, on
    try:
        yield
    finally:
        _reference_only = before
