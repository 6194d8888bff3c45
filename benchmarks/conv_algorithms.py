"""One pass of a convolution in xpnet, with the autotuned or a given algorithm."""

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


def prepare(case: Case, arrays: Arrays, where: backend.Device, dtype: str, algorithm: str | None) -> Job:
    """Return the job of one pass.

    Args:
        case: of one of the kinds PASSES: one convolution without bias.
        arrays: x (N, H, W, C), dy (N, OH, OW, O), and the kernel (KH, KW, C/groups, O).
        where: the device.
        dtype: of the arrays on the device.
        algorithm: the name of a candidate of the autotuner, such as "im2col" or "implicit"; None: the chosen one.

    Raises:
        Unsupported: this convolution has no such candidate, or no choice.
    """
    if algorithm is not None and where.kind != "cuda":
        raise Unsupported("on a CPU there is one algorithm only")
    layer = case.net[0]
    x, dy, kernel = (to_device(arrays[name], where, dtype) for name in ("x", "dy", "weight/0.kernel"))
    settings = {name: layer[name] for name in ("stride", "padding", "dilation", "groups")}
    once = one_pass(PASSES[case.kind], x, dy, kernel, settings, algorithm)
    once()  # compiles, autotunes, and raises if there is no such candidate

    def check() -> Arrays:
        return {"output": host(once())}

    if where.kind == "cpu":
        return Job(check, once)
    run = repeated(once)
    return Job(check, run, synchronize=where.synchronize, units=REPEAT, remark=not_captured(run))


def one_pass(
    which: str, x: Array, dy: Array, kernel: Array, settings: dict[str, Any], algorithm: str | None
) -> Callable[[], Array]:
    """Return a function that computes one pass ("fprop", "dgrad" or "wgrad") of conv2d."""
    op, xp = registry["conv2d"], backend.namespace(x)
    inputs, full = op.bind((x, kernel, None), settings)
    if which == "fprop":

        def forward() -> Array:
            with forced(algorithm):
                return op.run(xp, inputs, full, False)[0]

        return forward
    _, saved, implementation = op.run(xp, inputs, full, True)
    needs = (which == "dgrad", which == "wgrad", False)

    def gradient() -> Array:
        with forced(algorithm):
            return op.gradients(implementation, xp, dy, saved, full, needs)[0 if which == "dgrad" else 1]

    return gradient


@contextlib.contextmanager
def forced(algorithm: str | None) -> Iterator[None]:
    """Make the autotuner choose the candidate `algorithm` within the block.

    Raises:
        Unsupported: there is no such candidate.
    """
    if algorithm is None:
        yield
        return
    import xpnet.accel.cupy.convolution

    convolution: Any = xpnet.accel.cupy.convolution
    asked: list[str] = []

    def choose(candidates: Any, key: Any) -> str:
        asked.extend(candidates)
        if algorithm not in candidates:
            raise Unsupported(f"no candidate here: there are {', '.join(candidates)}")
        return algorithm

    before = convolution.choose, convolution.enabled
    convolution.choose, convolution.enabled = choose, lambda name: name in (algorithm, "implicit")
    try:
        yield
    finally:
        convolution.choose, convolution.enabled = before
    if not asked:
        raise Unsupported("this convolution has a dedicated kernel")


def repeated(once: Callable[[], Array]) -> Captured:
    """Capture REPEAT calls as one CUDA graph, at the second call."""

    def several() -> Array:
        result = None
        for _ in range(REPEAT):
            result = once()
        return result

    return captured(several)


_entered: list[Any] = []


def captured(function: Callable[[], Any]) -> Captured:
    """Capture a function without inputs as a CUDA graph, at its second call.

    From the first use on, the process stays on one stream: `xpnet.cuda.capture` switches streams at every call, which users
    of arrays need but which costs more than launching a small kernel.
    """
    if not _entered:
        from xpnet.compiled.cuda_graph import CudaGraphs

        graphs = CudaGraphs(backend.device("cuda"))
        context = graphs.stream()
        context.__enter__()
        _entered.extend([graphs, context])
    return Captured(function, _entered[0])


def not_captured(function: Captured) -> Callable[[], str]:
    """Return the remark on a captured function: whether it could be captured."""
    return lambda: "it could not be captured as a CUDA graph and ran launch by launch" if function.failed else ""


def to_device(values: Any, where: backend.Device, dtype: str) -> Array:
    """Copy a host array to a device, in a dtype.

    Raises:
        Unsupported: there is no such dtype on the device.
    """
    array: Any = backend.to_device(values, where)
    if dtype != "bfloat16":
        return array.astype(dtype)
    if not hasattr(backend, "dtype_named"):
        raise Unsupported("there are no arrays of bfloat16")
    try:
        return array.astype(backend.dtype_named(backend.namespace(array), dtype))
    except backend.DeviceError as error:
        raise Unsupported(str(error)) from None


def host(array: Array) -> Any:
    """Copy an array to the host, with 16-bit floats widened to 32: files of results cannot hold bfloat16."""
    found = backend.to_numpy(array)
    return found.astype("float32") if found.dtype.itemsize == 2 else found.copy()
