import numpy as np
import pytest

import xpnet as xn
from xpnet.inspect import check_gradients

KINDS = [xn.RNN, xn.LSTM, xn.GRU]


def sequences(N=3, T=5, C=4, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((N, T, C)).astype(dtype)


def model_of(*layers, input_shape=(5, 4)):
    return xn.Sequential(layers, input_shape=input_shape, dtype="float64")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whole", [False, True])
def test_shapes_and_dtype(kind, whole):
    model = xn.Sequential([kind(6, return_sequences=whole)], input_shape=(5, 4))
    expected = (5, 6) if whole else (6,)
    assert model.output_shape((5, 4)) == expected
    for N in (0, 1, 3):
        y = model(sequences(N, dtype=np.float32))
        assert y.shape == (N, *expected)
        assert y.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights_are_drawn_gate_by_gate(kind):
    layer = model_of(kind(6))[0]
    assert layer.kernel.shape == (4, layer.gates * 6)
    blocks = np.split(layer.recurrent_kernel.array, layer.gates, axis=1)
    for block in blocks:
        np.testing.assert_allclose(block.T @ block, np.eye(6), atol=1e-12)
    assert all(not np.allclose(a, b) for i, a in enumerate(blocks) for b in blocks[:i])
    limit = np.sqrt(6 / (4 + 6))
    assert np.abs(layer.kernel.array).max() <= limit
    assert np.abs(layer.kernel.array).max() > 0.7 * limit
    forget = layer.bias.array[6:12]
    assert (forget == (1 if kind is xn.LSTM else 0)).all()
    assert np.count_nonzero(layer.bias.array) == (6 if kind is xn.LSTM else 0)


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_two_bidirectional_layers_with_lengths_equal_pytorch(kind):
    torch = pytest.importorskip("torch")
    x, lengths = sequences(), np.array([5, 2, 3])
    first = xn.Bidirectional(kind(3, return_sequences=True))
    second = xn.Bidirectional(kind(3, return_sequences=True))
    for outer, C in ((first, 4), (second, 6)):
        xn.Sequential([outer], input_shape=(5, C), dtype="float64", seed=C)
    net = getattr(torch.nn, kind.__name__)(4, 3, 2, batch_first=True, bidirectional=True, dtype=torch.float64)
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for number, both in enumerate((first, second)):
            for layer, suffix in ((both.forwards, f"l{number}"), (both.backwards, f"l{number}_reverse")):
                layer.bias.array[...] = rng.standard_normal(layer.bias.shape)
                getattr(net, f"weight_ih_{suffix}").copy_(torch.tensor(layer.kernel.array.T))
                getattr(net, f"weight_hh_{suffix}").copy_(torch.tensor(layer.recurrent_kernel.array.T))
                getattr(net, f"bias_ih_{suffix}").copy_(torch.tensor(layer.bias.array))
                getattr(net, f"bias_hh_{suffix}").zero_()
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(x), torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(net(packed)[0], batch_first=True, total_length=5)
    got = second(first(x, lengths), lengths)
    np.testing.assert_allclose(got.array, expected.detach().numpy(), rtol=1e-11, atol=1e-13)
    (expected**2).sum().backward()
    (got * got).sum().backward()
    for number, both in enumerate((first, second)):
        for layer, suffix in ((both.forwards, f"l{number}"), (both.backwards, f"l{number}_reverse")):
            np.testing.assert_allclose(
                xn.to_numpy(layer.kernel.grad).T, getattr(net, f"weight_ih_{suffix}").grad.numpy(), atol=1e-11
            )
            np.testing.assert_allclose(
                xn.to_numpy(layer.recurrent_kernel.grad).T, getattr(net, f"weight_hh_{suffix}").grad.numpy(), atol=1e-11
            )


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_three_steps_of_descent_equal_pytorch(kind):
    torch = pytest.importorskip("torch")
    x, target = sequences(), np.random.default_rng(2).standard_normal((3, 6))
    model = model_of(kind(6))
    layer = model[0]
    net = getattr(torch.nn, kind.__name__)(4, 6, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        net.weight_ih_l0.copy_(torch.tensor(layer.kernel.array.T))
        net.weight_hh_l0.copy_(torch.tensor(layer.recurrent_kernel.array.T))
        net.bias_ih_l0.copy_(torch.tensor(layer.bias.array))
        net.bias_hh_l0.zero_()
    if kind is not xn.GRU:  # two biases would learn twice as fast as one
        net.bias_hh_l0.requires_grad_(False)
    theirs = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    ours = xn.optim.SGD(0.1)
    for _ in range(3):
        theirs.zero_grad()
        y = net(torch.tensor(x))[0][:, -1]
        ((y - torch.tensor(target)) ** 2).mean().backward()
        theirs.step()
        xn.losses.mean_squared_error(model(x), target).backward()
        ours.step(model)
    np.testing.assert_allclose(layer.kernel.array.T, net.weight_ih_l0.detach().numpy(), atol=1e-13)
    np.testing.assert_allclose(layer.recurrent_kernel.array.T, net.weight_hh_l0.detach().numpy(), atol=1e-13)
    np.testing.assert_allclose(layer.bias.array, net.bias_ih_l0.detach().numpy(), atol=1e-13)
    if kind is xn.GRU:
        np.testing.assert_allclose(layer.recurrent_bias.array, net.bias_hh_l0.detach().numpy(), atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_masks_and_mask_values_agree(kind):
    x = sequences()
    lengths = np.array([5, 0, 3])
    mask = np.arange(5) < lengths[:, None]
    padded = np.where(mask[:, :, None], x, 7.0)
    layer = model_of(kind(6, return_sequences=True))[0]
    by_lengths = layer(padded, lengths).array
    np.testing.assert_array_equal(by_lengths, layer(padded, list(lengths)).array)
    np.testing.assert_array_equal(by_lengths, layer(padded, mask=mask).array)
    layer.mask_value = 7.0
    np.testing.assert_array_equal(by_lengths, layer(padded).array)
    # What stands in the padding does not matter.
    layer.mask_value = None
    np.testing.assert_array_equal(by_lengths, layer(np.where(mask[:, :, None], x, -1e3), lengths).array)


def test_stacked_layers_over_padded_symbols():
    symbols = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8], [9, 0, 0, 0, 0]])
    model = model_of(
        xn.Embedding(10, 4, padding=0),
        xn.LSTM(6, return_sequences=True, mask_value=0.0),
        xn.GRU(3, mask_value=0.0),
        input_shape=(5,),
    )
    y = model(symbols)
    np.testing.assert_allclose(y.array[0], model(symbols[:1, :3]).array[0], rtol=1e-12)
    np.testing.assert_allclose(y.array[2], model(symbols[2:, :1]).array[0], rtol=1e-12)
    y.sum().backward()
    table = model[0].table.grad
    assert not table[0].any()
    assert all(table[i].any() for i in range(1, 10))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_a_sequence_carry_the_state_and_cut_the_gradient(kind):
    x = sequences(T=6)
    layer = model_of(kind(3, stateful=True, return_sequences=True), input_shape=(6, 4))[0]
    whole = layer(x).array
    layer.reset_state()
    first = layer(x[:, :4])
    second = layer(x[:, 4:])
    np.testing.assert_allclose(np.concatenate((first.array, second.array), axis=1), whole, rtol=1e-12)

    # The gradient of the second piece is that with its first state held constant.
    layer.zero_grad()
    second.sum().backward()
    cut = layer.kernel.grad.copy()
    layer.zero_grad()
    layer.reset_state()
    tail = layer(x, state=None)[:, 4:].sum()
    tail.backward()
    assert not np.allclose(cut, layer.kernel.grad)

    layer.reset_state()
    layer(x[:, :4])
    state = [xn.Tensor(a) for a in layer.carried]
    layer.zero_grad()
    layer(x[:, 4:], state=tuple(state) if len(state) > 1 else state[0]).sum().backward()
    np.testing.assert_allclose(layer.kernel.grad, cut, rtol=1e-12)
    with pytest.raises(xn.ShapeError, match="reset_state"):
        layer(x[:1])
    xn.reset_states(layer)
    layer(x[:1])


