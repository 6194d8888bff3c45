"""The arrays that a recorded function takes from outside: a replay reads them where they were, and sets no gradient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

from xpnet.autograd.tape import mode
from xpnet.autograd.tensor import Tensor
from xpnet.backend import Array


class OtherGradientError(Exception):
    """A recorded step left a gradient in a Tensor that is none of the model's parameters, which no replay of it would do.

    Attributes:
        leaf: the Tensor.
    """

    def __init__(self, leaf: Tensor) -> None:
        super().__init__(f"a gradient of {leaf!r}")
        self.leaf = leaf


class Outside:
    """What the operations of a recording have taken from outside.

    Args:
        trained: the ids of the Parameters of the model, which are watched elsewhere.
        made: tells whether the recording has made an array.

    Attributes:
        places: the Tensors and Parameters, weakly, with their arrays, and whether they want a gradient.
        arrays: all arrays, which are kept: the recording reads them.
    """

    def __init__(self, trained: Collection[int], made: Callable[[Array], bool]) -> None:
        self.trained = trained
        self.made = made
        self.places: list[tuple[ref[Tensor], Array, bool]] = []
        self.arrays: dict[int, Array] = {}
        self._leaves: list[tuple[ref[Tensor], Any]] = []
        self._seen: set[int] = set()

    def note(self, tensor: Tensor) -> None:
        """Note a Tensor that no recorded operation has made, and whether it gets a gradient from now on."""
        if id(tensor) in self._seen or id(tensor) in self.trained or self.made(tensor.array):
            return
        self._seen.add(id(tensor))
        self.places.append((ref(tensor), tensor.array, tensor.requires_grad))
        if tensor.requires_grad:
            self._leaves.append((ref(tensor), tensor.grad))
            tensor.grad = None

    def keep(self, array: Any) -> None:
        """Keep an array that an operation uses, if it is from outside."""
        if id(array) not in self.arrays and not self.made(array):
            self.arrays[id(array)] = array

    def gradients(self) -> list[Tensor]:
        """Give the leaves their gradients back; return those that have got another one, which somebody can still read."""
        found = []
        for leaf, before in self._leaves:
            tensor = leaf()
            if tensor is not None:
                if tensor.grad is not None:
                    found.append(tensor)
                tensor.grad = before
        return found

    def in_place(self) -> bool:
        """Return whether the Tensors that are still there have the arrays that they had, and are as frozen."""
        for place, array, wants in self.places:
            tensor = place()
            if tensor is not None and (tensor.array is not array or tensor.requires_grad is not wants):
                return False
        return True


class Operands:
    """What looks at the operands of a recording's operations: see xpnet.autograd.tape.mode.

    Attributes:
        dtype: of the 16-bit copies that are used instead of Parameters, or None.
    """

    def __init__(self, outside: Outside, copies: Any = None) -> None:
        self.outside = outside
        self.copies = copies
        self.dtype = None if copies is None else copies.dtype

    def around(self, copies: Any) -> Operands:
        """Return the like with 16-bit copies in the place of Parameters."""
        return Operands(self.outside, copies)

    def arrays(self, inputs: Sequence[Any], arrays: Sequence[Any]) -> Sequence[Any]:
        """Note the inputs of an operation; return their arrays."""
        for value in inputs:
            if isinstance(value, Tensor) and value.node is None:
                self.outside.note(value)
        if self.copies is not None:
            arrays = self.copies.arrays(inputs, arrays)
        for array in arrays:
            self.outside.keep(array)
        return arrays


@contextmanager
def noted(outside: Outside) -> Iterator[None]:
    """Note what the operations of the block take from outside.

    Raises:
        OtherGradientError: a backward pass within it left a gradient in one of the Tensors.
    """
    before, mode.operands = mode.operands, Operands(outside)
    try:
        yield
    except BaseException:
        outside.gradients()
        raise
    finally:
        mode.operands = before
    found = outside.gradients()
    if found:
        raise OtherGradientError(found[0])
