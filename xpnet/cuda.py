"""Features that only a GPU offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpnet.backend import Device, device
from xpnet.compiled.graph import Captured

__all__ = ["capture"]


def capture(function: Callable[..., Any], where: str | Device = "cuda") -> Captured:
    """Return a version of `function` that is recorded as a CUDA graph and replayed as one launch.

    The first call with given shapes and dtypes runs as usual, the second one is recorded, later ones are replayed. The
    results are arrays that the next call overwrites: copy what you keep. What the function does on the host (counting,
    printing) happens only when it runs or is recorded. Whatever changes from call to call must be an input, or an array
    that the function changes in place. A function that reads values from the device cannot be recorded; it then runs as
    usual, with one warning that names the layer.

    Counters on the host keep the values that they had when it was recorded. So a captured training step of your own repeats
    one mask of Dropout (and one draw of every random layer), one bias correction of Adam, and one learning rate of a schedule:
    capture the forward and backward pass without random layers, return the gradients (a replay sets no ``parameter.grad``) and
    call ``optimizer.step`` outside, or use ``Trainer.fit``, which keeps these counters on the device. Changes of a model's
    attributes, modes or arrays are not noticed either; call ``forget()`` on what this returns to have it recorded again.

    Args:
        function: takes and returns CuPy arrays, nested in tuples and dicts.
        where: the GPU.

    Raises:
        DeviceError: there is no such GPU.
    """
    place = device(where)
    if place.kind != "cuda":
        raise ValueError(f'capture needs a GPU, device "cuda" or "cuda:N", got "{place}"')
    from xpnet.compiled.cuda_graph import CudaGraphs

    return Captured(function, CudaGraphs(place))
