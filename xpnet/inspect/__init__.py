"""Looking inside: summaries, gradient checks, what the layers do."""

from xpnet.inspect.finite import first_not_finite
from xpnet.inspect.gradients import check_gradients

__all__ = ["check_gradients", "first_not_finite"]
