"""Tensors: arrays that record operations on the tape (see xpnet.autograd.tape)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from xpnet import ops
from xpnet.autograd.tape import Node, Output, mode, outline, reachable, run_backward, store
from xpnet.backend import (
    Array,
    adopted,
    array_types,
    as_array,
    is_floating,
    kind_of,
    namespace,
    namespaces,
    without_scalars,
)
from xpnet.ops.conversion import gradient_as
from xpnet.ops.registry import Op, Recordable, registry
from xpnet.ops.root_gradient import known_ones, root_gradient
from xpnet.runtime.peers import missing_attribute


class Tensor(Recordable):
    """An array whose operations are recorded on the tape.

    Args:
        array: a native array of any library that follows the Array API. It is not copied.
        requires_grad: whether `backward` should leave a gradient in `grad`.

    Attributes:
        array: the native array.
        grad: None, or a native array of the same shape and dtype: the sum of the gradients of every `backward` since the
            last `zero_grad`.
    """

    __slots__ = ("__weakref__", "array", "grad", "node", "requires_grad")
    # NumPy must leave `ndarray + Tensor` to the Tensor.
    __array_ufunc__ = None
    __array_priority__ = 1000

    if not TYPE_CHECKING:  # mypy would know every attribute
        __getattr__ = missing_attribute

    def __init__(self, array: Any, requires_grad: bool = False) -> None:
        if isinstance(array, Tensor):
            array = array.array
        elif type(array) not in array_types:
            array = adopted(array)
        self.array: Array = array
        self.requires_grad = requires_grad
        self.grad: Array | None = None
        self.node: Node | Output | None = None  # what made it: the destination of its gradient

    # -- recording --

    def _record(self, op: Op, inputs: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        arrays = []
        needs = []
        sources: list[Any] = []  # the destinations of the gradients
        for value in inputs:
            if isinstance(value, Tensor):
                arrays.append(value.array)
                if value.requires_grad:
                    needs.append(True)
                    sources.append(value.node or value)
                    continue
            else:
                arrays.append(value)
            needs.append(False)
            sources.append(None)
        if mode.operands is not None:
            arrays = mode.operands.arrays(inputs, arrays)
        kinds = tuple(map(type, arrays))
        xp = namespaces.get(kinds)
        if xp is None:
            arrays = list(without_scalars(arrays))  # their types are never in the table
            xp = namespaces[tuple(map(type, arrays))] = namespace(*arrays)
        track = op.recorded and True in needs
        if track and not mode.recording:
            track, mode.touched = False, True
        output, saved, implementation = op.run(xp, tuple(arrays), settings, track)
        if track and not op.differentiable and type(output) is not tuple:
            track = is_floating(output)
        node = Node(op, implementation, xp, sources, tuple(needs), saved, settings) if track else None
        if type(output) is tuple:
            if node is not None:
                node.outputs = tuple(outline(xp, array) for array in output)
                return tuple(_output(array, node, i) for i, array in enumerate(output))
            return tuple(map(Tensor, output))
        made = Tensor.__new__(Tensor)
        made.array, made.grad, made.node, made.requires_grad = output, None, node, track
        return made

    def _accumulate(self, gradient: Array, fresh: bool = False) -> None:
        """Add `gradient` to a leaf's `grad`; a `fresh` one is referenced by nobody else and is not copied."""
        if gradient.dtype != self.array.dtype:  # of an operation whose backward widened it
            gradient = gradient_as(namespace(gradient), gradient, self.array.dtype)
        if self.grad is None:
            # A copy: the same array may be another leaf's gradient, the user's, or a broadcast, which cannot be written to.
            self.grad = gradient if fresh else namespace(gradient).asarray(gradient, copy=True)
        else:
            self.grad = self.grad + gradient

    def destination(self) -> Array | None:
        """Return the array that the first gradient would be copied into, if there is one."""
        return None

    def backward(self, gradient: Any = None) -> None:
        """Compute the gradient of this Tensor with respect to every leaf it depends on, and add it to the leaf's `grad`.

        What the forward pass saved is freed on the way, so backward cannot run twice through one graph.

        Args:
            gradient: the gradient of the final result with respect to this Tensor, same shape, rounded to its dtype; may be
                left out for a Tensor with one element, where it is 1. A Tensor, a number or a list will do.

        Raises:
            TypeError: the gradient is no array of numbers.
            DeviceError: it is an array of another library.
            ValueError: this Tensor has more than one element and no gradient was given, or shapes differ.
            RuntimeError: nothing was recorded, or `backward` ran through this graph before.
        """
        if gradient is None:
            if math.prod(self.array.shape) != 1:
                raise ValueError(
                    f"backward() needs a gradient of shape {tuple(self.array.shape)}: only a Tensor with one element "
                    f"(a loss) has an implied gradient of 1; reduce it with .sum() or .mean(), or pass one"
                )
            gradient = None if self.array.ndim else known_ones.get((type(self.array), self.array.dtype))
            if gradient is None:
                gradient = root_gradient(self.array)
        else:
            gradient = _adopted_gradient(self.array, gradient)
            if tuple(gradient.shape) != tuple(self.array.shape):
                raise ValueError(f"the gradient's shape {tuple(gradient.shape)} is not the Tensor's {tuple(self.array.shape)}")
            if gradient.dtype != self.array.dtype:
                gradient = gradient_as(namespace(gradient), gradient, self.array.dtype)
        if self.node is None:
            if not self.requires_grad:
                raise RuntimeError(
                    "backward(): nothing was recorded: no input had requires_grad=True (is every parameter frozen?), or "
                    "this ran under no_grad()"
                )
            self._accumulate(gradient)
            return
        store(self.node, gradient)
        del gradient
        for node in reachable(self.node):
            run_backward(node)

    # -- reading --

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> Any:
        """The array's dtype."""
        return self.array.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return int(self.array.ndim)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.array.shape)  # PyTorch's `size` is a method

    def item(self) -> float:
        """Return the value of a Tensor with one element, as a Python number (waits for the device)."""
        return self.array.item() if hasattr(self.array, "item") else float(self.array)

    def detach(self) -> Tensor:
        """Return a Tensor of the same array that is not on the tape."""
        return Tensor(self.array)

    def zero_grad(self) -> None:
        """Clear the gradient."""
        self.grad = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Return the values as a NumPy array (`numpy.asarray(tensor)`)."""
        import numpy as np

        from xpnet.backend import to_numpy

        return np.array(to_numpy(self.array), dtype=dtype, copy=copy)

    def __array_function__(self, function: Any, types: Any, args: Any, keywords: Any) -> Any:
        """Refuse NumPy's functions where the result would have left the tape without a word.

        Raises:
            TypeError: the function computes values from a Tensor with a gradient.
        """
        name = function.__name__
        if name not in _NO_VALUES and mode.recording and any(t.requires_grad for t in _tensors((args, keywords))):
            ours = f"xn.ops.{name}" if name in registry else "xn.ops"
            raise TypeError(
                f"numpy.{name} got a Tensor with a gradient, which would be lost; use {ours}, or for the values "
                f"xn.to_numpy(tensor)"
            )
        return function._implementation(*args, **keywords)

    def __float__(self) -> float:
        return float(self.array)

    def __int__(self) -> int:
        return int(self.array)

    def __bool__(self) -> bool:
        return bool(self.array)

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def __repr__(self) -> str:
        kind = type(self).__name__
        flag = ", requires_grad=True" if self.requires_grad else ""
        return f"{kind}({self.array!r}{flag})"

    # -- operators --

    def __add__(self, other: Any) -> Tensor:
        return ops.add(self, other)  # type: ignore[no-any-return]

    def __radd__(self, other: Any) -> Tensor:
        return ops.add(other, self)  # type: ignore[no-any-return]

    def __sub__(self, other: Any) -> Tensor:
        return ops.subtract(self, other)  # type: ignore[no-any-return]

    def __rsub__(self, other: Any) -> Tensor:
        return ops.subtract(other, self)  # type: ignore[no-any-return]

    def __mul__(self, other: Any) -> Tensor:
        return ops.multiply(self, other)  # type: ignore[no-any-return]

    def __rmul__(self, other: Any) -> Tensor:
        return ops.multiply(other, self)  # type: ignore[no-any-return]

    def __truediv__(self, other: Any) -> Tensor:
        return ops.divide(self, other)  # type: ignore[no-any-return]

    def __rtruediv__(self, other: Any) -> Tensor:
        return ops.divide(other, self)  # type: ignore[no-any-return]

    def __pow__(self, other: Any) -> Tensor:
        return ops.power(self, other)  # type: ignore[no-any-return]

    def __rpow__(self, other: Any) -> Tensor:
        return ops.power(other, self)  # type: ignore[no-any-return]

    def __matmul__(self, other: Any) -> Tensor:
        return ops.matmul(self, other)  # type: ignore[no-any-return]

    def __rmatmul__(self, other: Any) -> Tensor:
        return ops.matmul(other, self)  # type: ignore[no-any-return]

    def __neg__(self) -> Tensor:
        return ops.negative(self)  # type: ignore[no-any-return]

    def __abs__(self) -> Tensor:
        return ops.abs(self)  # type: ignore[no-any-return]

    def __getitem__(self, index: Any) -> Tensor:
        return ops.getitem(self, _plain_index(index))  # type: ignore[no-any-return]

    # A comparison has no gradient: it returns a native array of booleans. Tensors are hashed by identity.
    __hash__ = object.__hash__

    def __eq__(self, other: Any) -> Any:
        return self.array == bare(other)

    def __ne__(self, other: Any) -> Any:
        return self.array != bare(other)

    def __lt__(self, other: Any) -> Any:
        return self.array < bare(other)

    def __le__(self, other: Any) -> Any:
        return self.array <= bare(other)

    def __gt__(self, other: Any) -> Any:
        return self.array > bare(other)

    def __ge__(self, other: Any) -> Any:
        return self.array >= bare(other)

    # -- operations that users expect as methods --

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Return the sum over `axis` (all axes where None)."""
        return ops.sum(self, axis=axis, keepdims=keepdims)  # type: ignore[no-any-return]

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Return the mean over `axis` (all axes where None)."""
        return ops.mean(self, axis=axis, keepdims=keepdims)  # type: ignore[no-any-return]

    def var(self, axis: Any = None, keepdims: bool = False, correction: float = 0) -> Tensor:
        """Return the variance over `axis` (all axes where None)."""
        return ops.var(self, axis=axis, keepdims=keepdims, correction=correction)  # type: ignore[no-any-return]

    def std(self, axis: Any = None, keepdims: bool = False, correction: float = 0) -> Tensor:
        """Return the standard deviation over `axis` (all axes where None)."""
        return ops.std(self, axis=axis, keepdims=keepdims, correction=correction)  # type: ignore[no-any-return]

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        """Return the largest element over `axis` (all axes where None)."""
        return ops.max(self, axis=axis, keepdims=keepdims)  # type: ignore[no-any-return]

    def reshape(self, *shape: Any) -> Tensor:
        """Return the same elements in another shape; one size may be -1."""
        return ops.reshape(self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)  # type: ignore[no-any-return]

    def transpose(self, *axes: int) -> Tensor:
        """Permute the axes (reverse them where none is given)."""
        return ops.transpose(self, axes or None)  # type: ignore[no-any-return]

    @property
    def T(self) -> Tensor:
        """The axes reversed."""
        return ops.transpose(self)  # type: ignore[no-any-return]


def _adopted_gradient(array: Array, gradient: Any) -> Array:
    """Return what was given to `backward` as an array of the library of `array`."""
    gradient = bare(gradient)
    if not hasattr(gradient, "dtype"):
        try:
            adopted(gradient)  # refuses masks
            return namespace(array).asarray(gradient, dtype=array.dtype, device=array.device)  # type: ignore[no-any-return]
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(
                f"backward: got a {type(gradient).__name__}, expected a gradient of shape {tuple(array.shape)}: {error}"
            ) from None
    if type(gradient) not in array_types:
        gradient = adopted(gradient)
    if kind_of(gradient.dtype) == "other":
        raise TypeError(f"backward: the gradient has dtype {gradient.dtype}, expected numbers")
    return as_array(namespace(array, gradient), gradient)


def _output(array: Array, node: Node, index: int) -> Tensor:
    """Return the Tensor of one of several outputs; integer outputs (max-pool switches) have no gradient."""
    outputs = node.outputs or ()
    made = Tensor(array, outputs[index] is not None)
    if made.requires_grad:
        made.node = Output(node, index)
    return made


def bare(value: Any) -> Any:
    """Return the native array of a Tensor; other values as they are."""
    return value.array if isinstance(value, Tensor) else value


_NO_VALUES = frozenset(
    {
        "allclose", "argmax", "argmin", "argsort", "array2string", "array_equal", "array_equiv", "array_repr", "array_str",
        "can_cast", "count_nonzero", "isclose", "may_share_memory", "ndim", "result_type", "save", "savetxt", "savez", "shape",
        "shares_memory", "size",
    }
)  # fmt: skip
"""NumPy's functions whose results have no gradient anyway."""


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the Tensors among some arguments."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list, dict)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _plain_index(index: Any) -> Any:
    return tuple(bare(i) for i in index) if isinstance(index, tuple) else bare(index)
