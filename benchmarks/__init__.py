"""Benchmarks: pytest-benchmark suites, and ``python -m benchmarks``, the comparison with other libraries.

Nothing here imports xpnet or NumPy on its own: the workers of other libraries run in environments without xpnet.
"""
