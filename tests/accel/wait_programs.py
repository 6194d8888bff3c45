"""Programs that rely on xpnet's waits, for tests.accel.waits: each returns values that are wrong if a wait is missing.

They run on CuPy, on streams that do not wait for the legacy stream, and leave it to the schedule of the software device when
the work is done.
"""

from __future__ import annotations

import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import xpnet as xn
from tests.software_gpu import device as software_gpu
from xpnet.data import Batches
from xpnet.data.arrays import tree_map
from xpnet.training import Callback

SIZE = 256
RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 4, 4, 2)).astype(np.float32)
Y = RNG.integers(0, 4, 96)


def _cupy() -> Any:
    import cupy

    return cupy


def _pinned(value: float) -> np.ndarray[Any, Any]:
    """Return a pinned array of a value, memory of its own."""
    array = np.frombuffer(_cupy().cuda.alloc_pinned_memory(4 * SIZE), np.float32, SIZE)
    array[...] = value
    return array


@contextmanager
def _stream() -> Iterator[Any]:
    """Run a block on a new stream."""
    stream = _cupy().cuda.Stream(non_blocking=True)
    with stream:
        yield stream


def _transfers() -> Any:
    from xpnet.accel.cupy.transfers import CudaTransfers

    return CudaTransfers(xn.backend.device("cuda"))


def _values(value: float) -> Any:
    """Return an array on the current stream that was computed there, not before something waits for it."""
    return _cupy().zeros(SIZE, np.float32) + np.float32(value)


def _upload(stream: Any, target: Any, source: np.ndarray[Any, Any]) -> None:
    runtime = _cupy().cuda.runtime
    runtime.memcpyAsync(target.data.ptr, source.ctypes.data, target.nbytes, runtime.memcpyHostToDevice, stream.ptr)


# -- launches --


def product() -> Any:
    """A matrix product on the current stream."""
    from xpnet.accel.cupy.gemm import gemm

    with _stream():
        a, b = _values(2).reshape(16, 16), _values(3).reshape(16, 16)
        c = _values(0).reshape(16, 16)
        gemm(_cupy(), a, b, c)
        return c.get()


def kernel() -> Any:
    """A kernel of xpnet's on the current stream."""
    with _stream():
        x = _values(2).reshape(16, 16) * _cupy().arange(16, dtype=np.float32)
        return xn.ops.softmax(x).get()


def measuring_in_capture() -> Any:
    """Whether algorithms may be timed, asked during a capture."""
    from xpnet.accel.cupy.launch import runtime

    with _stream() as stream:
        stream.begin_capture()
        measured = runtime().can_measure()
        stream.end_capture()
    return measured, runtime().can_measure()


def asking_whether_it_is_captured() -> Any:
    """Whether the current stream is captured, asked during a capture and after it."""
    from xpnet.accel.cupy.capturable import _capturing

    with _stream() as stream:
        stream.begin_capture()
        captured = _capturing()
        stream.end_capture()
        return captured, _capturing()


def milliseconds() -> Any:
    """The timing of an algorithm."""
    from xpnet.accel.cupy.launch import runtime

    with _stream():
        x = _values(1)
        return runtime().milliseconds(lambda: x + 1) >= 0


# -- times --


def clock() -> Any:
    """The time of an event on the host's clock."""
    from xpnet.accel.cupy.transfers import Clock

    with _stream():
        watch = Clock(xn.backend.device("cuda"))
        time.sleep(0.05)
        before = time.perf_counter()
        return watch.seconds(watch.mark()) >= before - 0.02


def profile() -> Any:
    """The profile of a model."""
    model = xn.Sequential([xn.Dense(3), xn.Dense(4)], input_shape=(5,), device="cuda", seed=1)
    x, y = xn.to_device(X.reshape(96, -1)[:8, :5], "cuda"), xn.to_device(Y[:8], "cuda")
    return xn.inspect.profile(model, x, y, steps=1, warmup=0).step >= 0


