"""Dynamic loss scaling: a factor that keeps small float16 gradients from underflowing."""

from __future__ import annotations

from typing import Any
from weakref import ref

from xpnet.autograd.flat_parameters import FlatParameters
from xpnet.backend import Array, device_of, namespace, quiet, to_numpy
from xpnet.ops.updates.half import adjust, unscale
from xpnet.runtime.set_later import Settable
from xpnet.runtime.settings import check_numbers, check_whole


class LossScale(Settable):
    """A factor for the loss of a float16 model before the backward pass; the gradients are divided by it afterwards.

    The factor grows while gradients are finite. Where one overflows, the update is skipped and the factor is reduced. An
    Optimizer with one in its `loss_scale` does all of this in `step`; a Trainer gives its optimizer one where the model's
    dtype is float16. In your own loop::

        optimizer.loss_scale = xn.optim.LossScale()
        optimizer.loss_scale.backward(loss)  # instead of loss.backward()
        optimizer.step(model)

    The factor and the counter of good steps are arrays on the model's device, so that nothing waits for it.

    Args:
        initial: the initial factor.
        growth_interval: after this many updates in a row the factor is multiplied by `growth`.
        growth: it is divided by this after an overflow; powers of 2 do not round gradients.
        smallest: the lower limit of the factor.

    Source: Micikevicius et al., "Mixed precision training", 2018.
    """

    def __init__(
        self, initial: float = 2.0**16, *, growth_interval: int = 2000, growth: float = 2.0, smallest: float = 1.0
    ) -> None:
        check_numbers("LossScale", "(0, inf)", initial=initial, smallest=smallest)
        check_whole("LossScale", 1, growth_interval=growth_interval)
        check_numbers("LossScale", "(1, inf)", growth=growth)
        self.initial = float(initial)
        self.growth_interval = int(growth_interval)
        self.growth = float(growth)
        self.smallest = float(smallest)
        self.scale: Any = None  # (), float32
        self.good: Any = None  # (), int64: updates in a row since the factor changed
        self.overflow: Any = None  # (), uint32: 1 where the gradients of this step are not finite
        self._start = (self.initial, 0)
        self._unscaled = False
        self._owner: Any = None  # a weak reference to the optimizer

    def belong_to(self, optimizer: Any) -> None:
        """Begin with the initial factor, if it was another optimizer's so far: another run adapted it."""
        if self._owner is not None and self._owner() is not optimizer:
            self.load_state({"scale": self.initial, "good": 0})
        self._owner = ref(optimizer)

    @property
    def value(self) -> float:
        """The factor as a Python number (waits for the device)."""
        return self._start[0] if self.scale is None else float(self.scale)

    def place(self, like: Array) -> None:
        """Place the arrays on the device of `like`."""
        if self.scale is None or device_of(self.scale) != device_of(like):
            start, xp = self.state(), namespace(like)
            self.scale = xp.asarray(start["scale"], dtype=xp.float32, device=like.device)
            self.good = xp.asarray(start["good"], dtype=xp.int64, device=like.device)
            self.overflow = xp.asarray(0, dtype=xp.uint32, device=like.device)

    def backward(self, loss: Any, share: float = 1.0) -> None:
        """Call ``backward`` of the loss (a Tensor, 0-d) times the factor, and times `share`."""
        self.place(loss.array)
        self._unscaled = False
        xp = namespace(loss.array)
        scale = self.scale if share == 1.0 else self.scale * share
        with quiet(xp):
            loss.backward(xp.astype(scale, loss.array.dtype, copy=False))

    def unscale(self, flat: FlatParameters) -> None:
        """Divide all gradients by the factor, once a step, and record whether one of them is not finite."""
        if not self._unscaled and flat.values is not None:
            flat.collect()
            self.place(flat.values)
            unscale(flat.gradients, self.scale, self.overflow)
            self._unscaled = True

    def adjust(self) -> None:
        """Update the factor after a step."""
        adjust(self.scale, self.good, self.overflow, factor=self.growth, interval=self.growth_interval, smallest=self.smallest)
        self._unscaled = False

    def forget_step(self) -> None:
        """Begin again with the next backward pass: the step that was going on does not happen."""
        self._unscaled = False
        if self.overflow is not None:
            self.overflow[...] = 0

    def state(self) -> dict[str, Any]:
        """Return the factor and the counter as Python numbers (waits for the device)."""
        if self.scale is None:
            return {"scale": self._start[0], "good": self._start[1]}
        return {"scale": float(to_numpy(self.scale)), "good": int(to_numpy(self.good))}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state`, in place where the arrays exist: recorded steps use them."""
        self._start = float(state["scale"]), int(state["good"])
        self._unscaled = False
        if self.scale is not None:
            self.scale[...], self.good[...] = self._start
            self.overflow[...] = 0

    def __repr__(self) -> str:
        return f"LossScale({self._start[0]!r}, growth_interval={self.growth_interval}, growth={self.growth!r})"
