"""Convolution by NVIDIA's cuDNN, where it is installed: a candidate of `autotune`.

cuDNN is called through its Python frontend (``nvidia-cudnn-frontend``): a graph of operations is built once for each shape,
cuDNN's heuristics choose an execution plan, and the plan runs on raw device pointers. There is one handle and workspace for
each thread and stream, so that plans can be captured in CUDA graphs. Nondeterministic plans are excluded, and for float32 those
that reduce the precision of the inputs, unless TF32 is allowed.

Source: NVIDIA, "cuDNN Frontend API", https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/.
"""

from __future__ import annotations

import importlib.metadata
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from xpnet.accel.cupy.activation import add_bias_and_activate
from xpnet.accel.cupy.launch import address, aligned, runtime
from xpnet.accel.cupy.release import release
from xpnet.accel.cupy.source import dtype_of
from xpnet.ops.geometry import Geometry
from xpnet.runtime.precision import get_matmul_precision

Array = Any
WORKSPACE_LIMIT = 256 << 20
"""Plans that need more bytes than this are excluded."""

_PACKAGES = ("nvidia-cudnn-frontend", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BFLOAT16"}
_X, _KERNEL, _Y, _BIAS = 1, 2, 3, 4  # uids of the tensors in a graph, input or output


class _PlanKey(NamedTuple):
    """What a plan depends on."""

    pass_name: str  # as autotune.PASSES
    x: tuple[int, ...]  # (N, H, W, C)
    kernel: tuple[int, ...]  # (KH, KW, C/groups, O)
    geometry: Geometry
    dtype: str
    tf32: bool
    bias: bool
    activation: str | None


class CudnnPlan(NamedTuple):
    """A cuDNN graph with its execution plan."""

    graph: Any
    workspace: int  # bytes
    fused: bool  # whether it includes bias and activation


class _StreamState:
    """The handle of one stream, and the workspaces that plans on it share, as they run one after the other."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.workspace_bytes = 0  # of the last workspace
        self.workspaces: list[Any] = []  # a captured graph may hold the address of any of them


class _Streams(threading.local):
    def __init__(self) -> None:
        self.of: dict[int, _StreamState] = {}


class Cudnn:
    """cuDNN on one device.

    Args:
        frontend: the module ``cudnn``.
        stream: returns the current stream: an object with the attribute `ptr`.
        allocate: returns an allocation of so many bytes of device memory: an object with the attribute `ptr`.
    """

    def __init__(self, frontend: Any, stream: Callable[[], Any], allocate: Callable[[int], Any]) -> None:
        self.frontend, self._stream, self._allocate = frontend, stream, allocate
        self._plans: dict[_PlanKey, CudnnPlan | None] = {}
        self._streams = _Streams()
        self._lock = threading.Lock()
        self._broken = False

    def plan(self, key: _PlanKey) -> CudnnPlan | None:
        """Return the plan for a key, None if cuDNN has none. No plan is built while the stream is being captured."""
        if key not in self._plans:
            if self._broken or not runtime().can_measure():
                return None
            with self._lock:
                if key not in self._plans:
                    self._plans[key] = self._make(key)
        return self._plans[key]

    def run(self, plan: CudnnPlan, arrays: dict[int, Array]) -> None:
        """Run a plan on the current stream; `arrays` by the uid of their tensor."""
        state = self._stream_state()
        workspace = 0
        if plan.workspace:
            if state.workspace_bytes < plan.workspace:
                state.workspace_bytes = 1 << (plan.workspace - 1).bit_length()
                state.workspaces.append(self._allocate(state.workspace_bytes))
            workspace = state.workspaces[-1].ptr
        pointers = {number: address(array) for number, array in arrays.items()}
        plan.graph.execute(pointers, workspace, handle=state.handle)

    def _stream_state(self) -> _StreamState:
        stream = self._stream()
        known = self._streams.of.get(stream.ptr)
        if known is None:
            handle = self.frontend.create_handle()
            self.frontend.set_stream(handle=handle, stream=stream.ptr)
            known = self._streams.of[stream.ptr] = _StreamState(handle)
            weakref.finalize(stream, self._drop, self._streams.of, stream.ptr).atexit = False
        return known

    def _drop(self, streams: dict[int, _StreamState], pointer: int) -> None:
        """Destroy the handle of a deleted stream; captured graphs keep theirs alive."""
        state = streams.pop(pointer)
        release(lambda: self.frontend.destroy_handle(state.handle))

    def _make(self, key: _PlanKey) -> CudnnPlan | None:
        fusible = key.pass_name == "fprop" and (key.bias or key.activation is not None)
        for fused in (True, False) if fusible else (False,):
            try:
                return self._build(key, fused)
            except self.frontend.cudnnGraphNotSupportedError:
                continue  # try without the epilogue
            except (RuntimeError, ValueError) as error:  # also raised where libraries do not match
                self._broken = True
                warnings.warn(
                    f"cuDNN fails to plan the {key.pass_name} pass of a convolution of {key.x} with {key.kernel}, {key.dtype}; "
                    f"from now on no new convolution is tried with it ({error})",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return None
        return None

    def _build(self, key: _PlanKey, fused: bool) -> CudnnPlan:
        cudnn = self.frontend
        kind, wide = getattr(cudnn.data_type, _TYPES[key.dtype]), cudnn.data_type.FLOAT
        handle = self._stream_state().handle
        graph = cudnn.pygraph(io_data_type=kind, intermediate_data_type=wide, compute_data_type=wide, handle=handle)
        _add_operations(graph, key, kind, fused)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.deselect_numeric_notes([getattr(cudnn.numerical_note, name) for name in _excluded_notes(key)])
        graph.deselect_workspace_greater_than(WORKSPACE_LIMIT)
        graph.check_support()
        graph.build_plans()
        return CudnnPlan(graph, graph.get_workspace_size(), fused)


def _excluded_notes(key: _PlanKey) -> tuple[str, ...]:
    """Return the numerical notes that exclude a plan."""
    if key.dtype != "float32" or key.tf32:
        return ("NONDETERMINISTIC",)
    return ("NONDETERMINISTIC", "TENSOR_CORE", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION")


def _add_operations(graph: Any, key: _PlanKey, kind: Any, fused: bool) -> None:
    """Add the operations of one pass to a graph. cuDNN orders dimensions as NCHW; the strides are those of NHWC."""
    g = key.geometry
    KH, KW, Cg, O = key.kernel
    images, positions, kernel = key.x, (key.x[0], g.h.out, g.w.out, O), (O, KH, KW, Cg)
    out: tuple[int, ...]

    def sizes(shape: tuple[int, ...]) -> dict[str, list[int]]:
        N, H, W, C = shape
        return {"dim": [N, C, H, W], "stride": [H * W * C, 1, W * C, C]}

    def tensor(shape: tuple[int, ...], number: int) -> Any:
        return graph.tensor(**sizes(shape), data_type=kind, uid=number)

    shape = {
        "pre_padding": [g.h.before, g.w.before],
        "post_padding": [g.h.after, g.w.after],
        "stride": [g.h.stride, g.w.stride],
        "dilation": [g.h.dilation, g.w.dilation],
    }
    if key.pass_name == "fprop":
        out, number = positions, _Y
        result = graph.conv_fprop(image=tensor(images, _X), weight=tensor(kernel, _KERNEL), **shape)
        if fused and key.bias:
            result = graph.bias(input=result, bias=tensor((1, 1, 1, O), _BIAS))
        if fused and key.activation is not None:
            result = getattr(graph, key.activation)(input=result)  # the frontend uses the same names
    elif key.pass_name == "dgrad":
        out, number = images, _X
        result = graph.conv_dgrad(loss=tensor(positions, _Y), filter=tensor(kernel, _KERNEL), **shape)
    else:
        out, number = kernel, _KERNEL
        result = graph.conv_wgrad(image=tensor(images, _X), loss=tensor(positions, _Y), **shape)
    layout = sizes(out)
    result.set_output(True).set_dim(layout["dim"]).set_stride(layout["stride"]).set_uid(number).set_data_type(kind)


def load(stream: Callable[[], Any], allocate: Callable[[int], Any]) -> Cudnn | None:
    """Load cuDNN for the current device; None if it is not installed, or (with a warning) if it does not load."""
    try:
        version("nvidia-cudnn-frontend")
    except importlib.metadata.PackageNotFoundError:
        return None
    try:
        _load_cudart()
        import cudnn

        if cudnn.backend_version() < 90000:
            raise RuntimeError(f"it is version {cudnn.backend_version_string()}; 9.0 or later is needed")
    except (ImportError, OSError, RuntimeError) as error:
        warnings.warn(f"cuDNN is installed but cannot be used: {error}", RuntimeWarning, stacklevel=2)
        return None
    return Cudnn(cudnn, stream, allocate)


def _load_cudart() -> None:
    """Load the CUDA runtime that pip installed: the frontend looks on the system's search path only."""
    try:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
    except ImportError:
        return
    try:
        load_nvidia_dynamic_lib("cudart")
    except DynamicLibNotFoundError:
        return  # the frontend finds the system's, or raises


def version(package: str) -> str:
    """Return the version of an installed package of cuDNN, or raise PackageNotFoundError."""
    return importlib.metadata.version(package)


def versions() -> dict[str, str]:
    """Return the installed packages of cuDNN and their versions."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


HOW_TO_INSTALL = 'pip install "xpnet[cudnn]" (CUDA 12) or "xpnet[cudnn13]" (CUDA 13)'


def covers(
    pass_name: str, x: Array, kernel: Array, g: Geometry, bias: Array | None = None, activation: str | None = None
) -> bool:
    """Return whether cuDNN is installed and has a plan for one pass of this convolution."""
    key = _key(pass_name, x, kernel, g, bias, activation)
    library = runtime().cudnn
    if library is None or key.dtype not in _TYPES or 0 in (*key.x, *key.kernel, g.h.out, g.w.out):
        return False
    return library.plan(key) is not None


def _key(
    pass_name: str, x: Array, kernel: Array, g: Geometry, bias: Array | None = None, activation: str | None = None
) -> _PlanKey:
    dtype = dtype_of(x)
    tf32 = dtype == "float32" and get_matmul_precision() == "tf32"
    return _PlanKey(pass_name, tuple(x.shape), tuple(kernel.shape), g, dtype, tf32, bias is not None, activation)


def _run(key: _PlanKey, arrays: dict[int, Array]) -> bool:
    """Run the plan of a key that `covers`; return whether it includes bias and activation."""
    library = runtime().cudnn
    plan = library.plan(key)
    library.run(plan, {number: array for number, array in arrays.items() if number != _BIAS or plan.fused})
    return bool(plan.fused)


def fprop(xp: Any, x: Array, kernel: Array, bias: Array | None, activation: str | None, g: Geometry) -> Array:
    """Compute activation(conv2d(x, kernel) + bias) (N, OH, OW, O), where `covers` says so.

    x (N, H, W, C) and kernel (KH, KW, C/groups, O) are C-contiguous.
    """
    y = xp.empty((x.shape[0], g.h.out, g.w.out, kernel.shape[3]), dtype=x.dtype)
    arrays = {_X: aligned(x), _KERNEL: _to_krsc(xp, kernel), _Y: y}
    if bias is not None:
        arrays[_BIAS] = aligned(bias)
    if not _run(_key("fprop", x, kernel, g, bias, activation), arrays):
        add_bias_and_activate(xp, xp.reshape(y, (-1, y.shape[3])), bias, activation)
    return y


def dgrad(xp: Any, x: Array, dz: Array, kernel: Array, g: Geometry) -> Array:
    """Compute the gradient of x (N, H, W, C) from that of the output before the activation, dz (N, OH, OW, O)."""
    dx = xp.empty(x.shape, dtype=x.dtype)
    _run(_key("dgrad", x, kernel, g), {_Y: aligned(dz), _KERNEL: _to_krsc(xp, kernel), _X: dx})
    return dx


def wgrad(xp: Any, x: Array, dz: Array, kernel: Array, g: Geometry) -> Array:
    """Compute the gradient of the kernel as a matrix (KH*KW*C/groups, O) from dz (N, OH, OW, O).

    It has the dtype of x: cuDNN rounds the float32 sums of 16-bit products, unlike the other algorithms.
    """
    KH, KW, Cg, O = kernel.shape
    krsc = xp.empty((O, KH, KW, Cg), dtype=x.dtype)
    _run(_key("wgrad", x, kernel, g), {_X: aligned(x), _Y: aligned(dz), _KERNEL: krsc})
    return xp.ascontiguousarray(xp.swapaxes(xp.reshape(krsc, (O, KH * KW * Cg)), 0, 1))


def _to_krsc(xp: Any, kernel: Array) -> Array:
    """Return the kernel (KH, KW, C/groups, O) in cuDNN's layout KRSC: (O, KH, KW, C/groups)."""
    return xp.ascontiguousarray(xp.transpose(kernel, (3, 0, 1, 2)))
