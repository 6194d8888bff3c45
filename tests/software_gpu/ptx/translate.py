"""C++ from PTX: registers become variables, labels and branches `goto`, instructions what `instructions` says."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .instructions import RULES, Rule
from .module import SIZES, Function, Module, RefusedError, Statement, Variable, parse, variables

_STATIC, _DYNAMIC = 0x400, 0x10000  # as in csrc/include/ptx.hpp: where shared memory begins

_SPECIAL = {
    **{f"%{name}.{axis}": f"{value}.{axis}" for axis in "xyz" for name, value in (
        ("tid", "threadIdx"), ("ntid", "blockDim"), ("ctaid", "blockIdx"), ("nctaid", "gridDim"))},
    "%laneid": "lane()",
    "%lanemask_eq": "1u << lane()",
    "%lanemask_lt": "(1u << lane()) - 1",
    "%lanemask_le": "(2u << lane()) - 1",
    "%lanemask_gt": "~((2u << lane()) - 1)",
    "%lanemask_ge": "~((1u << lane()) - 1)",
    "%clock": "clock64()",
    "%clock64": "clock64()",
    "WARP_SZ": "32",
}  # fmt: skip

_BUILT_IN = {"__assertfail": "assertion"}
"""Functions that NVRTC's code calls and that no PTX defines; ptx_warp.hpp has them."""

_OPERAND = re.compile(r"\s*(\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,]+)\s*(?:,|$)")
_ADDRESS = re.compile(r"([\w$%]+)?\s*(?:\+?\s*(-?(?:0x[0-9a-fA-F]+|\d+)))?")
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")

_FLAGS = ("ftz", "sat", "whole", "nan", "trans", "shift", "set")
"""The groups of patterns that are true or false in an expression."""


def _type(name: str) -> str:
    """Return the C++ type of a type of PTX: bits are unsigned numbers."""
    return "bool" if name == "pred" else name.replace("b", "u") if name[0] == "b" and name != "bf16" else name


def _identifier(name: str) -> str:
    return name.replace("%", "R_") if name.startswith("%") else f"N_{name}"


