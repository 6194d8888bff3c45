"""Builds the libraries of the software device with g++, for the CuPy of the interpreter that runs this.

The libraries, and what CuPy compiles with them, go into folders named after their sources and CuPy's version, below
$SOFTWARE_GPU_CACHE (default: ~/.cache/software-gpu). A change of the sources never meets an old binary.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parent / "csrc"
FLAGS = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,--no-undefined"]
# Stack clash protection lets a frame of any size meet the guard page; integers wrap, as on a GPU.
_KERNEL_FLAGS = (
    "-std=c++17 -O1 -fPIC -fno-strict-aliasing -fwrapv -ffp-contract=off -fvisibility=hidden "
    "-fstack-clash-protection -fno-exceptions -w"
)


class MissingError(RuntimeError):
    """What the software device needs and this machine lacks; the message says how to install it."""


class Stub(NamedTuple):
    """A library that CuPy opens by name."""

    name: str
    prefix: str  # of its functions
    unsupported: int  # the status that means "not supported"
    sources: str = ""  # the folder of the functions that work; all others report that they are missing

    def definition(self, name: str) -> str:
        """Return a function in C++ that reports that it is missing."""
        weak = 'extern "C" __attribute__((weak))'
        if name.endswith("GetErrorName"):
            return f'{weak} const char* {name}() {{ return "{self.prefix.upper()}_STATUS_NOT_SUPPORTED"; }}\n'
        if name.endswith("GetErrorString"):
            return f'{weak} const char* {name}() {{ return "{self.prefix}: not supported"; }}\n'
        return f'{weak} int {name}() {{ software_gpu_missing("{name}"); return {self.unsupported}; }}\n'


def stubs() -> list[Stub]:
    """Return the libraries that CuPy opens by name, beside the driver and NVRTC, for CuPy's major version of CUDA."""
    major = cuda_major()
    cufft, cusolver = {12: (11, 11), 13: (12, 12)}[major]
    return [
        # The first two only because cuda.pathfinder wants them beside cuBLAS and cuSOLVER before CuPy may open those.
        Stub(f"libcublasLt.so.{major}", "cublasLt", 15),
        Stub(f"libnvJitLink.so.{major}", "nvJitLink", 1),
        Stub(f"libcublas.so.{major}", "cublas", 15, "cublas"),
        Stub("libcurand.so.10", "curand", 204),
        Stub(f"libcusolver.so.{cusolver}", "cusolver", 9),
        Stub("libcusparse.so.12", "cusparse", 10),
        Stub(f"libcufft.so.{cufft}", "cufft", 16),
    ]


def _distribution() -> importlib.metadata.Distribution:
    found = [d for d in importlib.metadata.distributions() if re.fullmatch(r"cupy-cuda1[23]x", d.name or "")]
    if not found:
        raise MissingError(f"{sys.executable} has no CuPy wheel: pip install cupy-cuda12x (or cupy-cuda13x)")
    if len({d.name for d in found}) > 1:
        raise MissingError(
            f"more than one CuPy is installed: {', '.join(sorted(d.name for d in found))}; uninstall all but one"
        )
    return found[0]


FRONT_ENDS = ("g++", "nvrtc")
"""What reads CUDA C++: $SOFTWARE_GPU_FRONT_END names one. With NVIDIA's NVRTC, g++ compiles what it has made."""


def front_end() -> str:
    """Return which one of FRONT_ENDS is in use.

    Raises:
        ValueError: $SOFTWARE_GPU_FRONT_END names none.
    """
    name = os.environ.get("SOFTWARE_GPU_FRONT_END") or FRONT_ENDS[0]
    if name not in FRONT_ENDS:
        raise ValueError(f"SOFTWARE_GPU_FRONT_END must be one of {', '.join(FRONT_ENDS)}, got {name!r}")
    return name


def cuda_major() -> int:
    """Return the major version of CUDA that the installed CuPy is built for."""
    return int(_distribution().name[len("cupy-cuda") :][:2])


