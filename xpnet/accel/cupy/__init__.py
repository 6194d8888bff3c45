"""CuPy implementations of the operations that matter: our own kernels and matrix products.

The registry imports this package when the first CuPy array comes to an operation. Importing it touches no device.
"""

from xpnet.accel.cupy import pooling, windows

__all__ = ["pooling", "windows"]
