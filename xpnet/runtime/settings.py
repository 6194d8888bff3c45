"""Checks of settings: numbers in an interval, and arguments of the kind that an annotation names."""

from __future__ import annotations

import ast
import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from xpnet.runtime.messages import quoted
from xpnet.runtime.overrides import refuse_uncalled
from xpnet.runtime.peers import POSITIONS, keyword_hint

F = TypeVar("F", bound=Callable[..., Any])


class ArgumentError(TypeError, ValueError):
    """An argument of another kind than asked for: a TypeError, and a ValueError as for a setting out of its range.

    Where one ends and the other begins is not always plain: 2.5 for a number of layers, "big" for one of three names.
    """


@lru_cache(maxsize=64)
def _parsed(interval: str) -> tuple[bool, float, float, bool]:
    """Return whether the lower end is excluded, both ends, and whether the upper end is excluded."""
    low, high = interval[1:-1].split(",")
    return interval[0] == "(", float(low), float(high), interval[-1] == ")"


def _words(interval: str) -> str:
    """Return an interval in words, where that is shorter than its brackets."""
    without_low, low, high, _ = _parsed(interval)
    if high < math.inf:
        return f"in {interval}"
    if low == -math.inf:
        return "finite"
    return f"{'above' if without_low else 'at least'} {low:g} and finite"


def _number(value: Any) -> float:
    if isinstance(value, (str, bytes)):  # float() would read it
        raise TypeError
    return float(value)


def check_numbers(who: str, interval: str, **values: Any) -> None:
    """Raise an error unless every value is a number within an interval, such as "[0, 1)" or "(0, inf)". NaN is in none.

    Raises:
        TypeError: something that is no number.
        ValueError: a number outside the interval.
    """
    without_low, low, high, without_high = _parsed(interval)
    for name, value in values.items():
        try:
            number = _number(value)
        except (TypeError, ValueError):
            raise TypeError(f"{who}: {name} must be a number {_words(interval)}, got {quoted(value)}") from None
        inside = (low < number if without_low else low <= number) and (number < high if without_high else number <= high)
        if not inside:
            raise ValueError(f"{who}: {name} must be {_words(interval)}, got {value}")


def check_whole(who: str, least: int, **values: Any) -> None:
    """Raise an error unless every value is a whole number, at least `least`.

    Raises:
        TypeError: something that is no number.
        ValueError: a fraction, or a number below `least`.
    """
    for name, value in values.items():
        try:
            whole = _number(value).is_integer()
        except (TypeError, ValueError):
            raise TypeError(f"{who}: {name} must be at least {least} and whole, got {quoted(value)}") from None
        if not whole or value < least:
            raise ValueError(f"{who}: {name} must be at least {least} and whole, got {value}")


def whole(who: str, name: str, value: Any) -> int:
    """Return a whole number, such as a seed, as an int.

    Raises:
        ArgumentError: a fraction, text, or anything else that is no integer.
    """
    try:
        return index(value)
    except TypeError:
        raise ArgumentError(f"{who}: {name} must be a whole number, got {quoted(value)}") from None


def sizes(who: str, name: str, value: Any) -> tuple[int, ...]:
    """Return sizes, such as an input's shape, as a tuple of ints.

    Raises:
        ArgumentError: text, or sizes that are no integers.
    """
    try:
        return tuple(map(index, value))
    except TypeError:
        raise ArgumentError(
            f"{who}: {name} must be a tuple of whole numbers such as (28, 28, 1), got {quoted(value)}"
        ) from None


_LIBRARIES = frozenset({"numpy", "cupy", "scipy", "torch", "tensorflow", "keras", "jax", "jaxlib", "math"})


def check_function(who: str, value: Any, remedy: str) -> None:
    """Raise a TypeError for a class instead of an object, and for a function of a library that does not know Tensors.

    Args:
        who: what takes the function: "Dense: activation".
        value: what it was given; anything else passes.
        remedy: what to give instead, for the message.
    """
    if value is None or isinstance(value, str):
        return
    if isinstance(value, type):
        raise TypeError(f"{who} got the class {value.__name__}; write {value.__name__}(...), or give {remedy}")
    owner = getattr(value, "__self__", None)  # of a bound method; a class or a module for functions written in C
    places = (value, type(value), owner, type(owner))
    roots = {str(getattr(place, "__module__", None)).partition(".")[0] for place in places}
    if callable(value) and roots & _LIBRARIES:
        name = getattr(value, "__name__", type(value).__name__)
        raise TypeError(f"{who} got {name} of {min(roots & _LIBRARIES)}, which cannot be used here; give {remedy}")


