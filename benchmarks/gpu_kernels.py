"""What NVIDIA's compilers make of kernels: registers, shared memory, spills, occupancy, and the instructions of the main loop.

NVRTC compiles for any architecture without a GPU. Instructions need `nvdisasm`, which is optional.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xpnet.accel.cupy import compiler, source

ARCHITECTURES = (80, 89, 90, 120)
"""Compute capabilities times ten: A100; RTX 4090 and L40; H100; RTX 5090."""

CLASSES = ("tensor", "float", "shared loads", "global loads", "integer", "other")
_INTEGER = """
    BMSK BREV FLO IABS IADD IADD3 IDP IMAD IMNMX IMUL ISETP LEA LOP LOP3 MOV POPC PRMT SEL SGXT SHF SHL SHR VABSDIFF VIADD
    VIADDMNMX VIMNMX
"""
_INTEGER_OPCODES = frozenset(_INTEGER.split())  # and the same with U in front, for a whole warp
_FLOAT_OPCODES = frozenset(
    ["FADD", "FADD2", "FFMA", "FFMA2", "FMUL", "FMUL2", "DADD", "DFMA", "DMUL", "HADD2", "HFMA2", "HMUL2"]
)
_GLOBAL_LOADS = ("LDG", "LDGSTS", "LD", "UBLKCP", "UTMALDG")


class Limits(NamedTuple):
    """What a multiprocessor holds. Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

    threads: int
    blocks: int
    shared: int  # bytes, of which each block takes RESERVED more than it asks for
    registers: int = 65536


LIMITS = {
    80: Limits(2048, 32, 164 << 10),
    89: Limits(1536, 24, 100 << 10),
    90: Limits(2048, 32, 228 << 10),
    120: Limits(1536, 24, 100 << 10),
}
RESERVED = 1024
_REGISTER_UNIT, _SHARED_UNIT, _QUARTERS = 256, 128, 4  # allocation: registers of a warp, bytes of a block, schedulers


