"""Accelerated operations for CuPy arrays: CUDA kernels of our own, cuBLAS and cuDNN.

The registry imports this package when an operation first gets a CuPy array. Importing it touches no device.
"""

from xpnet.accel.cupy import (
    activation,
    batches,
    convolution,
    device,
    dropout,
    elementwise,
    embedding,
    fused,
    im2col,
    linear,
    losses,
    mixed,
    normalization,
    optimizers,
    pooling,
    products,
    recurrent,
    softmax,
)

__all__ = [
    "activation", "batches", "convolution", "device", "dropout", "elementwise", "embedding", "fused", "im2col",
    "linear", "losses", "mixed", "normalization", "optimizers", "pooling", "products", "recurrent", "softmax",
]  # fmt: skip
