"""The namespace of CuPy arrays: array-api-compat's, without what a CUDA graph cannot hold.

While a stream is captured, CuPy refuses its own cuBLAS, and every copy from or to the host. What operations call must do
neither, so these functions replace

* products (`matmul`, `tensordot`, `vecdot`, `dot`, `inner`): they go through cuBLAS handles of our own, see `products`;
* `sign` and `clip`, which array-api-compat computes with boolean masks, whose number of elements the host has to know;
* `concat` and `stack` of more than eight arrays, whose addresses CuPy copies to the device;
* `where`, which in CuPy makes float32 of bfloat16.

What is left in the namespace and reads the host does so by nature: the shape of the result depends on values (`nonzero`,
`unique_*`, indexing by a boolean mask, `repeat` by an array), or host data are moved to the device (`asarray` of a list or of
a NumPy array). The module imports CuPy: xpnet.backend asks for it when it meets the first CuPy array.
"""

from __future__ import annotations

from types import ModuleType

from array_api_compat import cupy as _compat
from array_api_compat.cupy import *  # noqa: F403
from array_api_compat.cupy import __array_api_version__ as __array_api_version__
from array_api_compat.cupy import __array_namespace_info__ as __array_namespace_info__
from array_api_compat.cupy import fft as fft

from xpnet.accel.cupy.capturable import clip, concat, dot, inner, matmul, sign, stack, tensordot, vecdot, where  # noqa: F401

linalg = ModuleType(f"{__name__}.linalg", _compat.linalg.__doc__)
linalg.__dict__.update({name: getattr(_compat.linalg, name) for name in _compat.linalg.__all__})
linalg.__dict__.update(matmul=matmul, tensordot=tensordot, vecdot=vecdot, __all__=_compat.linalg.__all__)

__all__ = _compat.__all__
