"""The table of instructions: what C++ each of them is.

A row is the instruction's name, a pattern of all behind it, its operands, and an expression. An instruction that no row
matches as a whole, with all its modifiers, is refused.

Operands, `result = operand ...`, are types: those of PTX (`u32`, `pred`), or the one that a group of the pattern has matched
(`T`). A number is that number, and `constant` any. `T*` is a vector in braces, or several results `p|q`; `&` is an address in
the space of the group `space`, and `&shared` one in that; behind a slash it has the bytes that are accessed; `shared` is an
address as a number. In the expression `{a}`, `{b}` ... are the operands,
`{T}` is the C++ type of a group, and `{M}` the Mode of the groups `round`, `ftz` and `sat`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_INT = r"\.(?P<T>[us](?:16|32|64))"
_WORD = r"\.(?P<T>[us](?:32|64))"
_BITS = r"\.(?P<T>b(?:16|32|64))"
_FLOAT = r"\.(?P<T>f32|f64)"
_NUMBER = r"\.(?P<T>[us](?:16|32|64)|b?f16|f32|f64)"
_ANY = r"\.(?P<T>[busf](?:16|32|64))"
_ROUND = r"(?:\.(?P<round>r[nzmp]))?"
_FTZ = r"(?P<ftz>\.ftz)?"
_SAT = r"(?P<sat>\.sat)?"
_SPACE = r"(?:\.(?P<space>global|shared|local|const|param)(?:::(?:cta|entry|func))?)?"
_ORDER = r"(?:\.(?:relaxed|acquire|release|acq_rel|weak))?(?:\.(?:cta|gpu|sys))?"
_CACHE = r"(?:\.(?:ca|cg|cs|lu|cv|wb|wt))?(?:\.L[12]::\w+)*"
_ACCESS = r"(?:\.(?:volatile|weak|(?:relaxed|acquire|release)\.(?:cta|gpu|sys)))?"
_MEMORY = r"(?:\.v(?P<n>[24]))?\.(?P<T>[busf](?:8|16|32|64))"


@dataclass(frozen=True)
class Rule:
    """A row of the table."""

    pattern: re.Pattern[str]
    results: tuple[str, ...]
    operands: tuple[str, ...]
    expression: str


RULES: dict[str, list[Rule]] = {}


def _row(names: str, pattern: str, operands: str, expression: str) -> None:
    left, right = operands.split("=")
    for name in names.split():
        rule = Rule(re.compile(pattern), tuple(left.split()), tuple(right.split()), expression)
        RULES.setdefault(name, []).append(rule)


# ---- integers ----

for _name, _sign in {"add": "+", "sub": "-", "div": "/", "rem": "%"}.items():
    _row(_name, _INT, "T = T T", "{a} " + _sign + " {b}")
_row("mul", r"\.lo" + _INT, "T = T T", "{a} * {b}")
_row("mul", r"\.hi" + _INT, "T = T T", "high({a}, {b})")
_row("mul", r"\.wide\.(?P<T>[us](?:16|32))", "W = T T", "({W}){a} * ({W}){b}")
_row("mad", r"\.lo" + _INT, "T = T T T", "{a} * {b} + {c}")
_row("mad", r"\.hi" + _INT, "T = T T T", "high({a}, {b}) + {c}")
_row("mad", r"\.wide\.(?P<T>[us](?:16|32))", "W = T T W", "({W}){a} * ({W}){b} + {c}")
_row("neg", r"\.(?P<T>s(?:16|32|64))", "T = T", "-{a}")
_row("abs", r"\.(?P<T>s(?:16|32|64))", "T = T", "{a} < 0 ? -{a} : {a}")
_row("min", _INT, "T = T T", "{b} < {a} ? {b} : {a}")
_row("max", _INT, "T = T T", "{b} > {a} ? {b} : {a}")
_row("sad", _INT, "T = T T T", "{c} + ({a} < {b} ? {b} - {a} : {a} - {b})")
_row("dp4a", r"\.(?P<T>[us])32\.(?P<S>[us])32", "u32 = u32 u32 u32", "dot<{T}8, {S}8>({a}, {b}, {c})")
_row("dp2a", r"\.(?P<half>lo|hi)\.(?P<T>[us])32\.(?P<S>[us])32", "u32 = u32 u32 u32", "dot<{T}16, {S}8>({a}, {half}({b}), {c})")

# Arithmetic of several words: CC is the carry of the last instruction that sets it, or what it borrows.
_CARRY = r"(?P<set>\.cc)?\.(?P<T>[us](?:32|64))"
for _suffix, _use in (("", "false"), ("c", "true")):
    _call = f"carried<{_use}, {{set}}>(carry, "
    _row(f"add{_suffix}", _CARRY, "T = T T", _call + "{a}, {b}, false)")
    _row(f"sub{_suffix}", _CARRY, "T = T T", _call + "{a}, {b}, true)")
    _row(f"mad{_suffix}", r"\.lo" + _CARRY, "T = T T T", _call + "({T})({a} * {b}), {c}, false)")
    _row(f"mad{_suffix}", r"\.hi" + _CARRY, "T = T T T", _call + "high({a}, {b}), {c}, false)")

# ---- bits ----

for _name, _sign in {"and": "&", "or": "|", "xor": "^"}.items():
    _row(_name, r"\.(?P<T>pred|b16|b32|b64)", "T = T T", "{a} " + _sign + " {b}")
_row("not", _BITS, "T = T", "~{a}")
_row("not", r"\.pred", "pred = pred", "!{a}")
_row("shl", _BITS, "T = T u32", "shift_left({a}, {b})")
_row("shr", r"\.(?P<T>[bus](?:16|32|64))", "T = T u32", "shift_right({a}, {b})")
for _left, _side in (("true", "l"), ("false", "r")):
    for _clamp, _mode in (("true", "clamp"), ("false", "wrap")):
        _row("shf", rf"\.{_side}\.{_mode}\.b32", "u32 = u32 u32 u32", f"funnel<{_left}, {_clamp}>({{a}}, {{b}}, {{c}})")
_row("popc", r"\.(?P<T>b32|b64)", "u32 = T", "__builtin_popcountll({a})")
_row("clz", r"\.(?P<T>b32|b64)", "u32 = T", "{a} ? __builtin_clzll({a}) - (64 - 8 * sizeof({T})) : 8 * sizeof({T})")
_row("brev", r"\.b32", "u32 = u32", "__brev({a})")
_row("brev", r"\.b64", "u64 = u64", "__brevll({a})")
_row("bfind", r"(?P<shift>\.shiftamt)?" + _WORD, "u32 = T", "highest<{shift}>({a})")
_row("bfe", _WORD, "T = T u32 u32", "extract({a}, {b}, {c})")
_row("bfi", r"\.(?P<T>b32|b64)", "T = T T u32 u32", "insert({a}, {b}, {c}, {d})")
_row("prmt", r"\.b32", "u32 = u32 u32 u32", "permuted({a}, {b}, {c})")
_row("lop3", r"\.b32", "u32 = u32 u32 u32 constant", "logic<{d}>({a}, {b}, {c})")

# ---- floating-point numbers; those of 16 bits are always rounded to nearest ----


def _both(name: str, modifiers: str, count: int, expression: str) -> None:
    """Add the rows for one number of 16 bits, and for two of them in a word."""
    values = dict(zip("abc"[:count], "xyz", strict=False))
    inner = expression
    for letter, value in values.items():
        inner = inner.replace(f"{{{letter}}}", value)
    parameters = ", ".join(f"{{T}} {value}" for value in values.values())
    operands = ", ".join(f"{{{letter}}}" for letter in values)
    _row(name, modifiers + r"\.(?P<T>b?f16)", f"T = {'T ' * count}", expression)
    call = f"both<{{T}}>([]({parameters}) {{{{ return {inner}; }}}}, {operands})"
    _row(name, modifiers + r"\.(?P<T>b?f16)x2", f"u32 = {'u32 ' * count}", call)


for _name, _count in {"add": 2, "sub": 2, "mul": 2, "fma": 3}.items():
    _call = f"compute<{{M}}>({_name.capitalize()}(), {', '.join(['{a}', '{b}', '{c}'][:_count])})"
    _row(_name, _ROUND + _FTZ + _SAT + _FLOAT, f"T = {'T ' * _count}", _call)
    _both(_name, r"(?:\.rn)?" + _FTZ + _SAT, _count, _call)
_row("mad", _ROUND + _FTZ + _SAT + _FLOAT, "T = T T T", "compute<{M}>(Fma(), {a}, {b}, {c})")
_EXACT = r"\.(?P<round>r[nzmp])" + _FTZ + _FLOAT
_APPROXIMATE = r"\.approx" + _FTZ + r"\.(?P<T>f32)"
_row("div", _EXACT, "T = T T", "compute<{M}>(Div(), {a}, {b})")
_row("div", r"\.(?:approx|full)" + _FTZ + r"\.(?P<T>f32)", "T = T T", "compute<{M}>(Div(), {a}, {b})")
for _name in ("rcp", "sqrt"):
    _row(_name, _EXACT, "T = T", f"compute<{{M}}>({_name.capitalize()}(), {{a}})")
for _name in ("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos"):
    _row(_name, _APPROXIMATE, "T = T", f"compute<{{M}}>({_name.capitalize()}(), {{a}})")
_row("rsqrt", r"\.approx\.(?P<T>f64)", "T = T", "1 / std::sqrt({a})")
_row("rcp", r"\.approx\.ftz\.f64", "f64 = f64", "upper_half(flushed_double(1 / flushed_double({a})))")
_row("rsqrt", r"\.approx\.ftz\.f64", "f64 = f64", "upper_half(flushed_double(1 / std::sqrt(flushed_double({a}))))")
_row("tanh", r"\.approx\.(?P<T>f32)", "T = T", "compute<{M}>(Tanh(), {a})")
_both("tanh", r"\.approx", 1, "compute<{M}>(Tanh(), {a})")
_both("ex2", r"\.approx(?:\.ftz)?", 1, "compute<{M}>(Ex2(), {a})")
for _name, _call in {"neg": "negated(flushed<{ftz}>({a}))", "abs": "magnitude(flushed<{ftz}>({a}))"}.items():
    _row(_name, _FTZ + _FLOAT, "T = T", _call)
    _both(_name, _FTZ, 1, _call)
for _name, _larger in (("min", "false"), ("max", "true")):
    _call = f"extreme<{_larger}, {{nan}}, {{ftz}}>({{a}}, {{b}})"
    _row(_name, _FTZ + r"(?P<nan>\.NaN)?" + _FLOAT, "T = T T", _call)
    _both(_name, _FTZ + r"(?P<nan>\.NaN)?", 2, _call)
_row("copysign", _FLOAT, "T = T T", "copysign({a}, {b})")
for _name, _test in {
    "finite": "std::isfinite({a})",
    "infinite": "std::isinf({a})",
    "number": "!std::isnan({a})",
    "notanumber": "std::isnan({a})",
    "normal": "normal({a})",
    "subnormal": "std::fpclassify({a}) == FP_SUBNORMAL",
}.items():
    _row("testp", rf"\.{_name}" + _FLOAT, "pred = T", _test)

# ---- comparisons ----

_COMPARISONS = {
    "eq": "{a} == {b}", "ne": "({a} < {b} || {a} > {b})", "lt": "{a} < {b}", "le": "{a} <= {b}",
    "gt": "{a} > {b}", "ge": "{a} >= {b}", "lo": "{a} < {b}", "ls": "{a} <= {b}", "hi": "{a} > {b}", "hs": "{a} >= {b}",
    "equ": "!({a} < {b} || {a} > {b})", "neu": "!({a} == {b})", "ltu": "!({a} >= {b})", "leu": "!({a} > {b})",
    "gtu": "!({a} <= {b})", "geu": "!({a} < {b})", "num": "({a} == {a} && {b} == {b})", "nan": "!({a} == {a} && {b} == {b})",
}  # fmt: skip
for _name, _test in _COMPARISONS.items():
    _test = _test.replace("{a}", "flushed<{ftz}>({a})").replace("{b}", "flushed<{ftz}>({b})")
    _types = _FTZ + r"\.(?P<T>[bus](?:16|32|64)|b?f16|f32|f64)"
    _row("setp", rf"\.{_name}" + _types, "pred* = T T", f"Vector<bool, 2>{{{{{_test}, !({_test})}}}}")
    _row("set", rf"\.{_name}{_FTZ}\.(?P<S>[us](?:16|32)|b?f16|f32)" + _NUMBER, "S = T T", f"truth<{{S}}>({_test})")
    for _word, _sign in {"and": "&", "or": "|", "xor": "^"}.items():
        _pair = f"Vector<bool, 2>{{{{({_test}) {_sign} {{c}}, !({_test}) {_sign} {{c}}}}}}"
        _row("setp", rf"\.{_name}\.{_word}" + _types, "pred* = T T pred", _pair)
_row("selp", _ANY, "T = T T pred", "{c} ? {a} : {b}")
_row("slct", _FTZ + _ANY + r"\.(?P<S>s32|f32)", "T = T T S", "flushed<{ftz}>({c}) >= 0 ? {a} : {b}")

# ---- conversions ----

_TO_INT, _FROM_INT = r"\.(?P<T>[us](?:8|16|32|64))", r"\.(?P<S>[us](?:8|16|32|64))"
_FROM_FLOAT, _NEAREST = r"\.(?P<S>b?f16|f32|f64)", r"\.(?P<round>rn)"
_WHOLE = r"\.(?P<round>r[nzmp])(?P<whole>i)"
for _types in (
    _SAT + _TO_INT + _FROM_INT,
    _NEAREST + _SAT + r"\.(?P<T>b?f16|f32|f64)" + _FROM_INT,
    _WHOLE + _FTZ + _SAT + _TO_INT + _FROM_FLOAT,
    _WHOLE + _FTZ + _SAT + r"\.(?P<T>b?f16|f32|f64)" + _FROM_FLOAT,
    _ROUND + _FTZ + _SAT + _FLOAT + _FROM_FLOAT,
    _NEAREST + _FTZ + _SAT + r"\.(?P<T>b?f16)" + _FROM_FLOAT,
):
    _row("cvt", _types, "T = S", "convert<{T}, {M}, {whole}, {sat}>({a})")
for _name in ("f16", "bf16"):
    _row("cvt", rf"\.rn\.{_name}x2\.f32", "u32 = f32 f32", f"pack<u32, 2>({{{{{_name}({{b}}).bits, {_name}({{a}}).bits}}}})")
_row("cvt", r"\.rna\.tf32\.f32", "u32 = u32", "emulator_to_tf32({a})")
_row("cvta", r"(?:\.to)?(?:\.(?:global|local|const|param))\.u64", "u64 = u64", "{a}")
_row("cvta", r"\.shared\.u64", "u64 = u64", "generic_of_shared({a})")
_row("cvta", r"\.to\.shared\.u64", "u64 = u64", "shared_of_generic({a})")

# ---- memory: results of a vector are in braces ----

_row("mov", r"\.(?P<T>pred|[busf](?:16|32|64))", "T = T", "{a}")
_row("ld", _ACCESS + _SPACE + r"(?:\.nc)?" + _CACHE + _MEMORY, "T* = &/sizeof({T})*{n}", "load<{T}, {n}>({a})")
_row("ldu", _SPACE + _MEMORY, "T* = &/sizeof({T})*{n}", "load<{T}, {n}>({a})")
_row("st", _ACCESS + _SPACE + _CACHE + _MEMORY, "= &/sizeof({T})*{n} T*", "store({a}, {b})")
_ATOMIC = {
    "add": "old + {b}", "min": "{b} < old ? {b} : old", "max": "{b} > old ? {b} : old", "and": "old & {b}", "or": "old | {b}",
    "xor": "old ^ {b}", "exch": "{b}", "inc": "old >= {b} ? 0 : old + 1", "dec": "old == 0 || old > {b} ? {b} : old - 1",
}  # fmt: skip
for _name, _change in _ATOMIC.items():
    _call = f"atomic<{{T}}>({{a}}, [&]({{T}} old) {{{{ return {_change}; }}}})"
    _types = rf"\.{_name}\.(?P<T>[busf](?:32|64))"
    _row("atom", _ORDER + _SPACE + _types, "T = &/sizeof({T}) T", _call)
    _row("red", _ORDER + _SPACE + _types, "= &/sizeof({T}) T", _call)
_row("atom", _ORDER + _SPACE + r"\.add\.noftz\.(?P<T>b?f16)", "T = &/sizeof({T}) T",
     "atomic<{T}>({a}, [&]({T} old) {{ return compute<{M}>(Add(), old, {b}); }})")  # fmt: skip
_row("atom", _ORDER + _SPACE + r"\.cas\.(?P<T>b(?:16|32|64))", "T = &/sizeof({T}) T T",
     "atomic<{T}>({a}, [&]({T} old) {{ return old == {b} ? {c} : old; }})")  # fmt: skip

# ---- blocks and warps ----

_row("bar", r"\.sync", "= 0", "__syncthreads()")
_row("barrier", r"(?:\.cta)?\.sync(?:\.aligned)?", "= 0", "__syncthreads()")
_row("bar barrier", r"(?:\.cta)?\.red(?:\.aligned)?\.popc\.u32", "u32 = 0 pred", "__syncthreads_count({b})")
_row("bar barrier", r"(?:\.cta)?\.red(?:\.aligned)?\.and\.pred", "pred = 0 pred", "__syncthreads_and({b})")
_row("bar barrier", r"(?:\.cta)?\.red(?:\.aligned)?\.or\.pred", "pred = 0 pred", "__syncthreads_or({b})")
_row("bar", r"\.warp\.sync", "= u32", "__syncwarp({a})")
_row("membar", r"\.(?:cta|gl|sys)", "=", "")
_row("fence", r"(?:\.(?:sc|acq_rel))?\.(?:cta|gpu|sys)", "=", "")
_row("nanosleep", r"\.u32", "= u32", "__nanosleep({a})")
_row("trap", "", "=", "__builtin_trap()")
for _name in ("up", "down", "bfly", "idx"):
    _row("shfl", rf"\.sync\.{_name}\.b32", "u32* = u32 u32 u32 u32", f"shuffle<{_name}>({{a}}, {{b}}, {{c}}, {{d}})")
_row("vote", r"\.sync\.ballot\.b32", "u32 = pred u32", "__ballot_sync({b}, {a})")
_row("vote", r"\.sync\.(?P<kind>all|any)\.pred", "pred = pred u32", "__{kind}_sync({b}, {a})")
_row("vote", r"\.sync\.uni\.pred", "pred = pred u32", "vote_uniform({a}, {b})")
_row("activemask", r"\.b32", "u32 =", "__activemask()")
_row("match", r"\.any\.sync\.(?P<T>b32|b64)", "u32 = T u32", "__match_any_sync({b}, {a})")
_row("redux", r"\.sync\.(?P<kind>add|min|max)\.(?P<T>[us]32)", "T = T u32", "__reduce_{kind}_sync({b}, {a})")
_row("redux", r"\.sync\.(?P<kind>and|or|xor)\.(?P<T>b32)", "T = T u32", "__reduce_{kind}_sync({b}, {a})")

# ---- tensor cores, and copies to shared memory beside the program ----

_TO = r"\.shared(?:::cta)?\.global" + r"(?:\.L[12]::\w+)*"
for _size in (4, 8, 16):
    for _sizes, _given in ((f"{_size}", f"{_size}"), (f"{_size} u32", "{d}")):
        for _cache in ("ca", "cg") if _size == 16 else ("ca",):
            _row("cp", rf"\.async\.{_cache}" + _TO, f"= &shared/{_size} &global/{_size} {_sizes}",
                 f"copy_async<{_size}>({{a}}, {{b}}, {_given})")  # fmt: skip
_row("cp", r"\.async\.commit_group", "=", "emulator_cp_async_commit()")
_row("cp", r"\.async\.wait_group", "= u32", "emulator_cp_async_wait({a})")
_row("cp", r"\.async\.wait_all", "=", "emulator_cp_async_commit(), emulator_cp_async_wait(0)")
_row("ldmatrix", r"\.sync\.aligned\.m8n8\.x(?P<n>[124])(?P<trans>\.trans)?\.shared(?:::cta)?\.b16", "u32* = shared",
     "load_matrices<{n}, {trans}>({a})")  # fmt: skip
for _shape, _type, _element in (("m16n8k8", "tf32", "float"), ("m16n8k16", "f16", "f16"), ("m16n8k16", "bf16", "bf16")):
    _row("mma", rf"\.sync\.aligned\.{_shape}\.row\.col\.f32\.{_type}\.{_type}\.f32", "f32* = u32* u32* f32*",
         f"multiply<{_element}>({{a}}, {{b}}, {{c}})")  # fmt: skip