def test_return_state_continues_with_gradient():
    x = sequences(T=6)
    layer = model_of(xn.LSTM(3, return_state=True, return_sequences=True), input_shape=(6, 4))[0]
    whole, _ = layer(x)
    whole[:, 5].sum().backward()
    expected = layer.kernel.grad.copy()
    layer.zero_grad()
    _, state = layer(x[:, :4])
    y, _ = layer(x[:, 4:], state=state)
    y[:, 1].sum().backward()
    np.testing.assert_allclose(layer.kernel.grad, expected, rtol=1e-12)


@pytest.mark.parametrize("merge", ["concat", "sum", "mean", "multiply"])
def test_bidirectional_merges(merge):
    x = sequences()
    model = model_of(xn.Bidirectional(xn.GRU(3), merge))
    both = model[0]
    a = both.forwards(x).array
    b = both.backwards(x).array
    expected = {"concat": np.concatenate((a, b), 1), "sum": a + b, "mean": (a + b) / 2, "multiply": a * b}[merge]
    np.testing.assert_allclose(model(x).array, expected, rtol=1e-14)
    assert model.output_shape((5, 4)) == expected.shape[1:]
    assert list(model.parameters())[:2] == ["0.forwards.kernel", "0.forwards.recurrent_kernel"]
    assert not np.allclose(both.forwards.kernel.array, both.backwards.kernel.array)


