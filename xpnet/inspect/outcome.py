"""What a trained classifier did not learn: classes that it never finds, classes of very different sizes, underfitting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xpnet.inspect.diagnose import Finding
from xpnet.runtime.messages import quoted

UNEQUAL = 5
"""Classes are reported as unequal when the largest has at least this many times the examples of the smallest."""

UNDERFIT = 0.5
"""A network underfits when its loss on the training data is above this share of what the frequencies of the classes cost."""

_SHOWN = 5

Counts = Sequence[int] | np.ndarray[Any, Any]


def outcome(
    confusion: Sequence[Sequence[int]] | np.ndarray[Any, Any] | None = None,
    *,
    class_names: Sequence[str] = (),
    counts: Counts | None = None,
    loss: float | None = None,
) -> list[Finding]:
    """Report what a classifier did not learn; an empty list if there is nothing to say.

    Args:
        confusion: counts (K, K) on data that it was not trained on; rows are the true classes.
        class_names: K names; without them classes are shown by their indices.
        counts: examples of each class in the training data (K,); None takes the rows of `confusion`.
        loss: softmax cross entropy on the training data.

    Returns:
        findings of the kinds "unequal" (classes of very different sizes), "never found" and "underfit".
    """
    matrix = None if confusion is None else np.asarray(confusion, np.int64)
    if counts is None and matrix is not None:
        counts = matrix.sum(axis=1)
    sizes = np.asarray(() if counts is None else counts, np.int64)

    def name(k: int) -> str:
        return quoted(str(class_names[k]), 60) if k < len(class_names) else str(k)

    found = []
    present = np.flatnonzero(sizes)
    if present.size > 1:
        small, large = (int(present[pick(sizes[present])]) for pick in (np.argmin, np.argmax))
        if sizes[large] >= UNEQUAL * sizes[small]:
            text = (
                f"the classes have from {sizes[small]:,} ({name(small)}) to {sizes[large]:,} examples ({name(large)}), so that "
                f"rare ones may be missed; draw all equally often (xpnet train --balance, xpnet.data.example_weights) or "
                f"weight the loss (xpnet.training.ClassWeighted), and look at the recall of each class"
            )
            found.append(Finding("unequal", text))
    if matrix is not None and len(matrix):
        total = matrix.sum(axis=1)
        never = [k for k in range(len(matrix)) if total[k] and not matrix[k, k]]
        if never:
            shown = ", ".join(name(k) for k in never[:_SHOWN])
            shown += f" and {len(never) - _SHOWN} more" if len(never) > _SHOWN else ""
            what = f"the classes {shown} are" if len(never) > 1 else f"the class {shown} is"
            text = (
                f"{what} never found: none of {int(total[never].sum()):,} examples is predicted right; look at the confusion "
                f"matrix, the labels and the number of examples, and train longer"
            )
            found.append(Finding("never found", text))
    if loss is not None and present.size > 1:
        shares = sizes[present] / sizes[present].sum()
        guess = float(-(shares * np.log(shares)).sum())
        if loss > UNDERFIT * guess:
            text = (
                f"the network underfits: its loss on the training data is {loss:.3g}, and knowing nothing but how frequent the "
                f"classes are costs {guess:.3g}; train for more epochs, with another learning rate or a larger network, or "
                f"check whether the inputs tell the classes apart"
            )
            found.append(Finding("underfit", text))
    return found
