"""The accelerated operations on fake CuPy arrays: those for CuPy themselves, whose launches then do nothing."""

from __future__ import annotations

import xpnet.accel.cupy  # noqa: F401  (registers them)
from xpnet.ops.registry import registry
from xpnet.ops.updates.rule import rules

for _op in registry.values():
    if "cupy" in _op.accelerated:
        _op.accelerated["fake_cupy"] = _op.accelerated["cupy"]
for _rule in rules.values():
    if "cupy" in _rule.accelerated:
        _rule.accelerated["fake_cupy"] = _rule.accelerated["cupy"]
