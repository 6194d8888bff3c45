"""All parameters of a model in one flat array, and all gradients in another.

Each Parameter's array and gradient are views into them, so an optimizer updates the whole model in one pass over one
array, and an all-reduce is one call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NoReturn
from weakref import ref

from xpnet import ops
from xpnet.autograd.parameter import Parameter
from xpnet.autograd.tensor import Tensor
from xpnet.backend import Array, Device, describe, device_of, namespace, to_device
from xpnet.ops.updates.half import rounded

Layout = list[list[Any]]  # [path, start, stop] of every parameter

ALIGNMENT = 16
"""Every parameter starts at a multiple of this many elements, aligned for vector loads. Gaps hold zeros."""


class FlatParameters:
    """Flat storage for some parameters of one dtype on one device.

    Args:
        parameters: the Parameters; their values are copied in, and their arrays become views.

    Attributes:
        values, gradients: 1-D arrays of equal size.
        parameters: the Parameters, in order.
        slices: the slice of each.
        decayed: the index that separates weights, which decay, from biases and scales.
        regularized: the parameters with a penalty.
        constrained: the parameters that are projected after each update.
        in_order: whether those that decay still come first, and no others.

    Raises:
        ValueError: dtypes or devices differ.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        # A parameter that two layers share is stored once. Those that decay come first: one slice holds them all.
        self.parameters = sorted(_unique(parameters), key=lambda p: not p.decay)
        kinds = {(str(p.array.dtype), str(device_of(p.array))) for p in self.parameters}
        if len(kinds) > 1:
            listed = "; ".join(f"{p.path or '?'}: {describe(p.array)}" for p in self.parameters)
            raise ValueError(
                f"the parameters of one model must share dtype and device, got {listed}; assign arrays of the model's, or "
                f"xn.Parameter(values), which is brought there"
            )
        self.slices: list[slice] = []
        self.decayed = size = 0
        self._decays = [p.decay for p in self.parameters]
        self.sort_again()
        mine = ref(self)
        for p in self.parameters:
            p.flat = mine
            count = math.prod(p.array.shape)
            self.slices.append(slice(size, size + count))
            size += -(-count // ALIGNMENT) * ALIGNMENT
            if p.decay:
                self.decayed = size
        self._views: list[tuple[Parameter, Array]] = []
        self._ids = {id(p) for p in self.parameters}
        self.values: Any = None  # arrays, once there is a parameter
        self.gradients: Any = None
        self._copies: dict[str, tuple[Array, dict[int, Array]]] = {}
        if not self.parameters:
            return
        first = self.parameters[0].array
        xp = namespace(first)
        self.values = xp.zeros(size, dtype=first.dtype, device=first.device)
        self.gradients = xp.zeros(size, dtype=first.dtype, device=first.device)
        replaced = [p.array for p in self.parameters]
        for p, where in zip(self.parameters, self.slices):
            shape = tuple(p.array.shape)
            view = xp.reshape(self.values[where], shape)
            view[...] = p.array
            p.array = view
            self._views.append((p, view))
            p.buffer = xp.reshape(self.gradients[where], shape)
            if p.grad is not None:
                p.buffer[...] = p.grad
                p.grad = p.buffer
        # The replaced arrays are freed now. Where they were made on another stream than that of the copies, another thread
        # may get their memory there at once.
        place = device_of(first)
        if isinstance(place, Device):
            place.synchronize()
        del replaced, first

    def sort_again(self) -> None:
        """List the parameters that have a penalty or a constraint now; one of them was set."""
        self.regularized = [p for p in self.parameters if p.regularizer is not None]
        self.constrained = [p for p in self.parameters if p.constraint is not None]
        self.in_order = [p.decay for p in self.parameters] == self._decays

    def penalty(self) -> Tensor | None:
        """Return the sum of all weight penalties, or None where no parameter has one.

        Raises:
            TypeError: a regularizer returned something that has no gradient.
        """
        total = None
        for parameter in self.regularized:
            term = parameter.regularizer(parameter)
            if type(term) is not Tensor or term.array.ndim or not term.requires_grad:
                _refuse_penalty(parameter, term)
            total = term if total is None else total + term
        return total

    def intact(self) -> bool:
        """Return whether every Parameter is still trainable and still a view of this storage, those that decay first."""
        for p, view in self._views:  # in every step: a loop takes half the time of all()
            if p.array is not view or not p.requires_grad:
                return False
        return self.in_order

    def holds(self, parameters: Iterable[Parameter]) -> bool:
        """Return whether this is the intact storage of exactly these Parameters."""
        return {id(p) for p in parameters} == self._ids and self.intact()

    def layout(self) -> Layout | None:
        """Return the path and the place of every parameter, as files hold them; None where they are no model's."""
        places = {p.path: [p.path, where.start, where.stop] for p, where in zip(self.parameters, self.slices)}
        return None if "" in places or len(places) < len(self.parameters) else [*places.values()]

    def carry_over(self, state: Array, before: FlatParameters | Layout, fresh: Array) -> Array:
        """Return the state of these parameters after some were frozen or unfrozen.

        Args:
            state: one value for each element of `before`, the storage until then.
            before: the storage; or its layout, of a file: parameters are the same if they have the same path.
            fresh: one for each element of this storage; those of the parameters that stayed are overwritten.

        Raises:
            ValueError: a parameter had another size.
        """
        if isinstance(before, FlatParameters):
            places: dict[Any, slice] = {id(p): where for p, where in zip(before.parameters, before.slices)}
        else:
            places = {path: slice(start, stop) for path, start, stop in before}
        for parameter, where in zip(self.parameters, self.slices):
            place = places.get(id(parameter), places.get(parameter.path))
            if place is None:
                continue
            values = state[place]
            if values.shape != fresh[where].shape:
                raise ValueError(
                    f"{parameter.path}: the state holds {values.shape[0]} values of this parameter, which has "
                    f"{where.stop - where.start}: it is another model's"
                )
            fresh[where] = to_device(values, device_of(fresh))
        return fresh

    def half_copies(self, dtype: str) -> dict[int, Array]:
        """Return every parameter's values in another dtype, by the Parameter's id: views of one array, cast in one launch."""
        if self.values is None:
            return {}
        if dtype not in self._copies:
            xp = namespace(self.values)
            flat = ops.cast(self.values, dtype)
            shapes = [tuple(p.array.shape) for p in self.parameters]
            views = {id(p): xp.reshape(flat[where], shape) for p, where, shape in zip(self.parameters, self.slices, shapes)}
            self._copies[dtype] = flat, views
            return views
        flat, views = self._copies[dtype]
        rounded(flat, self.values)
        return views

    def collect(self) -> None:
        """Copy gradients that users assigned into the flat array, and write 0 where the last backward did not reach."""
        for p in self.parameters:
            buffer: Any = p.buffer
            if p.grad is not buffer:
                buffer[...] = 0 if p.grad is None else p.grad

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for p in self.parameters:
            p.grad = None


def _refuse_penalty(parameter: Parameter, term: Any) -> NoReturn:
    """Raise the error for what a regularizer returned instead of a number on the tape."""
    kind = getattr(parameter.regularizer, "__name__", type(parameter.regularizer).__name__)
    got = type(term).__name__
    if isinstance(term, Tensor):
        got = f"a Tensor of shape {term.shape}" if term.array.ndim else "a Tensor without a gradient"
    raise TypeError(
        f"the regularizer {kind} of the parameter {parameter.path!r} returned {got}, expected a Tensor of shape () that "
        f"depends on the parameter: compute it with xn.ops, such as 0.01 * xn.ops.sum(xn.ops.square(w)), not from w.array"
    )


def _unique(parameters: Iterable[Parameter]) -> list[Parameter]:
    return list({id(p): p for p in parameters}.values())