def test_gradients_through_a_stack():
    model = model_of(xn.Bidirectional(xn.LSTM(2, return_sequences=True)), xn.RNN(3, "relu"), xn.Dense(2))
    check_gradients(lambda x: model(x), [sequences()], tolerance=1e-6)


def test_an_lstm_remembers_the_first_symbol():
    """The first of ten numbers is 1 or -1, the rest is noise; the answer is the first."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 10, 1)).astype(np.float32) * 0.3
    y = rng.integers(0, 2, 256)
    x[:, 0, 0] = 2 * y - 1
    model = xn.Sequential([xn.LSTM(8), xn.Dense(2)], input_shape=(10, 1))
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.02), metrics=["accuracy"])
    trainer.fit((x, y), epochs=15, batch_size=32, verbose=False)
    assert trainer.evaluate((x, y))["accuracy"] > 0.99


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xn.LSTM(0), "units must be at least 1"),
        (lambda: xn.RNN(3, "softmax"), "activation must be None or one of"),
        (lambda: xn.GRU(3, stateful=True, reverse=True), "reads forwards"),
        (lambda: xn.Bidirectional(xn.GRU(3), "stack"), "merge must be one of"),
        (lambda: xn.Bidirectional(xn.GRU(3, stateful=True)), "must not be stateful"),
        (lambda: model_of(xn.LSTM(3), xn.LSTM(3)), r"layer '1' \(LSTM\).*return_sequences=True"),
        (lambda: model_of(xn.LSTM(3))(np.zeros((2, 5, 3))), "kernel has shape"),
        (lambda: model_of(xn.LSTM(3))[0](sequences(), [1, 2]), r"lengths has shape \(2,\), expected \(3,\)"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("beside", ["nothing", "lengths", "mask_value"])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 1), (), (3, 5, 1)])
def test_a_mask_is_not_broadcast(shape, beside):
    x = np.ones((3, 5, 2), np.float32)
    layer = xn.LSTM(4, mask_value=0.0 if beside == "mask_value" else None)
    lengths = np.array([5, 3, 1]) if beside == "lengths" else None
    with pytest.raises(ValueError, match=r"mask has shape .* expected \(3, 5\)"):
        layer(x, lengths, mask=np.ones(shape, bool))
