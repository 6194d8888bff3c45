"""Autotuning of convolutions: the fastest algorithm for each shape is measured once and cached on disk.

Each pass of a convolution (fprop, dgrad, wgrad) can be computed by matrix products (of the images themselves for 1x1 windows,
else of chunks of an im2col matrix), by an implicit GEMM, or by cuDNN where it is installed. Which is fastest depends on the
shape, the dtype and the device, so all candidates are timed when a shape first appears. Nothing can be timed while a CUDA graph
is captured: a new shape then gets the matrix products. Small dense layers are convolutions of images of one pixel here: a
matrix product and a kernel for bias and activation, or an implicit GEMM.

$XPNET_CONVOLUTION: "auto" (the default), "im2col" (matrix products), "implicit" (where the kernels cover the convolution) or
"cudnn" (where it has a plan). In deterministic mode (xpnet.set_deterministic) "auto" is the matrix products: timings vary from
run to run, and algorithms round differently.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xpnet.accel.cupy.compiler import cache_folder, write_cached
from xpnet.accel.cupy.cudnn import HOW_TO_INSTALL, versions
from xpnet.accel.cupy.launch import runtime
from xpnet.accel.cupy.source import dtype_of, read_headers, read_source
from xpnet.backend import DeviceError
from xpnet.ops.geometry import Geometry
from xpnet.runtime.determinism import get_deterministic
from xpnet.runtime.environment import setting
from xpnet.runtime.precision import get_matmul_precision

Array = Any
PASSES = ("fprop", "dgrad", "wgrad")
"""The forward pass, the data gradient and the weight gradient, as in cuDNN and CUTLASS."""


class ConvolutionKey(NamedTuple):
    """What the speed of one pass of a convolution depends on."""

    device: str
    pass_name: str  # one of PASSES
    x: tuple[int, ...]  # (N, H, W, C)
    kernel: tuple[int, ...]  # (KH, KW, C/groups, O)
    stride: tuple[int, ...]
    padding: tuple[tuple[int, ...], ...]
    dilation: tuple[int, ...]
    dtype: str
    precision: str  # of matrix products: "tf32" or "float32" for float32, else the dtype


class Measurement(NamedTuple):
    """The fastest candidate, and the milliseconds of each."""

    choice: str
    milliseconds: dict[str, float]


def convolution_key(pass_name: str, x: Array, kernel: Array, g: Geometry) -> ConvolutionKey:
    """Return the key of one of the PASSES on the current device, for images (N, H, W, C) and a kernel (KH, KW, C/groups, O)."""
    dtype = dtype_of(x)
    precision = get_matmul_precision() if dtype == "float32" else dtype
    stride, dilation = (g.h.stride, g.w.stride), (g.h.dilation, g.w.dilation)
    padding = (g.h.before, g.h.after), (g.w.before, g.w.after)
    return ConvolutionKey(
        runtime().device_name, pass_name, tuple(x.shape), tuple(kernel.shape), stride, padding, dilation, dtype, precision
    )


def _setting() -> str:
    """Return the value of $XPNET_CONVOLUTION, "im2col" for "auto" in deterministic mode."""
    chosen: str = setting("XPNET_CONVOLUTION")
    return "im2col" if chosen == "auto" and get_deterministic() else chosen


def enabled(name: str) -> bool:
    """Return whether $XPNET_CONVOLUTION allows the candidate of this name.

    Raises:
        ValueError: the variable is none of its settings.
        DeviceError: it is "cudnn", and cuDNN is not installed.
    """
    chosen = _setting()
    if chosen == "cudnn" and runtime().cudnn is None and runtime().can_measure():
        raise DeviceError(f"XPNET_CONVOLUTION is cudnn, which is not installed or does not load: {HOW_TO_INSTALL}")
    return chosen in ("auto", name)


def choose(candidates: Mapping[str, Callable[[], Array]], key: Callable[[], ConvolutionKey]) -> str:
    """Return the name of the candidate to run: the fastest, as measured now or earlier.

    Args:
        candidates: the `enabled` algorithms by name. The first is the default, used where nothing can be measured; the last is
            the one that $XPNET_CONVOLUTION asks for.
        key: returns what the choice depends on.
    """
    default, *others = candidates
    chosen = _setting()
    if not others or chosen == "im2col":
        return default
    if chosen != "auto":
        return others[-1]
    this = key()
    known = _cache.entries().get(this)
    if known is not None and known.milliseconds.keys() >= candidates.keys():
        return min(candidates, key=known.milliseconds.__getitem__)
    if not runtime().can_measure():
        return known.choice if known is not None and known.choice in candidates else default
    times = {name: runtime().milliseconds(run) for name, run in candidates.items()}
    best = min(times, key=times.__getitem__)
    _cache.add(this, Measurement(best, times))
    return best


class AutotuneCache:
    """Measurements of this process and of earlier ones: a JSON file next to the compiled kernels."""

    def __init__(self) -> None:
        self._known: dict[ConvolutionKey, Measurement] | None = None
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        """The file."""
        return cache_folder().parent / "convolutions.json"

    def entries(self) -> dict[ConvolutionKey, Measurement]:
        """Return all measurements; the first call reads the file."""
        if self._known is None:
            with self._lock:
                if self._known is None:
                    self._known = self._read()
        return self._known

    def reload(self) -> None:
        """Read the file again at the next use."""
        self._known = None

    def add(self, key: ConvolutionKey, measured: Measurement) -> None:
        """Add a measurement, and merge with what other processes have written to the file."""
        known = self.entries()
        with self._lock:
            known[key] = measured
            for other, value in self._read().items():
                known.setdefault(other, value)
            self._write(known)

    def _read(self) -> dict[ConvolutionKey, Measurement]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError:
            return {}  # no file yet, or not readable: measure
        try:
            content = json.loads(text)
            if content["kernels"] != _digest():
                return {}  # measured with other kernels
            return dict(_parse_entry(item) for item in content["convolutions"])
        except (ValueError, KeyError, TypeError):
            return {}  # damaged, or of another version: measure again and overwrite

    def _write(self, known: dict[ConvolutionKey, Measurement]) -> None:
        entries = [{**key._asdict(), **value._asdict()} for key, value in known.items()]
        write_cached(self.path, json.dumps({"kernels": _digest(), "convolutions": entries}, indent=1).encode())


def _parse_entry(item: dict[str, Any]) -> tuple[ConvolutionKey, Measurement]:
    key = ConvolutionKey(*(_as_tuples(item[name]) for name in ConvolutionKey._fields))
    times = {str(name): float(value) for name, value in item["milliseconds"].items()}
    if key.pass_name not in PASSES or item["choice"] not in times:
        raise ValueError("not a measurement")
    return key, Measurement(item["choice"], times)


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(v) for v in value) if isinstance(value, list) else value


@functools.cache
def _digest() -> str:
    """Return a digest of the kernels and of cuDNN's version: other ones have other timings."""
    headers = [text for _, text in sorted(read_headers().items())]
    libraries = [f"{name} {version}" for name, version in versions().items()]
    text = "\0".join([read_source("implicit_gemm"), read_source("im2col"), *headers, *libraries])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_cache = AutotuneCache()


