"""Arrays without memory: a model runs on them as it is, and what it would allocate is counted instead of allocated.

A fake array has a shape, a dtype and strides, and no values. The operations run on fake arrays as on the arrays of any
library: the tape holds and frees them at the same moments, so the count at each moment is that of a real run. There are two
kinds: fake NumPy arrays, for which the accelerated operations declare what they allocate, and fake CuPy arrays, on which the
accelerated operations run themselves, with launches that do nothing.
"""

from xpnet.inspect.footprint.fake_array import AllocationLog, FakeArray, FakeCupyArray, FakeNumpyArray, counting
from xpnet.inspect.footprint.fake_namespace import FAKE_CPU, FAKE_CUDA, FakeDevice

__all__ = ["FAKE_CPU", "FAKE_CUDA", "AllocationLog", "FakeArray", "FakeCupyArray", "FakeDevice", "FakeNumpyArray", "counting"]
