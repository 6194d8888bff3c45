"""Running a whole model: layer by layer, or at once by the executor of its device."""

from __future__ import annotations

import contextlib
import functools
from abc import ABCMeta
from collections.abc import Callable, Mapping
from functools import cache
from inspect import signature
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from xpnet import backend, ops
from xpnet.autograd.tape import no_grad
from xpnet.autograd.tensor import Tensor
from xpnet.backend import Device, DeviceError
from xpnet.layers.carried import CarriedRows
from xpnet.layers.context import Context, Shape
from xpnet.layers.modes import eval_mode
from xpnet.layers.tree import ModuleTree
from xpnet.ops.registry import Op
from xpnet.ops.shapes import ShapeError
from xpnet.runtime.given import plain
from xpnet.runtime.late import late
from xpnet.runtime.settings import check_whole

if TYPE_CHECKING:
    from xpnet.layers.module import Module


F = TypeVar("F", bound=Callable[..., Any])


class Executor(Protocol):
    """Runs a model or a training step as a whole. Every method may return None: then it is run layer by layer.

    There is a class for each kind of device ("cpu executor", "cuda executor" in xpnet.runtime.late), and an instance for each
    model, created on first use. What it has planned or captured it checks against the model's version.
    """

    def predict(self, model: Module, x: Any, whole: bool) -> Any:
        """Return the output for `x` in evaluation mode, an array that belongs to the caller.

        whole: `x` is all there is to predict, not one batch of many.
        """

    def step(self, model: Module, loss: Callable[..., Any], x: Any, y: Any) -> Any:
        """Return the planned step for batches like x and y: see xpnet.compiled.numpy_step.Step."""

    def capture(self, loop: Any) -> Any:
        """Return a context that runs the steps of a training loop (xpnet.compiled.captured_steps.Loop) as one launch each."""


def executor_of(model: Module) -> Executor:
    """Return the executor of `model`, created on first use and again on another device."""
    executor: Executor | None = model.__dict__["_model_executor"]
    if executor is None:
        device = model.context.device
        executor = model.__dict__["_model_executor"] = late(f"{device.kind} executor")(device)
    return executor


def predict(model: Module, x: Any, batch_size: int) -> Any:
    """Predict in batches: see Module.predict."""
    if type(batch_size) is not int:
        check_whole("predict", 1, batch_size=batch_size)
        batch_size = int(batch_size)
    if batch_size < 1:
        raise ValueError(f"predict: batch_size must be at least 1, got {batch_size}")
    names: list[Any] | None = None
    parts: tuple[Any, ...] = (x,)
    several = False
    if type(x) not in backend.array_types:
        if isinstance(x, Mapping):
            names, several = list(x), True
        elif isinstance(x, tuple):
            several = True
        given = x.values() if names is not None else x if several else (x,)
        parts = tuple([part.array if isinstance(part, Tensor) else plain(part, "predict: x") for part in given])
    if not parts:
        raise TypeError(f"predict: expected at least one array, got an empty {type(x).__name__}")
    first = parts[0]
    expect_examples("predict", model, x if names is not None else parts if several else first)
    executor = executor_of(model)
    try:
        whole = len(first) <= batch_size
    except TypeError:
        if getattr(first, "ndim", 0):  # of array-api-strict, which has no length
            return _on_device(model, parts, several, names, batch_size)
        listed = ", ".join(map(backend.describe, parts))
        raise TypeError(
            f"predict: expected an array of examples along its first axis (a tuple or dict of them for several inputs), got "
            f"{listed}"
        ) from None
    if whole and not several and (y := executor.predict(model, first, True)) is not None:
        return y
    xp, home, device = backend.namespace(*parts), backend.device_of(first), model.context.device
    if isinstance(home, str):
        return _on_device(model, parts, several, names, batch_size)
    away = home != device
    outputs = []
    with no_grad(), eval_mode(model), on_device_of(model, "predict"), CarriedRows(model, len(first)) as carried:
        for start in range(0, max(len(first), 1), batch_size):
            carried.begin(start, start + batch_size)
            batch = parts if whole else tuple(part[start : start + batch_size] for part in parts)
            if away:
                batch = tuple(backend.to_device(part, device) for part in batch)
            y = None if several else executor.predict(model, batch[0], False)
            inputs = batch if names is None else (dict(zip(names, batch)),)
            outputs.append(_returned(model(*inputs) if y is None else y, home if away else None))
            carried.end(start, start + batch_size)
    if len(outputs) == 1:
        return outputs[0]
    with home if home.kind == "cuda" else contextlib.nullcontext():
        return _joined(xp, outputs)


