import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet as xn
from xpnet.inspect import check_gradients


def batch(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape) * 2 + 1


def built(layer, shape, seed=3):
    """The layer with random scale and offset, in float64."""
    xn.Sequential([layer], input_shape=shape, dtype="float64")
    rng = np.random.default_rng(seed)
    for parameter in layer.parameters().values():
        parameter.array[...] = rng.standard_normal(parameter.shape)
    return layer


def channels_first(x):
    return np.moveaxis(x, -1, 1)


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def compare(layer, reference, x, to=channels_first, back=channels_last, steps=3):
    """Outputs, all gradients, and parameters after steps of descent, for a layer and PyTorch's."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(9)
    with torch.no_grad():
        reference.weight.copy_(torch.tensor(layer.scale.array))
        reference.bias.copy_(torch.tensor(layer.offset.array))
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1)
    ours = xn.optim.SGD(0.1)
    for step in range(steps):
        xs = x + step
        dy = rng.standard_normal(x.shape)
        tx = torch.tensor(np.ascontiguousarray(to(xs)), requires_grad=True)
        expected = reference(tx)
        theirs.zero_grad()
        expected.backward(torch.tensor(np.ascontiguousarray(to(dy))))
        mine = xn.Tensor(xs, requires_grad=True)
        y = layer(mine)
        y.backward(dy)
        np.testing.assert_allclose(y.array, back(expected.detach().numpy()), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(xn.to_numpy(mine.grad), back(tx.grad.numpy()), rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(layer.scale.grad, reference.weight.grad.numpy(), rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(layer.offset.grad, reference.bias.grad.numpy(), rtol=1e-8, atol=1e-9)
        theirs.step()
        ours.step(layer)
    np.testing.assert_allclose(layer.scale.array, reference.weight.detach().numpy(), rtol=1e-8, atol=1e-9)


@pytest.mark.torch
@given(N=st.integers(2, 5), H=st.integers(0, 3), W=st.integers(1, 3), C=st.integers(1, 4), momentum=st.floats(0.1, 1.0))
@settings(max_examples=15, deadline=None)
def test_batch_norm_equals_pytorch(N, H, W, C, momentum):
    torch = pytest.importorskip("torch")
    shape = (N, H, W, C) if H else (N, C)  # after a convolution, or after a dense layer
    x = batch(shape, seed=N)
    layer = built(xn.BatchNorm(momentum=momentum), shape[1:])
    kind = torch.nn.BatchNorm2d if H else torch.nn.BatchNorm1d
    reference = kind(C, momentum=1 - momentum, dtype=torch.float64)
    compare(layer, reference, x)
    np.testing.assert_allclose(layer.running_mean, reference.running_mean.numpy(), rtol=1e-10)
    np.testing.assert_allclose(layer.running_variance, reference.running_var.numpy(), rtol=1e-10)
    before = layer.running_mean.copy()
    layer.eval()
    reference.eval()
    compare(layer, reference, x)
    np.testing.assert_array_equal(layer.running_mean, before)


@pytest.mark.torch
@pytest.mark.parametrize("axes", [1, 2])
def test_layer_norm_equals_pytorch(axes):
    torch = pytest.importorskip("torch")
    layer = built(xn.LayerNorm(axes), (3, 4))
    same = lambda x: x  # noqa: E731
    compare(layer, torch.nn.LayerNorm((3, 4)[-axes:], dtype=torch.float64), batch((5, 3, 4)), same, same)


@pytest.mark.torch
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_equals_pytorch(groups):
    torch = pytest.importorskip("torch")
    layer = built(xn.GroupNorm(groups), (3, 4, 6))
    compare(layer, torch.nn.GroupNorm(groups, 6, dtype=torch.float64), batch((5, 3, 4, 6)))


@pytest.mark.torch
def test_instance_norm_equals_pytorch():
    torch = pytest.importorskip("torch")
    layer = built(xn.InstanceNorm(), (3, 4, 6))
    compare(layer, torch.nn.InstanceNorm2d(6, affine=True, dtype=torch.float64), batch((5, 3, 4, 6)))


@pytest.mark.torch
@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_norm_equals_pytorch(size):
    torch = pytest.importorskip("torch")
    x = batch((2, 3, 3, 7)) * 5
    layer = xn.LocalResponseNorm(size, k=2.0, alpha=1e-2, beta=0.75)
    tx = torch.tensor(channels_first(x), requires_grad=True)
    expected = torch.nn.functional.local_response_norm(tx, size, alpha=1e-2 * size, beta=0.75, k=2.0)
    (expected**2).sum().backward()
    mine = xn.Tensor(x, requires_grad=True)
    y = layer(mine)
    (y * y).sum().backward()
    np.testing.assert_allclose(y.array, channels_last(expected.detach().numpy()), rtol=1e-12)
    np.testing.assert_allclose(xn.to_numpy(mine.grad), channels_last(tx.grad.numpy()), rtol=1e-10, atol=1e-12)


LAYERS = [
    (lambda: xn.BatchNorm(), (4,)),
    (lambda: xn.BatchNorm(), (2, 3, 4)),
    (lambda: xn.LayerNorm(), (3, 4)),
    (lambda: xn.LayerNorm(2), (3, 4)),
    (lambda: xn.GroupNorm(2), (2, 3, 4)),
    (lambda: xn.InstanceNorm(), (2, 3, 4)),
    (lambda: xn.LocalResponseNorm(3), (2, 3, 4)),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_gradients(make, shape):
    layer = built(make(), shape)
    check_gradients(lambda x: layer(x), [batch((4, *shape))], tolerance=1e-6)


@pytest.mark.parametrize(("make", "shape"), LAYERS)
@pytest.mark.parametrize("N", [0, 1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_small_batches_and_dtype(make, shape, N, training):
    model = xn.Sequential([make()], input_shape=shape).train(training)
    x = batch((N, *shape)).astype(np.float32)
    x.flags.writeable = False
    mine = xn.Tensor(x, requires_grad=True)
    y = model(mine)
    y.backward(np.ones_like(y.array))
    assert y.shape == x.shape
    assert y.dtype == xn.to_numpy(mine.grad).dtype == np.float32
    assert np.isfinite(y.array).all()
    assert np.isfinite(xn.to_numpy(mine.grad)).all()
    for array in model.buffers().values():
        assert array.dtype == np.float32
        assert np.isfinite(xn.to_numpy(array)).all()


def test_batch_norm_normalises_and_remembers():
    x = batch((1000, 3)) * [1, 10, 100]
    layer = xn.BatchNorm()
    model = xn.Sequential([layer], input_shape=(3,), dtype="float64")
    y = model(x).array
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(layer.running_mean, 0.1 * x.mean(axis=0))
    np.testing.assert_allclose(layer.running_variance, 0.9 + 0.1 * x.var(axis=0, ddof=1))
    for _ in range(300):
        model(x)
    np.testing.assert_allclose(model.predict(x), y, rtol=1e-3, atol=1e-3)


def test_batch_norm_statistics_stay_in_their_place_and_travel_with_the_state():
    model = xn.Sequential([xn.BatchNorm(), xn.Dense(2)], input_shape=(3,))
    held = model[0].running_mean
    model(batch((8, 3)).astype(np.float32))
    assert model[0].running_mean is held  # a captured step finds it where it was
    assert model.buffers()["0.running_mean"] is held
    assert set(model.state()) == {
        "0.scale", "0.offset", "0.running_mean", "0.running_variance", "1.kernel", "1.bias",
    }  # fmt: skip
    other = xn.Sequential([xn.BatchNorm(), xn.Dense(2)], input_shape=(3,), seed=1)
    other.load_state(model.state())
    x = batch((5, 3), seed=7).astype(np.float32)
    np.testing.assert_array_equal(other.predict(x), model.predict(x))
    assert not any(p.decay for name, p in model.parameters().items() if name.startswith("0"))


def test_without_scale_and_offset():
    model = xn.Sequential([xn.BatchNorm(use_scale=False, use_offset=False), xn.LayerNorm(use_offset=False)], input_shape=(3,))
    assert list(model.parameters()) == ["1.scale"]
    assert model(batch((4, 3)).astype(np.float32)).shape == (4, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xn.BatchNorm(momentum=2), "momentum must be in"),
        (lambda: xn.LayerNorm(epsilon=0), "epsilon must be above 0"),
        (lambda: xn.LayerNorm(0), "axes must be at least 1"),
        (lambda: xn.LocalResponseNorm(4), "size must be odd"),
        (lambda: built(xn.GroupNorm(4), (2, 2, 6)), r"layer '0' \(GroupNorm\).*6 channels are not a multiple of groups=4"),
        (lambda: built(xn.LayerNorm(3), (2, 6)), "fewer than axes=3"),
        (lambda: built(xn.LocalResponseNorm(), (6,)), r"expected images \(H, W, C\)"),
        (lambda: built(xn.BatchNorm(), (3,))(np.zeros((2, 4))), "got examples .*expected 3 channels"),
        (lambda: built(xn.BatchNorm(), (3,)).output_shape((4,)), "expected 3 channels"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
