"""Compilation of kernels with NVRTC, with a cache of cubins on disk.

The key of a cubin is a hash of all that it depends on: source, headers, the instance, the options, NVRTC's version and the
architecture. Files are written under a temporary name and renamed, so that any number of processes may share the folder;
each holds a checksum, and an entry that does not match it is compiled again.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from xpnet.accel.cupy.source import Instance, read_headers, read_source
from xpnet.runtime.environment import setting

OPTIONS = ("--std=c++17", "--restrict", "--extra-device-vectorization")


class CompileError(RuntimeError):
    """A kernel does not compile. The message has the kernel, the architecture and the compiler's log."""


def compile_instances(
    file: str, instances: Sequence[Instance], architecture: int, options: Sequence[str] = ()
) -> tuple[bytes, dict[str, str], str]:
    """Compile instances of the kernels of one file, without the cache.

    Args:
        file: the source, ``kernels/cuda/<file>.cu``.
        instances: what to instantiate.
        architecture: compute capability times ten, 90 for sm_90.
        options: further options for NVRTC.

    Returns:
        The cubin (PTX where NVRTC is older than the device, see `target`), the symbol of each instance by its expression,
        and the compiler's log.

    Raises:
        CompileError: NVRTC reports errors, or does not know the architecture.
    """
    from cupy.cuda import nvrtc

    kind, number = target(architecture, nvrtc.getSupportedArchs())
    name = f"{kind}_{number}"
    headers = read_headers()
    program = nvrtc.createProgram(
        read_source(file), f"{file}.cu", [text.encode() for text in headers.values()], [name.encode() for name in headers]
    )
    try:
        for instance in instances:
            nvrtc.addNameExpression(program, instance.expression)
        arguments = [f"--gpu-architecture={name}", *OPTIONS, *options]
        try:
            nvrtc.compileProgram(program, arguments)
        except nvrtc.NVRTCError as error:
            names = ", ".join(i.expression for i in instances)
            raise CompileError(
                f"kernels/cuda/{file}.cu does not compile for {name} ({error}; NVRTC "
                f"{'.'.join(map(str, nvrtc.getVersion()))})\ninstances: {names}\nlog:\n{nvrtc.getProgramLog(program)}"
            ) from None
        code: bytes | str = nvrtc.getCUBIN(program) if kind == "sm" else nvrtc.getPTX(program)
        symbols = {i.expression: nvrtc.getLoweredName(program, i.expression) for i in instances}
        return code.encode() if isinstance(code, str) else code, symbols, nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


def target(architecture: int, supported: Sequence[int]) -> tuple[str, int]:
    """Return what to compile for: ("sm", n) for a cubin, ("compute", n) for PTX that the driver compiles.

    A cubin runs on its own architecture and on later ones of the same major version. A device that is newer than NVRTC, which
    knows the architectures `supported`, by a major version gets PTX.
    """
    if architecture in supported:
        return "sm", architecture
    older = [n for n in supported if n < architecture]
    if not older:
        return "sm", architecture  # NVRTC knows only newer ones and raises
    return ("sm" if max(older) // 10 == architecture // 10 else "compute"), max(older)


def cache_folder() -> Path:
    """Return the folder of compiled kernels: in $XPNET_CACHE, else in the user's cache folder of the platform."""
    chosen = setting("XPNET_CACHE")
    if chosen:
        return Path(chosen) / "kernels"
    if sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = str(Path.home() / "Library" / "Caches")
    else:
        root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "xpnet" / "kernels"


def cubin(instance: Instance, architecture: int) -> tuple[bytes, str]:
    """Return the cubin of one instance and its symbol, from the cache or compiled now.

    Raises:
        CompileError: it does not compile.
    """
    entry = cache_folder() / f"{instance.name}-sm{architecture}-{_key(instance, architecture)}.cubin"
    known = _read(entry)
    if known is None:
        code, symbols, _ = compile_instances(instance.file, [instance], architecture)
        known = code, symbols[instance.expression]
        _write(entry, *known)
    return known


def _key(instance: Instance, architecture: int) -> str:
    from cupy.cuda import nvrtc

    parts = [read_source(instance.file), *(x for item in read_headers().items() for x in item), instance.expression]
    parts += [*OPTIONS, str(nvrtc.getVersion()), str(architecture)]
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:32]


# An entry is: SHA-256 of the rest, length of the symbol (2 bytes), symbol, cubin.
def _read(entry: Path) -> tuple[bytes, str] | None:
    try:
        data = entry.read_bytes()
    except OSError:
        return None  # missing, or not readable: compile
    if len(data) < 34 or hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    length = int.from_bytes(data[32:34], "little")
    return data[34 + length :], data[34 : 34 + length].decode()


def _write(entry: Path, code: bytes, symbol: str) -> None:
    name = symbol.encode()
    body = len(name).to_bytes(2, "little") + name + code
    write_cached(entry, hashlib.sha256(body).digest() + body)


def write_cached(path: Path, content: bytes) -> None:
    """Write a file of the cache under a temporary name and rename it; do nothing on a full disk or in a read-only home."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        # The next process compiles or measures again.
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
