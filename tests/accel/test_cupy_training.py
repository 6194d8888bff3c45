"""Training on the CuPy path against the CPU."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from tests.accel.gpu import skip_without_gpu
from xpnet.ops.registry import reference_only

RANDOM = np.random.default_rng(5)
IMAGES = RANDOM.standard_normal((48, 8, 8, 3))
LABELS = RANDOM.integers(0, 4, 48)


def network(dtype="float64", device="cpu"):
    """Return a network that uses every kernel of a usual convolutional network once."""
    layers = [
        xn.Conv2D(8, 3, padding="same", activation="relu"),
        xn.BatchNorm(),
        xn.MaxPool2D(3, stride=2, padding=1),
        xn.Conv2D(8, 1),
        xn.Conv2D(8, 3, padding=1, groups=2, activation="tanh"),
        xn.AveragePool2D(2),
        xn.Flatten(),
        xn.LayerNorm(),
        xn.Dropout(0.25),
        xn.Dense(16, "sigmoid"),
        xn.Dense(4),
    ]
    return xn.Sequential(layers, input_shape=(8, 8, 3), dtype=dtype, device=device, seed=3)


OPTIMIZERS = {
    "sgd": lambda: xn.optim.SGD(0.05),
    "nesterov": lambda: xn.optim.SGD(0.05, 0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda: xn.optim.Adam(0.01),
    "adamw": lambda: xn.optim.AdamW(0.01, weight_decay=0.1),
}


def curve(optimizer, steps, dtype="float64", device="cpu"):
    """Return the loss of each step, and the final parameters as NumPy arrays."""
    model = network(dtype, device)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=OPTIMIZERS[optimizer](), seed=1)
    losses = []
    for step in range(steps):
        chosen = np.arange(step * 12, step * 12 + 12) % len(LABELS)
        x, y = (xn.to_device(a, device) for a in (IMAGES[chosen].astype(dtype), LABELS[chosen]))
        losses.append(trainer.step(x, y))
    return [float(loss) for loss in losses], {n: xn.to_numpy(p.array) for n, p in model.parameters().items()}


def agree(found, expected, rtol):
    np.testing.assert_allclose(found[0], expected[0], rtol=rtol)
    for name, values in expected[1].items():
        np.testing.assert_allclose(found[1][name], values, rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_network_trains_as_on_the_cpu(gpu, optimizer):
    with reference_only():
        expected = curve(optimizer, 5)
    found = curve(optimizer, 5, device="cuda")
    agree(found, expected, 1e-9)
    used = {name.partition("<")[0] for name in gpu.launches}
    assert used >= {
        "im2col", "col2im", "bias_activation", "bias_activation_backward", "batch_moments",
        "batch_norm_apply", "batch_norm_backward", "norm_gradient_sums", "max_pool", "max_pool_backward",
        "average_pool", "average_pool_backward", "layer_norm", "layer_norm_backward", "dropout", "cross_entropy",
        "adam" if "adam" in optimizer else "sgd",
    }  # fmt: skip
    updates = [name for name in gpu.launches if name.startswith(("adam<", "sgd<"))]
    assert len(updates) == 5  # one launch a step for all parameters, weight decay included


def shared(device):
    """Return a network whose convolutions are used twice each, one depthwise, one in front of a pooling."""
    pooled = xn.Conv2D(3, 3, padding=1, activation="relu")
    depthwise = xn.Conv2D(3, 3, padding=1, groups=3, activation="tanh")
    strided = xn.Conv2D(4, 3, stride=2, padding=1)
    layers = [
        depthwise,
        pooled,
        xn.MaxPool2D(2),
        pooled,
        xn.MaxPool2D(2),
        depthwise,
        strided,
        xn.Flatten(),
        xn.Dense(4, "relu"),
    ]
    return xn.Sequential(layers, input_shape=(8, 8, 3), dtype="float64", device=device, seed=3)


@pytest.mark.parametrize("algorithm", ["im2col", "implicit"])
@pytest.mark.parametrize("frozen", [None, "1.*", "6.kernel"])
def test_gradients_of_shared_and_frozen_parameters_and_of_several_batches_are_added(gpu, algorithm, frozen, monkeypatch):
    monkeypatch.setenv("XPNET_CONVOLUTION", algorithm)
    gpu.multiprocessors = 16
    found = {}
    for device in ("cpu", "cuda"):
        model = shared(device)
        if frozen:
            model.freeze(frozen)
        optimizer = xn.optim.SGD(0.05)
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, seed=1)
        trainer.step(
            *(xn.to_device(a, device) for a in (IMAGES[:12], LABELS[:12]))
        )  # gradients are views of one array from here
        for start in (12, 24):
            x, y = (xn.to_device(a[start : start + 12], device) for a in (IMAGES, LABELS))
            xn.losses.softmax_cross_entropy(model(xn.Tensor(x)), y).backward()
        parameters = model.parameters()
        found[device] = {name: xn.to_numpy(p.array) for name, p in parameters.items()}
        found[device] |= {f"gradient of {n}": xn.to_numpy(p.grad) for n, p in parameters.items() if p.grad is not None}
    assert found["cuda"].keys() == found["cpu"].keys() >= {"gradient of 0.kernel", "gradient of 8.kernel"}
    for name, values in found["cpu"].items():
        np.testing.assert_allclose(found["cuda"][name], values, rtol=1e-8, atol=1e-11, err_msg=name)


def test_prediction(gpu):
    with reference_only():
        expected = network().predict(IMAGES)
    found = network(device="cuda").predict(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert gpu.launches
    assert not any("backward" in name or "dropout" in name for name in gpu.launches)


# -- as it is, without a watch --


@pytest.fixture
def cuda():
    skip_without_gpu()
    return "cuda"


@pytest.mark.cuda
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_loss_curves_of_cpu_and_gpu_agree_over_200_steps(cuda, optimizer):
    agree(curve(optimizer, 200, device=cuda), curve(optimizer, 200), 1e-6)


@pytest.mark.cuda
def test_loss_curves_agree_in_float32(cuda):
    found, expected = (curve("sgd", 200, "float32", device)[0] for device in (cuda, "cpu"))
    np.testing.assert_allclose(found, expected, rtol=2e-3)


@pytest.mark.cuda
def test_the_same_run_gives_the_same_bits(cuda):
    first, second = (curve("adam", 30, "float32", cuda) for _ in range(2))
    assert first[0] == second[0]
    for name, values in first[1].items():
        np.testing.assert_array_equal(second[1][name], values)


@pytest.mark.cuda
def test_the_same_seed_gives_the_same_weights_masks_and_batches(cuda):
    for name, parameter in network("float32", cuda).parameters().items():
        np.testing.assert_array_equal(xn.to_numpy(parameter.array), network("float32").parameters()[name].array)
    x = np.ones((7, 33), "float32")
    on_gpu = xn.ops.dropout(xn.to_device(x, cuda), 0.4, key=9, step=5)
    np.testing.assert_array_equal(xn.to_numpy(on_gpu), xn.ops.dropout(x, 0.4, key=9, step=5))
    seen = []
    for device in (cuda, "cpu"):
        trainer = xn.Trainer(network("float32", device), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.0), seed=4)
        history = trainer.fit((IMAGES.astype("float32"), LABELS), epochs=2, batch_size=16, verbose=False)
        seen.append(history["loss"])
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-4)


@pytest.mark.cuda
def test_digits_reach_the_accuracy_of_the_cpu(cuda):
    data = xn.data.load("digits")
    reached = {}
    for device in ("cpu", cuda):
        layers = [xn.Conv2D(16, 3, activation="relu"), xn.MaxPool2D(2), xn.Flatten(), xn.Dense(10)]
        model = xn.Sequential(layers, input_shape=data.train[0].shape[1:], device=device, seed=0)
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.003), metrics=["accuracy"], seed=0)
        trainer.fit(data.train, epochs=12, batch_size=32, verbose=False)
        reached[device] = trainer.evaluate(data.test)["accuracy"]
    assert reached["cpu"] > 0.9
    assert reached[cuda] >= reached["cpu"] - 0.01


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("shape", [(64, 64, 64), (1, 100, 7), (513, 33, 129)])
def test_products_on_the_gpu(cuda, dtype, shape):
    import array_api_compat.cupy as xp

    from xpnet.accel.cupy.gemm import gemm

    m, k, n = shape
    a, b = (xp.asarray(RANDOM.standard_normal(s).astype(dtype)) for s in ((3, m, k), (3, n, k)))
    c = xp.empty((3, m, n), dtype=dtype)
    gemm(xp, a, xp.swapaxes(b, 1, 2), c)
    expected = xn.to_numpy(a).astype("float64") @ xn.to_numpy(b).astype("float64").swapaxes(1, 2)
    tolerance = {"float64": 1e-12, "float32": 1e-4, "float16": 5e-2}[dtype]
    np.testing.assert_allclose(xn.to_numpy(c), expected, rtol=tolerance, atol=tolerance)
    gemm(xp, a[0], b[0].T, c[0])  # another function of cuBLAS
    np.testing.assert_allclose(xn.to_numpy(c[0]), expected[0], rtol=tolerance, atol=tolerance)


@pytest.mark.cuda
def test_products_are_rounded_to_tf32_only_if_set(cuda):
    x = RANDOM.standard_normal((256, 256)).astype("float32")
    exact = x.astype("float64") @ x
    there = xn.to_device(x, cuda)

    def error():
        return float(np.abs(xn.to_numpy(xn.ops.matmul(there, there)) - exact).max() / np.abs(exact).max())

    assert error() < 1e-6
    import cupy

    if int(cupy.cuda.Device().compute_capability) < 80:
        pytest.skip("this GPU has no TF32")
    xn.set_matmul_precision("tf32")
    try:
        assert 1e-6 < error() < 5e-3
    finally:
        xn.set_matmul_precision("float32")


@pytest.mark.cuda
def test_products_and_optimizer_steps_can_be_captured(cuda):
    import array_api_compat.cupy as xp
    import cupy

    from xpnet.accel.cupy.gemm import gemm
    from xpnet.accel.cupy.optimizers import DeviceSchedule, adam

    w, g = (xp.asarray(RANDOM.standard_normal((64, 64)).astype("float32")) for _ in range(2))
    m, v, out = xp.zeros((4096,), dtype="float32"), xp.zeros((4096,), dtype="float32"), xp.empty((64, 64), dtype="float32")
    clock = DeviceSchedule.new(xp, w, 0.01)

    def step():
        gemm(xp, w, g, out)
        adam(w.reshape(-1), out.reshape(-1), m, v, rate=clock)

    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        step()  # creates handles, workspaces and kernels
        stream.begin_capture()
        step()
        graph = stream.end_capture()
        for _ in range(3):
            graph.launch(stream)
    stream.synchronize()
    assert int(clock.steps) == 4
    assert bool(xp.all(xp.isfinite(w)))


@pytest.mark.cuda
def test_out_of_memory_is_explained(cuda):
    import cupy

    with pytest.raises(xn.backend.DeviceMemoryError, match=r"multiply: cuda.* Asked for: 4096 GiB"):
        xn.ops.multiply(cupy.broadcast_to(cupy.ones(1, "float32"), (2**40,)), 2.0)


@pytest.mark.cuda
def test_arrays_of_more_than_two_to_the_31_elements(cuda):
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < 20 * 2**30:
        pytest.skip("needs 20 GiB of free memory on the GPU")
    x = cupy.zeros((2**15 + 5, 256, 256, 1), cupy.float16)
    x[-1, -2:, -2:] = 3
    y = xn.ops.max_pool2d(x, 2)
    assert float(y[-1, -1, -1, 0]) == 3
    assert float(y.sum(dtype=cupy.float64)) == 3
    kept = xn.ops.relu(x)
    assert float(kept[-1].sum(dtype=cupy.float64)) == 12
    del x, y, kept
    cupy.get_default_memory_pool().free_all_blocks()