@contextmanager
def _watched_clock(module: Any) -> Iterator[list[int]]:
    """Count, at each reading of a module's clock, how much work is still to be done."""
    found: list[int] = []

    def perf_counter() -> float:
        found.append(software_gpu.pending())
        return time.perf_counter()

    before = module.time
    module.time = types.SimpleNamespace(perf_counter=perf_counter)
    try:
        yield found
    finally:
        module.time = before


def benchmark() -> Any:
    """What is still to be done when the benchmark reads the clock."""
    from xpnet.cli import bench

    with _stream(), _watched_clock(bench) as found:
        _cupy().cuda.runtime.deviceSynchronize()
        bench._median(lambda: _values(1), xn.backend.device("cuda"), 0.0)
        return max(found)


def timing() -> Any:
    """What is still to be done when the time of an epoch is taken."""
    from xpnet.training import callbacks

    model = types.SimpleNamespace(context=types.SimpleNamespace(device=xn.backend.device("cuda")))
    with _stream(), _watched_clock(callbacks) as found:
        _cupy().cuda.runtime.deviceSynchronize()
        watch, trainer = callbacks.Timing(), types.SimpleNamespace(model=model)
        watch.on_epoch_begin(trainer)  # type: ignore[arg-type]
        _values(1)
        watch.on_epoch_end(trainer, {})  # type: ignore[arg-type]
        return found[1]


def device_synchronize() -> Any:
    """Pinned memory that is written after `Device.synchronize`."""
    with _stream() as stream:
        target, source = _cupy().empty(SIZE, np.float32), _pinned(7)
        _upload(stream, target, source)
        xn.backend.device("cuda").synchronize()
        source[...] = 100
        return target.get()


# -- copies --


def _learnt(data: Any, batch_size: int | None = 16, callbacks: tuple[Callback, ...] = (), **settings: Any) -> Any:
    layers = [xn.Flatten(), xn.Dense(16, activation="relu"), xn.Dense(4)]
    model = xn.Sequential(layers, input_shape=X.shape[1:], device="cuda", seed=1)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), seed=3, callbacks=list(callbacks))
    batches = Batches(data, batch_size, seed=3, device="cuda", **settings)
    history = trainer.fit(batches, epochs=2, verbose=False)
    return [np.array(history["loss"]), *(xn.to_numpy(p.array) for p in model.parameters().values())]


def training() -> Any:
    """Training on batches from main memory."""
    return _learnt((X, Y))


def training_on_batches_made_there() -> Any:
    """Training on a stream of batches that are computed on the GPU."""

    def made() -> Iterator[Any]:
        for i in range(0, 96, 16):
            yield xn.to_device(X[i : i + 16], "cuda") * 2, xn.to_device(Y[i : i + 16], "cuda")

    return _learnt(made, None)


def training_with_workers() -> Any:
    """Training on data on the GPU that threads transform."""
    data = xn.to_device(X, "cuda"), xn.to_device(Y, "cuda")
    return _learnt(data, transform=lambda batch: (batch[0] * 2, batch[1]), workers=2)


def training_on_a_stream_of_a_thread() -> Any:
    """Training on a stream of batches that a thread computes on the GPU."""

    def made() -> Iterator[Any]:
        for i in range(0, 96, 16):
            yield xn.to_device(X[i : i + 16], "cuda") * 2, xn.to_device(Y[i : i + 16], "cuda")

    return _learnt(made, None, workers=1)


def buffer_memory() -> Any:
    """A buffer for copies, where an array was that is still read."""
    transfers, source = _transfers(), _pinned(100)
    with _stream() as stream:
        x = _values(1)
        stream.synchronize()
        y = x + 1
        del x
        buffers = [transfers.buffer(4 * SIZE) for _ in range(3)]
        for buffer in buffers:
            transfers.copy(buffer, source.view(np.uint8))
        result = y.get()
    transfers.finish()
    return result


