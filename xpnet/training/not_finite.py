"""The errors for a run whose loss or weights are not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xpnet.backend import Array, is_floating, namespace
from xpnet.layers.not_finite import (
    ADVICE,
    first_not_finite,
    not_finite_in,
    not_finite_targets,
    parameter_not_finite,
)
from xpnet.layers.not_finite import (
    NotFiniteError as NotFiniteError,
)

if TYPE_CHECKING:
    from xpnet.training.steps import Steps
    from xpnet.training.trainer import Trainer

_SEARCHED = 1 << 32  # bytes of data that are looked through for the cause
_CHUNK = 1 << 24


def not_finite(trainer: Steps, x: Array, loss: float, y: Any = None) -> NotFiniteError:
    """Return the error for a loss on the batch `x` with the targets `y`."""
    return not_finite_in(trainer.model, f"epoch {trainer.epoch + 1}, batch {trainer.batch + 1}", loss, x, y)


def lost_epoch(trainer: Trainer, loss: float, x: Any = None, y: Any = None) -> NotFiniteError:
    """Give up an epoch in which a loss was not finite, and return the error: no step has looked, to wait for no GPU.

    x, y: the last batch, if it is at hand.
    """
    where = f"epoch {trainer.epoch + 1}, within its first {trainer.batch} batches"
    trainer.batch = 0
    cause = not_finite_targets(y) or examples_not_finite(trainer.batches)
    if cause:
        cause = f"{cause}; take these examples out, or fill in their values"
    else:
        found = parameter_not_finite(trainer.model) if x is None else first_not_finite(trainer.model, x)
        cause = f"{found}; {ADVICE}" if found else ADVICE
    return NotFiniteError(f"the loss became {loss} in {where}; {cause}")


def lost_weights(trainer: Trainer) -> NotFiniteError:
    """Return the error for parameters that are not finite where a checkpoint would hold them."""
    where = f"epoch {trainer.epoch + 1}, batch {trainer.batch}" if trainer.batch else f"epoch {trainer.epoch}"
    return NotFiniteError(f"after {where} {parameter_not_finite(trainer.model)}; {ADVICE}")


def examples_not_finite(batches: Any) -> str:
    """Return a clause about arrays of examples that are not finite, or "" where there are none or nobody can tell."""
    from xpnet.data.arrays import Arrays, reads_plainly, tree_leaves

    if batches is None or not isinstance(batches.source, Arrays):
        return ""
    leaves = [leaf for leaf in tree_leaves(batches.source.tree) if reads_plainly(leaf) and hasattr(leaf, "nbytes")]
    if sum(leaf.nbytes for leaf in leaves) > _SEARCHED:
        return ""
    for leaf in leaves:
        rows = max(1, _CHUNK * len(leaf) // max(leaf.nbytes, 1))
        for start in range(0, len(leaf), rows) if is_floating(leaf) else ():
            part = leaf[start : start + rows]
            xp = namespace(part)
            bad = xp.any(xp.reshape(~xp.isfinite(part), (len(part), -1)), axis=1)
            if bool(xp.any(bad)):
                return f"the data hold values that are not finite, the first in example {start + int(xp.argmax(bad))}"
    return ""
