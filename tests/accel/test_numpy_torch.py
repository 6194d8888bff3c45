"""Operations of the sizes of real networks against PyTorch in float64."""

import numpy as np
import pytest

from xpnet import Tensor, ops

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("force_threads")]


def to_torch(array):
    import torch

    array = array.astype(np.float64)
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy() if array.ndim == 4 else array).requires_grad_(True)


def to_numpy(tensor):
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def close(ours, theirs, tolerance):
    for name, got, want in zip(("y", *(f"gradient {i}" for i in range(9))), ours, theirs):
        assert got.dtype == np.float32, name
        assert np.abs(got - want).max() <= tolerance * np.abs(want).max(), name


@pytest.mark.parametrize(
    ("shape", "kernel", "settings"),
    [
        ((4, 32, 32, 64), (3, 3, 64, 64), {"padding": 1}),
        ((4, 8, 8, 256), (3, 3, 256, 128), {"padding": 1}),
        ((4, 14, 14, 32), (5, 5, 32, 64), {"padding": 2}),
        ((4, 32, 32, 3), (3, 3, 3, 64), {"padding": 1}),
        ((4, 32, 32, 16), (3, 3, 16, 32), {"padding": 1, "stride": 2}),
        ((4, 20, 20, 32), (3, 3, 32, 32), {"padding": 2, "dilation": 2}),
        ((4, 16, 16, 32), (3, 3, 8, 64), {"padding": 1, "groups": 4}),
        ((4, 16, 16, 32), (3, 3, 1, 32), {"padding": 1, "groups": 32}),
        ((4, 16, 16, 32), (1, 1, 32, 64), {}),
    ],
)
def test_conv2d(shape, kernel, settings):
    import torch

    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    k = (rng.standard_normal(kernel) / np.sqrt(np.prod(kernel[:3]))).astype(np.float32)
    b = rng.standard_normal(kernel[3]).astype(np.float32)
    tensors = [Tensor(a, requires_grad=True) for a in (x, k, b)]
    y = ops.conv2d(*tensors, **settings)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    y.backward(dy)
    tx, tb = to_torch(x), to_torch(b)
    tk = torch.from_numpy(k.transpose(3, 2, 0, 1).astype(np.float64)).requires_grad_(True)
    ty = torch.nn.functional.conv2d(tx, tk, tb, **settings)
    ty.backward(to_torch(dy).detach())
    theirs = [to_numpy(ty), to_numpy(tx.grad), tk.grad.numpy().transpose(2, 3, 1, 0), tb.grad.numpy()]
    close([y.array, *(t.grad for t in tensors)], theirs, 3e-5)


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)])
def test_max_pool2d(window, stride, padding):
    import torch

    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 29, 31, 24)).astype(np.float32)
    tensor = Tensor(x, requires_grad=True)
    y = ops.max_pool2d(tensor, window, stride=stride, padding=padding)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    y.backward(dy)
    tx = to_torch(x)
    ty = torch.nn.functional.max_pool2d(tx, window, stride, padding)
    ty.backward(to_torch(dy).detach())
    close([y.array, tensor.grad], [to_numpy(ty), to_numpy(tx.grad)], 1e-6)


def test_batch_norm():
    import torch

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((16, 12, 12, 32), (32,), (32,))]
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    y = ops.batch_norm(*tensors)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    y.backward(dy)
    tx, scale, offset = (to_torch(a) for a in arrays)
    ty = torch.nn.functional.batch_norm(tx, None, None, scale, offset, training=True)
    ty.backward(to_torch(dy).detach())
    theirs = [to_numpy(ty), to_numpy(tx.grad), scale.grad.numpy(), offset.grad.numpy()]
    close([y.array, *(t.grad for t in tensors)], theirs, 2e-5)


@pytest.mark.parametrize("shape", [(128, 10), (500, 3000)])
def test_softmax_cross_entropy(shape):
    import torch

    rng = np.random.default_rng(0)
    x = (5 * rng.standard_normal(shape)).astype(np.float32)
    labels = rng.integers(0, shape[1], shape[0])
    tensor = Tensor(x, requires_grad=True)
    y = ops.softmax_cross_entropy(tensor, labels)
    y.backward()
    tx = to_torch(x)
    ty = torch.nn.functional.cross_entropy(tx, torch.from_numpy(labels))
    ty.backward()
    close([y.array, tensor.grad], [ty.detach().numpy(), tx.grad.numpy()], 2e-6)
