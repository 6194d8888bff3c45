"""Minimisers of SciPy over the flat vector of all parameters: L-BFGS and the truncated Newton method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpnet import backend, losses
from xpnet.autograd.flat_parameters import FlatParameters
from xpnet.backend import Array
from xpnet.layers.module import Module
from xpnet.layers.not_finite import not_finite_in
from xpnet.optim.optimizer import Optimizer, Target
from xpnet.runtime.settings import check_numbers, check_whole


@dataclass(frozen=True)
class Minimum:
    """The result of a minimisation.

    Attributes:
        loss: the last loss, with penalties.
        iterations: of the method.
        evaluations: how often the loss and its gradient were computed.
        converged: whether it stopped at a tolerance, not at `max_iterations`.
        message: SciPy's message.
    """

    loss: float
    iterations: int
    evaluations: int
    converged: bool
    message: str


class FullBatch(Optimizer):
    """Base class of the minimisers: they evaluate the loss where they choose, so they take the loss, not gradients.

        xn.optim.LBFGS(max_iterations=200).minimize(model, "softmax_cross_entropy", (x, y))

    A Trainer passes its optimizer one gradient at a time and cannot drive them; train with `minimize`, then use
    ``trainer.evaluate`` as usual.

    Args:
        max_iterations: of the method.
        tolerance: stop where no element of the gradient is larger.
        weight_decay: the penalty 1/2 * weight_decay * sum(w**2) on the weights is added to the loss.
    """

    method = ""

    def __init__(self, max_iterations: int = 100, tolerance: float = 1e-5, *, weight_decay: float = 0.0) -> None:
        super().__init__(1.0, weight_decay=weight_decay)
        check_whole(type(self).__name__, 1, max_iterations=max_iterations)
        check_numbers(type(self).__name__, "[0, inf)", tolerance=tolerance)
        self.max_iterations = max_iterations
        self.tolerance = tolerance

    def options(self) -> dict[str, Any]:
        """Return SciPy's options for the method."""
        return {"maxiter": self.max_iterations, "gtol": self.tolerance}

    def step(self, target: Target) -> None:
        """Raise a TypeError: these methods have no single step; the message says what to call instead."""
        name = type(self).__name__
        raise TypeError(
            f"{name} needs the loss as a function and cannot be driven by a Trainer or by step(); call "
            f"{name}(...).minimize(model, loss, (x, y))"
        )

    def minimize(
        self,
        model: Module,
        loss: str | Callable[[Any, Any], Any],
        data: tuple[Array, Array],
        *,
        batch_size: int | None = None,
        callback: Callable[[float], Any] | None = None,
    ) -> Minimum:
        """Minimise the loss over all the data, in training mode, and leave the parameters at the minimum.

        Dropout masks are the same in every evaluation, so that there is one function to minimise. float64 models get
        further: in float32 the loss soon changes by less than its rounding.

        Args:
            model: a Module that knows its input's shape.
            loss: a name or a function (prediction, target) -> mean over the examples.
            data: (x, y), all examples.
            batch_size: compute the loss in batches of this size, to save memory; None: at once.
            callback: called with the loss after every iteration.

        Raises:
            ImportError: SciPy is not installed.
            NotFiniteError: the loss is NaN or infinite where the method begins, or ends.
            ValueError: data of unequal length or without examples, or parameters with a constraint (no projection here).

        After an exception the model is as before.
        """
        if batch_size is not None:
            check_whole(f"{type(self).__name__}.minimize", 1, batch_size=batch_size)
        try:
            from scipy.optimize import minimize
        except ImportError:
            raise ImportError(f'{type(self).__name__} needs SciPy: pip install "xpnet[scipy]"') from None
        x, y = data
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(f"minimize: x holds {len(x)} examples and y {len(y)}; they must be equal and at least 1")
        function = losses.get(loss)
        device = model.context.device
        x, y = backend.to_device(x, device), backend.to_device(y, device)
        model._train_again()
        flat = model.flat_parameters
        if flat.values is None:
            raise ValueError("minimize: the model has no trainable parameters")
        if flat.constrained:
            raise ValueError(
                f"minimize: {flat.constrained[0].path} has a constraint, which {type(self).__name__} cannot keep; "
                f"use a penalty (regularizer), or SGD"
            )
        counters = model.rng_counters()
        last: list[float] = []

        def evaluate(vector: Any) -> tuple[float, Any]:
            flat.values[...] = backend.to_device(vector.astype(backend.dtype_name(flat.values)), device)
            model.load_rng_counters(counters)
            value = self._objective(model, flat, function, x, y, batch_size or len(x))
            if not (last or math.isfinite(value)):  # later the method itself steps back from such a place
                raise lost(value, "the first evaluation")
            last[:] = [value]
            return value, backend.to_numpy(flat.gradients).astype(np.float64)

        def lost(value: float, where: str) -> Exception:
            return not_finite_in(model, where, value, x, y, "begin with other weights, or scale the inputs")

        def after(_: Any) -> None:
            if callback is not None:
                callback(last[0])

        before = {name: backend.to_numpy(array).copy() for name, array in model.state().items()}
        begin = backend.to_numpy(flat.values).astype(np.float64)
        try:
            result = minimize(evaluate, begin, jac=True, method=self.method, options=self.options(), callback=after)
            if not math.isfinite(result.fun):
                raise lost(float(result.fun), f"iteration {int(result.nit)}")
            flat.values[...] = backend.to_device(result.x.astype(backend.dtype_name(flat.values)), device)
        except BaseException:
            model.load_state(before)
            model.load_rng_counters(counters)
            raise
        finally:
            flat.zero_grad()
        self.iterations += int(result.nit)
        return Minimum(float(result.fun), int(result.nit), int(result.nfev), bool(result.success), str(result.message))

    def _objective(self, model: Module, flat: FlatParameters, loss: Any, x: Array, y: Array, batch_size: int) -> float:
        """Return the mean loss over all examples plus penalties, and leave its gradient in the flat parameters."""
        flat.zero_grad()
        total = 0.0
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            share = loss(model(x[part]), y[part]) * (len(x[part]) / len(x))
            share.backward()
            total += float(share.array)
        penalty = flat.penalty()
        if penalty is not None:
            penalty.backward()
            total += float(penalty.array)
        flat.collect()
        if self.weight_decay:
            weights = flat.values[: flat.decayed]
            flat.gradients[: flat.decayed] += self.weight_decay * weights
            total += 0.5 * self.weight_decay * float((weights * weights).sum())
        return total