def kernel_flags() -> str:
    """Return g++'s flags for kernels. What a kernel is precompiled with and compiled with has to agree."""
    return f"{_KERNEL_FLAGS} -D__CUDACC_VER_MAJOR__={cuda_major()} -D__CUDACC_VER_MINOR__={9 if cuda_major() == 12 else 0}"


def cupy_folder() -> Path:
    """Return the folder of the package cupy, without importing it."""
    spec = importlib.util.find_spec("cupy")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def include_folders() -> list[str]:
    """Return the folders with cuda.h and what it includes, from NVIDIA's wheels of the right version in this environment."""
    major = cuda_major()
    names = ("cuda.h", "cuda_runtime_api.h", "crt/host_defines.h")
    spec = importlib.util.find_spec("nvidia")
    parts = [Path(p) for p in spec.submodule_search_locations or ()] if spec else []
    # CUDA 12: a folder for each wheel, nvidia/cuda_runtime/include; CUDA 13: nvidia/cu13/include for all of them.
    pattern = "cu13/include" if major == 13 else "cuda_*/include"
    folders = sorted(f for part in parts for f in part.glob(pattern) if any((f / name).exists() for name in names))
    for name in names:
        if not any((folder / name).exists() for folder in folders):
            wheels = {
                12: "nvidia-cuda-runtime-cu12 nvidia-cuda-nvcc-cu12",
                13: "'nvidia-cuda-nvrtc==13.*' 'nvidia-cuda-runtime==13.*' 'nvidia-cuda-crt==13.*'",
            }
            raise MissingError(f"the header {name} of CUDA {major} is missing: pip install {wheels[major]}")
    return [f"-I{folder}" for folder in folders]


def nvrtc_library() -> Path:
    """Return NVIDIA's NVRTC library of the right version in this environment.

    Raises:
        MissingError: it is not there.
    """
    major = cuda_major()
    name = f"libnvrtc.so.{major}"
    spec = importlib.util.find_spec("nvidia")
    parts = [Path(p) for p in spec.submodule_search_locations or ()] if spec else []
    found = [path for part in parts for folder in ("cu13/lib", "cuda_nvrtc/lib") if (path := part / folder / name).exists()]
    if not found:
        wheel = {12: "nvidia-cuda-nvrtc-cu12", 13: "'nvidia-cuda-nvrtc==13.*'"}[major]
        raise MissingError(f"NVIDIA's {name} is missing: pip install {wheel}")
    return found[0]


