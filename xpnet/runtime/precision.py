"""The precision of float32 matrix products on a GPU."""

from __future__ import annotations

_PRECISIONS = ("float32", "tf32")
_precision = "float32"


def set_matmul_precision(precision: str) -> None:
    """Set the precision of float32 matrix products and convolutions on a GPU.

    Args:
        precision: "float32" (the default): factors keep their 24 bits. "tf32": tensor cores of compute capability 8.0 and
            later round the factors to 11 bits and sum in float32: several times faster, with relative errors around 1e-3.
            Other dtypes and the CPU are not affected.

    Raises:
        ValueError: `precision` is neither of the two.
    """
    global _precision
    if precision not in _PRECISIONS:
        raise ValueError(f'precision must be "float32" or "tf32", got {precision!r}')
    _precision = precision


def get_matmul_precision() -> str:
    """Return the precision set by `set_matmul_precision`: "float32" or "tf32"."""
    return _precision
