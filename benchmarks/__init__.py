"""Benchmarks: pytest-benchmark suites, and ``python -m benchmarks``, the comparison with other libraries.

This package imports neither xpnet nor NumPy: the workers of other libraries run in environments without xpnet.
"""
