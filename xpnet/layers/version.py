"""Version numbers of Modules: one comparison shows that nothing has changed in a tree."""

from __future__ import annotations

from typing import Any
from weakref import ReferenceType, ref


class Version:
    """The number of changes of one Module and of all Modules below it.

    What is derived from a model (flat parameters, a planned prediction) stores the number it was made at. A change counts in
    its Module and in every Module above; a shared layer may have several.

    Attributes:
        changes: all attributes that were set or deleted.
        structure: Modules and Parameters only.
    """

    __slots__ = ("__weakref__", "_above", "changes", "structure")

    def __init__(self) -> None:
        self.changes = 0
        self.structure = 0
        self._above: dict[int, ReferenceType[Version]] = {}  # by id; weak, so that a layer keeps no model alive

    def __deepcopy__(self, memo: dict[int, Any]) -> Version:
        """Return the Version of a copy: nothing that was derived from the original is valid for it."""
        made = Version()
        made.changes, made.structure = self.changes + 1, self.structure + 1
        return made

    def changed(self, structure: bool = False) -> None:
        """Count a change, here and in every Module above."""
        self.changes += 1
        self.structure += structure
        if not self._above:
            return
        seen, waiting = {self}, [self]
        while waiting:
            for parent in list(waiting.pop()._above.values()):
                above = parent()
                if above is not None and above not in seen:
                    seen.add(above)
                    waiting.append(above)
                    above.changes += 1
                    above.structure += structure

    def put_below(self, parent: Version) -> None:
        """Count changes in `parent` from now on."""
        above, key = self._above, id(parent)
        above[key] = ref(parent, lambda gone: above.pop(key, None))

    def take_from(self, parent: Version) -> None:
        """Stop counting changes in `parent`."""
        self._above.pop(id(parent), None)
