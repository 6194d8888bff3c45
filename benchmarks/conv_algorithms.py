"""One pass of a convolution in xpnet, in the way that was chosen or in one that is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.cases import PASSES, REPEAT, Case
from benchmarks.libraries.job import Arrays, Job, Unsupported
from xpnet import backend
from xpnet.compiled.graph import Captured
from xpnet.ops.registry import registry

Array = Any


def prepare(case: Case, arrays: Arrays, where: backend.Device, dtype: str, way: str | None) -> Job:
    """The job of one pass.

    Args:
        case: of one of the kinds PASSES: one convolution without bias.
        arrays: x (N, H, W, C), dy (N, OH, OW, O), and the kernel (KH, KW, C/groups, O).
        where: the device.
        dtype: of the arrays there.
        way: the name of a candidate of autotune, such as "im2col" or "implicit"; None: whatever runs there.

    Raises:
        Unsupported: there is no such candidate for this convolution, or none to choose from.
    """
    if way is not None and where.kind != "cuda":
        raise Unsupported("on a CPU there is one way only")
    layer = case.net[0]
    x, dy, kernel = (placed(arrays[name], where, dtype) for name in ("x", "dy", "weight/0.kernel"))
    settings = {name: layer[name] for name in ("stride", "padding", "dilation", "groups")}
    once = one_pass(PASSES[case.kind], x, dy, kernel, settings, way)
    once()  # compiles, chooses, and says whether there is such a way

    def check() -> Arrays:
        return {"output": host(once())}

    if where.kind == "cpu":
        return Job(check, once)
    run = repeated(once)
    return Job(check, run, synchronize=where.synchronize, units=REPEAT, remark=unrecorded(run))


def one_pass(which: str, x: Array, dy: Array, kernel: Array, settings: dict[str, Any], way: str | None) -> Callable[[], Array]:
    """A function that does one pass ("fprop", "dgrad" or "wgrad") of conv2d and returns its result."""
    op, xp = registry["conv2d"], backend.namespace(x)
    inputs, full = op.bind((x, kernel, None), settings)
    if which == "fprop":

        def forward() -> Array:
            with picked(way):
                return op.run(xp, inputs, full, False)[0]

        return forward
    _, saved, implementation = op.run(xp, inputs, full, True)
    needs = (which == "dgrad", which == "wgrad", False)

    def gradient() -> Array:
        with picked(way):
            return op.gradients(implementation, xp, dy, saved, full, needs)[0 if which == "dgrad" else 1]

    return gradient


@contextlib.contextmanager
def picked(way: str | None) -> Iterator[None]:
    """Within the block autotune takes the candidate `way`, whatever is the fastest.

    Raises:
        Unsupported: where it has no such candidate.
    """
    if way is None:
        yield
        return
    from xpnet.accel.cupy import convolution

    asked: list[str] = []

    def choose(candidates: Any, key: Any) -> str:
        asked.extend(candidates)
        if way not in candidates:
            raise Unsupported(f"no candidate here: there are {', '.join(candidates)}")
        return way

    before = convolution.choose, convolution.wanted
    convolution.choose, convolution.wanted = choose, lambda name: name in (way, "implicit")
    try:
        yield
    finally:
        convolution.choose, convolution.wanted = before
    if not asked:
        raise Unsupported("this convolution has a kernel of its own")


def repeated(once: Callable[[], Array]) -> Captured:
    """REPEAT calls as one CUDA graph, recorded at the second call."""

    def several() -> Array:
        result = None
        for _ in range(REPEAT):
            result = once()
        return result

    return recorded(several)


_entered: list[Any] = []


def recorded(function: Callable[[], Any]) -> Captured:
    """A function without inputs, recorded as a CUDA graph at its second call.

    From the first call of this on the process stays on one stream: `xpnet.cuda.capture` changes streams at every call, which a
    user of arrays needs and which costs more than launching a small kernel.
    """
    if not _entered:
        from xpnet.compiled.cuda_graph import CudaGraphs

        graphs = CudaGraphs(backend.device("cuda"))
        context = graphs.stream()
        context.__enter__()
        _entered.extend([graphs, context])
    return Captured(function, _entered[0])


def unrecorded(function: Captured) -> Callable[[], str]:
    """The remark for a captured function: whether it could be recorded at all."""
    return lambda: "it could not be recorded as a CUDA graph and ran launch by launch" if function.failed else ""


def placed(values: Any, where: backend.Device, dtype: str) -> Array:
    """A host array in a dtype on a device.

    Raises:
        Unsupported: this library knows no such dtype there.
    """
    array = backend.to_device(values, where)
    if dtype != "bfloat16":
        return array.astype(dtype)
    if not hasattr(backend, "dtype_named"):
        raise Unsupported("there are no arrays of bfloat16")
    try:
        return array.astype(backend.dtype_named(backend.namespace(array), dtype))
    except backend.DeviceError as error:
        raise Unsupported(str(error)) from None


def host(array: Array) -> Any:
    """On the host, 16 bits widened to 32: the format of the results' files knows float16, but not bfloat16."""
    found = backend.to_numpy(array)
    return found.astype("float32") if found.dtype.itemsize == 2 else found.copy()