class _Kind(NamedTuple):
    """What an annotation asks for: whether a value is of that kind, and the kind in words."""

    fits: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    try:
        _number(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_whole(value: Any) -> bool:
    return _is_number(value) and _number(value).is_integer()


def _is_switch(value: Any) -> bool:
    return _is_number(value) and _number(value) in (0, 1)


def _is_one_of(choices: tuple[str, ...], value: Any) -> bool:
    return isinstance(value, str) and value in choices


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Iterator))  # which can be read once only


def _is_sizes(value: Any) -> bool:
    """Return whether a value is a list whose elements are whole numbers; None among them gets an error of its own."""
    return _is_list(value) and not (isinstance(value, (list, tuple)) and any(v is not None and not _is_whole(v) for v in value))


def _instance(name: str) -> Callable[[Any], bool]:
    """Return whether a value's class has a name: this floor cannot import the classes of those above."""
    return lambda value: any(kind.__name__ == name and kind.__module__.startswith("xpnet.") for kind in type(value).__mro__)


_PATH = _Kind(lambda value: isinstance(value, os.PathLike), "a path")
_FUNCTION = _Kind(callable, "a function")
_KINDS = {
    "None": _Kind(lambda value: value is None, "None"),
    "bool": _Kind(_is_switch, "True or False"),
    "int": _Kind(_is_whole, "a whole number"),
    "float": _Kind(_is_number, "a number"),
    "str": _Kind(lambda value: isinstance(value, str), "a string"),
    **dict.fromkeys(("Path", "PathLike[str]", "os.PathLike[str]"), _PATH),
    "Schedule": _Kind(callable, "a schedule"),
    "Initial": _Kind(
        lambda value: value is None or isinstance(value, str) or callable(value) or _is_number(value),
        "an initializer: its name, a number, or a function (shape, key) -> values",
    ),
    "Sequence[Any]": _Kind(_is_list, "a list of layers"),
    "Sequence[int]": _Kind(_is_sizes, "a tuple of whole numbers, such as (5,) or (28, 28, 1)"),
    "Sequence[Sequence[int]]": _Kind(_is_list, "a tuple of such tuples"),
    "Sequence[float]": _Kind(_is_list, "a list of numbers"),
    "Sequence[str]": _Kind(_is_list, "a list of strings"),
    "Sequence[Callback]": _Kind(_is_list, "a list of callbacks, such as [xn.training.EarlyStopping()]"),
    "Sequence[str | Callable[[Any, Any], Any]]": _Kind(_is_list, "a list of names and functions"),
    "Module": _Kind(_instance("Module"), "a Module such as xn.Sequential([...])"),
    "Sequential": _Kind(_instance("Sequential"), "a Sequential"),
    "Recurrent": _Kind(_instance("Recurrent"), "a recurrent layer such as xn.LSTM(8)"),
    "Trainer": _Kind(_instance("Trainer"), "a Trainer"),
    "Optimizer": _Kind(_instance("Optimizer"), "an object such as xn.optim.Adam(0.001)"),
    "LossScale": _Kind(_instance("LossScale"), "a LossScale such as xn.optim.LossScale(1024)"),
    "Augmentation": _Kind(_instance("Augmentation"), "an augmentation such as xn.data.augment.Flip()"),
    "Device": _Kind(_instance("Device"), "a device"),
}


@cache
def _kinds(annotation: str) -> tuple[_Kind, ...]:
    """Return the kinds that an annotation names; () where one of them is none of _KINDS: the function checks it itself."""
    kinds = []
    for part in _alternatives(annotation):
        if part.startswith("Literal["):
            choices = ast.literal_eval(f"({part.removeprefix('Literal[')[:-1]},)")
            words = " or ".join(f'"{choice}"' for choice in choices)
            kinds.append(_Kind(functools.partial(_is_one_of, choices), words))
        elif part.startswith("Callable["):
            kinds.append(_FUNCTION)
        elif part in _KINDS:
            kinds.append(_KINDS[part])
        else:
            return ()
    return tuple(kinds)


def _alternatives(annotation: str) -> list[str]:
    """Return the parts of a union."""
    node = ast.parse(annotation, mode="eval").body
    parts: list[str] = []
    while isinstance(node, ast.BinOp):
        parts.insert(0, ast.unparse(node.right))
        node = node.left
    return [ast.unparse(node), *parts]


def check_kind(who: str, name: str, value: Any, annotation: str) -> None:
    """Raise an error unless a value is of a kind that an annotation such as "int | None" names.

    Raises:
        ArgumentError: it is of another kind.
    """
    kinds = _kinds(annotation)
    if kinds and not any(kind.fits(value) for kind in kinds):
        words = " or ".join(dict.fromkeys(kind.words for kind in kinds))
        what = f"the class {value.__name__}" if isinstance(value, type) else quoted(value)
        raise ArgumentError(f"{who}: {name} must be {words}, got {what}")


