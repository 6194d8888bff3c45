"""The predicted memory of a training step against what allocators report.

On the CPU Python's tracemalloc, to which NumPy reports every array, is the measure. For the GPU path the operations for CuPy
run on NumPy arrays with launches that do nothing, and tracemalloc again says what they asked for; with a GPU, CuPy's memory
pool does.
"""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.accel.cupy.cublas import WORKSPACE
from xpnet.accel.numpy import workspace
from xpnet.inspect import step_memory
from xpnet.inspect.footprint import AllocationLog, FakeCupyArray, FakeNumpyArray, counting

CLOSE = 0.1
"""What is promised."""


def mlp():
    layers = [xn.Flatten(), xn.Dense(512, "relu"), xn.Dropout(0.2), xn.Dense(256, "tanh"), xn.Dense(10)]
    return xn.Sequential(layers, input_shape=(28, 28, 1))


def convnet():
    return xn.models.cnn((28, 28, 1), 10)


def vgg():
    layers = []
    for filters in (64, 128):
        layers += [xn.Conv2D(filters, 3, padding=1, activation="relu") for _ in range(2)] + [xn.MaxPool2D(2)]
    return xn.Sequential([*layers, xn.Flatten(), xn.Dense(256, "relu"), xn.Dense(10)], input_shape=(32, 32, 3))


def normalised(filters, window=3, stride=1):
    padding = 1 if window == 3 else 0
    return [xn.Conv2D(filters, window, stride=stride, padding=padding, use_bias=False), xn.BatchNorm()]


def resnet20():
    layers = [*normalised(16), xn.ReLU()]
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(3):
            first = stride if block == 0 else 1
            shortcut = xn.Sequential(normalised(filters, 1, first)) if first > 1 else None
            body = [*normalised(filters, 3, first), xn.ReLU(), *normalised(filters)]
            layers += [xn.Residual(body, shortcut), xn.ReLU()]
    return xn.Sequential([*layers, xn.GlobalAveragePool2D(), xn.Dense(10)], input_shape=(32, 32, 3))


def lstm():
    layers = [xn.LSTM(128, return_sequences=True), xn.LSTM(96), xn.Dense(10)]
    return xn.Sequential(layers, input_shape=(30, 32))


def gru():
    return xn.Sequential([xn.Bidirectional(xn.GRU(96)), xn.Dense(10)], input_shape=(30, 32))


def elementwise():
    """Operations that are not accelerated: arrays come and go as the plain array code makes them."""
    layers = [
        xn.Conv1D(48, 5, activation="gelu"), xn.LayerNorm(), xn.Activation("silu"), xn.Conv1D(48, 3), xn.GroupNorm(4),
        xn.ELU(), xn.Flatten(), xn.Dense(10),
    ]  # fmt: skip
    return xn.Sequential(layers, input_shape=(100, 16))


def windows():
    """Strides, dilations, groups, transposition, pooling of every kind."""
    layers = [
        xn.Conv2D(32, 3, dilation=2, activation="relu"), xn.Conv2D(32, 5, padding=2, activation="tanh"),
        xn.MaxPool2D(3, 2, 1), xn.Conv2D(32, 3, groups=32, padding=1), xn.Conv2DTranspose(16, 3, stride=2),
        xn.AveragePool2D(2), xn.LpPool2D(2), xn.Flatten(), xn.Dense(10),
    ]  # fmt: skip
    return xn.Sequential(layers, input_shape=(33, 33, 16))


MODELS = {
    "MLP": (mlp, 512),
    "ConvNet": (convnet, 128),
    "VGG": (vgg, 12),
    "ResNet-20": (resnet20, 16),
    "LSTM": (lstm, 64),
    "GRU": (gru, 64),
    "elementwise": (elementwise, 64),
    "windows": (windows, 24),
}

OPTIMIZERS = {
    "SGD": lambda: xn.optim.SGD(0.1),
    "momentum": lambda: xn.optim.SGD(0.1, momentum=0.9),
    "Adam": lambda: xn.optim.Adam(),
}


