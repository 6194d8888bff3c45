"""What runs a small model at once on the CPU: planned predictions and training steps, kept for some shapes of input each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xpnet import losses
from xpnet.accel.numpy.workspace import FLOATS, Floats
from xpnet.autograd.tape import no_grad
from xpnet.backend import Device
from xpnet.compiled.numpy_predict import LARGEST, Plan, UnplannableError
from xpnet.compiled.numpy_step import Step, plan_step
from xpnet.layers.execution import is_plannable
from xpnet.layers.modes import eval_mode
from xpnet.layers.module import Module
from xpnet.ops.registry import reference_is_forced
from xpnet.runtime.determinism import get_deterministic
from xpnet.runtime.threads import own_threads_preferred, preference

PLANS = 8
"""Plans of each kind that a model keeps, one for each shape of input."""


class NumpyExecutor:
    """See xpnet.layers.execution.Executor.

    Attributes:
        plans: by shape and dtype of the input; in the place of a plan that cannot be made the version of which that is known.
        steps: likewise of batches; the version alone is that of the first batch, which is run layer by layer.
    """

    def __init__(self, device: Device) -> None:
        self.plans: dict[Any, Plan | int] = {}
        self.steps: dict[Any, Step | int | tuple[int, None]] = {}

    def predict(self, model: Module, x: Any, whole: bool) -> Floats | None:
        """Return the output by the plan for inputs of this shape, which is made when the first one comes."""
        if not whole or type(x) is not np.ndarray:
            return None
        plan = self.plans.get((x.shape, x.dtype))
        if type(plan) is not Plan or not plan.holds():
            plan = self._plan(model, x, plan)
            if plan is None:
                return None
        # Two threads cannot use one plan's buffers at the same time; the other one runs the model, which may round differently:
        # where bits must not depend on who was first, it waits.
        if not plan.lock.acquire(blocking=get_deterministic()):
            return None
        try:
            return plan.run(x)
        finally:
            plan.lock.release()

    def _plan(self, model: Module, x: Any, known: Plan | int | None) -> Plan | None:
        if not 0 < x.size <= LARGEST or x.dtype != model.context.dtype or x.dtype not in FLOATS or reference_is_forced():
            return None
        version = model._version.changes
        if known == version:
            return None
        if len(self.plans) >= PLANS:
            self.plans.clear()
        key = x.shape, x.dtype
        self.plans[key] = version
        if all(is_plannable(module) for module in model.modules()):
            try:
                # The output that planning computes is not returned: a product may run on another number of threads there.
                with no_grad(), eval_mode(model):
                    self.plans[key] = plan = Plan(model, x)
                return plan
            except UnplannableError:
                pass
        return None

    def step(self, model: Module, loss: Callable[..., Any], x: Any, y: Any) -> Step | None:
        """Return the plan for batches like x, which is made when the second one comes.

        The parameters' gradients must go to the model's flat storage, with nothing to be added to the loss.
        """
        if loss is not losses.softmax_cross_entropy or type(x) is not np.ndarray or type(y) is not np.ndarray:
            return None
        if x.dtype not in FLOATS or x.ndim < 2 or not x.size or y.shape != x.shape[:1]:
            return None
        preference.own = False  # as the model would, which has no convolutions
        key = x.shape, x.dtype
        known, version = self.steps.get(key), model._version.changes
        if type(known) is Step:
            if known.large and own_threads_preferred():
                return None  # in deterministic mode large products are cut up
            if known.holds():
                return known
            if known.changes == version and all(p.array is a for p, a, _ in known.arrays):
                return None  # a gradient waits, or a parameter is frozen for now
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
        """Return None: launches cost nothing here."""