def _on_device(model: Module, parts: tuple[Any, ...], several: bool, names: list[Any] | None, batch_size: int) -> Any:
    """Predict from arrays of another library, on the model's device as in training."""
    moved = tuple(backend.to_device(part, model.context.device) for part in parts)
    return predict(model, moved[0] if not several else moved if names is None else dict(zip(names, moved)), batch_size)


def expect_examples(who: str, model: Module, x: Any) -> None:
    """Raise an error unless `x` may be a batch for a model: an array of examples, or a tuple of one array for each input.

    Raises:
        TypeError: a tuple or a dict for a model that does not take it.
        ShapeError: one example, where the model's input shape is known.
    """
    name = type(model).__name__
    if type(x) is tuple:
        if all(hasattr(part, "shape") for part in x) and not _takes(type(model).forward, 1 + len(x)):
            raise TypeError(
                f"{who}: x is a tuple of {len(x)}, which is one array for each input of the model, but {name}.forward does not "
                f"take {len(x)}; give one array, or a model with forward(self, a, b)"
            )
        return
    expected = getattr(model, "input_shape", None)
    if expected is None:
        return
    if isinstance(x, Mapping):
        raise TypeError(f"{who}: x is a {type(x).__name__} with {', '.join(map(repr, x))}, but {name} takes one array: x[name]")
    shape = getattr(x, "shape", None)
    if shape is not None and len(shape) == len(expected):
        raise ShapeError(
            f"{who}: x has shape {tuple(shape)}, expected (N, {', '.join(map(str, expected))}), the examples along the "
            f"first axis; for one example use x[None]"
        )


@cache
def _takes(function: Callable[..., Any], count: int) -> bool:
    """Return whether a function can be called with `count` positional arguments."""
    try:
        signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


def _joined(xp: Any, outputs: list[Any]) -> Any:
    """Return the outputs for several batches as one, each array of several by itself."""
    first = outputs[0]
    if isinstance(first, tuple):
        return tuple(_joined(xp, list(part)) for part in zip(*outputs))
    if isinstance(first, dict):
        return {name: _joined(xp, [output[name] for output in outputs]) for name in first}
    return xp.concat(outputs, axis=0)


def map_output(function: Callable[[Any], Any], output: Any) -> Any:
    """Return a model's output with `function(array)` for each native array in it, in tuples and dicts.

    Anything else that a model may return, such as None, stays as it is.
    """
    if isinstance(output, (tuple, list)):
        return tuple([map_output(function, part) for part in output])
    if isinstance(output, dict):
        return {name: map_output(function, part) for name, part in output.items()}
    array = output.array if isinstance(output, Tensor) else output
    return function(array) if hasattr(array, "dtype") else array


def _returned(output: Any, home: Any) -> Any:
    """Return a model's output, or each of several, as a native array, moved to `home` if that is given."""
    return map_output(lambda array: array if home is None else backend.to_device(array, home), output)