@contextlib.contextmanager
def one_thread():
    before = xn.get_num_threads()
    xn.set_num_threads(1)
    try:
        yield
    finally:
        xn.set_num_threads(before)


def batch(model, count):
    return np.full((count, *model.input_shape), 0.5, np.float32), np.zeros(count, np.int64)


def measured(make, count, optimizer, step=lambda trainer, x, y: trainer.step(x, y), **settings):
    """The most that tracemalloc saw in the third step of a new model: everything that was made for it."""
    make()  # whatever is imported and remembered at the first use
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "_local", workspace._ThreadWorkspace())  # as in a new process
        gc.collect()
        tracemalloc.start()
        try:
            model = make()
            x, y = batch(model, count)
            trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, **settings)
            for _ in range(2):
                step(trainer, x, y)
            gc.collect()
            tracemalloc.reset_peak()
            for _ in range(settings.get("accumulate", 1)):
                step(trainer, x, y)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_on_a_cpu(name, optimizer):
    make, count = MODELS[name]
    if optimizer == "momentum" and name in ("GRU", "elementwise", "windows"):
        pytest.skip("the optimizer's part does not depend on the layers")
    with one_thread():
        found = measured(make, count, OPTIMIZERS[optimizer]())
        predicted = step_memory(make(), batch_size=count, optimizer=OPTIMIZERS[optimizer]())
    assert predicted.peak == pytest.approx(found, rel=CLOSE)
    assert predicted.passing >= 0


@pytest.mark.parametrize("name", ["MLP", "ConvNet", "VGG", "ResNet-20", "LSTM"])
def test_recomputed_on_a_cpu(name):
    make, count = MODELS[name]
    recompute = ["0", "1"] if name == "LSTM" else True
    with one_thread():
        found = measured(make, count, xn.optim.Adam(), recompute=recompute)
        plain = step_memory(make(), batch_size=count)
        predicted = step_memory(make(), batch_size=count, recompute=recompute)
    assert predicted.peak == pytest.approx(found, rel=CLOSE)
    assert predicted.activations < plain.activations


def test_recomputation_of_a_deep_network_saves_what_is_predicted():
    """ResNet-20 keeps a sixth of its activations, and the whole step needs less, measured as predicted."""
    with one_thread():
        plain = measured(resnet20, 16, xn.optim.SGD(0.1))
        saved = plain - measured(resnet20, 16, xn.optim.SGD(0.1), recompute=True)
        first = step_memory(resnet20(), batch_size=16, optimizer=xn.optim.SGD(0.1))
        second = step_memory(resnet20(), batch_size=16, optimizer=xn.optim.SGD(0.1), recompute=True)
    assert second.activations < first.activations / 5
    assert first.peak - second.peak == pytest.approx(saved, rel=CLOSE)
    assert saved > 0.3 * plain


def test_several_threads_have_a_block_each():
    if xn.get_num_threads() < 2:
        pytest.skip("one core")
    found = measured(convnet, 128, xn.optim.SGD(0.1))
    predicted = step_memory(convnet(), batch_size=128, optimizer=xn.optim.SGD(0.1))
    with one_thread():
        assert step_memory(convnet(), batch_size=128).working < predicted.working
    assert predicted.peak == pytest.approx(found, rel=CLOSE)


def test_accumulated_gradients_and_another_loss():
    def step(trainer, x, y):
        trainer.step(x, np.zeros((len(x), 10), np.float32))

    with one_thread():
        found = measured(mlp, 512, xn.optim.Adam(), step, accumulate=2)
        predicted = step_memory(mlp(), batch_size=512, accumulate=2, loss="mean_squared_error")
    assert predicted.peak == pytest.approx(found, rel=CLOSE)