@cache
def _parameters(function: Callable[..., Any]) -> tuple[inspect.Signature, Mapping[str, str]]:
    """Return the signature of a function, and its old names of arguments."""
    return inspect.signature(function), getattr(function, "old_arguments", {})


def check_call(
    who: str, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any], more: tuple[Any, ...] = ()
) -> None:
    """Raise an error for arguments that a function does not take, or that are of another kind than its annotations say.

    Args:
        who: for messages.
        function: what is called.
        arguments, keywords: of the call.
        more: what the function gives its **keywords to, in turn.

    Raises:
        TypeError: a keyword that it does not know, too many arguments or too few.
        ArgumentError: one of another kind.
    """
    signature, old = _parameters(function)
    taken = dict(signature.parameters)
    passed_on = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    for other in more if passed_on else ():
        further = _parameters(other)[0].parameters
        taken = {**further, **taken}
        if not any(p.kind is p.VAR_KEYWORD for p in further.values()):
            passed_on = False
            break
    names = [n for n, p in taken.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and n != "self"]
    for name in keywords:
        if name not in names and name not in old and not passed_on:
            raise TypeError(f"{who} got an unexpected keyword argument {name!r}: {keyword_hint(name, names)}")
    try:
        bound = signature.bind_partial(*arguments, **{n: v for n, v in keywords.items() if n not in old})
    except TypeError as error:  # too many, or one given twice
        hint = POSITIONS.get(function.__qualname__.removesuffix(".__init__"), f"it takes {', '.join(names) or 'no arguments'}")
        raise TypeError(f"{who}: {error}; {hint}") from None
    for name, value in {**bound.arguments, **{n: v for n, v in keywords.items() if n in taken}}.items():
        parameter = taken[name]
        annotated = isinstance(parameter.annotation, str) and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if annotated and value is not parameter.default:
            check_kind(who, name, value, parameter.annotation)
    missing = [p.name for p in signature.parameters.values() if p.name not in bound.arguments and _is_required(p)]
    if missing and not any(name in old for name in keywords):
        raise TypeError(f"{who}: missing a required argument: {missing[0]!r}; it takes {', '.join(names)}")


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind in (
        parameter.POSITIONAL_ONLY,
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )


class ConstructorSignature:
    """The signature of a class: that of its `__init__`. Some versions of Python would take that of an inherited `__new__`."""

    def __get__(self, instance: Any, owner: Any) -> inspect.Signature:
        if instance is not None:  # which may be called
            raise AttributeError("__signature__")
        signature = inspect.signature(owner.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Checked:
    """Base of classes whose constructor's arguments are checked: each against its annotation, before `__init__` runs.

    The annotations are the rule, so a new setting needs no line of its own. Intervals are `check_numbers` in `__init__`. A
    class of a user with a constructor of its own is left alone.
    """

    __slots__ = ()
    __signature__ = ConstructorSignature()

    def __new__(cls, *arguments: Any, **keywords: Any) -> Self:
        """Check the arguments; without any there is nothing to check, or copy.copy makes the instance."""
        if not cls.__module__.startswith("xpnet."):
            refuse_uncalled(cls)
        if arguments or keywords:
            check_constructor(cls, arguments, keywords)
        return super().__new__(cls)


def check_constructor(cls: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
    """Check the arguments of a class of this package; see :func:`check_call`."""
    own, *more = _constructors(cls)
    if own.__module__.startswith("xpnet."):
        check_call(cls.__name__, own, (None, *arguments), keywords, tuple(more))


@cache
def _constructors(cls: type) -> tuple[Callable[..., Any], ...]:
    return tuple(vars(c)["__init__"] for c in cls.__mro__ if c is not object and "__init__" in vars(c)) or (_nothing,)


def _nothing(self: Any) -> None:
    """Stand for the constructor of a class that has none."""


class Converted:
    """An attribute that is converted when it is set: ``loss = Converted(losses.get)``. Reading it costs nothing more."""

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        self.convert = convert

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.name] = self.convert(value)

    if TYPE_CHECKING:  # without it Python reads the instance's __dict__

        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...


def checked(function: F) -> F:
    """Decorate a function whose arguments are checked as those of a `Checked` class are."""
    who = function.__qualname__

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        check_call(who, function, arguments, keywords)
        return function(*arguments, **keywords)

    return call  # type: ignore[return-value]
