"""Initial values of parameters. An initializer is called with a shape and a key and returns float64 values made on the
host, so that a seed gives the same weights on every device.

The fans of a kernel: n_in inputs feed one output, n_out outputs see one input. Dense (in, out): n_in = in, n_out = out;
convolution (KH, KW, C, O): n_in = KH*KW*C, n_out = KH*KW*O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from xpnet import random
from xpnet.runtime.messages import quoted
from xpnet.runtime.settings import Checked, check_function, check_numbers, check_whole

Values = np.ndarray[Any, np.dtype[np.float64]]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (n_in, n_out) of a kernel of this shape."""
    if len(shape) < 2:
        return (shape[0], shape[0]) if shape else (1, 1)
    receptive = math.prod(shape[:-2])
    return receptive * shape[-2], receptive * shape[-1]


class Initializer(Checked):
    """Base class: ``initializer(shape, key) -> values``. Subclasses are frozen dataclasses of their settings."""

    def __call__(self, shape: tuple[int, ...], key: random.Key) -> Values:
        """Return values of `shape`, float64: a pure function of the settings, the shape and the key."""
        raise TypeError(f"{type(self).__name__} does not say how it makes values")


@dataclass(frozen=True)
class Constant(Initializer):
    """All elements equal."""

    value: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(type(self).__name__, "(-inf, inf)", value=self.value)

    def __call__(self, shape: tuple[int, ...], key: random.Key) -> Values:
        """See Initializer."""
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Zeros(Constant):
    """All elements 0."""


@dataclass(frozen=True)
class Ones(Constant):
    """All elements 1."""

    value: float = 1.0


@dataclass(frozen=True)
class Normal(Initializer):
    """Small random numbers: normal with mean 0; CS231n's 0.01 * randn by default."""

    std: float = 0.01

    def __post_init__(self) -> None:
        check_numbers("Normal", "[0, inf)", std=self.std)

    def __call__(self, shape: tuple[int, ...], key: random.Key) -> Values:
        """See Initializer."""
        return random.generator(key).standard_normal(shape) * self.std


@dataclass(frozen=True)
class Uniform(Initializer):
    """Uniform in [low, high)."""

    low: float = -0.05
    high: float = 0.05

    def __post_init__(self) -> None:
        check_numbers("Uniform", "(-inf, inf)", low=self.low, high=self.high)
        if self.low > self.high:
            raise ValueError(f"Uniform: low must not be above high, got {self.low} and {self.high}")

    def __call__(self, shape: tuple[int, ...], key: random.Key) -> Values:
        """See Initializer."""
        return random.generator(key).uniform(self.low, self.high, shape)


@dataclass(frozen=True)
class Scaled(Initializer):
    """Mean 0 and variance gain / n, where n is "in", "out" or "average" of the fans; normal or uniform."""

    gain: float = 1.0
    mode: str = "in"
    distribution: str = "normal"

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_numbers(name, "[0, inf)", gain=self.gain)
        if self.mode not in ("in", "out", "average"):
            raise ValueError(f'{name}: mode must be "in", "out" or "average", got {self.mode!r}')
        if self.distribution not in ("normal", "uniform"):
            raise ValueError(f'{name}: distribution must be "normal" or "uniform", got {self.distribution!r}')

    def __call__(self, shape: tuple[int, ...], key: random.Key) -> Values:
        """See Initializer."""
        n_in, n_out = fans(shape)
        n = {"in": n_in, "out": n_out, "average": (n_in + n_out) / 2}[self.mode]
        std = math.sqrt(self.gain / max(n, 1))
        generator = random.generator(key)
        if self.distribution == "normal":
            return generator.standard_normal(shape) * std
        return generator.uniform(-math.sqrt(3) * std, math.sqrt(3) * std, shape)


@dataclass(frozen=True)
class FanIn(Scaled):
    """Variance 1/n_in: randn / sqrt(n). Source: LeCun et al., "Efficient BackProp", 1998; CS231n."""


@dataclass(frozen=True)
class Glorot(Scaled):
    """Variance 2/(n_in + n_out), uniform by default. Source: Glorot and Bengio, 2010."""

    mode: str = "average"
    distribution: str = "uniform"


@dataclass(frozen=True)
class He(Scaled):
    """Variance 2/n_in, normal by default, for ReLU. Source: He et al., 2015."""

    gain: float = 2.0


