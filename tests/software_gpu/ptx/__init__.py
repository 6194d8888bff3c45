"""Translates PTX, which NVIDIA's compiler makes of CUDA C++, into C++ that g++ compiles for the software device."""

from .module import RefusedError as RefusedError
from .translate import translate as translate
