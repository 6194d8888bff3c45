"""Arrays without memory: a model runs on them as it is, and what it would allocate is counted instead of allocated.

A shadow has a shape, a dtype and strides, and no values. The operations of xpnet run on shadows as they run on the arrays of
any library: the tape holds and lets go of them at the same moments, so the count at each moment is what a real run would
have. There are two kinds: of NumPy's arrays, for which the accelerated operations say what they allocate
(:mod:`xpnet.inspect.footprint.numpy`), and of CuPy's, on which the accelerated operations run themselves, with launches that do
nothing.
"""

from xpnet.inspect.footprint.fake_array import CupyShadow, Ledger, NumpyShadow, Shadow, counting
from xpnet.inspect.footprint.fake_namespace import SHADOW_CPU, SHADOW_CUDA, ShadowDevice

__all__ = ["SHADOW_CPU", "SHADOW_CUDA", "CupyShadow", "Ledger", "NumpyShadow", "Shadow", "ShadowDevice", "counting"]