@dataclass(frozen=True)
class Sparse(Initializer):
    """Every output unit is connected to `connections` random inputs; the other weights are 0. Source: Martens, 2010."""

    connections: int = 15
    std: float = 1.0

    def __post_init__(self) -> None:
        check_whole("Sparse", 1, connections=self.connections)
        check_numbers("Sparse", "[0, inf)", std=self.std)

    def __call__(self, shape: tuple[int, ...], key: random.Key) -> Values:
        """See Initializer."""
        inputs, outputs = math.prod(shape[:-1]), shape[-1]
        generator = random.generator(key)
        values = np.zeros((inputs, outputs))
        count = min(self.connections, inputs)
        for j in range(outputs):
            values[generator.permutation(inputs)[:count], j] = generator.standard_normal(count) * self.std
        return values.reshape(shape)


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """A matrix with orthonormal columns or rows (whichever are fewer), times `gain`. Source: Saxe et al., 2013."""

    gain: float = 1.0

    def __post_init__(self) -> None:
        check_numbers("Orthogonal", "(-inf, inf)", gain=self.gain)

    def __call__(self, shape: tuple[int, ...], key: random.Key) -> Values:
        """See Initializer."""
        rows, columns = math.prod(shape[:-1]), shape[-1]
        normal = random.generator(key).standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(normal)
        q = q * np.sign(np.diagonal(r))  # makes the distribution uniform over the orthogonal matrices
        matrix: Values = q if rows >= columns else q.T
        return self.gain * matrix.reshape(shape)


@dataclass(frozen=True)
class Blocks(Initializer):
    """`count` blocks side by side on the last axis, each made by `inner`: the gates of a recurrent layer."""

    inner: Initializer
    count: int

    def __post_init__(self) -> None:
        check_whole("Blocks", 1, count=self.count)

    def __call__(self, shape: tuple[int, ...], key: random.Key) -> Values:
        """See Initializer."""
        width = shape[-1] // self.count
        keys = [random.key(key.low, f"{key.high}", "block", i) for i in range(self.count)]
        return np.concatenate([self.inner((*shape[:-1], width), k) for k in keys], axis=-1)


@dataclass(frozen=True)
class Shifted(Initializer):
    """The values of `inner`, plus `shift` at begin..end of the last axis: an LSTM's forget gate."""

    inner: Initializer
    begin: int
    end: int
    shift: float

    def __post_init__(self) -> None:
        check_whole("Shifted", 0, begin=self.begin, end=self.end)
        check_numbers("Shifted", "(-inf, inf)", shift=self.shift)

    def __call__(self, shape: tuple[int, ...], key: random.Key) -> Values:
        """See Initializer."""
        values = np.array(self.inner(shape, key), dtype=np.float64)
        values[..., self.begin : self.end] += self.shift
        return values


NAMES: dict[str, Initializer] = {
    "zeros": Zeros(),
    "ones": Ones(),
    "normal": Normal(),
    "uniform": Uniform(),
    "fan_in": FanIn(),
    "glorot_uniform": Glorot(),
    "glorot_normal": Glorot(distribution="normal"),
    "he_normal": He(),
    "he_uniform": He(distribution="uniform"),
    "sparse": Sparse(),
    "orthogonal": Orthogonal(),
}


def get(initializer: str | float | Initializer, who: str = "initializer") -> Initializer:
    """Return an initializer by name, a constant by its number, or the initializer itself.

    Args:
        initializer: any of them.
        who: what it is for, in the errors.

    Raises:
        ValueError: no such name.
        TypeError: a class, or a function of another library.
    """
    if isinstance(initializer, str):
        if initializer not in NAMES:
            raise ValueError(f"{who}: unknown initializer {quoted(initializer)}: expected one of {', '.join(NAMES)}")
        return NAMES[initializer]
    if isinstance(initializer, Real):
        return Constant(float(initializer))
    check_function(who, initializer, "a name, a number, or a function (shape, key) -> values such as xpnet.initializers.He()")
    if not callable(initializer):
        raise ValueError(
            f"{who}: an initializer is a name, a number or a callable (shape, key) -> values, got {quoted(initializer)}; for "
            f"given values write lambda shape, key: values"
        )
    return initializer