@pytest.mark.cuda
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_what_cupys_pool_gives_out(name, recompute):
    import cupy

    class Watch(cupy.cuda.MemoryHook):
        """The bytes of the pool that are in use, and the most there were.

        A hook hears every pool: blocks of others, whose arrays are collected meanwhile, count nowhere.
        """

        name = "watch"
        now = peak = 0

        def __init__(self):
            self.blocks = {}

        def malloc_postprocess(self, device_id, size, mem_size, mem_ptr, pmem_id):
            self.blocks[mem_ptr] = mem_size
            self.now += mem_size
            self.peak = max(self.peak, self.now)

        def free_postprocess(self, device_id, mem_size, mem_ptr, pmem_id):
            self.now -= self.blocks.pop(mem_ptr, 0)

    make, count = MODELS[name]
    if recompute and name == "GRU":
        recompute = ["0"]
    model = make()
    x, y = (cupy.asarray(a) for a in batch(model, count))
    pool = cupy.cuda.MemoryPool()
    # A stream of its own gets a cuBLAS handle of its own, whose workspace is then in this pool.
    with cupy.cuda.using_allocator(pool.malloc), cupy.cuda.Stream(non_blocking=True), Watch() as watch:
        trainer = xn.Trainer(model.to("cuda"), loss="softmax_cross_entropy", optimizer=xn.optim.Adam(), recompute=recompute)
        for _ in range(2):
            trainer.step(x, y)
        assert watch.now == pool.used_bytes()
        watch.peak = watch.now
        trainer.step(x, y)
        found = watch.peak + x.nbytes + y.nbytes
    predicted = step_memory(model, batch_size=count, recompute=recompute)
    assert predicted.working == WORKSPACE
    assert predicted.peak == pytest.approx(found, rel=CLOSE)


def test_a_model_of_several_inputs_and_outputs_that_has_seen_nothing():
    class Heads(xn.Module):
        def __init__(self):
            self.a = xn.Dense(300, "relu")
            self.b = xn.LSTM(20, return_state=True)

        def forward(self, x, z):
            y, (h, c) = self.b(z)
            return self.a(x), {"y": y, "states": [h, c]}

    model = Heads()
    found = step_memory(model, [(50,), (7, 3)], batch_size=10)
    assert model.parameters() == {}
    assert found.batch == 4 * 10 * (50 + 21)
    table = model.summary([(50,), (7, 3)], batch_size=10, show=False)
    assert table.step == found
    assert table.outputs == ((300,), (20,), (20,), (20,))
    assert "Heads: 50, 7 x 3 -> 300, 20, 20, 20, float32" in str(table)
    assert [(row.path, row.output_shape, row.values) for row in table.rows] == [("b", (20,), 60), ("a", (300,), 300)]


def test_summary_shows_the_peak():
    table = xn.models.cnn((28, 28, 1), 10).summary(batch_size=128, optimizer=xn.optim.SGD(0.1), show=False)
    text = str(table)
    assert f"{table.step.peak / 2**20:.1f} MiB   at the peak of a step on cpu" in text
    assert "SGD's state 0 B" in text
    other = xn.models.cnn((28, 28, 1), 10).summary(batch_size=128, recompute=True, device="cuda", show=False)
    assert other.step.device == "cuda"
    assert "workspace 32.0 MiB" in str(other)


def test_the_model_is_not_touched():
    model = resnet20()
    x, y = batch(model, 4)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam())
    trainer.step(x, y)
    model.eval()
    before = {name: array.copy() for name, array in model.state().items()}
    arrays = [p.array for p in model.parameters().values()]
    step_memory(model, batch_size=4, optimizer=trainer.optimizer)
    assert all(a is p.array for a, p in zip(arrays, model.parameters().values()))
    assert trainer.optimizer.iterations == 1
    assert not any(m.training for m in model.modules())
    for name, array in model.state().items():
        np.testing.assert_array_equal(array, before[name])


class Looks(xn.Module):
    """A layer that leaves the array library."""

    def __init__(self):
        self.inner = xn.Dense(3)

    def forward(self, x):
        return self.inner(x) * float(np.linalg.norm(np.asarray(x)))


