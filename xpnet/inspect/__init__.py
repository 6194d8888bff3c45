"""Inspection of models: summaries, gradient checks, activations, diagnosis, profiles and memory."""

from xpnet.inspect.activity import (
    DeadUnits,
    Gradients,
    Histogram,
    activation_histograms,
    activations,
    dead_relus,
    draw_histograms,
    gradient_histograms,
    histogram,
    layer_gradients,
)
from xpnet.inspect.diagnose import Finding, diagnose
from xpnet.inspect.footprint.step import StepMemory, step_memory
from xpnet.inspect.gradients import GradientError, check_gradients
from xpnet.inspect.graph import draw_network
from xpnet.inspect.images import draw_images, filters_image, first_filters, saliency, save_image, templates, tile
from xpnet.inspect.monte_carlo import Samples, monte_carlo
from xpnet.inspect.outcome import outcome
from xpnet.inspect.profile import Profile, profile
from xpnet.inspect.receptive import Field, receptive_fields
from xpnet.inspect.timeline import Timeline
from xpnet.layers.not_finite import first_not_finite

__all__ = [
    "DeadUnits", "Field", "Finding", "GradientError", "Gradients", "Histogram", "Profile", "Samples", "StepMemory",
    "Timeline", "activation_histograms", "activations", "check_gradients", "dead_relus", "diagnose", "draw_histograms",
    "draw_images", "draw_network", "filters_image", "first_filters", "first_not_finite", "gradient_histograms",
    "histogram", "layer_gradients", "monte_carlo", "outcome", "profile", "receptive_fields", "saliency", "save_image",
    "step_memory", "templates", "tile",
]  # fmt: skip
