"""CuPy implementations of the operations that matter: our own kernels and matrix products.

The registry imports this package when the first CuPy array comes to an operation. Importing it touches no device.
"""

from xpnet.accel.cupy import (
    activation,
    batches,
    convolution,
    device,
    dropout,
    im2col,
    linear,
    mixed,
    normalization,
    optimizers,
    pooling,
    softmax,
)

__all__ = [
    "activation",
    "batches",
    "convolution",
    "device",
    "dropout",
    "im2col",
    "linear",
    "mixed",
    "normalization",
    "optimizers",
    "pooling",
    "softmax",
]