def test_what_cannot_be_predicted_is_said_in_the_table():
    table = Looks().summary((4,), show=False)
    assert table.step is None
    assert "training        unknown   the step could not be followed: TypeError: a fake array has no values" in str(table)
    with pytest.raises(TypeError, match="a fake array has no values"):
        step_memory(Looks(), (4,))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "pass input_shape"),
        ({"input_shape": (3,), "batch_size": 0}, "batch_size must be at least 1"),
        ({"input_shape": (3,), "device": "tpu"}, 'device must be "cpu" or "cuda"'),
    ],
)
def test_wrong_arguments(settings, says):
    with pytest.raises(ValueError, match=says):
        step_memory(xn.Sequential([xn.Dense(2)]), **settings)


def test_an_allocation_log_counts_what_lives():
    log = AllocationLog(512)
    with counting(log):
        a = FakeCupyArray.new((100,), np.float32)
        view: Any = a[10:20].reshape(2, 5)
        assert log.now == 512
        del a
        assert log.now == 512
        b = view + 1.0
        assert log.now == log.peak == 1024
        del view, b
        assert (log.now, log.peak) == (0, 1024)
        log.workspace("block", 700)
        log.workspace("block", 600)
        log.workspace("block", 5000, limit=1000)
        assert (log.now, log.kept, log.peak) == (700, 700, 5700)
    with pytest.raises(RuntimeError, match="outside of"):
        FakeNumpyArray.new((3,), np.float32)


def fake(*shape):
    return FakeNumpyArray.new(shape, np.float32)


@pytest.mark.parametrize(
    "function",
    [
        lambda xp, x: xp.reshape(x, (-1, 5)),
        lambda xp, x: xp.reshape(xp.permute_dims(x, (2, 0, 1)), (5, -1)),
        lambda xp, x: x[1:, None, ..., ::2],
        lambda xp, x: x[1, 2, 3],
        lambda xp, x: x[np.array([0, 2, 1, 1]), :, 0],
        lambda xp, x: xp.sum(x, axis=(0, -1), keepdims=True),
        lambda xp, x: xp.max(x, axis=1),
        lambda xp, x: xp.argmax(x, axis=1),
        lambda xp, x: xp.concat([x, x, x], axis=-1),
        lambda xp, x: xp.stack([x, x], axis=-1),
        lambda xp, x: xp.take(x, np.array([[0, 1]]), axis=1),
        lambda xp, x: xp.where(x > 0, x, 0.0),
        lambda xp, x: 1 - x[:, :1] * x.T.T + x**2,
        lambda xp, x: xp.matmul(x, xp.matrix_transpose(x)),
        lambda xp, x: x @ x[0, 0, :],
        lambda xp, x: xp.astype(x, xp.float64) + x,
        lambda xp, x: xp.broadcast_to(x[:, :1], (7, 3, 4, 5)),
        lambda xp, x: xp.flip(x, axis=1),
        lambda xp, x: xp.full_like(x, 2.0)[:0],
        lambda xp, x: xp.arange(2, 9, dtype=xp.int64),
    ],
)
def test_a_fake_array_has_the_shape_dtype_and_order_of_an_array(function):
    real = function(np, np.ones((3, 4, 5), np.float32))
    with counting(AllocationLog()):
        found = function(FakeNumpyArray.xp, fake(3, 4, 5))
        assert (found.shape, found.dtype) == (real.shape, real.dtype)
        assert found.flags.c_contiguous == real.flags.c_contiguous


def test_fake_arrays_refuse_what_arrays_refuse():
    with counting(AllocationLog()):
        x = fake(3, 4)
        for wrong in (lambda: x.reshape(5, 5), lambda: x @ x, lambda: x + fake(5), lambda: x[5]):
            with pytest.raises((ValueError, IndexError)):
                wrong()
        with pytest.raises(AttributeError, match="does not know what nonzero"):
            x.xp.nonzero(x)
