"""The structure of PTX: variables, functions, and their statements. What instructions mean is not looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

SIZES = {f"{kind}{bits}": bits // 8 for kind in "busf" for bits in (8, 16, 32, 64)} | {"bf16": 2, "pred": 1}
"""The bytes of each type."""


class RefusedError(Exception):
    """PTX has something that this cannot translate; the message names it."""


@dataclass
class Variable:
    """A declaration: of a register, of a parameter, or of memory."""

    space: str  # reg, param, shared, global, const, local
    name: str
    type: str
    count: int | None = None  # of the elements of an array; 0 for one that is declared without
    align: int = 1
    values: str = ""  # the initialiser
    linkage: str = ""  # visible, weak, extern, common
    pointer: bool = False

    @property
    def bytes(self) -> int:
        return SIZES[self.type] * (1 if self.count is None else self.count)


class Statement(NamedTuple):
    """A piece of a body: a label, a bracket, a declaration, or an instruction."""

    kind: str  # label, open, close, directive, instruction
    text: str


@dataclass
class Function:
    """A kernel, or a function that kernels call."""

    name: str
    kernel: bool
    parameters: list[Variable]
    result: Variable | None
    most_threads: int = 0
    body: list[Statement] = field(default_factory=list)
    defined: bool = False


@dataclass
class Module:
    """All that a text of PTX declares."""

    variables: list[Variable]
    functions: list[Function]


_LINKAGE = r"(?:\.(?P<linkage>visible|weak|extern|common)\s+)?"
_VARIABLE = re.compile(
    _LINKAGE + r"\.(?P<space>reg|param|shared|global|const|local)\s+(?:\.align\s+(?P<before>\d+)\s+)?"
    r"\.(?P<type>\w+)\s+(?P<pointer>\.ptr\s+)?(?:\.(?:global|shared|const|local)\s+)?(?:\.align\s+(?P<align>\d+)\s+)?"
    r"(?P<rest>.*)",
    re.DOTALL,
)
_DECLARED = re.compile(
    r"(?P<name>[\w$%]+)(?:<(?P<range>\d+)>|\[(?P<count>\d*)\])?\s*(?:=\s*(?P<values>\{.*?\}|[^,]+))?\s*,?\s*", re.DOTALL
)
_FUNCTION = re.compile(
    _LINKAGE + r"\.(?P<kind>entry|func)\b\s*(?:\((?P<result>[^)]*)\))?\s*(?P<name>[\w$]+)\s*"
    r"(?:\((?P<parameters>[^)]*)\))?(?P<rest>.*)",
    re.DOTALL,
)
_IGNORED = re.compile(r"\.(?:version|target|address_size|pragma|minnctapersm|maxnreg|noreturn|weak|file|loc)\b")
_BOUND = re.compile(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")
_LABEL = re.compile(r"([\w$%]+):(?!:)")


def variables(text: str) -> Iterator[Variable]:
    """Yield what a declaration without its semicolon declares; `.reg .b32 %r<3>` is %r0, %r1 and %r2."""
    found = _VARIABLE.fullmatch(text.strip())
    if not found or found["type"] not in SIZES:
        raise RefusedError(f"the declaration `{text.strip()}`")
    align = int(found["before"] or found["align"] or SIZES[found["type"]])
    at = 0
    while at < len(found["rest"]):
        one = _DECLARED.match(found["rest"], at)
        if not one:
            raise RefusedError(f"the declaration `{text.strip()}`")
        names = [f"{one['name']}{i}" for i in range(int(one["range"]))] if one["range"] else [one["name"]]
        count = None if one["count"] is None else int(one["count"] or 0)
        linkage, values = found["linkage"] or "", one["values"] or ""
        for name in names:
            yield Variable(found["space"], name, found["type"], count, align, values, linkage, bool(found["pointer"]))
        at = one.end()


def _parameters(text: str | None) -> list[Variable]:
    return [v for part in (text or "").split(",") if part.strip() for v in variables(part)]


def _statements(body: str) -> Iterator[Statement]:
    at = 0
    while True:
        while at < len(body) and body[at].isspace():
            at += 1
        if at == len(body):
            return
        if body[at] in "{}":
            yield Statement("open" if body[at] == "{" else "close", body[at])
            at += 1
        elif label := _LABEL.match(body, at):
            yield Statement("label", label[1])
            at = label.end()
        else:
            end = body.find(";", at)
            if end < 0:
                raise RefusedError(f"`{body[at : at + 60]}` without a semicolon")
            text = " ".join(body[at:end].split())
            yield Statement("directive" if text.startswith(".") else "instruction", text)
            at = end + 1


def _closing(text: str, at: int) -> int:
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if not depth:
            return i
    raise RefusedError("a body without an end")


def _function(head: str) -> Function:
    found = _FUNCTION.fullmatch(head.strip())
    if not found:
        raise RefusedError(f"the declaration `{head.strip()[:80]}`")
    results = _parameters(found["result"])
    bound = _BOUND.search(found["rest"])
    threads = 1
    for number in bound.groups(default="1") if bound else "0":
        threads *= int(number)
    rest = _IGNORED.sub("", _BOUND.sub("", found["rest"]))
    if unknown := re.search(r"\.\w+", rest):
        raise RefusedError(f"the directive {unknown[0]} of {found['name']}")
    return Function(
        found["name"], found["kind"] == "entry", _parameters(found["parameters"]), results[0] if results else None, threads
    )


def parse(text: str) -> Module:
    """Parse PTX.

    Raises:
        RefusedError: it has something that is not known; the message names it.
    """
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"^\s*\.(?:version|target|address_size|file|loc)\b[^\n]*$", "", text, flags=re.MULTILINE)
    found = Module([], [])
    functions: dict[str, Function] = {}
    at = 0
    while match := re.compile(r"\s*([^;{]*)([;{])").match(text, at):
        head, end = match[1], match[2]
        at = match.end()
        if re.search(r"\.(?:entry|func)\b", head):
            one = _function(head)
            if end == "{":
                last = _closing(text, at - 1)
                one.body, one.defined = list(_statements(text[at:last])), True
                at = last + 1
            if one.defined or one.name not in functions:
                functions[one.name] = one
            continue
        if end == "{":  # an initialiser
            last = text.index(";", _closing(text, at - 1))
            head, at = text[match.start(1) : last], last + 1
        if head.strip() and not _IGNORED.match(head.strip()):
            found.variables += variables(head)
    if text[at:].strip():
        raise RefusedError(f"`{text[at:].strip()[:60]}`")
    found.functions = list(functions.values())
    return found
