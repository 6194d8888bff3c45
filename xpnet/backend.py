"""Array namespaces and devices: the only module that knows which array libraries exist.

A *namespace* (``xp``) is a module that offers the functions of the Array API standard for one kind of array. Operations
find it once per call with :func:`namespace` and pass it on. A *device* is ``"cpu"``, ``"cuda"`` or ``"cuda:1"``: NumPy
arrays in main memory, or CuPy arrays on a GPU.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias, cast

import array_api_compat
import numpy as np

from xpnet.runtime.adoption import NUMPY_SCALARS as NUMPY_SCALARS
from xpnet.runtime.adoption import SCALARS
from xpnet.runtime.adoption import UNUSUAL_NUMBERS as UNUSUAL_NUMBERS
from xpnet.runtime.adoption import adopted as adopted
from xpnet.runtime.adoption import plain_settings as plain_settings
from xpnet.runtime.adoption import refuse_subclass as refuse_subclass
from xpnet.runtime.adoption import without_scalars as without_scalars
from xpnet.runtime.array import Array as Array
from xpnet.runtime.dtypes import HALF_NAMES as HALF_NAMES
from xpnet.runtime.dtypes import half_dtypes as half_dtypes
from xpnet.runtime.dtypes import kind_of as kind_of
from xpnet.runtime.given import plain
from xpnet.runtime.late import late
from xpnet.runtime.messages import quoted

Namespace: TypeAlias = Any

_dtype_names: dict[tuple[type, Any], str] = {}
_namespaces: dict[type, Namespace] = {np.ndarray: np}

namespaces: dict[tuple[type, ...], Namespace] = {}
"""Results of :func:`namespace` by the types of its arguments: a cache that hot paths read without a call."""

array_types: set[type] = {np.ndarray}
"""Types that :func:`as_array` returns unchanged, for the same purpose."""


class DeviceError(RuntimeError):
    """A requested device is not available on this machine, or arrays of two devices were mixed."""


class DeviceMemoryError(DeviceError, MemoryError):
    """A GPU is out of memory; the message says how much was requested, how much was free and what would help."""


def _namespace_of(kind: type, array: Array) -> Namespace:
    """Return the namespace for arrays of type `kind` and cache it: the lookup takes microseconds."""
    if isinstance(array, (np.ndarray, np.generic)):
        refuse_subclass(array)
        # NumPy 2.1 implements the standard itself; array-api-compat's wrapper only adds time to every call.
        xp = np
    elif array_api_compat.is_cupy_array(array):
        xp = _namespaces_cupy()
    else:
        try:
            xp = array_api_compat.array_namespace(array)
        except TypeError:
            raise TypeError(
                f"got {kind.__module__}.{kind.__qualname__}, expected an array of NumPy, CuPy, PyTorch, JAX or another "
                f"library that follows the Array API; convert it first, for example with numpy.asarray"
            ) from None
    _namespaces[kind] = xp
    return xp


def namespace(*arrays: Any) -> Namespace:
    """Return the array namespace that all `arrays` share; None and Python scalars are ignored.

    Raises:
        TypeError: an argument is not an array, or all are None or scalars.
        DeviceError: the arrays come from two libraries.
    """
    found = None
    for array in arrays:
        kind = type(array)
        xp = _namespaces.get(kind)
        if xp is None:
            if array is None or kind in SCALARS:
                continue
            xp = _namespace_of(kind, array)
        if found is None:
            found = xp
        elif xp is not found:
            names = " and ".join(dict.fromkeys(describe(a) for a in arrays if a is not None and type(a) not in SCALARS))
            if {name_of(found), name_of(xp)} <= {"numpy", "cupy"}:
                raise DeviceError(f"arrays of two backends in one call: {names}; move one with xpnet.to_device(array, ...)")
            raise DeviceError(
                f"arrays of two libraries in one call: {names}; convert one of them, for example with numpy.asarray(x) (the "
                f"parameters of a model are arrays of NumPy or CuPy)"
            )
    if found is None:
        raise TypeError(f"expected at least one array, got {', '.join(type(a).__name__ for a in arrays) or 'nothing'}")
    return found


def name_of(xp: Namespace) -> str:
    """Return the short name of a namespace: "numpy", "cupy", "torch", "jax", "array_api_strict", ..."""
    parts = cast(str, xp.__name__).split(".")
    if parts[0] == "xpnet":  # a namespace of our own: xpnet.accel.cupy.namespace
        return parts[2]
    return parts[1] if parts[0] == "array_api_compat" else parts[0]


def is_asynchronous(xp: Namespace) -> bool:
    """Return whether arrays of a namespace are computed on a GPU while the host goes on.

    Reading one of their values waits for the GPU, and is not possible while a CUDA graph is captured: operations check shapes
    and dtypes of such arrays, and answer a value that is wrong with NaN.
    """
    return xp is not np and name_of(xp) == "cupy"


def describe(array: Array) -> str:
    """Describe an array for messages: library, shape, dtype and device."""
    try:
        xp = namespace(array)
    except TypeError:
        return type(array).__name__
    place = "" if xp is np else f" on {device_of(array)}"
    return f"{name_of(xp)} array {tuple(array.shape)} {dtype_name(array)}{place}"


def dtype_name(array: Array) -> str:
    """Return the bare name of an array's dtype ("float32"), whatever its library."""
    dtype = array.dtype
    key = type(dtype), dtype  # dtypes of two libraries with equal hashes must not be compared
    name = _dtype_names.get(key)
    if name is None:
        name = _dtype_names[key] = str(dtype).rsplit(".", 1)[-1].strip("'>")
    return name