def on_device_of(model: Module, doing: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which the model's GPU is the current device (see backend.working_on); on a CPU it does nothing."""
    device = model.context.device
    return contextlib.nullcontext() if device.kind == "cpu" else backend.working_on(device, doing)


def runs_on_its_device(function: F) -> F:
    """Let a function whose first argument is a model run on the model's device, whichever is the current one."""

    @functools.wraps(function)
    def run(model: Module, *args: Any, **keywords: Any) -> Any:
        if not hasattr(model, "context"):
            raise TypeError(f"{function.__name__}: expected a model, got {type(model).__name__}")
        with on_device_of(model, function.__name__):
            return function(model, *args, **keywords)

    return cast(F, run)


def takes_batch(function: F) -> F:
    """Move the arguments x, y and labels of a function (model, ...) to the model's device, and let it run there.

    They are one batch: arrays of any device, tables and lists, tuples and dicts of arrays.
    """
    who = function.__name__
    names = list(signature(function).parameters)[1:]

    def moved(model: Module, name: str, value: Any) -> Any:
        if name not in ("x", "y", "labels") or value is None:
            return value
        if not isinstance(value, (Tensor, tuple, dict)):
            value = plain(value, f"{who}: {name}")
        return map_output(lambda array: backend.to_device(array, model.context.device), value)

    @runs_on_its_device
    @functools.wraps(function)
    def run(model: Module, *args: Any, **keywords: Any) -> Any:
        args = tuple([moved(model, name, value) for name, value in zip(names, args)]) + args[len(names) :]
        return function(model, *args, **{name: moved(model, name, value) for name, value in keywords.items()})

    return cast(F, run)


def prepare_input(x: Any, context: Context) -> Any:
    """Return an input of the root with floats in the model's dtype.

    Raises:
        DeviceError: it is on another device than the model.
    """
    if type(x) is dict:
        return {name: part if isinstance(part, Tensor) else prepare_input(part, context) for name, part in x.items()}
    if not hasattr(x, "dtype"):
        x = plain(x, "model(x)")
        if not hasattr(x, "dtype"):
            return x
    if backend.dtype_name(x) == context.dtype and context.device.kind == "cpu":
        return x
    xp = backend.namespace(x)
    place = backend.device_of(x)
    if isinstance(place, Device) and place != context.device and backend.name_of(xp) in ("numpy", "cupy"):
        raise DeviceError(
            f"the model is on {context.device}, but its input on {place}; use model.to({str(place)!r}) or "
            f"xpnet.to_device(x, {str(context.device)!r}), and Batches(..., device={str(context.device)!r}) for training"
        )
    if backend.is_floating(x) and backend.dtype_name(x) != context.dtype:
        return ops.cast(x, context.dtype)
    return x


def require_arrays(model: Module, inputs: tuple[Any, ...]) -> None:
    """Raise a TypeError for inputs of a model, if they are no arrays: where its forward pass found that they have no dtype."""
    if not all(hasattr(x, "dtype") or isinstance(x, Mapping) for x in inputs):
        listed = ", ".join(map(backend.describe, inputs))
        raise TypeError(
            f"{type(model).__name__}: expected arrays of examples along their first axis, got {listed}; convert lists with "
            f"numpy.asarray"
        )


def output_shape_by_running(model: Module, input_shape: Shape) -> Shape:
    """Return the shape of a model's output without the batch axis, found with one example of zeros."""
    device = model.context.device
    with device, no_grad(), eval_mode(model):
        y = model(device.xp.zeros((1, *input_shape), dtype=model._dtype()))
        # Of several outputs the first is what a next layer would take.
        while isinstance(y, (tuple, list, dict)):
            y = next(iter(y.values())) if isinstance(y, dict) else y[0]
        return shape_of_examples(y, f"{type(model).__name__}: forward")


def shape_of_examples(output: Any, who: str) -> Shape:
    """Return the shape of an output without the batch axis, of what `who` returned.

    Raises:
        TypeError: it has none.
    """
    if not hasattr(output, "shape"):
        hint = "; does it end in `return`?" if output is None else ", expected a Tensor"
        raise TypeError(f"{who} returned {type(output).__name__}{hint}")
    return tuple(output.shape[1:])


_NOT_COMPUTING = frozenset(
    {
        "__init__", "__repr__", "parameter_specs", "specs", "build", "materialize", "output_shape", "plannable", "capturable",
        "__module__", "__doc__", "__annotations__", "__qualname__", "__firstlineno__", "__static_attributes__",
        "__abstractmethods__", "_abc_impl", "__final__", "__annotate_func__",
    }
)  # fmt: skip
"""What a subclass may define without a change to what its forward pass computes."""


def keeps_computation(kind: type, of: type) -> bool:
    """Return whether class `kind` is `of`, or computes the same because it only adds methods under new names.

    Properties and class attributes may stand for settings that change unnoticed, and a class beside `of` may override what `of`
    inherits: neither is taken for the same.
    """
    if kind is of:
        return True
    common = len(of.__mro__)
    if kind.__mro__[-common:] != of.__mro__ or type(kind) not in (type, ABCMeta):
        return False
    known = {name for c in of.__mro__ for name in vars(c)}
    return all(
        name in _NOT_COMPUTING or (isinstance(value, FunctionType) and name not in known and not name.startswith("__"))
        for c in kind.__mro__[:-common]
        for name, value in vars(c).items()
    )


@cache
def _methods(kind: type) -> frozenset[str]:
    found = ((name, value) for c in kind.__mro__ for name, value in vars(c).items())
    return frozenset(name for name, value in found if isinstance(value, (FunctionType, staticmethod, classmethod)))


def computes_as(module: Module, kind: type) -> bool:
    """Return whether `module` computes what the class `kind` does: nothing is overridden, and there are no hooks."""
    return keeps_computation(type(module), kind) and not module._forward_hooks and _methods(kind).isdisjoint(vars(module))


def is_plannable(module: Module) -> bool:
    """Return whether `module`, apart from those below it, is plannable and computes what the class that declared it does."""
    # A class of this package inherits it with what it overrides: the tests compare all of them, planned and not.
    declared = next(c for c in type(module).__mro__ if "plannable" in vars(c) or c.__module__.startswith("xpnet."))
    if not module.plannable or not computes_as(module, declared):
        return False
    held = [getattr(module, name, None) for name in module._functions]
    applied = [f for value in held for f in (value if isinstance(value, tuple) else (value,))]
    return all(f is None or type(f) is Op or isinstance(f, ModuleTree) for f in applied)
