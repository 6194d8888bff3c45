import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet as xn


@pytest.mark.torch
@given(V=st.integers(1, 6), D=st.integers(1, 4), shape=st.lists(st.integers(1, 3), min_size=1, max_size=3), data=st.data())
@settings(max_examples=15, deadline=None)
def test_equals_pytorch(V, D, shape, data):
    torch = pytest.importorskip("torch")
    padding = data.draw(st.none() | st.integers(0, V - 1))
    indices = np.random.default_rng(V).integers(0, V, shape)
    layer = xn.Embedding(V, D, padding=padding, initializer="normal")
    model = xn.Sequential([layer], input_shape=shape[1:], dtype="float64")
    reference = torch.nn.Embedding(V, D, padding_idx=padding, dtype=torch.float64)
    with torch.no_grad():
        reference.weight.copy_(torch.tensor(layer.table.array))
        if padding is not None:
            reference.weight[padding] = 0
    dy = np.random.default_rng(1).standard_normal((*shape, D))
    theirs, ours = torch.optim.SGD(reference.parameters(), lr=0.1), xn.optim.SGD(0.1)
    for _ in range(3):
        theirs.zero_grad()
        expected = reference(torch.tensor(indices))
        expected.backward(torch.tensor(dy))
        y = model(indices)
        y.backward(dy)
        np.testing.assert_allclose(y.array, expected.detach().numpy(), atol=1e-14)
        np.testing.assert_allclose(xn.to_numpy(layer.table.grad), reference.weight.grad.numpy(), atol=1e-14)
        theirs.step()
        ours.step(model)
    assert model.output_shape(tuple(shape[1:])) == (*shape[1:], D)


def test_dtypes_and_empty_batches():
    model = xn.Sequential([xn.Embedding(5, 3, padding=0)], input_shape=(4,))
    for dtype in (np.int32, np.int64, np.uint8):
        y = model(np.ones((2, 4), dtype))
        assert y.dtype == np.float32
        assert y.shape == (2, 4, 3)
    assert model(np.zeros((0, 4), np.int64)).shape == (0, 4, 3)
    assert not model(np.zeros((1, 4), np.int64)).array.any()


def test_mistakes():
    with pytest.raises(ValueError, match="padding must be one of the symbols"):
        xn.Embedding(5, 3, padding=5)
    model = xn.Sequential([xn.Embedding(5, 3)], input_shape=(4,))
    with pytest.raises(ValueError, match="indices run from 1 to 7"):
        model(np.array([[1, 2, 3, 7]]))
    with pytest.raises(ValueError, match=r"layer '0' \(Embedding\).*expected integers"):
        model(np.zeros((1, 4), np.float32))
