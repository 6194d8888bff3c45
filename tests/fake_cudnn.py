"""A fake of the module ``cudnn`` of nvidia-cudnn-frontend: the part of its graph API that xpnet uses, computed by NumPy.

Names, argument names and the order of the calls are those of version 1.23. Tensors are copied from and to the given addresses
of the device with the given dimensions and strides, so that a wrong stride, number or padding gives wrong numbers.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np

NUMERICAL_NOTES = (
    "DOWN_CONVERT_INPUTS", "FFT", "NONDETERMINISTIC", "REDUCED_PRECISION_REDUCTION", "STRICT_NAN_PROP", "TENSOR_CORE",
    "WINOGRAD",
)  # fmt: skip
STORED = {"FLOAT": np.float32, "HALF": np.float16, "BFLOAT16": np.uint16}
STEPS = (
    "validate", "build_operation_graph", "create_execution_plans", "check_support", "build_plans", "get_workspace_size",
)  # fmt: skip


class NotSupportedError(Exception):
    """The frontend's cudnnGraphNotSupportedError, which is no RuntimeError."""


def _names(*names: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{name: name for name in names})


class Tensor:
    def __init__(
        self, dim: list[int] | None = None, stride: list[int] | None = None, data_type: str = "", uid: int = -1
    ) -> None:
        self.dim, self.stride, self.data_type, self.uid = dim, stride, data_type, uid
        self.value: np.ndarray | None = None  # of a virtual tensor
        self.output = False

    def set_output(self, yes: bool) -> Tensor:
        self.output = yes
        return self

    def set_dim(self, dim: list[int]) -> Tensor:
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> Tensor:
        self.stride = stride
        return self

    def set_uid(self, uid: int) -> Tensor:
        self.uid = uid
        return self

    def set_data_type(self, data_type: str) -> None:  # the frontend returns nothing here
        self.data_type = data_type

    def layout(self, address: int) -> tuple[np.ndarray, np.ndarray]:
        """Return main memory for the elements at an address as they lie there, and a view of it as NCHW."""
        assert address % 16 == 0, "cuDNN takes aligned tensors"
        assert self.dim is not None
        assert self.stride is not None
        kind: np.dtype[Any] = np.dtype(STORED[self.data_type])
        count = 1 + sum((d - 1) * s for d, s in zip(self.dim, self.stride))
        assert count == np.prod(self.dim), "the strides leave gaps, or elements share memory"
        flat = np.empty(count, kind)
        return flat, np.lib.stride_tricks.as_strided(flat, self.dim, [s * kind.itemsize for s in self.stride])

    def read(self, address: int) -> np.ndarray:
        flat, found = self.layout(address)
        _copy(flat.ctypes.data, address, flat.nbytes)
        if self.data_type == "BFLOAT16":
            found = (found.astype(np.uint32) << 16).view(np.float32)
        return found.astype(np.float64)

    def write(self, address: int, value: np.ndarray) -> None:
        if self.data_type == "BFLOAT16":
            bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
            value = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        flat, there = self.layout(address)
        there[...] = value
        _copy(address, flat.ctypes.data, flat.nbytes)


def _copy(to: int, from_: int, count: int) -> None:
    import cupy

    stream = cupy.cuda.get_current_stream()
    cupy.cuda.runtime.memcpyAsync(to, from_, count, cupy.cuda.runtime.memcpyDefault, stream.ptr)
    stream.synchronize()


def taps(padded, kernel_dim, stride, dilation, out):
    """Yield (kh, kw, the view of the padded images (N, G, C, OH, OW)) for every tap of the window."""
    N, C = padded.shape[:2]
    groups = C // kernel_dim[1]
    by_group = padded.reshape(N, groups, kernel_dim[1], *padded.shape[2:])
    for kh in range(kernel_dim[2]):
        for kw in range(kernel_dim[3]):
            top, left = kh * dilation[0], kw * dilation[1]
            yield (
                kh,
                kw,
                by_group[..., top : top + out[0] * stride[0] : stride[0], left : left + out[1] * stride[1] : stride[1]],
            )


