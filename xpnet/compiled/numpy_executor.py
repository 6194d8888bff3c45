"""The executor of the CPU: planned predictions and training steps of small models, a plan for each shape of the input."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from xpnet import losses
from xpnet.accel.numpy.workspace import FLOATS, Floats
from xpnet.autograd.tape import no_grad
from xpnet.backend import Device
from xpnet.compiled.numpy_predict import MAX_ELEMENTS, Plan, UnplannableError
from xpnet.compiled.numpy_step import Step, plan_step
from xpnet.layers.execution import is_plannable
from xpnet.layers.modes import eval_mode
from xpnet.layers.module import Module
from xpnet.ops.registry import reference_is_forced
from xpnet.runtime.determinism import get_deterministic
from xpnet.runtime.threads import own_threads_preferred, preference

PLANS = 8
"""Plans of each kind that a model keeps."""


class NumpyExecutor:
    """See xpnet.layers.execution.Executor.

    Attributes:
        plans: by shape and dtype of the input; instead of a plan, the version of the model that could not be planned.
        steps: likewise by batch; (version, None) where it could not be planned, the version alone after the first batch.
    """

    def __init__(self, device: Device) -> None:
        self.plans: dict[Any, Plan | int] = {}
        self.steps: dict[Any, Step | int | tuple[int, None]] = {}

    def predict(self, model: Module, x: Any, whole: bool) -> Floats | None:
        """Return the output of the plan for inputs of this shape, which the first one creates."""
        if not whole or type(x) is not np.ndarray:
            return None
        plan = self.plans.get((x.shape, x.dtype))
        if type(plan) is not Plan or not plan.holds():
            plan = self._plan(model, x, plan)
            if plan is None:
                return None
        # A plan's buffers serve one thread at a time. Another one runs the model, which may round differently; in deterministic
        # mode it waits.
        if not plan.lock.acquire(blocking=get_deterministic()):
            return None
        try:
            return plan.run(x)
        finally:
            plan.lock.release()

    def _plan(self, model: Module, x: Any, known: Plan | int | None) -> Plan | None:
        if not 0 < x.size <= MAX_ELEMENTS or x.dtype != model.context.dtype or x.dtype not in FLOATS or reference_is_forced():
            return None
        version = model._tree_version.changes
        if known == version:
            return None
        if len(self.plans) >= PLANS:
            self.plans.clear()
        planned: Plan | int = version  # could not be planned: not before that is known, as other threads read it
        if all(is_plannable(module) for module in model.modules()):
            with contextlib.suppress(UnplannableError), no_grad(), eval_mode(model):
                # The output computed while planning is not returned: its products may use another number of threads.
                planned = Plan(model, x)
        self.plans[x.shape, x.dtype] = planned
        return planned if isinstance(planned, Plan) else None

    def step(self, model: Module, loss: Callable[..., Any], x: Any, y: Any) -> Step | None:
        """Return the plan for batches like x, which the second one creates.

        Gradients must go to the model's flat storage, and the loss must have no penalties.
        """
        if loss is not losses.softmax_cross_entropy or type(x) is not np.ndarray or type(y) is not np.ndarray:
            return None
        if x.dtype not in FLOATS or x.ndim < 2 or not x.size or y.shape != x.shape[:1]:
            return None
        preference.own = False  # as the model itself does: it has no convolutions
        key = x.shape, x.dtype
        known, version = self.steps.get(key), model._tree_version.changes
        if type(known) is Step:
            if known.large and own_threads_preferred():
                return None  # in deterministic mode large products are computed in chunks
            if known.holds():
                return known
            if known.changes == version and all(p.array is a for p, a, _ in known.arrays):
                return None  # a gradient is to be added to, or a parameter is frozen
        if known == version:
            step = plan_step(model, x)
            self.steps[key] = (version, None) if step is None else step
            return self.step(model, loss, x, y) if step is not None else None
        if known != (version, None):
            if len(self.steps) >= PLANS:
                self.steps.clear()
            self.steps[key] = version
        return None

    def capture(self, loop: Any) -> None:
        """Return None: there are no launches to save."""
