"""What the device cannot do raises an error that names what is missing; nothing crashes, nothing returns other numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

cp = pytest.importorskip("cupy")
pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("software_gpu")]

SORTING = r"the software GPU has no Thrust \((lex|arg)?sort\)"
LOCKSTEP = r"the software GPU has no cupy.(arg)?partition \((arg)?partition_kernel, .*lockstep"
CUBLAS, CUSOLVER, CUFFT, CURAND, CUSPARSE = (
    f"the software GPU has no {library}[A-Za-z0-9_]+" for library in ("cublas", "cusolver", "cufft", "curand", "cusparse")
)
RUNTIME = r"cudaErrorNotSupported: operation not supported: cuda\w+"
DRIVER = r"CUDA_ERROR_NOT_SUPPORTED: operation not supported: .*(cu[A-Z]\w+|cooperative)"
IMAGE = "CUDA_ERROR_INVALID_IMAGE.*not compiled for the software GPU"


def _vector() -> Any:
    return cp.asarray(np.random.default_rng(0).standard_normal(40))


def _matrix() -> Any:
    return _vector()[:36].reshape(6, 6)


def _symmetric() -> Any:
    return _matrix() @ _matrix().T + 6 * cp.eye(6)


def _kernel(text: str, name: str = "f", **settings: Any) -> None:
    cp.RawKernel(text, name, **settings)((1,), (1,), (cp.zeros(1, dtype="float32"),))


def _sparse() -> Any:
    from cupyx.scipy import sparse

    return sparse


def _with_cub() -> Any:
    from cupy._core import _accelerator

    before = _accelerator.get_routine_accelerators()
    cp._core.set_routine_accelerators(["cub"])
    try:
        return _vector().sum()
    finally:
        cp._core.set_routine_accelerators(before)


def _texture() -> Any:
    from cupy.cuda import runtime, texture

    channel = texture.ChannelFormatDescriptor(32, 0, 0, 0, runtime.cudaChannelFormatKindFloat)
    numbers = cp.arange(8, dtype="float32")
    resource = texture.ResourceDescriptor(runtime.cudaResourceTypeLinear, arr=numbers, chDesc=channel, sizeInBytes=32)
    return texture.TextureObject(resource, texture.TextureDescriptor())


def _jitify() -> Any:
    with pytest.warns(DeprecationWarning, match="jitify"):
        return cp.RawKernel('extern "C" __global__ void f(float*) {}', "f", jitify=True).compile()


PLAIN = 'extern "C" __global__ void f(float* x) { *x = 1; }'
CASES: dict[str, tuple[Callable[[], Any], str]] = {
    # Thrust
    "isin": (lambda: cp.isin(cp.arange(9), cp.arange(4)), SORTING),
    "sort": (lambda: cp.sort(_vector()), SORTING),
    "sort an axis": (lambda: cp.sort(_matrix(), axis=0), SORTING),
    "sort float16": (lambda: cp.sort(_vector().astype("float16")), SORTING),
    "argsort": (lambda: cp.argsort(_vector()), SORTING),
    "lexsort": (lambda: cp.lexsort(cp.stack([_vector(), _vector()])), SORTING),
    "partition": (lambda: cp.partition(_vector(), 3), SORTING),
    "argpartition": (lambda: cp.argpartition(_vector(), 3), SORTING),
    # kernels that rely on the lockstep of warps
    "partition 600": (lambda: cp.partition(cp.arange(600.0), 3), f"{SORTING}|{LOCKSTEP}"),
    "partition 100000": (lambda: cp.partition(cp.arange(100000), 300), LOCKSTEP),
    "partition in place": (lambda: cp.arange(100000).partition(3), LOCKSTEP),
    "argpartition 600": (lambda: cp.argpartition(cp.arange(600.0), 3), LOCKSTEP),
    "argpartition 100000": (lambda: cp.argpartition(cp.arange(100000), 300), LOCKSTEP),
    "unique": (lambda: cp.unique(_vector()), SORTING),
    "median": (lambda: cp.median(_vector()), SORTING),
    "percentile": (lambda: cp.percentile(_vector(), 30), SORTING),
    # CUB
    "sum with CUB": (_with_cub, "the software GPU has no CUB"),
    "histogram with CUB": (
        lambda: cp.cuda.cub.device_histogram(_vector(), _vector(), _vector()),
        "the software GPU has no CUB",
    ),
    # cuRAND
    "random.rand": (lambda: cp.random.rand(3), CURAND),
    "random.seed": (lambda: cp.random.seed(1), CURAND),
    "random.permutation": (lambda: cp.random.permutation(5), CURAND),
    "RandomState": (lambda: cp.random.RandomState(1), CURAND),
    "default_rng": (lambda: cp.random.default_rng(0), "the software GPU has no cupy.random.default_rng"),
    "XORWOW": (lambda: cp.random.XORWOW(0), "the software GPU has no cupy.random.default_rng"),
    # cuSOLVER, and cuBLAS where it factorises
    "inv": (lambda: cp.linalg.inv(_symmetric()), CUSOLVER),
    "inv of a batch": (lambda: cp.linalg.inv(cp.stack([_symmetric()] * 2)), CUBLAS),
    "solve": (lambda: cp.linalg.solve(_symmetric(), _matrix()), CUSOLVER),
    "det": (lambda: cp.linalg.det(_symmetric()), CUBLAS),
    "cholesky": (lambda: cp.linalg.cholesky(_symmetric()), CUSOLVER),
    "qr": (lambda: cp.linalg.qr(_matrix()), CUSOLVER),
    "svd": (lambda: cp.linalg.svd(_matrix()), CUSOLVER),
    "eigh": (lambda: cp.linalg.eigh(_symmetric()), CUSOLVER),
    "pinv": (lambda: cp.linalg.pinv(_matrix()), CUSOLVER),
    "lstsq": (lambda: cp.linalg.lstsq(_matrix(), _vector()[:6], rcond=None), CUSOLVER),
    "norm 2": (lambda: cp.linalg.norm(_matrix(), 2), CUSOLVER),
    "polyfit": (lambda: cp.polyfit(cp.arange(5.0), cp.arange(5.0), 1), CUSOLVER),
    "syrk": (lambda: cp.cublas.syrk("N", cp.asfortranarray(_matrix())), CUBLAS),
    # cuFFT
    "fft": (lambda: cp.fft.fft(_vector()), CUFFT),
    "rfft": (lambda: cp.fft.rfft(_vector()), CUFFT),
    "ifft2": (lambda: cp.fft.ifft2(_matrix()), CUFFT),
    # cuSPARSE
    "csr_matrix": (lambda: _sparse().csr_matrix(_matrix()), CUSPARSE),
    "sparse product": (lambda: _sparse().eye(4).tocsr() @ cp.ones(4), CUSPARSE),
    # the driver and the runtime
    "cooperative launch": (lambda: _kernel(PLAIN, enable_cooperative_groups=True), DRIVER),
    "texture": (_texture, RUNTIME),
    "MemoryAsyncPool": (lambda: cp.cuda.MemoryAsyncPool().malloc(8), RUNTIME),
    "malloc_async": (lambda: cp.cuda.malloc_async(8), "does not support malloc_async"),
    "memAdvise": (lambda: cp.cuda.runtime.memAdvise(_vector().data.ptr, 8, 1, 0), RUNTIME),
    "ipcGetMemHandle": (lambda: cp.cuda.runtime.ipcGetMemHandle(_vector().data.ptr), RUNTIME),
    "linking": (lambda: cp.cuda.function.LinkState(), DRIVER),
    "relocatable device code": (lambda: cp.RawKernel(PLAIN, "f", options=("-dc",)).compile(), DRIVER),
    "link-time optimisation": (lambda: cp.RawKernel(PLAIN, "f", options=("-dlto",)).compile(), "-dlto"),
    "Jitify": (_jitify, "the software GPU has no Jitify"),
    # NVRTC
    "an unknown option": (lambda: cp.RawKernel(PLAIN, "f", options=("--no-such-option",)).compile(), "--no-such-option"),
    "a header that is not there": (lambda: _kernel("#include <cooperative_groups.h>\n" + PLAIN), r"cooperative_groups\.h"),
    "a function that is not there": (
        lambda: _kernel('extern "C" __global__ void f(float* x) { *x = cyl_bessel_i0f(*x); }'),
        "cyl_bessel_i0f.*was not declared",
    ),
    "inline PTX": (
        lambda: _kernel('extern "C" __global__ void f(int* x) { asm("mov.u32 %0, %%laneid;" : "=r"(*x)); }'),
        "Error: ",
    ),
    "a kernel that is not there": (lambda: _kernel(PLAIN, "g"), "CUDA_ERROR_NOT_FOUND: named symbol not found: g"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_run_says_so_by_name(name: str) -> None:
    call, says = CASES[name]
    with pytest.raises(Exception, match=re.compile(says, re.DOTALL)):
        call()
    # The refusal leaves nothing behind.
    assert int(cp.arange(5).sum()) == 10


def _refusal(name: str) -> str:
    with pytest.raises(Exception) as caught:
        CASES[name][0]()
    return str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_does_not_repeat_itself(name: str) -> None:
    parts = _refusal(name).split(": ")
    assert len(parts) == len(set(parts))


@pytest.mark.parametrize("name", ["sort", "inv", "texture", "fft"])
def test_a_refusal_says_what_was_called_not_what_was_called_before(name: str) -> None:
    first = _refusal(name)
    for before in ("memAdvise", "inv of a batch", "random.seed", "csr_matrix", "linking", "qr", "sort"):
        _refusal(before)
        assert _refusal(name) == first
    p = cp.cuda.runtime.malloc(64)
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match=r"invalid argument: cudaFree of an address 8 bytes into"):
        cp.cuda.runtime.free(p + 8)
    assert "invalid argument: cudaFree" in str(cp.cuda.runtime.CUDARuntimeError(1))
    cp.cuda.runtime.free(p)
    cp.cuda.runtime.memGetInfo()
    for status in (1, 801):  # no call of this thread has failed since
        assert str(cp.cuda.runtime.CUDARuntimeError(status)).count(":") == 1


@pytest.mark.parametrize(
    ("suffix", "image"),
    [
        (".ptx", b".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry f() { ret; }\n"),
        (".cubin", b"\x7fELF" + bytes(300)),
        (".fatbin", b"\x50\xed\x55\xba" + bytes(300)),
    ],
)
def test_code_for_a_gpu_is_refused(tmp_path: Path, suffix: str, image: bytes) -> None:
    (tmp_path / f"module{suffix}").write_bytes(image)
    with pytest.raises(cp.cuda.driver.CUDADriverError, match=IMAGE):
        cp.RawModule(path=str(tmp_path / f"module{suffix}")).get_function("f")


def test_a_module_in_a_file_that_this_device_compiled_runs(tmp_path: Path) -> None:
    from cupy.cuda import compiler

    code, _ = compiler.compile_using_nvrtc('extern "C" __global__ void f(float* x) { *x = 5; }')
    (tmp_path / "module.cubin").write_bytes(code)
    x = cp.zeros(1, dtype="float32")
    cp.RawModule(path=str(tmp_path / "module.cubin")).get_function("f")((1,), (1,), (x,))
    assert x.get().tolist() == [5.0]


SAME: dict[str, Callable[[Any, Any, Any], Any]] = {  # of (namespace, a vector, a matrix)
    "cumsum": lambda xp, v, m: xp.cumsum(v),
    "cumsum an axis": lambda xp, v, m: xp.cumsum(m, axis=0),
    "cumprod": lambda xp, v, m: xp.cumprod(v),
    "boolean mask": lambda xp, v, m: v[v > 0],
    "nonzero": lambda xp, v, m: xp.nonzero(v > 0)[0],
    "argwhere": lambda xp, v, m: xp.argwhere(m > 0),
    "take": lambda xp, v, m: xp.take(v, xp.arange(7)),
    "fancy index": lambda xp, v, m: m[xp.asarray([2, 0, 2]), :],
    "argmax": lambda xp, v, m: xp.argmax(m, axis=1),
    "std": lambda xp, v, m: xp.std(m, axis=0),
    "histogram": lambda xp, v, m: xp.histogram(v)[0],
    "bincount": lambda xp, v, m: xp.bincount(xp.arange(20) % 7),
    "searchsorted": lambda xp, v, m: xp.searchsorted(xp.arange(5.0), v),
    "interp": lambda xp, v, m: xp.interp(v, xp.arange(4.0), xp.arange(4.0) ** 2),
    "pad": lambda xp, v, m: xp.pad(m, 2, mode="reflect"),
    "cov": lambda xp, v, m: xp.cov(m),
    "complex": lambda xp, v, m: xp.exp(v + 1j * v) / (2 + 1j * v),
    "float16": lambda xp, v, m: (v.astype("float16") * 2 + 1).sum(dtype="float32"),
    "packbits": lambda xp, v, m: xp.packbits(v > 0),
    "matrix_power": lambda xp, v, m: xp.linalg.matrix_power(m, 3),
    "norm": lambda xp, v, m: xp.linalg.norm(m),
}


@pytest.mark.parametrize("name", SAME)
def test_what_can_run_is_numpys_result(name: str) -> None:
    expected = SAME[name](np, _vector().get(), _matrix().get())
    np.testing.assert_allclose(SAME[name](cp, _vector(), _matrix()).get(), expected, rtol=1e-5, atol=1e-12)


def test_managed_memory_is_memory() -> None:
    with cp.cuda.using_allocator(cp.cuda.MemoryPool(cp.cuda.malloc_managed).malloc):
        assert int((cp.arange(5) * 2).sum()) == 20


def _turning_kernel():
    from cupyx import jit

    @jit.rawkernel()
    def turned(x, y):
        shared = jit.shared_memory(cp.float64, 64)
        t = jit.threadIdx.x
        shared[t] = x[t]
        jit.syncthreads()
        y[t] = shared[39 - t]

    return turned


@pytest.mark.filterwarnings("ignore:cupyx.jit.rawkernel is experimental")
def test_a_cupyx_jit_kernel_runs() -> None:
    y = cp.zeros(40)
    _turning_kernel()((1,), (40,), (_vector(), y))
    np.testing.assert_array_equal(y.get(), _vector().get()[::-1])
