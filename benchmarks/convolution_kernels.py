"""How fast each way of computing a convolution is on a GPU: ``python -m benchmarks.convolution_kernels``.

For the convolutions of ``cases.py`` and three passes (forward, gradient of the images, gradient of the kernel) the table has
the milliseconds of every candidate that the package chooses from (products of matrices, implicit GEMM, and cuDNN where
``xpnet[cudnn]`` is installed), and in brackets what part that is of the speed of cuBLAS in one plain product of the same
sizes and precision, whose matrices lie ready in memory. On compute capability 9.0 the kernel with its instructions is timed,
too, which the chooser leaves out by itself. Times are the shortest of three runs of four, as the chooser takes
them; convolution and product are measured one right after the other.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import xpnet as xn
from benchmarks.cases import layers
from benchmarks.nets import output_size
from xpnet import ops
from xpnet.accel.cupy import chooser, gemm, implicit_gemm
from xpnet.accel.cupy.launch import runtime
from xpnet.accel.settings import get_matmul_precision
from xpnet.ops.convolution import conv_geometry

PRECISIONS = ("float32", "tf32", "float16", "bfloat16")


class Shape(NamedTuple):
    """A convolution to measure; `settings` are those of ops.conv2d."""

    name: str
    x: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int]
    positions: int
    settings: dict[str, int]


class Row(NamedTuple):
    """One pass: milliseconds of the product alone and of every candidate."""

    name: str
    step: str
    gflop: float
    product: float
    candidates: dict[str, float]


def shapes() -> Iterator[Shape]:
    """The convolutions of the comparison with other libraries; depthwise ones have a kernel of their own and no choice."""
    for case in layers():
        layer = case.net[0]
        if case.kind != "layer" or layer["kind"] != "conv" or 1 < layer["groups"] == case.shape[-1]:
            continue
        H, W, C = case.shape
        settings = {name: layer[name] for name in ("stride", "padding", "dilation", "groups")}
        kernel = (layer["window"], layer["window"], C // layer["groups"], layer["filters"])
        positions = case.batch * output_size(H, layer) * output_size(W, layer)
        yield Shape(case.name.removeprefix("layer "), (case.batch, H, W, C), kernel, positions, settings)


def measure(xp: Any, shape: Shape, dtype: Any) -> list[Row]:
    """Time the three passes of one convolution with bias and ReLU on the current device."""
    random = np.random.default_rng(0)
    arrays = [xp.asarray(random.standard_normal(s, dtype="float32")).astype(dtype) for s in (shape.x, shape.kernel)]
    x, kernel = (xn.Tensor(a, requires_grad=True) for a in arrays)
    bias = xp.zeros(shape.kernel[3:], dtype=dtype)
    with chooser.measured_anew() as known:
        y = ops.conv2d(x, kernel, bias, activation="relu", **shape.settings)
        y.backward(xp.ones(y.shape, dtype=dtype))
        times = {key.step: dict(value.milliseconds) for key, value in known.items()}
    for step, run in _with_wgmma(xp, *arrays, bias, y.array, shape):
        times[step]["wgmma"] = runtime().milliseconds(run)
    inner, O, groups = int(np.prod(shape.kernel[:3])), shape.kernel[3], shape.settings["groups"]
    rows = []
    for step in chooser.PASSES:
        sizes = {"forward": (shape.positions, inner, O // groups), "images": (shape.positions, O // groups, inner)}.get(
            step, (inner, shape.positions, O // groups)
        )
        product = _product(xp, groups, sizes, dtype)
        rows.append(Row(shape.name, step, 2e-9 * groups * float(np.prod(sizes, dtype=float)), product, times[step]))
    return rows


def _with_wgmma(xp: Any, x: Any, kernel: Any, bias: Any, y: Any, shape: Shape) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The passes that the kernel for compute capability 9.0 can do; the chooser does not try it by itself."""
    settings = shape.settings
    groups = settings["groups"]
    if implicit_gemm.covers_with_wgmma(x, kernel, groups):
        g = conv_geometry(x, kernel, bias, settings["stride"], settings["padding"], settings["dilation"], groups)
        yield "forward", lambda: implicit_gemm.forward(xp, x, kernel, bias, "relu", g, groups, wgmma=True)
        yield "images", lambda: implicit_gemm.data_gradient(xp, y, kernel, g, groups, wgmma=True)


def _product(xp: Any, groups: int, sizes: tuple[int, int, int], dtype: Any) -> float:
    """Milliseconds of (m, k) @ (k, n), as many times as there are groups."""
    m, k, n = sizes
    a, b, c = (xp.ones((groups, *s), dtype=dtype) for s in ((m, k), (k, n), (m, n)))
    return runtime().milliseconds(lambda: gemm.gemm(xp, a, b, c))


def table(rows: Sequence[Row], precision: str) -> str:
    """Markdown: a line for each pass, and the medians."""
    names = list(dict.fromkeys(name for row in rows for name in row.candidates))
    head = ["convolution", "pass", "GFLOP", "product alone", *names]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.name, row.step, f"{row.gflop:.2f}", f"{row.product:.3f} ms"]
        for name in names:
            time = row.candidates.get(name)
            cells.append("" if time is None else f"{time:.3f} ms ({row.product / time:.0%})")
        lines.append("| " + " | ".join(cells) + " |")
    parts = []
    for name in names:
        fractions = [row.product / row.candidates[name] for row in rows if name in row.candidates]
        parts.append(f"{name} {statistics.median(fractions):.0%} (of {len(fractions)})")
    return "\n".join([f"### {runtime().device_name}, {precision}", "", *lines, "", "median: " + ", ".join(parts)])


def dtype_of(precision: str) -> Any:
    """NumPy's dtype for a precision; bfloat16 is that of ml_dtypes."""
    if precision == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype("float32" if precision == "tf32" else precision)


def run(xp: Any, precision: str, chosen: Sequence[Shape]) -> str:
    """Measure shapes in one precision; the table."""
    before = get_matmul_precision()
    xn.set_matmul_precision("tf32" if precision == "tf32" else "float32")
    try:
        return table([row for shape in chosen for row in measure(xp, shape, dtype_of(precision))], precision)
    finally:
        xn.set_matmul_precision(before)


def main(argv: list[str] | None = None) -> int:
    """Measure and print, and write a page where one is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convolution_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="may be given several times; default: all")
    parser.add_argument("--cases", default="", help="only convolutions whose name contains this")
    parser.add_argument("--out", type=Path, help="write the tables to this file, too")
    arguments = parser.parse_args(argv)
    try:
        xn.backend.device("cuda")
    except xn.DeviceError as error:
        print(error, file=sys.stderr)
        return 1
    import cupy

    pages = []
    for precision in arguments.precision or PRECISIONS:
        pages.append(run(cupy, precision, [shape for shape in shapes() if arguments.cases in shape.name]))
        print(pages[-1] + "\n", flush=True)
    if arguments.out:
        written = arguments.out.with_suffix(".tmp")
        written.write_text("\n\n".join(pages) + "\n", encoding="utf-8")
        written.replace(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
