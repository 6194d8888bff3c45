"""Mixed precision: a model that computes with 16-bit floats, with float32 master weights.

The parameters of a model with dtype "float16" or "bfloat16" are float32: the master weights that optimizers update, penalties
use and files hold. During the forward pass, operations use rounded copies instead, made by one launch over the model's flat
storage. Inputs are rounded where they enter the root, and outputs are widened to float32 where they leave it, so that losses
and metrics are computed in float32. In between, arrays have 16 bits; sums, products and statistics are accumulated in float32.
Gradients of the copies arrive in 16 bits, or wider, and are added to the float32 gradients of the parameters.

Source: Micikevicius et al., "Mixed precision training", 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from xpnet import backend, ops
from xpnet.autograd.parameter import Parameter
from xpnet.autograd.tape import mode
from xpnet.autograd.tensor import Tensor
from xpnet.backend import Array
from xpnet.layers.context import Context
from xpnet.layers.execution import prepare_input

if TYPE_CHECKING:
    from xpnet.layers.module import Module


class HalfCopies:
    """The 16-bit copies that operations use in the place of parameters.

    Args:
        dtype: "float16" or "bfloat16".
        copies: by the id of each Parameter.
        others: whether Parameters without a copy are rounded on first use, or left alone.
    """

    def __init__(self, dtype: str, copies: dict[int, Array], others: bool) -> None:
        self.dtype = dtype
        self.copies = copies
        self.others = others

    def around(self, copies: HalfCopies) -> HalfCopies:
        """Return what a model that runs within this one uses: its own copies."""
        return copies

    def arrays(self, inputs: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        """Return the arrays of an operation's inputs, with the copies in the place of those of Parameters."""
        return [self.of(v, a) if isinstance(v, Parameter) else a for v, a in zip(inputs, arrays)]

    def of(self, parameter: Parameter, array: Array) -> Array:
        """Return the array to use for a Parameter with this array."""
        found = self.copies.get(id(parameter))
        if found is None and self.others:
            found = self.copies[id(parameter)] = ops.cast(array, self.dtype)
        return array if found is None else found


def half_copies(module: Module) -> HalfCopies:
    """Return rounded copies of all parameters of a Module."""
    dtype = module.context.dtype
    # Only the root has flat storage, and parameters that do not exist yet are not in it.
    if module.path or not module._is_built():
        return HalfCopies(dtype, {}, others=True)
    copies = module.flat_parameters.half_copies(dtype)
    frozen = {id(p): ops.cast(p.array, dtype) for p in module.parameters().values() if id(p) not in copies}
    return HalfCopies(dtype, {**copies, **frozen} if frozen else copies, others=False)


def computing_half() -> bool:
    """Return whether operations use 16-bit copies of parameters now."""
    return mode.operands is not None and mode.operands.dtype is not None


def call(module: Module, forward: Callable[..., Any], inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Run the forward pass of a root, or of a part called on its own, with 16-bit copies; outputs are float32."""
    before = mode.operands
    inputs = tuple([_entering(x, module.context) for x in inputs])
    copies = half_copies(module)
    mode.operands = copies if before is None else before.around(copies)
    try:
        output = forward(*inputs, **keywords)
    finally:
        mode.operands = before
    return _leaving(output)


def _entering(x: Any, context: Context) -> Any:
    if not isinstance(x, Tensor):
        return prepare_input(x, context)
    return ops.cast(x, context.dtype) if _other(x, context.dtype) else x


def _leaving(output: Any) -> Any:
    """Return an output, or each of several, in float32 where it holds floats."""
    if isinstance(output, (tuple, list)):
        return tuple(_leaving(part) for part in output)
    return ops.cast(output, "float32") if _other(output, "float32") else output


def _other(x: Any, dtype: str) -> bool:
    """Return whether `x` holds floats of another dtype."""
    array = x.array if isinstance(x, Tensor) else x
    return hasattr(array, "dtype") and backend.is_floating(array) and backend.dtype_name(array) != dtype