class Graph:
    """The frontend's pygraph."""

    def __init__(
        self, frontend: FakeCudnn, io_data_type: str, intermediate_data_type: str, compute_data_type: str, handle: int
    ) -> None:
        assert intermediate_data_type == compute_data_type == "FLOAT"
        assert handle in frontend.handles
        self.frontend, self.io = frontend, io_data_type
        self.steps: list[Any] = []
        self.done: list[str] = []
        self.excluded: list[str] = []
        self.inputs: list[Tensor] = []
        self.result: Any = None
        self.pointwise = 0

    def tensor(self, *, dim: list[int], stride: list[int], data_type: str, uid: int) -> Tensor:
        self.inputs.append(Tensor(dim, stride, data_type, uid))
        return self.inputs[-1]

    def _node(self, compute: Any) -> Tensor:
        self.result = Tensor()
        self.steps.append((self.result, compute))
        return self.result

    def conv_fprop(self, *, image, weight, pre_padding, post_padding, stride, dilation):
        def compute(read):
            x, k = read(image), read(weight)
            window = _out(x.shape, k.shape, pre_padding, post_padding, stride, dilation)
            groups = x.shape[1] // k.shape[1]
            k = k.reshape(groups, k.shape[0] // groups, *k.shape[1:])
            y: Any = 0
            for kh, kw, seen in taps(_pad(x, pre_padding, post_padding), weight.dim, stride, dilation, window):
                y = y + np.einsum("ngchw,goc->ngohw", seen, k[..., kh, kw])
            return y.reshape(x.shape[0], -1, *window)

        return self._node(compute)

    def conv_dgrad(self, *, loss, filter, pre_padding, post_padding, stride, dilation):
        result: Any = self._node(None)

        def compute(read):
            dy, k = read(loss), read(filter)
            groups = result.dim[1] // k.shape[1]
            k = k.reshape(groups, k.shape[0] // groups, *k.shape[1:])
            dy = dy.reshape(dy.shape[0], groups, -1, *dy.shape[2:])
            padded = _pad(np.zeros(result.dim), pre_padding, post_padding)
            for kh, kw, seen in taps(padded, filter.dim, stride, dilation, dy.shape[3:]):
                seen += np.einsum("ngohw,goc->ngchw", dy, k[..., kh, kw])
            (top, left), (_, _, H, W) = pre_padding, result.dim
            return padded[:, :, top : top + H, left : left + W]

        self.steps[-1] = (result, compute)
        return result

    def conv_wgrad(self, *, image, loss, pre_padding, post_padding, stride, dilation):
        result: Any = self._node(None)

        def compute(read):
            x, dy = read(image), read(loss)
            groups = x.shape[1] // result.dim[1]
            dy = dy.reshape(dy.shape[0], groups, -1, *dy.shape[2:])
            dk = np.zeros((groups, result.dim[0] // groups, *result.dim[1:]))
            for kh, kw, seen in taps(_pad(x, pre_padding, post_padding), result.dim, stride, dilation, dy.shape[3:]):
                dk[..., kh, kw] = np.einsum("ngchw,ngohw->goc", seen, dy)
            return dk.reshape(result.dim)

        self.steps[-1] = (result, compute)
        return result

    def bias(self, *, input: Tensor, bias: Tensor) -> Tensor:
        self.pointwise += 1
        return self._node(lambda read: read(input) + read(bias))

    def relu(self, *, input: Tensor) -> Tensor:
        self.pointwise += 1
        return self._node(lambda read: np.maximum(read(input), 0))

    def sigmoid(self, *, input: Tensor) -> Tensor:
        self.pointwise += 1
        return self._node(lambda read: 1 / (1 + np.exp(-read(input))))

    def tanh(self, *, input: Tensor) -> Tensor:
        self.pointwise += 1
        return self._node(lambda read: np.tanh(read(input)))

    def _next(self, step: str) -> None:
        assert step == STEPS[len(self.done)], f"{step} after {self.done}"
        self.done.append(step)

    def validate(self) -> None:
        self._next("validate")
        assert self.result is not None
        assert self.result.output
        assert self.result.data_type == self.io
        uids = [t.uid for t in (*self.inputs, self.result)]
        assert len(set(uids)) == len(uids)
        assert min(uids) > 0

    def build_operation_graph(self) -> None:
        self._next("build_operation_graph")

    def create_execution_plans(self, modes: list[str]) -> None:
        self._next("create_execution_plans")
        assert modes
        if self.frontend.fails:
            raise RuntimeError("Multiple libcudart libraries found")

    def deselect_numeric_notes(self, notes: list[str]) -> None:
        assert self.done[-1] == "create_execution_plans"
        self.excluded += notes

    def deselect_workspace_greater_than(self, limit: int) -> None:
        assert self.done[-1] == "create_execution_plans"
        if self.frontend.workspace > limit:
            raise NotSupportedError("no plan is left")

    def check_support(self) -> None:
        self._next("check_support")
        if self.frontend.unsupported or (self.pointwise and not self.frontend.fuses):
            raise NotSupportedError("No execution plans support the graph.")

    def build_plans(self) -> None:
        self._next("build_plans")
        self.frontend.plans.append(self)

    def get_workspace_size(self) -> int:
        self._next("get_workspace_size")
        return self.frontend.workspace

    def execute(self, tensor_to_device_buffer: dict[int, int], workspace: int, handle: int) -> None:
        assert self.done == list(STEPS)
        assert handle in self.frontend.handles
        assert bool(workspace) == bool(self.frontend.workspace)
        assert set(tensor_to_device_buffer) == {t.uid for t in (*self.inputs, self.result)}
        self.frontend.executed.append((self, workspace, handle))

        def read(tensor: Tensor) -> np.ndarray:
            return tensor.value if tensor.value is not None else tensor.read(tensor_to_device_buffer[tensor.uid])

        for tensor, compute in self.steps:
            tensor.value = compute(read)
        assert list(self.result.value.shape) == self.result.dim
        self.result.write(tensor_to_device_buffer[self.result.uid], self.result.value)


def _pad(x, before, after):
    return np.pad(x, ((0, 0), (0, 0), (before[0], after[0]), (before[1], after[1])))


def _out(x, k, before, after, stride, dilation):
    return [(x[i + 2] + before[i] + after[i] - (k[i + 2] - 1) * dilation[i] - 1) // stride[i] + 1 for i in range(2)]


class FakeCudnn:
    """The module.

    Attributes:
        workspace: the bytes that every plan needs.
        fuses: whether bias and activation can be part of a plan.
        unsupported: whether there is no plan for anything.
        fails: whether planning raises, as with libraries that do not match.
    """

    data_type = _names("FLOAT", "HALF", "BFLOAT16")
    heur_mode = _names("A", "B", "FALLBACK")
    numerical_note = _names(*NUMERICAL_NOTES)
    cudnnGraphNotSupportedError = NotSupportedError  # noqa: N815

    def __init__(self, workspace: int = 0, fuses: bool = True) -> None:
        self.workspace, self.fuses = workspace, fuses
        self.unsupported = self.fails = False
        self.handles: dict[int, int] = {}  # the stream of each
        self.made = 0
        self.plans: list[Graph] = []
        self.executed: list[tuple[Graph, int, int]] = []

    def pygraph(self, **settings: Any) -> Graph:
        return Graph(self, **settings)

    def create_handle(self) -> int:
        self.made += 1
        self.handles[self.made] = 0
        return self.made

    def set_stream(self, *, handle: int, stream: int) -> None:
        self.handles[handle] = stream

    def destroy_handle(self, handle: int) -> None:
        del self.handles[handle]

    @staticmethod
    def backend_version() -> int:
        return 91000

    @staticmethod
    def backend_version_string() -> str:
        return "9.10.0"
