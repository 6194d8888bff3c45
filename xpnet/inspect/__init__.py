"""Looking inside: summaries, gradient checks, what the layers do and what it costs."""

from xpnet.inspect.diagnose import Finding, diagnose
from xpnet.inspect.finite import first_not_finite
from xpnet.inspect.gradients import GradientError, check_gradients
from xpnet.inspect.profile import Profile, profile

__all__ = ["Finding", "GradientError", "Profile", "check_gradients", "diagnose", "first_not_finite", "profile"]
