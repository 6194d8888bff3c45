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
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from . import build, ptx

SCHEDULES = ("eager", "lazy", "lazy-forwards", "others-first", "early-copies", "early-kernels", "random:SEED")
"""When submitted work runs, as streams and events allow: csrc/device/schedule.cpp. $SOFTWARE_GPU_SCHEDULE names one."""

_ERRORS = {
    "cupy_backends.cuda.libs.cublas": ("CUBLASError", "cublas"),
    "cupy_backends.cuda.libs.curand": ("CURANDError", "curand"),
    "cupy_backends.cuda.libs.cusolver": ("CUSOLVERError", "cusolver"),
    "cupy_backends.cuda.libs.cusparse": ("CuSparseError", "cusparse"),
    "cupy.cuda.cufft": ("CuFFTError", "cufft"),
}
"""Modules with a library of CUDA's: (the exception of its statuses, the prefix of its functions)."""

# In a program that PYTHONPATH has given the device, site/sitecustomize.py has loaded this file already, under another name.
_first: Any = sys.modules.get("_software_gpu.device") if __name__ != "_software_gpu.device" else None
CACHES: list[str] = _first.CACHES if _first else []
"""Environment variables that say where the tested packages cache code for a GPU: a conftest.py adds to them."""
LIBRARIES: dict[str, ctypes.CDLL] = _first.LIBRARIES if _first else {}
_trampolines: list[mmap.mmap] = []  # code that patched functions jump to; must outlive them
_names: list[ctypes.Array[ctypes.c_char]] = []
_kept: list[Any] = []  # functions that libraries call


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


_GPU_CODE = "that is machine code for GPUs in CuPy's wheel"
_CUB = (
    "cub_reduction",
    "cub_scan",
    "cub_histogram",
    "device_histogram",
    "device_reduce",
    "device_scan",
    "device_segmented_reduce",
)
_LOCKSTEP = (
    "its kernels rely on the lanes of a warp running in lockstep, which CUDA has not promised since compute capability 7.0"
)
_REFUSED = {
    "cupy.random._generator_api": {"init_curand": ("cupy.random.default_rng", _GPU_CODE)},
    "cupy.cuda.cub": dict.fromkeys(_CUB, ("CUB", _GPU_CODE)),
    "cupy.cuda.thrust": {name: (f"Thrust ({name})", _GPU_CODE) for name in ("sort", "lexsort", "argsort")},
    "cupy.cuda.compiler": {"_jitify_prep": ("Jitify", _GPU_CODE)},
    "cupy._core._routines_sorting": {
        "_partition_kernel": ("cupy.partition (partition_kernel, partition_merge_kernel)", _LOCKSTEP),
        "_argpartition_kernel": ("cupy.argpartition (argpartition_kernel, argpartition_merge_kernel)", _LOCKSTEP),
    },
}
"""What CuPy does without looking at errors, with a second runtime inside, or with kernels that this device would run wrong:
modules, the names in them, and (what a user calls it, why it is not there)."""


def _refuse(module: str, names: dict[str, tuple[str, str]]) -> None:
    """Let functions of CuPy raise."""

    def refusing(what: str, why: str) -> Callable[..., NoReturn]:
        def refused(*_: Any, **__: Any) -> NoReturn:
            raise NotImplementedError(f"the software GPU has no {what}: {why}")

        return refused

    found: Any = importlib.import_module(module)
    for name, reason in names.items():
        if hasattr(found, name):
            setattr(found, name, refusing(*reason))


_RUNS_OTHERS = ("jit", "profiler", "optimizing")
"""The parts of cupyx that compile the code of their caller."""


def _asked_by_cupy() -> bool:
    """Return whether a module of CuPy, not its user, asks for what is compiled now: the innermost function in Python is its."""
    folders = {str(build.cupy_folder()), str(build.cupy_folder().parent / "cupyx")}
    here = (__file__, os.path.join("cupy", "cuda", "compiler.py"))
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.endswith(here):
        frame = frame.f_back
    path = frame.f_code.co_filename
    own = [path[len(folder) + 1 :] for folder in folders if path.startswith(folder + os.sep)]
    return bool(own) and own[0].split(os.sep)[0] not in _RUNS_OTHERS


