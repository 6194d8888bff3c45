"""The inputs of every library, whether their results agree, and summaries of measurements."""

from __future__ import annotations

import math
import statistics
import zlib
from typing import Any

import numpy as np

from benchmarks.cases import CLASSES, PASSES, Case
from benchmarks.nets import trace

# Relative to the norm of an array: libraries sum in different orders, and half precision keeps 11 or 8 bits.
TOLERANCE = {"float32": 2e-3, "tf32": 2e-2, "float16": 5e-2, "bfloat16": 1e-1}
# In a deep network rounding moves some units across ReLU's kink, and gradients of single arrays jump while losses agree to
# 1e-6: PyTorch and JAX differ from each other by 1.5e-2 on ResNet-20 after two updates.
DEEP, DEEP_FACTOR = 6, 20.0
# The limit for any network: unrelated arrays differ by 1.4.
LOOSEST = 0.5
# Even in a shallow network a unit can lie within rounding of the kink. Then other inputs are drawn; a real error disagrees
# with all of them.
DRAWS, DISAGREES = 3, "results do not agree"


def arrays_for(case: Case, draw: int = 0) -> dict[str, Any]:
    """Return inputs and weights, the same for every library, in xpnet's layouts."""
    rng = np.random.default_rng([zlib.crc32(case.name.encode()), draw])

    def normal(shape: tuple[int, ...]) -> Any:
        return rng.standard_normal(shape, dtype=np.float32)

    found = {"x": normal((case.batch, *case.shape))}
    walked = trace(case.net, case.shape)
    if case.is_loss or case.kind in ("step", "data", "first_step", "import"):
        found["labels"] = rng.integers(0, case.classes if case.is_loss else CLASSES, case.batch)
    if (case.kind == "layer" and not case.is_loss) or case.kind in PASSES:
        found["dy"] = normal((case.batch, *walked.output_shape))
    for weight in walked.weights:
        values = np.float32(weight.mean) + np.float32(weight.spread) * normal(weight.shape)
        found[f"weight/{weight.path}"] = values
    return found


def distance(ours: Any, theirs: Any) -> float:
    """Return |ours - theirs| / |theirs| in Euclidean norms; infinity if shapes differ or anything is not finite."""
    if ours.shape != theirs.shape:
        return math.inf
    ours, theirs = (np.asarray(a, np.float64).ravel() for a in (ours, theirs))
    norm = float(np.linalg.norm(theirs))
    error = float(np.linalg.norm(ours - theirs)) / norm if norm else float(np.linalg.norm(ours))
    return error if math.isfinite(error) else math.inf


def tolerance_of(case: Case, precision: str) -> float:
    """Return how far results may differ, as a fraction of their norm."""
    deep = sum(weight.path.endswith("kernel") for weight in trace(case.net, case.shape).weights) >= DEEP
    return min(TOLERANCE[precision] * (DEEP_FACTOR if deep else 1), LOOSEST)


def summary(values: list[float]) -> dict[str, float]:
    """Return median, extremes and quartiles of some turns."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": statistics.median(values),
        "minimum": min(values),
        "lower_quartile": quartiles[0],
        "upper_quartile": quartiles[2],
        "turns": len(values),
    }