def _digest(files: Iterator[Path], *settings: str) -> str:
    found = _distribution()
    digest = hashlib.sha256(" ".join([found.name, found.version, kernel_flags(), *settings]).encode())
    for path in sorted(files):
        digest.update(str(path.relative_to(SOURCES.parent)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _root() -> Path:
    return Path(os.environ.get("SOFTWARE_GPU_CACHE") or Path.home() / ".cache" / "software-gpu").resolve()


def library_folder() -> Path:
    """Return the folder of the device's libraries, named after all sources."""
    files = (p for p in SOURCES.rglob("*") if p.is_file())
    return _root() / f"lib-{_digest(iter([Path(__file__).resolve(), *files]))}"


def kernel_folder() -> Path:
    """Return the folder for what CuPy and others compile, named after what a compiled kernel depends on."""
    files = [p for name in ("include", "nvrtc") for p in (SOURCES / name).rglob("*") if p.is_file()]
    if front_end() == "g++":
        return _root() / f"kernels-{_digest(iter(files))}"
    library = nvrtc_library()  # its size tells versions apart
    files += (SOURCES.parent / "ptx").glob("*.py")
    return _root() / f"kernels-{_digest(iter(files), f'{library.name} {library.stat().st_size}')}"


def elf_functions(path: Path, *, dynamic: bool = False) -> Iterator[tuple[str, int, int]]:
    """Yield (name, address, size) of every function in the symbol table of a 64-bit ELF file.

    Args:
        path: a shared library.
        dynamic: look into the dynamic symbols, where undefined ones have the address 0, instead of all local ones.
    """
    data = path.read_bytes()
    (at,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, at + i * size) for i in range(count)]
    for section in sections:
        if section[1] == (11 if dynamic else 2):  # SHT_DYNSYM, SHT_SYMTAB
            strings = sections[section[6]][4]
            for entry in range(section[4], section[4] + section[5], 24):
                name, info, _, _, value, length = struct.unpack_from("<IBBHQQ", data, entry)
                if dynamic or (info & 15 == 2 and value):
                    end = data.index(b"\0", strings + name)
                    yield data[strings + name : end].decode(), value, length


def undefined(prefix: str) -> list[str]:
    """Return the functions with this prefix that CuPy's extension modules want from another library."""
    cupy = cupy_folder()
    modules = [*cupy.rglob("*.so"), *(cupy.parent / "cupy_backends").rglob("*.so")]
    wanted = {name for module in modules for name, address, _ in elf_functions(module, dynamic=True) if not address}
    return sorted(name for name in wanted if name.startswith(prefix))


def _sources(folder: str) -> list[str]:
    return [str(path) for path in sorted((SOURCES / folder).glob("*.cpp"))]


def _compile(target: Path, *arguments: str) -> None:
    command = ["g++", *FLAGS, f"-Wl,-soname,{target.name}", *arguments, "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{target.name} of the software device does not compile:\n{done.stderr[:6000]}")


def build_into(out: Path) -> None:
    """Build all libraries into a folder."""
    major = cuda_major()
    shutil.copytree(SOURCES / "include", out / "include")
    headers = include_folders()
    _compile(out / "libcuda.so.1", "-fvisibility=hidden", *headers, *_sources("device"), "-ldl", "-pthread")
    settings = [f"-DSOFTWARE_GPU_CUDA={major}", f'-DSOFTWARE_GPU_FLAGS="{kernel_flags()}"']
    _compile(out / f"libnvrtc.so.{major}", *settings, "-O2", "-fvisibility=hidden", *_sources("nvrtc"), "-ldl")
    # Precompiled, as every kernel starts with one of them.
    for name in ("kernel_prelude.hpp", "ptx_warp.hpp"):
        prelude = str(out / "include" / name)
        subprocess.run(["g++", *kernel_flags().split(), "-x", "c++-header", prelude, "-o", f"{prelude}.gch"], check=True)
    for stub in stubs():
        # Weak: what is written in the folder of sources comes before.
        body = "".join(map(stub.definition, undefined(stub.prefix)))
        text = out / f"{stub.name}.cpp"
        text.write_text('extern "C" void software_gpu_missing(const char*);\n' + body)
        written = [settings[0], "-O3", *_sources(stub.sources)] if stub.sources else []
        # NVIDIA's libraries give all their symbols a version of their own name, and CuPy's modules ask for it.
        versions = out / f"{stub.name}.map"
        versions.write_text(f"{stub.name} {{ global: {stub.prefix}*; local: *; }};\n")
        linked = [f"-Wl,--version-script={versions}", f"-L{out}", "-l:libcuda.so.1"]
        _compile(out / stub.name, str(text), *written, *linked)


def ensure() -> Path:
    """Build the libraries where they are not built yet; return their folder.

    Raises:
        MissingError: without g++, CuPy or NVIDIA's headers.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise MissingError(f"the software device runs on Linux on x86-64, this is {sys.platform} on {os.uname().machine}")
    out = library_folder()
    if out.exists():
        return out
    if shutil.which("g++") is None:
        raise MissingError("the software device needs g++: apt install g++")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            with tempfile.TemporaryDirectory(dir=out.parent) as work:
                made = Path(work) / "lib"
                made.mkdir()
                build_into(made)
                made.rename(out)
    return out


if __name__ == "__main__":
    print(ensure())
