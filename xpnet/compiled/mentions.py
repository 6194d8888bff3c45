"""What the code of a function mentions: global variables, attributes and modules, read from its instructions."""

from __future__ import annotations

import dis
import re
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

_LOOKING = ("getattr", "hasattr", "setattr", "delattr", "attrgetter")
_DYNAMIC = frozenset(
    {"vars", "__dict__", "eval", "exec", "locals", "__getattribute__", "astuple", "asdict", "fields", "replace"}
)
"""What reads attributes whose names the code does not say; those of `_LOOKING` do where the name is no constant."""
BY_NAME = frozenset({"globals", "eval", "exec"})
"""What looks up global variables whose names the code may not say."""
_PRINTING = frozenset({"str", "repr", "format", "print"})
PRINTED = frozenset({"__str__", "__repr__", "__format__"})
_SIMPLE = ("LOAD_CONST", "LOAD_FAST", "LOAD_GLOBAL", "LOAD_ATTR", "LOAD_DEREF", "LOAD_NAME", "PUSH_NULL", "PRECALL", "CACHE")
_FORMATTING = ("FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC", "CONVERT_VALUE")


class Mentions(NamedTuple):
    """What some code mentions, with the functions within it.

    Attributes:
        globals: names of global variables.
        names: names that may be those of attributes, also in strings.
        imported: names of modules.
        dynamic: whether it reads attributes of other names.
    """

    globals: frozenset[str]
    names: frozenset[str]
    imported: frozenset[str]
    dynamic: bool


def mentions_of(function: FunctionType, is_users: Any) -> Mentions:
    """Return what a function mentions; attributes of modules that are not the user's are left out, as mean of `xn.ops.mean`."""
    table = function.__globals__
    libraries = frozenset(
        name
        for name in _read(function.__code__).globals
        if isinstance(module := table.get(name), ModuleType) and not is_users(module)
    )
    return _read(function.__code__, libraries)


@lru_cache(maxsize=4096)
def _read(code: CodeType, libraries: frozenset[str] = frozenset()) -> Mentions:
    found: set[str] = set()
    variables: set[str] = set()
    imported: set[str] = set()
    dynamic = of_library = False
    instructions = list(dis.get_instructions(code))
    for i, (name, value) in enumerate([(i.opname, i.argval) for i in instructions]):
        if name.startswith(("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL")):
            variables.add(value)
            of_library = value in libraries
            dynamic |= value in _DYNAMIC or (value in _LOOKING and not _is_constant(instructions[i + 1 :]))
            found |= PRINTED if value in _PRINTING else set()
        elif name in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "STORE_ATTR", "DELETE_ATTR"):
            if not of_library or name == "STORE_ATTR":
                found.add(value)
                found |= PRINTED if value in _PRINTING else set()
            dynamic |= value in _DYNAMIC or (value in _LOOKING and not _is_constant(instructions[i + 1 :]))
        elif name.startswith("IMPORT"):
            imported.add(value)
            found.add(value)
        elif name in _FORMATTING:
            found |= PRINTED
        if name not in ("LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD", "CACHE"):
            of_library = False
    for part in code.co_consts:
        if isinstance(part, CodeType):
            inner = _read(part, libraries)
            variables |= inner.globals
            found |= inner.names
            imported |= inner.imported
            dynamic |= inner.dynamic
        else:
            found |= _words(part)
    if "globals" in variables:  # under a name in a string
        variables |= found
    return Mentions(frozenset(variables), frozenset(found), frozenset(imported), dynamic)


def _words(constant: Any) -> set[str]:
    """Return the names in a constant: a string, the fields of a format string, the patterns of `match`."""
    if isinstance(constant, tuple):
        return set().union(*map(_words, constant))
    if not isinstance(constant, str):
        return set()
    if constant.isidentifier():
        return {constant}
    return set(re.findall(r"[^\W\d]\w*", " ".join(re.findall(r"{([^{}]*)}", constant)))) if "{" in constant else set()


def _is_constant(instructions: list[dis.Instruction]) -> bool:
    """Return whether a call that begins here, of `getattr` and the like, gives the attribute's name as a constant."""
    named = False
    for instruction in instructions:
        name = instruction.opname
        if name.startswith("CALL"):
            return named
        if name == "LOAD_CONST" and isinstance(instruction.argval, str) and instruction.argval.isidentifier():
            named = True
        elif not name.startswith(_SIMPLE):
            return False
    return False