def finish_copies() -> Any:
    """Pinned memory that is written after `finish`, which a copy reads."""
    transfers, source = _transfers(), _pinned(7)
    target = transfers.buffer(4 * SIZE)
    transfers.copy(target, source.view(np.uint8))
    transfers.finish()
    source[...] = 100
    with transfers._stream:
        return target.get()


def finish_computations() -> Any:
    """Pinned memory that is written after `finish`, which the current stream reads."""
    transfers, source = _transfers(), _pinned(7)
    with _stream() as stream:
        target = _cupy().empty(SIZE, np.float32)
        _upload(stream, target, source)
        transfers.finish()
        source[...] = 100
        return target.get()


def buffers_used_again() -> Any:
    """A second run of a prefetcher, in the memory of the first one."""
    from xpnet.data.prefetch import Prefetcher

    def made(value: float) -> Any:
        return (((np.full(SIZE, value + i, np.float32),), None) for i in range(4))

    prefetcher, sums = Prefetcher(_transfers(), thread=False), []
    with _stream():
        for start in (0, 100):
            (x,), _ = next(prefetcher.run(made(start)))
            sums.append(x + 1)
            del x
            prefetcher.close()
        return [array.get() for array in sums]


# -- threads --


def _in_thread(work: Callable[[], Any]) -> Any:
    """Do work in another thread, whose current stream is the legacy one."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def _filled() -> Any:
    """Fill arrays of the size of the others, and wait until that is done."""
    cupy = _cupy()
    arrays = [cupy.full(SIZE, 100, np.float32) for _ in range(4)]
    cupy.cuda.get_current_stream().synchronize()
    return arrays


def _read_after_it_was_freed(use_memory: Callable[[], Any]) -> Any:
    """Free an array of the legacy stream's that another stream still reads, while a thread makes new ones."""
    x = _values(1)
    _cupy().cuda.get_current_stream().synchronize()
    with _stream():
        y = x + 1
        del x
        kept = _in_thread(use_memory)
        result = y.get()
    del kept
    return result


def memory_beside() -> Any:
    """The memory of a thread that fills buffers."""
    transfers = _transfers()
    return _read_after_it_was_freed(lambda: transfers.beside(_filled))


def memory_of_the_lane() -> Any:
    """The memory of a thread that prepares data."""
    lane = _lane()
    return _read_after_it_was_freed(lambda: lane.run(_filled, lambda function, tree: tree))


def _lane() -> Any:
    from xpnet.accel.cupy.transfers import Lane

    return Lane()


def lane_begins() -> Any:
    """What threads read was computed before."""
    with _stream():
        x = _values(1)
        lane = _lane()
        made = lane.run(lambda: x + 1, tree_map)
        lane._stream.synchronize()
        return made.take().get()


def lane_ends() -> Any:
    """What threads wrote is there when they have ended."""
    with _stream():
        x, out = _values(1), _values(0)
        lane = _lane()
        lane.run(lambda: _cupy().add(x, 1, out=out) is None, tree_map)
        lane.close()
        return out.get()


def handed_over() -> Any:
    """What a thread made, used by another one."""
    with _stream():
        lane = _lane()
        made = lane.run(lambda: (_values(1), _values(2)), tree_map)
        return [array.get() for array in made.take()]


def handed_memory() -> Any:
    """What a thread makes next, in the memory of what it handed over."""
    with _stream():
        lane = _lane()
        first = lane.run(lambda: _values(1), tree_map).take()
        later = [lane.run(lambda: _values(100), tree_map) for _ in range(3)]
        lane._stream.synchronize()
        result = first.get()
    del later
    return result


# -- graphs --


def _model() -> Any:
    model = xn.Sequential([xn.Dense(8, activation="relu"), xn.Dense(4)], input_shape=(16,), device="cuda", seed=1)
    _cupy().cuda.runtime.deviceSynchronize()  # it was made on the legacy stream
    return model


