"""Knowing at the price of one comparison that nothing has changed in a tree of Modules."""

from __future__ import annotations

from weakref import ReferenceType, ref


class Version:
    """Counts the changes of one Module and of all Modules below it.

    What is derived from a model (its flat parameters, a planned prediction) keeps the count it was made at. A change counts
    in the Module that it is made in and in every Module above, of which a shared layer has several, but nowhere else.

    Attributes:
        changes: whatever a Module was given.
        structure: the Modules and Parameters among that.
    """

    __slots__ = ("__weakref__", "_above", "changes", "structure")

    def __init__(self) -> None:
        self.changes = 0
        self.structure = 0
        # Weak: a layer must not keep the models alive that it was part of. Replaced, not mutated, for the sake of threads.
        self._above: tuple[ReferenceType[Version], ...] = ()

    def changed(self, structure: bool = False) -> None:
        """Count one change here and above."""
        self.changes += 1
        self.structure += structure
        if not self._above:
            return
        seen, waiting = {self}, [self]
        while waiting:
            for parent in waiting.pop()._above:
                above = parent()
                if above is not None and above not in seen:
                    seen.add(above)
                    waiting.append(above)
                    above.changes += 1
                    above.structure += structure

    def put_below(self, parent: Version) -> None:
        """Count changes in `parent`, too."""
        self._above = (*(kept for kept in self._above if kept() not in (None, parent)), ref(parent))

    def take_from(self, parent: Version) -> None:
        """Count changes in `parent` no longer."""
        self._above = tuple(kept for kept in self._above if kept() not in (None, parent))
