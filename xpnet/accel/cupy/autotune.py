"""Which way of computing a convolution is the fastest: measured once for each shape, and kept on disk.

Every pass of a convolution can be computed as products of matrices (of the images themselves for 1x1 windows, of columns
made in chunks for others), as an implicit GEMM, or by cuDNN where it is installed. Which is the fastest depends on the shape,
the dtype and the device, so all are run and timed the first time a shape comes. Nothing can be timed while a CUDA graph is
recorded: a shape that comes for the first time there gets the products. $XPNET_CONVOLUTION decides instead of the
measurement: "im2col" (products), "implicit" (where the kernels cover it), "cudnn" (where it has a plan), or "auto", the
default. In deterministic mode (xpnet.set_deterministic) "auto" is the products: what was fastest
depends on the moment, and the ways round differently.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xpnet.accel.cupy.compiler import cache_folder
from xpnet.accel.cupy.cudnn import HOW_TO_INSTALL, versions
from xpnet.accel.cupy.launch import runtime
from xpnet.accel.cupy.source import dtype_of, read_headers, read_source
from xpnet.backend import DeviceError
from xpnet.ops.geometry import Geometry
from xpnet.runtime.determinism import get_deterministic
from xpnet.runtime.precision import get_matmul_precision

Array = Any
SETTINGS = ("auto", "im2col", "implicit", "cudnn")
PASSES = ("fprop", "dgrad", "wgrad")
"""The forward pass, the gradient of the data and the gradient of the kernel (weights), as cuDNN and CUTLASS name them."""


class Convolution(NamedTuple):
    """One pass of a convolution: what its speed depends on."""

    device: str
    step: str  # one of PASSES
    x: tuple[int, ...]  # (N, H, W, C)
    kernel: tuple[int, ...]  # (KH, KW, C/groups, O)
    stride: tuple[int, ...]
    padding: tuple[tuple[int, ...], ...]
    dilation: tuple[int, ...]
    dtype: str
    precision: str  # of the products: "tf32" matters for float32 only


class Measured(NamedTuple):
    """What was chosen, and the milliseconds of every candidate."""

    choice: str
    milliseconds: dict[str, float]


def convolution(step: str, x: Array, kernel: Array, g: Geometry) -> Convolution:
    """The key of one pass on the current device.

    Args:
        step: one of PASSES.
        x: the images (N, H, W, C).
        kernel: (KH, KW, C/groups, O).
        g: the geometry.
    """
    dtype = dtype_of(x)
    precision = get_matmul_precision() if dtype == "float32" else dtype
    stride, dilation = (g.h.stride, g.w.stride), (g.h.dilation, g.w.dilation)
    padding = (g.h.before, g.h.after), (g.w.before, g.w.after)
    return Convolution(
        runtime().device_name, step, tuple(x.shape), tuple(kernel.shape), stride, padding, dilation, dtype, precision
    )


def _setting() -> str:
    """What $XPNET_CONVOLUTION says, "im2col" where it leaves the choice to deterministic mode."""
    setting = os.environ.get("XPNET_CONVOLUTION") or "auto"
    if setting not in SETTINGS:
        raise ValueError(f"XPNET_CONVOLUTION must be one of {', '.join(SETTINGS)}, got {setting!r}")
    return "im2col" if setting == "auto" and get_deterministic() else setting


def wanted(name: str) -> bool:
    """Whether $XPNET_CONVOLUTION leaves a candidate of this name in the race, or asks for it.

    Raises:
        ValueError: it is none of SETTINGS.
        DeviceError: it is "cudnn", which is not installed.
    """
    setting = _setting()
    if setting == "cudnn" and runtime().cudnn is None and runtime().can_measure():
        raise DeviceError(f"XPNET_CONVOLUTION is cudnn, which is not installed or does not load: {HOW_TO_INSTALL}")
    return setting in ("auto", name)


def choose(candidates: Mapping[str, Callable[[], Array]], key: Callable[[], Convolution]) -> str:
    """The name of the candidate to run: the fastest, as measured now or earlier.

    Args:
        candidates: ways to compute the same, by name, those that are not `wanted` left out; the first is the safe default,
            and where one is asked for, the last is the nearest to it that can be had.
        key: gives what the choice depends on.
    """
    default, *others = candidates
    setting = _setting()
    if not others or setting == "im2col":
        return default
    if setting != "auto":
        return others[-1]
    this = key()
    known = _table.known().get(this)
    if known is not None and known.milliseconds.keys() >= candidates.keys():
        return min(candidates, key=known.milliseconds.__getitem__)
    if not runtime().can_measure():
        return known.choice if known is not None and known.choice in candidates else default
    times = {name: runtime().milliseconds(run) for name, run in candidates.items()}
    best = min(times, key=times.__getitem__)
    _table.add(this, Measured(best, times))
    return best


class Table:
    """What was measured, in this process and by others before it: a JSON file beside the compiled kernels."""

    def __init__(self) -> None:
        self._known: dict[Convolution, Measured] | None = None
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return cache_folder().parent / "convolutions.json"

    def known(self) -> dict[Convolution, Measured]:
        """Everything that is known; the file is read the first time."""
        if self._known is None:
            with self._lock:
                if self._known is None:
                    self._known = self._read()
        return self._known

    def forget(self) -> None:
        """Read the file again when it is needed next."""
        self._known = None

    def add(self, key: Convolution, measured: Measured) -> None:
        """Keep a measurement, here and in the file; what other processes wrote meanwhile stays."""
        known = self.known()
        with self._lock:
            known[key] = measured
            for other, value in self._read().items():
                known.setdefault(other, value)
            self._write(known)

    def _read(self) -> dict[Convolution, Measured]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError:
            return {}  # nothing measured yet, or not readable: measure
        try:
            content = json.loads(text)
            if content["kernels"] != _digest():
                return {}  # measured with other kernels
            return dict(_entry(item) for item in content["convolutions"])
        except (ValueError, KeyError, TypeError):
            return {}  # not ours, or damaged: measure again, and write it anew

    def _write(self, known: dict[Convolution, Measured]) -> None:
        entries = [{**key._asdict(), **value._asdict()} for key, value in known.items()]
        text = json.dumps({"kernels": _digest(), "convolutions": entries}, indent=1)
        temporary = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix="convolutions", suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, self.path)
        except OSError:
            # A full disk or a read-only home costs the time to measure again in the next process, nothing else.
            if temporary is not None and os.path.exists(temporary):
                os.unlink(temporary)


def _entry(item: dict[str, Any]) -> tuple[Convolution, Measured]:
    key = Convolution(*(_frozen(item[name]) for name in Convolution._fields))
    times = {str(name): float(value) for name, value in item["milliseconds"].items()}
    if key.step not in PASSES or item["choice"] not in times:
        raise ValueError("not a measurement")
    return key, Measured(item["choice"], times)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


@functools.cache
def _digest() -> str:
    """Of the kernels that were measured, cuDNN's included: others may be faster or slower."""
    headers = [text for _, text in sorted(read_headers().items())]
    libraries = [f"{name} {version}" for name, version in versions().items()]
    text = "\0".join([read_source("implicit_gemm"), read_source("im2col"), *headers, *libraries])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_table = Table()