def dtype_named(xp: Namespace, name: str) -> Any:
    """Return the dtype called `name` ("float32", "bfloat16", ...) for arrays of namespace `xp`.

    Raises:
        ImportError: "bfloat16" without the package ml_dtypes, which provides it for NumPy and CuPy.
    """
    if isinstance(name, str) and hasattr(xp, name):
        return getattr(xp, name)
    if name != "bfloat16":
        raise ValueError(f'{name_of(xp)} has no dtype {name!r}; expected a name such as "float32"')
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError(
            'dtype "bfloat16" needs the package ml_dtypes, as NumPy and CuPy have no such numbers of their own: '
            'pip install "xpnet[bfloat16]"'
        ) from None
    found = np.dtype(ml_dtypes.bfloat16)
    half_dtypes.add(found)
    return found


def is_floating(array: Array) -> bool:
    """Return whether an array holds real floating-point numbers, bfloat16 included, which the standard does not know."""
    return kind_of(array.dtype) in ("float", "half")


def quiet(xp: Namespace) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which NumPy does not warn about overflows of 16-bit floats, as a GPU does not."""
    return np.errstate(over="ignore", invalid="ignore") if xp is np else contextlib.nullcontext()


def as_array(xp: Namespace, value: Array) -> Array:
    """Return `value` as an array: NumPy's reductions return scalars where the standard says arrays."""
    if xp is np and not isinstance(value, np.ndarray):
        return np.asarray(value)
    refuse_subclass(value)
    array_types.add(type(value))
    return value


