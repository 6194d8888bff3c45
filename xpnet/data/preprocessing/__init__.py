"""Preprocessing: transforms that are fitted to the training data, then applied to all data.

``p = Standardize().fit(x_train)``, then ``p(x_test)``, and ``p.inverse(z)`` where there is an inverse. Fitting runs on the
host, in float64 and chunk by chunk, so that the data may be on a GPU or in a file larger than memory; applying runs where
the data are. A transform is fitted once: a second `fit` is an error, because it would change a trained model's input.

``p.state()`` is a dictionary of settings (for JSON) and arrays (for safetensors); :func:`from_state` restores the transform.
Sources: Stanford CS231n, "Data preprocessing"; A. Ng et al., UFLDL, "PCA whitening".
"""

from .base import Transform
from .labels import from_one_hot, one_hot
from .pipeline import Pipeline, from_state
from .principal import PCA, Whiten
from .simple import Bias, MeanSubtraction, MinMax, Scale, Standardize

__all__ = [
    "PCA", "Bias", "MeanSubtraction", "MinMax", "Pipeline", "Scale", "Standardize", "Transform", "Whiten", "from_one_hot",
    "from_state", "one_hot",
]  # fmt: skip