def report() -> str:
    """What is known about convolutions, one line each, as a table; and whether cuDNN takes part."""
    return f"{_measured()}\n{_about_cudnn()}"


def _about_cudnn() -> str:
    installed = versions()
    if "nvidia-cudnn-frontend" not in installed:
        return f"cuDNN is not installed and does not take part: {HOW_TO_INSTALL}"
    return "cuDNN takes part: " + ", ".join(f"{name} {version}" for name, version in installed.items())


def _measured() -> str:
    known = _table.known()
    if not known:
        return f"no convolution has been measured yet ({_table.path})"
    rows = [("device", "pass", "images", "kernel", "stride", "padding", "dilation", "precision", "chosen", "milliseconds")]
    for key in sorted(known, key=lambda key: (key.device, PASSES.index(key.step), key)):
        choice, times = known[key]
        padding = ",".join("+".join(map(str, ends)) for ends in key.padding)
        measured = ", ".join(f"{name} {time:.3f}" for name, time in times.items())
        kind = key.precision if key.dtype == "float32" else key.dtype
        rows.append(
            (
                key.device, key.step, _by("x", key.x), _by("x", key.kernel), _by(",", key.stride), padding,
                _by(",", key.dilation), kind, choice, measured,
            )
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([f"convolutions as measured ({_table.path}):", *lines])


def _by(mark: str, sizes: tuple[int, ...]) -> str:
    return mark.join(map(str, sizes))
