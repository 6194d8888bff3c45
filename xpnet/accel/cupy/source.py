"""The CUDA sources: where they are, the kernels that they declare, and the instances that are used.

A kernel is a C++ template in ``kernels/cuda/<file>.cu``. Its parameter list is read from the source, so that arguments are
always packed as the kernel declares them. The template arguments of its instances are listed where it is used, so that tests
can compile every instance for every architecture.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xpnet.backend import dtype_name

TemplateArgument = str | int | bool

FLOATS = ("float", "double", "float16", "bfloat16")
C_NAMES = {
    "float32": "float",
    "float64": "double",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "uint8": "u8",
    "int32": "int",
    "int64": "i64",
    "uint32": "u32",
    "uint64": "u64",
}
"""The C++ type of each dtype that kernels take."""

_names: dict[Any, str] = {}


def dtype_of(array: Any) -> str:
    """Return the name of an array's dtype, cached because formatting it takes microseconds."""
    try:
        return _names[array.dtype]
    except KeyError:
        name = _names[array.dtype] = dtype_name(array)
        return name


_DTYPES = {c: dtype for dtype, c in C_NAMES.items()} | {"bool": "bool"}
_SCALARS = {"int": "i", "i64": "q", "u32": "I", "u64": "Q", "float": "f", "double": "d", "FastDivmod": "3I"}
_SLOT = 16  # bytes per packed argument: a FastDivmod is the largest, and all are aligned


@functools.cache
def kernel_folder() -> Path:
    """Return the folder of the .cu files: in an installed package inside it, in a source checkout next to it."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "kernels" / "cuda", package.parent / "kernels" / "cuda"):
        if (folder / "common.cuh").is_file():
            return folder
    raise FileNotFoundError(
        f"the CUDA sources are neither in {package / 'kernels'} nor in {package.parent / 'kernels'}; reinstall xpnet"
    )


@functools.cache
def read_source(file: str) -> str:
    """Return the text of ``kernels/cuda/<file>.cu``."""
    return (kernel_folder() / f"{file}.cu").read_text(encoding="utf-8")


@functools.cache
def read_headers() -> dict[str, str]:
    """Return the header files of the kernels, by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(kernel_folder().glob("*.cuh"))}


class Declaration:
    """One ``__global__`` template as its source declares it."""

    def __init__(self, name: str, template: Sequence[tuple[str, str]], parameters: Sequence[tuple[str, str]]) -> None:
        self.name = name
        self.template = template
        self.parameters = parameters


@functools.cache
def declarations(file: str) -> dict[str, Declaration]:
    """Return the kernels that ``kernels/cuda/<file>.cu`` declares, by name."""
    text = re.sub(r"//[^\n]*", "", read_source(file))
    pattern = r"template\s*<([^>]*)>\s*__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(([^)]*)\)"
    found = {}
    for template, name, parameters in re.findall(pattern, text):
        found[name] = Declaration(name, _split(template), _split(parameters))
    return found


def _split(text: str) -> list[tuple[str, str]]:
    """Parse a C++ parameter list into (type, name) pairs."""
    pairs = []
    for item in text.split(","):
        words = item.replace("*", "* ").split()
        pairs.append((" ".join(words[:-1]).replace(" *", "*"), words[-1]))
    return pairs


class Parameter:
    """One parameter of an instance: how its argument is packed."""

    __slots__ = ("dtype", "format", "is_divmod", "is_float", "name")

    def __init__(self, declared: str, name: str, types: dict[str, str]) -> None:
        self.name = name
        self.dtype: str | None = None  # of arrays; None for scalars
        self.is_divmod = self.is_float = False
        if declared.endswith("*"):
            base = declared.removeprefix("const ").rstrip("*").strip()
            self.dtype = _DTYPES[_resolve(base, types)]
            self.format = "P"
            return
        base = _resolve(declared, types)
        self.format = _SCALARS[base]
        self.is_divmod = base == "FastDivmod"
        self.is_float = base in ("float", "double")


def _resolve(name: str, types: dict[str, str]) -> str:
    wide = re.fullmatch(r"acc_t<(\w+)>", name)
    if wide:
        return "double" if types.get(wide[1], wide[1]) == "double" else "float"
    return types.get(name, name)


class Instance:
    """A kernel with its template arguments: what is compiled, loaded and launched."""

    __slots__ = ("_packer", "expression", "file", "name", "offsets", "parameters", "size")

    def __init__(self, file: str, declaration: Declaration, arguments: Sequence[TemplateArgument]) -> None:
        self.file = file
        self.name = declaration.name
        written = ", ".join(str(a).lower() if isinstance(a, bool) else str(a) for a in arguments)
        self.expression = f"{declaration.name}<{written}>"
        types = {name: str(a) for (kind, name), a in zip(declaration.template, arguments) if kind == "typename"}
        self.parameters = tuple(Parameter(kind, name, types) for kind, name in declaration.parameters)
        self.offsets = tuple(_SLOT * i for i in range(len(self.parameters)))
        self.size = _SLOT * len(self.parameters)
        sized = ((p.format, struct.calcsize("=" + p.format.replace("P", "Q"))) for p in self.parameters)
        self._packer = struct.Struct("=" + "".join(f"{f.replace('P', 'Q')}{_SLOT - n}x" for f, n in sized))

    def __repr__(self) -> str:
        return f"<kernel {self.expression} of {self.file}.cu>"

    def pack_into(self, buffer: Any, values: Sequence[Any]) -> None:
        """Pack arguments (addresses for arrays) into a buffer of `size` bytes, one slot each, floats rounded to their type."""
        try:
            self._packer.pack_into(buffer, 0, *values)
        except OverflowError:  # struct refuses what float32 rounds to infinity
            formats = "".join("III" if p.is_divmod else p.format for p in self.parameters)
            rounded = [ctypes.c_float(v).value if f == "f" else v for f, v in zip(formats, values, strict=True)]
            self._packer.pack_into(buffer, 0, *rounded)


class Kernel:
    """A kernel template and the template arguments it is used with.

    Args:
        file: the source, ``kernels/cuda/<file>.cu``.
        name: the template's name.
        choices: the values of each template parameter.
        only: returns whether a combination of template arguments is used; None: all are.
    """

    def __init__(self, file: str, name: str, *choices: Sequence[TemplateArgument], only: Any = None) -> None:
        self.file, self.name, self.choices, self._only = file, name, choices, only
        self._instances: dict[tuple[TemplateArgument, ...], Instance] = {}
        every_kernel.append(self)

    def __getitem__(self, arguments: tuple[TemplateArgument, ...]) -> Instance:
        """Return the instance with these template arguments."""
        try:
            return self._instances[arguments]
        except KeyError:
            pass
        if len(arguments) != len(self.choices) or not self._listed(arguments):
            raise KeyError(f"{self.name}<{arguments}> is not among the listed instances of {self.file}.cu")
        made = self._instances[arguments] = Instance(self.file, declarations(self.file)[self.name], arguments)
        return made

    def _listed(self, arguments: tuple[TemplateArgument, ...]) -> bool:
        listed = all(a in allowed for a, allowed in zip(arguments, self.choices))
        return listed and (self._only is None or bool(self._only(*arguments)))

    def instances(self) -> Iterator[Instance]:
        """Yield every instance that may be launched."""
        for arguments in itertools.product(*self.choices):
            if self._only is None or self._only(*arguments):
                yield self[arguments]


every_kernel: list[Kernel] = []
"""Every kernel that a module of ``xpnet.accel.cupy`` uses."""