@dataclass(frozen=True)
class Device:
    """A device that holds arrays. Made by :func:`device`; compares and prints as its name."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" or self.index == 0 else f"{self.kind}:{self.index}"

    @property
    def xp(self) -> Namespace:
        """The namespace whose functions create arrays here."""
        if self.kind == "cpu":
            return np
        return _namespaces_cupy()

    def __enter__(self) -> Device:
        """Make this the current device, on which new arrays are created, until the matching exit."""
        if self.kind == "cuda":
            import cupy

            cupy.cuda.Device(self.index).__enter__()  # CuPy keeps the devices to return to, for each thread
        return self

    def __exit__(self, *exception: object) -> None:
        if self.kind == "cuda":
            import cupy

            cupy.cuda.Device(self.index).__exit__(*exception)

    def synchronize(self) -> None:
        """Wait until the device has finished all work on the current stream."""
        if self.kind == "cuda":
            import cupy

            with cupy.cuda.Device(self.index):
                cupy.cuda.get_current_stream().synchronize()


CPU = Device("cpu")


def _namespaces_cupy() -> Namespace:
    return late("cupy namespace")


def device(name: str | Device) -> Device:
    """Return the device called `name`, after checking that it can be used.

    ``with device("cuda:1"):`` makes it the current one, on which new arrays are created and operations run. `Trainer`,
    `model.predict` and `xpnet.inspect` run on the model's device in any case.

    Args:
        name: "cpu", "cuda" (the first GPU) or "cuda:N".

    Raises:
        ValueError: no such name.
        DeviceError: a GPU was requested, and CuPy, a driver or the GPU is missing; the message says which and what to
            install.
    """
    if isinstance(name, Device):
        return name
    kind, _, index = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise ValueError(f'unknown device {quoted(name)}: expected "cpu", "cuda" or "cuda:N"')
    found = Device(kind, int(index or 0))
    if kind == "cuda":
        _check_cuda(found.index)
    return found


def _check_cuda(index: int) -> None:
    """Raise a DeviceError that names what is missing if GPU `index` cannot be used."""
    try:
        import cupy
    except ImportError as error:
        if getattr(error, "name", None) == "cupy" or isinstance(error, ModuleNotFoundError):
            raise DeviceError(
                'device "cuda" needs CuPy, which is not installed: pip install "xpnet[cuda12]" or "xpnet[cuda13]"'
            ) from None
        raise DeviceError(f'device "cuda" needs CuPy, which is installed but does not load: {error}') from error
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        reason = str(error)
        if "InsufficientDriver" in reason:
            # No driver and a driver that is too old give the same code; the version distinguishes them.
            try:
                version = runtime.driverGetVersion()
            except runtime.CUDARuntimeError:
                version = 0
            if version == 0:
                raise DeviceError(
                    'device "cuda": CuPy is installed, but no NVIDIA driver was found; install one, or use device="cpu"'
                ) from None
            built = cupy.cuda.get_local_runtime_version()
            raise DeviceError(
                f'device "cuda": the NVIDIA driver supports CUDA {_cuda_version(version)}, this CuPy needs '
                f'{_cuda_version(built)}; update the driver or install the CuPy for its version, or use device="cpu"'
            ) from None
        if "NoDevice" in reason:
            raise DeviceError(
                'device "cuda": the NVIDIA driver reports no GPU (is CUDA_VISIBLE_DEVICES empty?); use device="cpu"'
            ) from None
        raise DeviceError(f'device "cuda" cannot be used: {reason}') from error
    if index >= count:
        known = ", ".join(f"cuda:{i}" for i in range(count)) or "none"
        raise DeviceError(f'device "cuda:{index}" does not exist; the GPUs of this machine are: {known}')


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def device_of(array: Array) -> Device | str:
    """Return the device of `array`: a Device for NumPy and CuPy arrays, the library's own device as text for others."""
    xp = namespace(array)
    if xp is np:
        return Device("cpu")
    if name_of(xp) == "cupy":
        return Device("cuda", int(array.device.id))
    return str(array_api_compat.device(array))


def to_device(array: Any, where: str | Device) -> Array:
    """Return `array` on device `where`: itself if it is there already, else a copy.

    Args:
        array: an array of any library, or anything `numpy.asarray` takes.
        where: "cpu", "cuda" or "cuda:N".
    """
    target = device(where)
    if target.kind == "cpu":
        return to_numpy(array)
    import cupy

    with target:
        if isinstance(array, cupy.ndarray) and array.device.id == target.index:
            return cast(Array, array)
        try:
            return cast(Array, _between_gpus(array) if isinstance(array, cupy.ndarray) else cupy.asarray(to_numpy(array)))
        except MemoryError as error:
            raise_explained(error, "to_device", (array,))
            raise


