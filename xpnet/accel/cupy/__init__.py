"""CuPy implementations of the operations that matter: our own kernels and matrix products.

The registry imports this package when the first CuPy array comes to an operation. Importing it touches no device.
"""

from xpnet.accel.cupy import (
    activation,
    batches,
    convolution,
    dropout,
    linear,
    mixed,
    normalization,
    optimizers,
    pooling,
    softmax,
    windows,
)

__all__ = [
    "activation",
    "batches",
    "convolution",
    "dropout",
    "linear",
    "mixed",
    "normalization",
    "optimizers",
    "pooling",
    "softmax",
    "windows",
]