class _Body:
    """The translation of one function's body."""

    def __init__(self, function: Function, module: Module) -> None:
        self.function = function
        self.scopes: list[dict[str, Variable]] = [{v.name: v for v in module.variables}]
        self.scopes.append({v.name: v for v in (*function.parameters, *filter(None, [function.result]))})
        self.functions = {f.name: f for f in module.functions}
        self.shared: dict[str, int] = {}  # the addresses of variables in shared memory
        self.shared_bytes = 0
        self.label = ""  # the last one
        self.targets: dict[str, list[str]] = {}  # tables of labels

    def find(self, name: str) -> Variable:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise RefusedError(f"the name `{name}`")

    # ---- operands ----

    def symbol(self, name: str) -> str:
        """Return the address of a variable, or the value of a register, as C++."""
        found = self.find(name)
        if found.space == "reg":
            return _identifier(name)
        if found.space != "shared":
            return f"(u64)&{_identifier(name)}"
        if found.count == 0:
            return f"(u64){_DYNAMIC}"
        if not self.function.kernel:
            raise RefusedError(f"the shared variable {name} of a function that is no kernel")
        self.place(found)
        return f"(u64){_STATIC + self.shared[name]}"

    def place(self, v: Variable) -> None:
        """Give a variable in shared memory its address."""
        if v.count != 0 and v.name not in self.shared:
            at = (self.shared_bytes + v.align - 1) // v.align * v.align
            self.shared[v.name], self.shared_bytes = at, at + v.bytes

    def value(self, text: str, kind: str) -> str:
        """Return an operand that is no vector and no address as C++ of a type of PTX."""
        text = text.strip()
        if text.startswith("!"):
            return f"!{self.value(text[1:], kind)}"
        if text[:2] in ("0f", "0F", "0d", "0D"):
            plain = f"0x{text[2:]}u" if text[1] in "fF" else f"(u64)0x{text[2:]}u"
        elif _INTEGER.fullmatch(text):
            digits = int(text.rstrip("U"), 16 if "x" in text.lower() else 10)
            plain = f"(s64)0x{digits % (1 << 64):x}u"
        else:
            plain = _SPECIAL.get(text) or self.symbol(text)
        return f"as<{_type(kind)}>({plain})"

    def vector(self, text: str, kind: str) -> str:
        parts = self.parts(text)
        return f"Vector<{_type(kind)}, {len(parts)}>{{{', '.join(self.value(part, kind) for part in parts)}}}"

    def parts(self, text: str) -> list[str]:
        return [part.strip() for part in re.split("[,|]", text.strip("{} "))]

    def address(self, text: str, space: str, size: str) -> str:
        """Return a pointer to `size` bytes at an address in brackets; without a size the address itself."""
        found = _ADDRESS.fullmatch(text.strip("[] "))
        if not found or not (found[1] or found[2]):
            raise RefusedError(f"the address `{text}`")
        base = self.symbol(found[1]) if found[1] and not found[1].isdigit() else found[1] or "0"
        at = f"as<u64>({base})" + (f" + ({int(found[2], 0)})" if found[2] else "")
        if space == "shared":
            return f"shared<{size}>((u32)({at}))" if size else f"(u32)({at})"
        return f"memory<{size}>({at})"

    def operand(self, text: str, kind: str, groups: dict[str, str]) -> str:
        name, _, size = kind.partition("/")
        if name.startswith("&"):
            return self.address(text, name[1:] or groups["space"], size.format(**groups))
        if name == "shared":
            return self.address(text, "shared", "")
        if name == "constant":
            if not _INTEGER.fullmatch(text):
                raise RefusedError(f"the operand `{text}`, which is no constant")
            return text
        if name.isdigit():
            return text
        plain = name.rstrip("*")
        return (self.vector if name.endswith("*") else self.value)(text, groups.get(f"pt {plain}", plain))

    # ---- instructions ----

    def rule(self, text: str) -> tuple[Rule, dict[str, str], list[str]]:
        """Return the row for an instruction, what its pattern's groups matched, and the operands."""
        opcode, _, rest = text.partition(" ")
        operands = [one.strip() for one in _OPERAND.findall(rest)]
        name, dot, modifiers = opcode.partition(".")
        for rule in RULES.get(name, ()):
            match = rule.pattern.fullmatch(dot + modifiers)
            kinds = rule.results + rule.operands
            literal = all(operand == kind for operand, kind in zip(operands, kinds, strict=False) if kind.isdigit())
            if match and literal and len(operands) == len(kinds):
                return rule, self.groups(match), operands
        raise RefusedError(f"the instruction `{text}`")

    def groups(self, match: re.Match[str]) -> dict[str, str]:
        """Return what stands for a pattern's groups in an expression, and under `pt T` the types of PTX."""
        found = {name: value or "" for name, value in match.groupdict().items()}
        flags = {name: "true" if found.get(name) else "false" for name in _FLAGS}
        kinds: dict[str, str] = {name: found[name] for name in ("T", "S") if name in found}
        if "T" in kinds and kinds["T"][1:] in ("16", "32"):  # the type of a wide product
            kinds["W"] = f"{kinds['T'][0]}{2 * int(kinds['T'][1:])}"
        mode = f"Mode<{found.get('round') or 'rn'}, {flags['ftz']}, {flags['sat']}>"
        types = {name: _type(kind) for name, kind in kinds.items()}
        return {**found, **flags, **types, **{f"pt {n}": k for n, k in kinds.items()}, "M": mode, "n": found.get("n") or "1"}

    def computed(self, text: str) -> str:
        """Return an instruction without a predicate as C++: what the table says."""
        rule, groups, operands = self.rule(text)
        results = operands[: len(rule.results)]
        sources = [self.operand(o, k, groups) for o, k in zip(operands[len(results) :], rule.operands, strict=True)]
        expression = rule.expression.format(**groups, **dict(zip("abcd", sources, strict=False)))
        if not results:
            return f"{expression};"
        if not rule.results[0].endswith("*"):
            return self.assigned(results[0], expression)
        stores = "".join(self.assigned(name, f"v.v[{i}]") for i, name in enumerate(self.parts(results[0])))
        return f"{{ auto v = {expression}; {stores} }}"

    def assigned(self, name: str, expression: str) -> str:
        if name == "_":
            return f"(void)({expression});"
        if self.find(name).space != "reg":
            raise RefusedError(f"a result in `{name}`")
        return f"put({_identifier(name)}, {expression});"

    def moved(self, text: str) -> str | None:
        """Return `mov` to or from a vector as C++; None for others."""
        found = re.fullmatch(r"mov\.b(16|32|64) (.*)", text)
        if not found or "{" not in text:
            return None
        to, source = _OPERAND.findall(found[2])
        if "{" in to:
            names = self.parts(to)
            stores = "".join(self.assigned(name, f"v.v[{i}]") for i, name in enumerate(names))
            return f"{{ auto v = unpack<{len(names)}>({self.value(source, f'u{found[1]}')}); {stores} }}"
        count = len(self.parts(source))
        parts = self.vector(source, f"b{int(found[1]) // count}")
        return self.assigned(to.strip(), f"pack<u{found[1]}, {count}>({parts})")

    def called(self, text: str) -> str:
        found = re.fullmatch(r"call(?:\.uni)?\s+(?:\(\s*([\w$%]+)\s*\)\s*,\s*)?([\w$]+)\s*(?:,\s*\(([^)]*)\))?", text)
        if not found:
            raise RefusedError(f"the call `{text}`")
        names = [name.strip() for name in (found[3] or "").split(",") if name.strip()]
        known = self.functions.get(found[2])
        if known and known.defined:
            call = f"{_identifier(found[2])}({', '.join(map(_identifier, names))})"
            return f"{_identifier(found[1])} = {call};" if found[1] else f"{call};"
        if found[2] in _BUILT_IN:
            values = (f"__builtin_bit_cast({_type(v.type)}, {_identifier(v.name)})" for v in map(self.find, names[:4]))
            return f"{_BUILT_IN[found[2]]}({', '.join(values)});"
        raise RefusedError(f"a call of {found[2]}")

    def instruction(self, text: str) -> str:
        if guarded := re.match(r"@(!?)\s*([\w$%]+)\s+(.*)", text):
            self.find(guarded[2])
            return f"if ({guarded[1]}{_identifier(guarded[2])}) {{ {self.instruction(guarded[3])} }}"
        if found := re.fullmatch(r"bra(?:\.uni)? ([\w$%]+)", text):
            return f"goto {_identifier(found[1])};"
        if found := re.fullmatch(r"brx\.idx(?:\.uni)? ([\w$%]+), ([\w$%]+)", text):
            if found[2] not in self.targets:
                raise RefusedError(f"the instruction `{text}`")
            cases = (f"case {i}: goto {_identifier(name)};" for i, name in enumerate(self.targets[found[2]]))
            return f"switch ({self.value(found[1], 'u32')}) {{ {' '.join(cases)} }}"
        if text in ("ret", "ret.uni") or (text == "exit" and self.function.kernel):
            result = self.function.result
            return f"return {_identifier(result.name)};" if result else "return;"
        if text.startswith("call"):
            return self.called(text)
        return self.moved(text) or self.computed(text)

    # ---- declarations ----

    def directive(self, text: str) -> str:
        if text.startswith(".pragma"):
            return ""
        if text.startswith(".branchtargets"):
            self.targets[self.label] = self.parts(text.removeprefix(".branchtargets"))
            return ""
        declared = list(variables(text))
        self.scopes[-1].update({v.name: v for v in declared})
        return "".join(map(self.declared, declared))

    def declared(self, v: Variable) -> str:
        if v.space == "reg":
            # Within brackets a branch may lead past the declaration, which may not initialise then.
            return f"{_type(v.type)} {_identifier(v.name)}{'' if len(self.scopes) > 3 else ' = {}'};"
        if v.space == "shared":
            self.place(v)
            return ""
        return f"{_parameter(v)} {_identifier(v.name)};"

    def lines(self) -> Iterator[str]:
        """Yield the body."""
        self.scopes.append({})
        yield from map(self.line, self.function.body)

    def line(self, statement: Statement) -> str:
        kind, text = statement
        if kind == "open":
            self.scopes.append({})
            return "{"
        if kind == "close":
            self.scopes.pop()
            return "}"
        if kind == "label":
            self.label = text
            return f"{_identifier(text)}:;"
        return self.directive(text) if kind == "directive" else self.instruction(text)


