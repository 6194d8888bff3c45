"""Weights alone, in the safetensors format, which other libraries read too."""

from __future__ import annotations

from pathlib import Path

from xpnet.backend import to_numpy
from xpnet.io.archive import ArchiveError, write_atomically
from xpnet.layers.module import Module


def save_weights(model: Module, path: str | Path) -> None:
    """Write the parameters and buffers of a model, by path ("0.kernel", ...), to a safetensors file, atomically.

    Raises:
        ValueError: some layer has no parameters yet.
        OSError: the file cannot be written; what was there before is untouched.
    """
    from safetensors.numpy import save

    model._require_built("save_weights")
    arrays = {name: to_numpy(array) for name, array in model.state().items()}
    blob = save({name: a if a.flags.c_contiguous else a.copy() for name, a in arrays.items()}, {"format": "np"})
    write_atomically(path, lambda file: file.write(blob))


def load_weights(model: Module, path: str | Path, strict: bool = True) -> None:
    """Copy the arrays in a safetensors file into the parameters and buffers of the same path.

    Args:
        model: all its layers must be built.
        path: the file.
        strict: raise for missing or unexpected names; otherwise they are ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ArchiveError: it is truncated, damaged or not safetensors.
        ValueError: the names or shapes are not the model's; nothing was changed.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    model._require_built("load_weights")
    blob = Path(path).read_bytes()
    if blob[:2] == b"PK":
        raise ArchiveError(
            f"{path}: not a safetensors file, but an archive such as a whole model; read that with xn.load(path)"
        )
    try:
        state = load(blob)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ArchiveError(f"{path}: truncated, damaged or not a safetensors file ({error})") from error
    try:
        model.load_state(state, strict)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