def resident_blocks(registers: int, shared: int, threads: int, architecture: int) -> int:
    """Return how many blocks a multiprocessor holds at a time."""
    limits = LIMITS[architecture]
    warps = -(-threads // 32)
    of_a_warp = -(-registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    by_registers = limits.registers // _QUARTERS // max(of_a_warp, 1) * _QUARTERS // warps
    by_shared = limits.shared // (-(-(shared + RESERVED) // _SHARED_UNIT) * _SHARED_UNIT)
    return min(limits.blocks, limits.threads // (32 * warps), by_registers, by_shared)


def nvrtc_version() -> str:
    """Return the version of the NVRTC that compiles, such as "12.9"."""
    from cupy.cuda import nvrtc

    return ".".join(map(str, nvrtc.getVersion()))


def usage(log: str) -> dict[str, dict[str, int]]:
    """Return what ptxas reports by symbol: registers, bytes of shared memory, bytes of spill stores and loads."""
    found: dict[str, dict[str, int]] = {}
    symbol = ""
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)'", line):
            symbol = entry[1]
            found[symbol] = {"registers": 0, "shared": 0, "spills": 0}
        elif spills := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found[symbol]["spills"] += int(spills[1]) + int(spills[2])
        elif registers := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[symbol] |= {"registers": int(registers[1]), "shared": int(shared[1]) if shared else 0}
    return found


def nvdisasm() -> str | None:
    """Return the disassembler: $NVDISASM, on PATH, or in an installed triton; None if there is none."""
    given = os.environ.get("NVDISASM")
    if given:
        return given
    on_path = shutil.which("nvdisasm")
    if on_path:
        return on_path
    triton = importlib.util.find_spec("triton")
    places = [] if triton is None else list(triton.submodule_search_locations or [])
    files = [Path(place) / "backends" / "nvidia" / "bin" / "nvdisasm" for place in places]
    return next((str(file) for file in files if file.is_file()), None)


def disassembler_version(tool: str) -> str:
    """Return the version of nvdisasm, such as "12.8.55"."""
    text = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\bV([\d.]+)", text)
    return found[1] if found else "unknown"


class Instruction(NamedTuple):
    """One instruction: "LDG" of LDG.E.128.CONSTANT, with its modifiers, and the label that it branches to."""

    opcode: str
    modifiers: tuple[str, ...]
    target: str = ""


def parse(text: str) -> dict[str, tuple[list[Instruction], dict[str, int]]]:
    """Return the instructions of each symbol in nvdisasm's output, and where its labels stand."""
    found: dict[str, tuple[list[Instruction], dict[str, int]]] = {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if section := re.match(r"\.text\.(\S+):", line):
            instructions, labels = [], {}
            found[section[1]] = instructions, labels
        elif label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif code := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
            opcode, *modifiers = code[1].split(".")
            target = re.search(r"`\((\.L\w+)\)", code[2]) if opcode == "BRA" else None
            instructions.append(Instruction(opcode, tuple(modifiers), target[1] if target else ""))
    return found


def class_of(instruction: Instruction) -> str:
    """Return the one of CLASSES that an instruction is in."""
    opcode = instruction.opcode
    if opcode.endswith("MMA") and opcode != "HFMA2":
        return "tensor"
    if opcode in _FLOAT_OPCODES:
        return "float"
    if opcode in ("LDS", "LDSM"):
        return "shared loads"
    if opcode in _GLOBAL_LOADS:
        return "global loads"
    return "integer" if opcode.removeprefix("U") in _INTEGER_OPCODES else "other"


def width(instruction: Instruction) -> int:
    """Return the bytes that a load or store moves for each thread."""
    for modifier in instruction.modifiers:
        if modifier in ("64", "128", "256"):
            return int(modifier) // 8
        if re.fullmatch(r"[US](8|16)", modifier):
            return int(modifier[1:]) // 8
    return 4


def operations(instruction: Instruction) -> int:
    """Return the floating-point operations of one instruction of one warp, two per multiply-add; 0 for all but these."""
    if class_of(instruction) == "tensor":
        for modifier in instruction.modifiers:
            if shape := re.fullmatch(r"64x(\d+)x(\d+)", modifier):  # four warps together
                return 2 * 64 * int(shape[1]) * int(shape[2]) // 4
            if shape := re.fullmatch(r"(16)(8)(4|8|16|32)", modifier):
                return 2 * int(shape[1]) * int(shape[2]) * int(shape[3])
        return 0
    return {"FFMA": 64, "DFMA": 64, "FFMA2": 128, "HFMA2": 128}.get(instruction.opcode, 0)


def main_loop(instructions: Sequence[Instruction], labels: Mapping[str, int]) -> tuple[list[Instruction], int]:
    """Return the instructions of the main loop, and how many more are in the loop around it, 0 if there is none.

    Among the innermost loops it is that with most tensor instructions, else the longest that loads from global memory, else
    the longest; in a kernel without a loop all instructions.
    """
    loops: dict[int, int] = {}
    for i, instruction in enumerate(instructions):
        start = labels.get(instruction.target, i + 1)
        if start < i:  # not the branch to itself behind the end of a kernel
            loops[start] = max(i, loops.get(start, 0))

    def around(start: int, end: int) -> list[int]:
        return [b - a + 1 for a, b in loops.items() if a <= start and end <= b and (a, b) != (start, end)]

    def rank(loop: tuple[int, int]) -> tuple[int, bool, int]:
        classes = Counter(map(class_of, instructions[loop[0] : loop[1] + 1]))
        return classes["tensor"], classes["global loads"] > 0, loop[1] - loop[0]

    holding = {(a, b) for a, b in loops.items() for c, d in loops.items() if a <= c and d <= b and (a, b) != (c, d)}
    innermost = [loop for loop in loops.items() if loop not in holding]
    if not innermost:
        return [i for i in instructions if i.opcode not in ("NOP", "BRA")], 0
    start, end = max(innermost, key=rank)
    size = end - start + 1
    return list(instructions[start : end + 1]), min(around(start, end), default=size) - size


def instructions_of(code: Sequence[Instruction], labels: Mapping[str, int]) -> dict[str, Any]:
    """Return what is told of a kernel's instructions.

    Of its main loop: the instructions by class, the floating-point operations of a warp ("operations"), the bytes that a thread
    loads ("ahead") and loads and stores ("moved"). Of the whole kernel: the number of global loads by their width in bytes.
    """
    loop, more = main_loop(code, labels)
    classes = Counter(map(class_of, loop))
    ahead = sum(width(i) for i in loop if i.opcode in _GLOBAL_LOADS)
    moved = ahead + sum(width(i) for i in loop if i.opcode == "STG")
    widths = Counter(width(i) for i in code if i.opcode in _GLOBAL_LOADS)
    return {
        "loop": {"instructions": len(loop), "around": more} | {name: classes[name] for name in CLASSES},
        "operations": sum(map(operations, loop)),
        "ahead": ahead,
        "moved": moved,
        "widths": {str(w): n for w, n in sorted(widths.items())},
    }


Kernels = dict[str, dict[str, dict[str, Any] | None]]
"""By instance and architecture; None where an instance does not compile for one."""


def compiled(names: Mapping[str, int], architectures: Iterable[int] = ARCHITECTURES, tool: str | None = None) -> Kernels:
    """Return what the compilers make of kernels.

    Args:
        names: instances as in "activation<float, 4, 1>", each with the threads of its blocks.
        architectures: compute capabilities times ten.
        tool: nvdisasm; None leaves out instructions.
    """
    known = {i.expression: i for kernel in source.every_kernel for i in kernel.instances() if i.expression in names}
    missing = sorted(names.keys() - known.keys())
    if missing:
        raise ValueError(f"no kernel file declares {', '.join(missing)}")
    by_file: dict[str, list[Any]] = defaultdict(list)
    for name in sorted(known):
        by_file[known[name].file].append(known[name])
    found: Kernels = {name: {} for name in sorted(names)}
    for architecture in architectures:
        for file, instances in by_file.items():
            for expression, made in _of_a_file(file, instances, architecture, tool).items():
                if made is not None:
                    threads = names[expression]
                    blocks = resident_blocks(made["registers"], made["shared"], threads, architecture)
                    made |= {"block": threads, "blocks": blocks, "threads": blocks * threads}
                found[expression][str(architecture)] = made
    return found


def _of_a_file(file: str, instances: Sequence[Any], architecture: int, tool: str | None) -> dict[str, dict[str, Any] | None]:
    try:
        code, symbols, log = compiler.compile_instances(file, instances, architecture, ["--ptxas-options=-v"])
    except compiler.CompileError:
        if len(instances) == 1:
            return {instances[0].expression: None}
        alone = [_of_a_file(file, [instance], architecture, tool) for instance in instances]
        return {expression: made for part in alone for expression, made in part.items()}
    used = usage(log)
    made: dict[str, dict[str, Any] | None] = {name: dict(used[symbol]) for name, symbol in symbols.items()}
    if tool is not None:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as kept:
            kept.write(code + b"\0")  # CuPy's getCUBIN drops the last byte
            kept.flush()
            text = subprocess.run([tool, "-c", kept.name], capture_output=True, text=True, check=True).stdout
        parsed = parse(text)
        for name, symbol in symbols.items():
            kernel = made[name]
            assert kernel is not None
            kernel |= instructions_of(*parsed[symbol])
    return made