def _between_gpus(array: Any) -> Any:
    """Return a copy of a CuPy array on the current device.

    The copy is work of the current device's stream: it waits for what writes the array, and what reuses the array's memory
    waits for the copy.
    """
    import cupy

    # Each call is made on the device of its stream: the default stream is that of whichever device is current.
    here = cupy.cuda.get_current_stream()
    with array.device:
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            array = cupy.ascontiguousarray(array)
        there = cupy.cuda.get_current_stream()
        computed = there.record(cupy.cuda.Event(disable_timing=True))
    here.wait_event(computed)
    copy = cupy.array(array)
    copied = here.record(cupy.cuda.Event(disable_timing=True))
    with array.device:
        there.wait_event(copied)
    return copy


def to_numpy(array: Any) -> np.ndarray[Any, Any]:
    """Return `array` as a NumPy array: itself where it is one already, else a copy in main memory."""
    if isinstance(array, np.ndarray):
        if type(array) is not np.ndarray:
            refuse_subclass(array)
        return array
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cast("np.ndarray[Any, Any]", cupy.asnumpy(array))
    module = type(array).__module__.partition(".")[0]
    if module == "torch":
        return cast("np.ndarray[Any, Any]", array.detach().cpu().numpy())
    if module == "array_api_strict":
        return np.asarray(array._array)
    return np.asarray(adopted(plain(array)))


def imported(library: str) -> ModuleType | None:
    """Return the module of an array library if it is already imported; xpnet never imports one just to check."""
    return sys.modules.get(library)


@contextlib.contextmanager
def on(where: str | Device) -> Iterator[Namespace]:
    """Make `where` the current device within the block; yield the namespace that creates arrays there."""
    with device(where) as current:
        yield current.xp


@contextlib.contextmanager
def working_on(where: Device, doing: str) -> Iterator[None]:
    """Make a GPU the current device within the block, and explain the errors where it is out of memory.

    Args:
        where: a device; on a CPU nothing is done.
        doing: for the message.

    Raises:
        DeviceMemoryError: in place of CuPy's error.
    """
    with where:
        try:
            yield
        except MemoryError as error:
            if type(error).__module__.partition(".")[0] == "cupy":
                raise_explained(error, doing, ())
            raise


def raise_explained(error: MemoryError, doing: str, arrays: Sequence[Any]) -> None:
    """Raise a DeviceMemoryError for CuPy's `error`: how much was requested and free, and what would help.

    Args:
        error: what CuPy raised. For a DeviceMemoryError, or an error about main memory, nothing is raised.
        doing: the operation that failed.
        arrays: its inputs; None is ignored.
    """
    import cupy

    if isinstance(error, DeviceMemoryError) or type(error).__module__.partition(".")[0] == "numpy":
        return
    device = cupy.cuda.runtime.getDevice()
    free, total = cupy.cuda.runtime.memGetInfo()
    pool = cupy.get_default_memory_pool()
    asked = getattr(error, "_size", None)
    limit = getattr(error, "_limit", 0)
    inputs = ", ".join(describe(a) for a in arrays if hasattr(a, "shape"))
    raise DeviceMemoryError(
        f"{doing}: cuda:{device} is out of memory. Asked for: {'?' if asked is None else _size(asked)}"
        f"{f', working on {inputs}' if inputs else ''}. Free: {_size(free)} of {_size(total)}; arrays in use take "
        f"{_size(pool.used_bytes())}, CuPy keeps {_size(pool.free_bytes())} for reuse in pieces that are too small"
        f"{f' and is limited to {_size(limit)}' if limit else ''}. What helps: a smaller batch_size (with "
        f"Trainer(accumulate=k) for the same effective batch), no_grad() or predict() where no gradient is needed, deleting "
        f"arrays that are done with, a smaller dtype, or ending other programs that use this GPU."
    ) from error


def _size(count: int) -> str:
    """Format a number of bytes with a unit."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