def _parameter(v: Variable) -> str:
    """Return the C++ type of a parameter: bytes, or a pointer, which launches look at."""
    return "void*" if v.pointer else f"Bytes<{v.bytes}, {v.align}>"


def _signature(f: Function) -> str:
    parameters = ", ".join(f"{_parameter(v)} {_identifier(v.name)}" for v in f.parameters)
    return f"static {_parameter(f.result) if f.result else 'void'} {_identifier(f.name)}({parameters})"


def _static_symbol(name: str) -> str:
    """Return a symbol that the device takes for a shared variable of a kernel, whose bytes it counts."""
    return f"_ZZ{name[2:] if name.startswith('_Z') else f'{len(name)}{name}'}E6shared"


def _function(f: Function, module: Module) -> Iterator[str]:
    body = _Body(f, module)
    try:
        lines = list(body.lines())
    except RefusedError as error:
        raise RefusedError(f"{error} in {'the kernel' if f.kernel else 'the function'} {f.name}") from None
    shared = "nullptr"
    if body.shared_bytes:
        shared = f"S_{f.name}"
        yield f'alignas(128) static char {shared}[{body.shared_bytes}] asm("{_static_symbol(f.name)}");'
    yield f"{_signature(f)} {{"
    if f.kernel:
        yield f"enter({shared}, {body.shared_bytes});"
    if f.result:
        yield f"{_parameter(f.result)} {_identifier(f.result.name)};"
    yield "bool carry = false;"
    yield from lines
    yield "}"


