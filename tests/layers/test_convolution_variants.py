"""Conv1D and Conv2DTranspose against PyTorch."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import xpnet as xn
from xpnet.inspect import check_gradients


def rows(layer, x):
    """The layer in float64 with random biases, as a model."""
    model = xn.Sequential([layer], input_shape=x.shape[1:], dtype="float64")
    layer.bias.array[...] = np.random.default_rng(4).standard_normal(layer.bias.shape)
    return model


def three_steps(layer, reference, x, to_torch, from_torch):
    """Forward, gradients and three steps of descent, ours against PyTorch's; weights by `to_torch`, images channels last."""
    torch = pytest.importorskip("torch")
    model = rows(layer, x)
    with torch.no_grad():
        reference.weight.copy_(torch.tensor(np.ascontiguousarray(to_torch(layer.kernel.array))))
        reference.bias.copy_(torch.tensor(layer.bias.array))
    theirs, ours = torch.optim.SGD(reference.parameters(), lr=0.01), xn.optim.SGD(0.01)
    for _ in range(3):
        tx = torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)), requires_grad=True)
        theirs.zero_grad()
        expected = reference(tx)
        (expected**2).mean().backward()
        mine = xn.Tensor(x, requires_grad=True)
        y = model(mine)
        assert y.shape[1:] == model.output_shape(x.shape[1:])
        (y * y).mean().backward()
        np.testing.assert_allclose(y.array, np.moveaxis(expected.detach().numpy(), 1, -1), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(xn.to_numpy(mine.grad), np.moveaxis(tx.grad.numpy(), 1, -1), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(layer.kernel.grad, from_torch(reference.weight.grad.numpy()), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(layer.bias.grad, reference.bias.grad.numpy(), rtol=1e-9, atol=1e-12)
        theirs.step()
        ours.step(model)
    np.testing.assert_allclose(layer.kernel.array, from_torch(reference.weight.detach().numpy()), rtol=1e-9, atol=1e-12)


@pytest.mark.torch
@given(
    N=st.integers(1, 3),
    L=st.integers(1, 9),
    K=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_conv1d_equals_pytorch(N, L, K, stride, padding, dilation, groups, seed):
    torch = pytest.importorskip("torch")
    assume(L + 2 * padding >= dilation * (K - 1) + 1)
    x = np.random.default_rng(seed).standard_normal((N, L, 2 * groups))
    layer = xn.Conv1D(3 * groups, K, stride=stride, padding=padding, dilation=dilation, groups=groups)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "dtype": torch.float64}
    reference = torch.nn.Conv1d(2 * groups, 3 * groups, K, **options)
    three_steps(layer, reference, x, lambda k: k.transpose(2, 1, 0), lambda k: k.transpose(2, 1, 0))


def _grouped(groups):
    """xpnet's (KH, KW, C/groups, O) as PyTorch's (C, O/groups, KH, KW), and back."""

    def to(k):
        KH, KW, Cg, O = k.shape
        k = k.reshape(KH, KW, Cg, groups, O // groups).transpose(3, 2, 4, 0, 1)
        return k.reshape(groups * Cg, O // groups, KH, KW)

    def back(k):
        C, Og, KH, KW = k.shape
        k = k.reshape(groups, C // groups, Og, KH, KW).transpose(3, 4, 1, 0, 2)
        return k.reshape(KH, KW, C // groups, groups * Og)

    return to, back


@pytest.mark.torch
@given(
    N=st.integers(1, 2),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    extra=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
    seed=st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_conv2d_transpose_equals_pytorch(N, size, window, stride, padding, extra, dilation, groups, seed):
    torch = pytest.importorskip("torch")
    assume(extra < stride)
    reach = [(n - 1) * stride + dilation * (k - 1) + 1 - 2 * padding + extra for n, k in zip(size, window)]
    assume(min(reach) >= 1 and min(dilation * (k - 1) + 1 - 2 * padding for k in window) >= 0)
    x = np.random.default_rng(seed).standard_normal((N, *size, 2 * groups))
    layer = xn.Conv2DTranspose(
        3 * groups, window, stride=stride, padding=padding, output_padding=extra, dilation=dilation, groups=groups
    )
    options = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation, "groups": groups}
    reference = torch.nn.ConvTranspose2d(2 * groups, 3 * groups, window, **options, dtype=torch.float64)
    three_steps(layer, reference, x, *_grouped(groups))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: xn.Conv1D(3, 3, padding="same", activation="tanh"), (6, 2)),
        (lambda: xn.Conv1D(3, 2, padding="causal", dilation=2, activation="elu"), (6, 2)),
        (lambda: xn.Conv2DTranspose(3, 3, stride=2, padding="same", activation="sigmoid"), (3, 2, 2)),
        (lambda: xn.Conv2DTranspose(3, 2, activation="gelu"), (2, 3, 2)),
    ],
)
def test_gradients_with_activations(layer, shape):
    x = np.random.default_rng(1).standard_normal((2, *shape))
    check_gradients(rows(layer(), x), [x], tolerance=1e-6)


def test_causal_outputs_see_no_later_step():
    x = np.random.default_rng(1).standard_normal((1, 8, 2))
    model = rows(xn.Conv1D(3, 3, padding="causal", dilation=2), x)
    y = model(x).array
    later = x.copy()
    later[:, 5:] += 1
    assert y.shape == (1, 8, 3)
    np.testing.assert_array_equal(model(later).array[:, :5], y[:, :5])
    assert (model(later).array[:, 5:] != y[:, 5:]).all()


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_gives_multiples_of_the_stride(stride):
    model = xn.Sequential([xn.Conv2DTranspose(2, 3, stride=stride, padding="same")], input_shape=(4, 5, 1))
    assert model.output_shape((4, 5, 1)) == (4 * stride, 5 * stride, 2)
    assert model(np.zeros((1, 4, 5, 1), np.float32)).shape == (1, 4 * stride, 5 * stride, 2)


@pytest.mark.parametrize("N", [0, 1])
@pytest.mark.parametrize(("layer", "shape"), [(xn.Conv1D(3, 2), (5, 2)), (xn.Conv2DTranspose(3, 2, stride=2), (4, 5, 2))])
def test_small_batches_and_dtype(N, layer, shape):
    model = xn.Sequential([layer], input_shape=shape)
    y = model(np.zeros((N, *shape), np.float32))
    assert y.shape == (N, *model.output_shape(shape))
    assert y.dtype == np.float32
    y.sum().backward()
    assert layer.kernel.grad.shape == layer.kernel.shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xn.Conv1D(3, 2, padding="full"), '"causal"'),
        (lambda: xn.Conv1D(3, 2, groups=2), "multiple of groups=2"),
        (lambda: rows(xn.Conv1D(3, 2), np.zeros((1, 5))), r"expected sequences \(L, C\)"),
        (lambda: rows(xn.Conv1D(3, 9), np.zeros((1, 5, 2))), "window of 9 is larger than the padded input"),
        (lambda: rows(xn.Conv2DTranspose(4, 2, groups=2), np.zeros((1, 5, 5, 3))), "3 input channels"),
        (lambda: rows(xn.Conv2DTranspose(4, 2, output_padding=1), np.zeros((1, 5, 5, 3))), "output_padding"),
        (lambda: rows(xn.Conv1D(3, 2), np.zeros((1, 5, 2))).output_shape((5, 3)), "got 3 channels"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
