"""The namespace of CuPy arrays: the standard's names, NumPy's values, and nothing that a CUDA graph cannot hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xpnet import backend, set_matmul_precision
from xpnet.backend import to_numpy

pytestmark = pytest.mark.cuda

RANDOM = np.random.default_rng(0)
SHAPES = [
    ((3, 4), (4, 2)), ((2, 3, 4), (2, 4, 2)), ((2, 3, 4), (4, 2)), ((3, 4), (2, 4, 2)), ((2, 1, 3, 4), (5, 4, 2)),
    ((4,), (4,)), ((3, 4), (4,)), ((4,), (4, 3)), ((2, 3, 4), (4,)), ((4,), (2, 4, 3)), ((0, 4), (4, 2)), ((3, 0), (0, 2)),
    ((2, 3, 0), (0,)), ((1, 3, 4), (5, 4, 2)), ((5, 1, 3, 4), (1, 6, 4, 2)), ((6, 3, 4), (5, 6, 4, 2)),
]  # fmt: skip


def namespace() -> Any:
    return backend.device("cuda").xp


def moved(array: np.ndarray) -> Any:
    import cupy

    return cupy.asarray(array)


def normal(*shape: int, dtype: str = "float64") -> np.ndarray:
    return (3 * RANDOM.standard_normal(shape)).astype(dtype)


def replayed(function: Callable[[], Any]) -> Any:
    """Return the result of a function that was captured, and not run before that."""
    import cupy

    pool = cupy.cuda.MemoryPool()
    cupy.cuda.get_current_stream().synchronize()  # the inputs are there
    with cupy.cuda.Stream(non_blocking=True) as stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        y = function()
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
    return to_numpy(y)


def test_it_has_all_names_and_one_identity() -> None:
    from array_api_compat import cupy as compat

    xp = namespace()
    assert xp is backend.namespace(moved(np.ones(1)))
    assert backend.name_of(xp) == "cupy"
    assert [name for name in dir(compat) if not hasattr(xp, name)] == []
    assert [name for name in compat.linalg.__all__ if not hasattr(xp.linalg, name)] == []
    assert xp.linalg.matmul is xp.matmul


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "bool"])
@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_matmul(left: Any, right: Any, dtype: str) -> None:
    xp = namespace()
    a, b = normal(*left, dtype=dtype), normal(*right, dtype=dtype)
    expected = np.matmul(a, b)
    for flip in itertools.product((False, True), repeat=2):
        x, y = (
            moved(np.ascontiguousarray(s.swapaxes(-1, -2))).swapaxes(-1, -2) if f and s.ndim > 1 else moved(s)
            for f, s in zip(flip, (a, b))
        )
        found = to_numpy(xp.matmul(x, y))
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=0.1 if dtype == "float16" else 1e-4)


def test_matmul_of_two_dtypes_and_of_wrong_shapes() -> None:
    xp = namespace()
    a, b = normal(3, 4, dtype="float32"), normal(4, 2)
    np.testing.assert_allclose(to_numpy(xp.matmul(moved(a), moved(b))), a @ b, rtol=1e-12)
    for left, right in (((3, 4), (3, 4)), ((2, 3, 4), (3, 4, 2)), ((), (4,))):
        with pytest.raises(ValueError):
            xp.matmul(moved(normal(*left)), moved(normal(*right)))


def test_matmul_uses_tf32_where_it_is_allowed() -> None:
    xp = namespace()
    a, b = moved(normal(8, 16, dtype="float32")), moved(normal(16, 8, dtype="float32"))
    exact = to_numpy(xp.matmul(a, b))
    set_matmul_precision("tf32")
    try:
        rounded = to_numpy(xp.matmul(a, b))
    finally:
        set_matmul_precision("float32")
    assert (exact != rounded).any()
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=0.1)


def test_the_other_products() -> None:
    xp = namespace()
    a, b = normal(3, 4, 2), normal(4, 3, 5)
    for axes in (0, ((0,), (1,)), ((1, 0), (0, 1)), ((-2,), (0,))):
        np.testing.assert_allclose(to_numpy(xp.tensordot(moved(a), moved(b), axes=axes)), np.tensordot(a, b, axes), atol=1e-9)
    with pytest.raises(ValueError):
        xp.tensordot(moved(a), moved(b), axes=1)
    c, d = normal(2, 3, 4), normal(3, 4)
    np.testing.assert_allclose(to_numpy(xp.vecdot(moved(c), moved(d))), np.sum(c * d, axis=-1), atol=1e-9)
    np.testing.assert_allclose(to_numpy(xp.vecdot(moved(c), moved(d[None]), axis=1)), np.sum(c * d, axis=1), atol=1e-9)
    for x, y in ((normal(3, 4), normal(2, 4, 3)), (normal(4), normal(4)), (normal(2, 3, 4), normal(4))):
        np.testing.assert_allclose(to_numpy(xp.dot(moved(x), moved(y))), np.dot(x, y), atol=1e-9)
    x, y = normal(3, 4), normal(2, 4)
    np.testing.assert_allclose(to_numpy(xp.inner(moved(x), moved(y))), np.inner(x, y), atol=1e-9)
    f, g = moved(x), moved(y)
    found = replayed(lambda: xp.inner(f, g) + xp.tensordot(f, g, axes=((1,), (1,))))
    np.testing.assert_allclose(found, 2 * np.inner(x, y), atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8"])
def test_sign_and_clip_are_the_standards(dtype: str) -> None:
    from array_api_compat import cupy as compat

    xp = namespace()
    values = np.array([3, 0, 2, 1, 5, 0]).astype(dtype)
    if dtype != "uint8":
        values[0] = -3
    if dtype.startswith("float"):
        values[3:5] = np.nan, np.inf
    x = moved(values)
    np.testing.assert_array_equal(replayed(lambda: xp.sign(x)), np.sign(values))
    assert xp.sign(x).dtype == x.dtype
    low = moved(np.array([0.0, 1, 1, 0, 0, 0]))
    for limits in ((0, 1), (None, 1), (0.5, None), (None, None), (-1000, 1000), (low, low + 1)):
        expected = compat.clip(x, *limits)
        found = xp.clip(x, *limits)
        assert found.dtype == x.dtype
        assert found is not x
        np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))
    np.testing.assert_array_equal(replayed(lambda: xp.clip(x, 0, 1)), to_numpy(compat.clip(x, 0, 1)))


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize(
    ("name", "axis"), [*(("stack", a) for a in (0, 1, 2, -1, -3)), *(("concat", a) for a in (0, 1, -1, None))]
)
def test_many_arrays_are_joined(name: str, axis: Any, count: int) -> None:
    xp = namespace()
    parts = [normal(2, 3) for _ in range(count)]
    expected = np.stack(parts, axis=axis) if name == "stack" else np.concatenate(parts, axis=axis)
    arrays = [moved(part) for part in parts]
    np.testing.assert_array_equal(to_numpy(getattr(xp, name)(arrays, axis=axis)), expected)
    np.testing.assert_array_equal(replayed(lambda: getattr(xp, name)(arrays, axis=axis)), expected)
