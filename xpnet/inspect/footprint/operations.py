"""The accelerated operations and update rules on fake arrays."""

from __future__ import annotations

from xpnet.ops.registry import load_accelerations, registry
from xpnet.ops.updates.rule import rules


def use_footprints(library: str) -> None:
    """Register what the accelerations for a library allocate as accelerations for its fake arrays.

    For "numpy" it is the footprint that each implementation declares (`Implementation.footprint`); one without is left out.
    For "cupy" it is the implementations themselves, whose launches then do nothing.
    """
    load_accelerations(library)
    fake = f"fake_{library}"
    for operation in registry.values():
        first = operation.accelerated.get(library)
        if library == "numpy":
            first = None
            for implementation in reversed(operation.implementations(library)):
                if (footprint := implementation.declared_footprint) is not None:
                    footprint.fallback, first = first, footprint
        if first is not None:
            operation.accelerated[fake] = first
    for rule in rules.values():
        if (function := rule.accelerated.get(library)) is not None:
            rule.accelerated[fake] = rule.footprints[function] if library == "numpy" else function