class LBFGS(FullBatch):
    """The limited-memory quasi-Newton method of Broyden, Fletcher, Goldfarb and Shanno, SciPy's L-BFGS-B. See FullBatch.

    Args:
        max_iterations, tolerance, weight_decay: as in FullBatch.
        history: how many past steps the curvature is estimated from.

    Source: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", 1989.
    """

    method = "L-BFGS-B"

    def __init__(
        self, max_iterations: int = 100, tolerance: float = 1e-5, history: int = 10, *, weight_decay: float = 0.0
    ) -> None:
        super().__init__(max_iterations, tolerance, weight_decay=weight_decay)
        check_whole("LBFGS", 1, history=history)
        self.history = history

    def options(self) -> dict[str, Any]:
        """Return SciPy's options for the method."""
        # An iteration takes a few evaluations; ftol is the relative change of the loss at which it has converged.
        return {**super().options(), "maxcor": self.history, "maxfun": 20 * self.max_iterations, "ftol": 1e-14}


class TruncatedNewton(FullBatch):
    """Newton's method with the equations of each step solved by a few conjugate gradients, SciPy's TNC. See FullBatch.

    Args:
        max_iterations, tolerance, weight_decay: as in FullBatch.

    Source: Nash, "Newton-type minimization via the Lanczos method", 1984.
    """

    method = "TNC"

    def options(self) -> dict[str, Any]:
        """Return SciPy's options for the method."""
        return {"maxfun": 50 * self.max_iterations, "gtol": self.tolerance, "ftol": 1e-14, "xtol": 1e-14}