def _variable(v: Variable) -> str:
    """Return the definition of a variable of the module."""
    values = re.sub(r"generic\(([\w$]+)\)", r"(u64)&N_\1", v.values)
    values = re.sub(r"\b0[fFdD]([0-9a-fA-F]+)", r"0x\1u", values)
    if v.linkage == "extern" or not re.fullmatch(r"\{?(?:[-\s,]|0x[0-9a-fA-F]+u|\d+U?|\(u64\)&N_[\w$]+)*\}?", values):
        raise RefusedError(f"the initialiser or the linkage of the variable {v.name}")
    dimension = "" if v.count is None else f"[{v.count}]"
    kind = {"f32": "u32", "f64": "u64"}.get(v.type, _type(v.type))
    return f"alignas({max(v.align, SIZES[v.type])}) static {kind} {_identifier(v.name)}{dimension} = {values or '{}'};"


def translate(text: str, leaving_arrives: bool) -> str:
    """Translate PTX into C++.

    Args:
        text: the PTX.
        leaving_arrives: threads that have left count as arrived at barriers.

    Raises:
        RefusedError: it has something that cannot be translated; the message names it, and the kernel.
    """
    module = parse(text)
    memory = [v for v in module.variables if v.space in ("global", "const")]
    defined = [f for f in module.functions if f.defined]
    out = ['#include "ptx_warp.hpp"', f"static constexpr bool software_gpu_leaving = {str(leaving_arrives).lower()};"]
    out += ["namespace ptx {", *map(_variable, memory)]
    for f in defined:  # a kernel's name is that of its code, which errors tell
        out.append(f'{_signature(f)} asm("{f.name}");' if f.kernel else f"{_signature(f)};")
    for f in defined:
        out += _function(f, module)
    out.append("}")
    out += [f"SOFTWARE_GPU_KERNEL({f.name}, {f.most_threads}, ptx::{_identifier(f.name)})" for f in defined if f.kernel]
    out += [f"SOFTWARE_GPU_VARIABLE({v.name}, ptx::{_identifier(v.name)})" for v in memory if "$" not in v.name]
    return "\n".join(out) + "\n"
