"""Settings of the accelerated implementations that a user may change."""

from __future__ import annotations

_PRECISIONS = ("float32", "tf32")
_precision = "float32"


def set_matmul_precision(precision: str) -> None:
    """Choose how products of float32 matrices are computed on a GPU, convolutions included.

    Args:
        precision: "float32" (the default): every factor keeps its 24 bits. "tf32": tensor cores of compute capability
            8.0 and later round the factors to 11 bits, sums stay float32: several times faster, relative errors around
            1e-3. Other dtypes and the CPU are not affected.

    Raises:
        ValueError: neither of the two.
    """
    global _precision
    if precision not in _PRECISIONS:
        raise ValueError(f'precision must be "float32" or "tf32", got {precision!r}')
    _precision = precision


def get_matmul_precision() -> str:
    """The precision chosen with `set_matmul_precision`: "float32" or "tf32"."""
    return _precision