def _let_own_kernels_leave() -> None:
    """Let threads that have left count as arrived at barriers of CuPy's own kernels: some rely on it, as hardware does so."""
    compiler: Any = importlib.import_module("cupy.cuda.compiler")
    original = compiler._compile_with_cache_cuda

    def compile_with_cache(source: str, options: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
        if "__syncthreads" in source and " cupy_" not in source and _asked_by_cupy():  # the device knows the prefix itself
            options = (*options, "-DSOFTWARE_GPU_LEAVING_ARRIVES")
        return original(source, options, *args, **kwargs)

    compiler._compile_with_cache_cuda = compile_with_cache


def _name_missing(library: str, error: str, prefix: str) -> None:
    """Let the exceptions of a library's status say which function is not there, as the status cannot."""
    kind: Any = getattr(importlib.import_module(library), error)
    original = kind.__init__
    take = LIBRARIES["libcuda.so.1"].software_gpu_take_missing
    take.restype = ctypes.c_char_p

    def named(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        missing = take().decode()
        if missing.startswith(prefix):
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


_finder: _BeforeCuPy = _first._finder if _first else _BeforeCuPy()


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


def _driver() -> Any:
    """Return the device's driver; load it where that waits for the first import of CuPy."""
    if not LIBRARIES and _finder in sys.meta_path:
        importlib.import_module("cupy")
    if not LIBRARIES:
        raise RuntimeError(
            "the software GPU is not in use: call install() before anything imports CuPy, "
            "run pytest with --software-gpu, or the program with python -m and this package's name"
        )
    return LIBRARIES["libcuda.so.1"]


@contextlib.contextmanager
def schedule(name: str) -> Iterator[None]:
    """Run the work of a `with` block by another one of SCHEDULES; wait for all work before and after it.

    Raises:
        ValueError: there is no such schedule.
        RuntimeError: the device is not in use.
    """
    device = _driver()
    if not device.software_gpu_set_schedule(name.encode()):
        raise ValueError(f"the schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")
    try:
        yield
    finally:
        device.software_gpu_set_schedule((os.environ.get("SOFTWARE_GPU_SCHEDULE") or "eager").encode())


def pending() -> int:
    """Return how many operations have been submitted and have not run yet. RuntimeError: the device is not in use."""
    count = _driver().software_gpu_pending
    count.restype = ctypes.c_ulonglong
    return int(count())


def last_graph() -> list[str]:
    """Return the nodes of the graph that was instantiated last, in the order of recording.

    "kernel GRID BLOCK SHARED NAME", "copy BYTES" with "from host" or "to host", "fill BYTES", "product COUNT x M,N,K of SIZE
    bytes" of cuBLAS (column-major), "library" for its other functions. RuntimeError: the device is not in use.
    """
    give = _driver().software_gpu_last_graph
    give.restype = ctypes.c_char_p
    lines: list[str] = give().decode().splitlines()
    return lines


_NUMBERS = {
    "COUNT": (0, 64, "a number of devices"),
    "MIB": (1, 1 << 20, "a number of MiB"),
    "MULTIPROCESSORS": (1, 1024, "a number of multiprocessors"),
    "COUNTS_ONLY": (0, 1, "0 or 1"),
    "ARCH": (50, 129, "a compute capability without its point"),
}
"""The settings $SOFTWARE_GPU_... that are numbers: (least, most, what it is)."""


def _check_settings() -> None:
    for name, (least, most, what) in _NUMBERS.items():
        text = os.environ.get(f"SOFTWARE_GPU_{name}") or str(most)
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise ValueError(f"SOFTWARE_GPU_{name} must be {what}, {least} to {most}, got {text!r}")


_TRANSLATOR = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p)


def _translator(give: Any) -> Any:
    """Return what NVRTC's stand-in calls with PTX: it gives the C++ back, or what it refuses."""
    give.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    give.restype = None

    def translate(text: bytes, leaving_arrives: int, to: int) -> None:
        try:
            made, refused = ptx.translate(text.decode(), bool(leaving_arrives)), ""
        except ptx.RefusedError as error:
            made, refused = "", f"the software GPU does not know {error}"
        except Exception:  # none can pass through C: it becomes the compiler's log
            made, refused = "", traceback.format_exc()
        give(to, made.encode(), refused.encode())

    return _TRANSLATOR(translate)


def _use_nvrtc(stand_in: Any) -> None:
    """Let NVIDIA's NVRTC read CUDA C++, and compile what it makes of it."""
    _kept.append(_translator(stand_in.software_gpu_translated))
    start = stand_in.software_gpu_front_end
    start.argtypes, start.restype = [ctypes.c_char_p, _TRANSLATOR], ctypes.c_char_p
    wrong = start(os.fsencode(build.nvrtc_library()), _kept[-1])
    if wrong:
        raise RuntimeError(f"NVIDIA's NVRTC does not load: {wrong.decode()}")


def _load() -> None:
    _check_settings()
    folder = build.ensure()
    # In this order: the others need libcuda. CuPy's own dlopen finds each by its SONAME, as it is loaded already.
    for name in ("libcuda.so.1", f"libnvrtc.so.{build.cuda_major()}", *(stub.name for stub in build.stubs())):
        LIBRARIES[name] = ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    if build.front_end() == "nvrtc":
        _use_nvrtc(LIBRARIES[f"libnvrtc.so.{build.cuda_major()}"])
    name = os.environ.get("SOFTWARE_GPU_SCHEDULE") or "eager"
    if not LIBRARIES["libcuda.so.1"].software_gpu_set_schedule(name.encode()):
        raise ValueError(f"SOFTWARE_GPU_SCHEDULE must be one of {', '.join(SCHEDULES)}, got {name!r}")
    if not _patch(importlib.import_module("cupy_backends.cuda.api.runtime")):  # before CuPy makes its first call
        raise RuntimeError("this CuPy wheel is stripped: the CUDA runtime inside cannot be found")
    for name in ("cupy.cuda.cub", "cupy.cuda.thrust", "cupy.random._generator_api"):  # each has a runtime of its own inside
        _patch(importlib.import_module(name))
    for library, (error, prefix) in _ERRORS.items():
        _name_missing(library, error, prefix)
    for module, names in _REFUSED.items():
        _refuse(module, names)
    _let_own_kernels_leave()