def prediction() -> Any:
    """Predictions one after the other, each of inputs that have just been computed."""
    model = _model()
    with _stream():
        outputs = []
        for i in range(5):
            x = _values(i).reshape(16, 16) * _cupy().arange(16, dtype=np.float32)
            outputs.append(model.predict(x) + 1)
        return [y.get() for y in outputs]


def prediction_on_two_streams() -> Any:
    """Predictions on one stream and then on another one, which does not wait for it."""
    model = _model()
    with _stream() as first:
        x = _values(1).reshape(16, 16)
        for _ in range(3):
            model.predict(x)
        first.synchronize()
        y = model.predict(x)
        with _stream():
            z = model.predict(_values(2).reshape(16, 16)).get()
        return [y.get(), z]


def memory_of_a_graph() -> Any:
    """Arrays of others, beside a graph that is replayed; a recording keeps what its operations take, but not their parts."""
    cupy = _cupy()

    class Parts(xn.Module):
        def forward(self, x: Any) -> Any:
            y = getattr(x, "array", x)
            for _ in range(4):
                y = y * 2 + 1
            return xn.Tensor(y)

    model = xn.Sequential([xn.Dense(8), Parts()], input_shape=(16,), device="cuda", seed=1)
    cupy.cuda.runtime.deviceSynchronize()  # it was made on the legacy stream
    executor = _executor(model)
    with _stream():
        x = _values(2).reshape(16, 16)
        for _ in range(3):
            model.predict(x)
        with executor._predictions.graphs._stream:
            others = [cupy.full(n, 5, np.float32) for n in (64, 128, 64, 128, 64, 128)]
            cupy.cuda.get_current_stream().synchronize()
        model.predict(x)
        cupy.cuda.runtime.deviceSynchronize()
        return [array.get() for array in others]


def _executor(model: Any) -> Any:
    from xpnet.layers.execution import executor_of

    return executor_of(model)


def freed_parameters() -> Any:
    """Training, while another thread uses the memory that the model's first parameters had."""

    class Others(Callback):
        def on_fit_begin(self, trainer: Any) -> None:
            self.kept = _in_thread(self._fill)

        def _fill(self) -> Any:
            cupy = _cupy()
            arrays = [cupy.full(n, 100, np.float32) for n in (512, 16, 64, 4) for _ in range(4)]
            cupy.cuda.get_current_stream().synchronize()
            return arrays

    return _learnt((X, Y), callbacks=(Others(),))


def freed_state() -> Any:
    """Training that freezes a layer, while another thread uses the memory that the optimizer's state had."""
    cupy = _cupy()

    class Freeze(Callback):
        def on_epoch_begin(self, trainer: Any) -> None:
            trainer.model.layers[1].kernel.requires_grad = False

        def on_step_end(self, trainer: Any) -> None:
            if trainer.iteration == 2:  # the first step with the new state is under way
                self.kept = _in_thread(self._fill)

        def _fill(self) -> Any:
            arrays = [cupy.full(n, 100, np.float32) for n in (640, 672, 704, 608) for _ in range(4)]
            cupy.cuda.get_current_stream().synchronize()
            return arrays

    layers = [xn.Flatten(), xn.Dense(16, activation="relu"), xn.Dense(4)]
    model = xn.Sequential(layers, input_shape=X.shape[1:], device="cuda", seed=1)
    optimizer = xn.optim.Adam(0.01)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, seed=3, callbacks=[Freeze()])
    trainer.step(xn.to_device(X[:16], "cuda"), xn.to_device(Y[:16], "cuda"))  # makes the state, on the legacy stream
    history = trainer.fit((X, Y), epochs=1, batch_size=16, verbose=False)
    return [np.array(history["loss"]), *(xn.to_numpy(slot) for slot in optimizer.slots.values())]
