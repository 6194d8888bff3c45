"""Makes CuPy run on the software device: call `install()` before anything imports CuPy."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.abc
import mmap
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from . import build

SCHEDULES = ("eager", "lazy", "lazy-forwards", "early-copies", "early-kernels", "random:SEED")
"""When submitted work runs, as streams and events allow: csrc/device/schedule.cpp. $SOFTWARE_GPU_SCHEDULE names one."""

_ERRORS = {
    "cupy_backends.cuda.libs.cublas": "CUBLASError",
    "cupy_backends.cuda.libs.curand": "CURANDError",
    "cupy_backends.cuda.libs.cusolver": "CUSOLVERError",
    "cupy_backends.cuda.libs.cusparse": "CuSparseError",
    "cupy.cuda.cufft": "CuFFTError",
}

CACHES: list[str] = []
"""Environment variables that say where the tested packages cache code for a GPU: a conftest.py adds to them."""
LIBRARIES: dict[str, ctypes.CDLL] = {}
_trampolines: list[mmap.mmap] = []  # code that patched functions jump to; must outlive them
_names: list[ctypes.Array[ctypes.c_char]] = []


def _refusal(name: str) -> int:
    """Return the address of code that reports that `name` is not there: mov rdi, name; mov rax, function; jmp rax."""
    text = ctypes.create_string_buffer(name.encode())
    _names.append(text)
    function = ctypes.cast(LIBRARIES["libcuda.so.1"].software_gpu_unsupported, ctypes.c_void_p).value
    code = b"\x48\xbf" + struct.pack("<Q", ctypes.addressof(text)) + b"\x48\xb8" + struct.pack("<Q", function) + b"\xff\xe0"
    if not _trampolines or _trampolines[-1].tell() + len(code) > len(_trampolines[-1]):
        _trampolines.append(mmap.mmap(-1, 65536, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC))
    page = _trampolines[-1]
    address = ctypes.addressof(ctypes.c_char.from_buffer(page)) + page.tell()
    page.write(code)
    return address


def _patch(module: ModuleType) -> int:
    """Lead every function of the CUDA runtime that is linked into an extension module to the device; return how many.

    CuPy's wheels link the runtime statically, but keep its local symbols: the first 12 bytes of each function become a jump.
    """
    path = Path(str(module.__file__)).resolve()
    maps = Path("/proc/self/maps").read_text().splitlines()
    base = min(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(str(path)))
    libc, device = ctypes.CDLL(None, use_errno=True), LIBRARIES["libcuda.so.1"]
    done = 0
    for name, value, size in build.elf_functions(path):
        if not name.startswith("cuda") or not name[4:5].isupper() or "ApiHandle" in name or size < 12:
            continue
        there = getattr(device, name, None)
        target = _refusal(name) if there is None else ctypes.cast(there, ctypes.c_void_p).value
        page = (base + value) & ~4095
        if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(8192), 7):
            raise OSError(ctypes.get_errno(), f"cannot make {path.name} writable in memory")
        ctypes.memmove(base + value, b"\x48\xb8" + struct.pack("<Q", target) + b"\xff\xe0", 12)  # mov rax, target; jmp rax
        done += 1
    return done


_REFUSED = {
    "cupy.random._generator_api": (("init_curand",), "cupy.random.default_rng"),
    "cupy.cuda.cub": (
        (
            "cub_reduction",
            "cub_scan",
            "cub_histogram",
            "device_histogram",
            "device_reduce",
            "device_scan",
            "device_segmented_reduce",
        ),
        "CUB",
    ),
    "cupy.cuda.compiler": (("_jitify_prep",), "Jitify"),
}
"""What CuPy does without looking at errors, or with a second runtime inside: (names in a module, what a user calls it)."""


def _refuse(module: str, names: Sequence[str], what: str) -> None:
    """Let functions of CuPy raise."""

    def refused(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"the software GPU has no {what}: that is machine code for GPUs in CuPy's wheel")

    found: Any = importlib.import_module(module)
    for name in names:
        if hasattr(found, name):
            setattr(found, name, refused)


def _name_missing(library: str, error: str) -> None:
    """Let the exceptions of a library's status say which function is not there, as the status cannot."""
    kind: Any = getattr(importlib.import_module(library), error)
    original = kind.__init__
    take = LIBRARIES["libcuda.so.1"].software_gpu_take_missing
    take.restype = ctypes.c_char_p

    def named(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        missing = take().decode()
        if missing:
            self.args = (f"{self}: the software GPU has no {missing}", *self.args[1:])

    kind.__init__ = named


class _Imported(importlib.abc.Loader):
    """Gives the import that started `_load` the package that this imported: else it would be run a second time."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class _BeforeCuPy(importlib.abc.MetaPathFinder):
    """Loads the device when CuPy is imported for the first time: a program that does not import it pays nothing."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] in ("cupy", "cupy_backends"):
            sys.meta_path.remove(self)
            _load()
            module = sys.modules.get(name)
            if module is not None:
                spec = ModuleSpec(name, _Imported(module))
                module.__spec__ = spec  # the import system prefers the one that it finds here
                return spec
        return None


_finder = _BeforeCuPy()


def install(caches: Sequence[str] = ()) -> Path:
    """Let CuPy run on the software device from its first import on; build the device first where it is not built.

    Args:
        caches: environment variables that name folders for what other packages compile for a GPU. Like CuPy's, they are
            led into the device's own folder: code for this device must never meet a real one.

    Returns:
        the folder of everything that is compiled for the device.

    Raises:
        build.MissingError: what it needs is not there.
        RuntimeError: CuPy is imported already.
    """
    build.ensure()
    folder = build.kernel_folder()
    if not LIBRARIES and _finder not in sys.meta_path:
        if "cupy_backends" in sys.modules or "cupy" in sys.modules:
            raise RuntimeError("CuPy is imported already: install the software GPU before that")
        sys.meta_path.insert(0, _finder)
    os.environ.setdefault("CUPY_ACCELERATORS", "")  # CUB's kernels are machine code for real GPUs
    for variable in ("CUPY_CACHE_DIR", *caches):
        os.environ[variable] = str(folder / variable.lower())
    return folder


@contextlib.contextmanager
def schedule(name: str) -> Iterator[None]:
    """Run the work of a `with` block by another one of SCHEDULES; wait for all work before and after it.

    Raises:
        ValueError: there is no such schedule.
    """
    device: Any = LIBRARIES["libcuda.so.1"]
    if not device.software_gpu_set_schedule(name.encode()):
        raise ValueError(f"the schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")
    try:
        yield
    finally:
        device.software_gpu_set_schedule((os.environ.get("SOFTWARE_GPU_SCHEDULE") or "eager").encode())


def pending() -> int:
    """Return how many operations have been submitted and have not run yet."""
    count = LIBRARIES["libcuda.so.1"].software_gpu_pending
    count.restype = ctypes.c_ulonglong
    return int(count())


def _load() -> None:
    folder = build.ensure()
    # In this order: the others need libcuda. CuPy's own dlopen finds each by its SONAME, as it is loaded already.
    for name in ("libcuda.so.1", f"libnvrtc.so.{build.cuda_major()}", *(stub.name for stub in build.stubs())):
        LIBRARIES[name] = ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    name = os.environ.get("SOFTWARE_GPU_SCHEDULE") or "eager"
    if not LIBRARIES["libcuda.so.1"].software_gpu_set_schedule(name.encode()):
        raise ValueError(f"SOFTWARE_GPU_SCHEDULE must be one of {', '.join(SCHEDULES)}, got {name!r}")
    if not _patch(importlib.import_module("cupy_backends.cuda.api.runtime")):  # before CuPy makes its first call
        raise RuntimeError("this CuPy wheel is stripped: the CUDA runtime inside cannot be found")
    for name in ("cupy.cuda.cub", "cupy.cuda.thrust", "cupy.random._generator_api"):  # each has a runtime of its own inside
        _patch(importlib.import_module(name))
    for library, error in _ERRORS.items():  # the exceptions of their statuses
        _name_missing(library, error)
    for module, (names, what) in _REFUSED.items():
        _refuse(module, names, what)