def report() -> str:
    """Return the measurements as a table, one line a convolution, and whether cuDNN takes part."""
    installed = versions()
    if "nvidia-cudnn-frontend" not in installed:
        return f"{_measured()}\ncuDNN is not installed and does not take part: {HOW_TO_INSTALL}"
    return f"{_measured()}\ncuDNN takes part: {', '.join(f'{name} {version}' for name, version in installed.items())}"


def _measured() -> str:
    known = _cache.entries()
    if not known:
        return f"no convolution has been measured yet ({_cache.path})"
    rows = [("device", "pass", "images", "kernel", "stride", "padding", "dilation", "precision", "chosen", "milliseconds")]
    for key in sorted(known, key=lambda key: (key.device, PASSES.index(key.pass_name), key)):
        choice, times = known[key]
        padding = ",".join("+".join(map(str, ends)) for ends in key.padding)
        measured = ", ".join(f"{name} {time:.3f}" for name, time in times.items())
        kind = key.precision if key.dtype == "float32" else key.dtype
        rows.append(
            (
                key.device, key.pass_name, _join("x", key.x), _join("x", key.kernel), _join(",", key.stride), padding,
                _join(",", key.dilation), kind, choice, measured,
            )
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([f"convolutions as measured ({_cache.path}):", *lines])


def _join(mark: str, sizes: tuple[int, ...]) -> str:
    return mark.join(map(str, sizes))
