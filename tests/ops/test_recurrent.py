"""The recurrent operations against PyTorch, difference quotients and their own laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet as xn
from xpnet.inspect import check_gradients

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
STATES = {"rnn": 1, "lstm": 2, "gru": 1}


def inputs(kind, N, T, C, H, seed=0, dtype=np.float64):
    """(x, kernel, recurrent kernel, biases..., states...) of one operation."""
    rng = np.random.default_rng(seed)
    G = GATES[kind]
    shapes = [(N, T, C), (C, G * H), (H, G * H), *[(G * H,)] * (2 if kind == "gru" else 1), *[(N, H)] * STATES[kind]]
    return [(rng.standard_normal(s) * 0.7).astype(dtype) for s in shapes]


def op_of(kind):
    return getattr(xn.ops, kind)


def prefix_mask(lengths, T):
    return np.arange(T) < np.asarray(lengths)[:, None]


def torch_run(kind, arrays, reverse, lengths, activation="tanh"):
    """PyTorch's outputs and gradients of the sum of squares of all outputs, in xpnet's layout."""
    torch = pytest.importorskip("torch")
    x, kernel, recurrent, *rest = arrays
    H = recurrent.shape[0]
    options = {"nonlinearity": activation} if kind == "rnn" else {}
    # PyTorch's own backward direction is the second one of a bidirectional network.
    net = getattr(torch.nn, kind.upper())(
        x.shape[2], H, batch_first=True, bidirectional=reverse, dtype=torch.float64, **options
    )
    suffix = "_l0_reverse" if reverse else "_l0"
    biases = rest[: len(rest) - STATES[kind]]
    states = rest[len(biases) :]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        getattr(net, f"weight_ih{suffix}").copy_(torch.tensor(kernel.T))
        getattr(net, f"weight_hh{suffix}").copy_(torch.tensor(recurrent.T))
        getattr(net, f"bias_ih{suffix}").copy_(torch.tensor(biases[0]))
        if len(biases) == 2:
            getattr(net, f"bias_hh{suffix}").copy_(torch.tensor(biases[1]))
    tx = torch.tensor(x, requires_grad=True)
    ts = [torch.tensor(s, requires_grad=True) for s in states]
    first = [torch.stack([torch.zeros_like(s), s]) if reverse else s[None] for s in ts]
    packed = tx
    if lengths is not None:
        packed = torch.nn.utils.rnn.pack_padded_sequence(tx, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    y, last = net(packed, tuple(first) if kind == "lstm" else first[0])
    if lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
    outputs = [y[..., -H:], *(s[-1] for s in (last if kind == "lstm" else (last,)))]
    sum((o * o * (i + 1)).sum() for i, o in enumerate(outputs)).backward()
    gradients = [tx.grad, getattr(net, f"weight_ih{suffix}").grad.T, getattr(net, f"weight_hh{suffix}").grad.T]
    gradients.append(getattr(net, f"bias_ih{suffix}").grad)
    if len(biases) == 2:
        gradients.append(getattr(net, f"bias_hh{suffix}").grad)
    gradients += [s.grad for s in ts]
    return [o.detach().numpy() for o in outputs], [g.numpy() for g in gradients]


@pytest.mark.torch
@given(
    kind=st.sampled_from(sorted(GATES)),
    N=st.integers(1, 4),
    T=st.integers(1, 6),
    C=st.integers(1, 4),
    H=st.integers(1, 4),
    reverse=st.booleans(),
    activation=st.sampled_from(["tanh", "relu"]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_equals_pytorch(kind, N, T, C, H, reverse, activation, data):
    lengths = data.draw(st.none() | st.lists(st.integers(1, T), min_size=N, max_size=N))
    arrays = inputs(kind, N, T, C, H, seed=data.draw(st.integers(0, 99)))
    expected, expected_gradients = torch_run(kind, arrays, reverse, lengths, activation)
    tensors = [xn.Tensor(a, requires_grad=True) for a in arrays]
    options = {"activation": activation} if kind == "rnn" else {}
    mask = None if lengths is None else prefix_mask(lengths, T)
    outputs = op_of(kind)(*tensors, mask, reverse=reverse, **options)
    sum((o * o * (i + 1)).sum() for i, o in enumerate(outputs)).backward()
    for got, want in zip(outputs, expected):
        np.testing.assert_allclose(got.array, want, rtol=1e-10, atol=1e-12)
    for tensor, want in zip(tensors, expected_gradients):
        np.testing.assert_allclose(xn.to_numpy(tensor.grad), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(kind, reverse, masked):
    arrays = inputs(kind, 3, 4, 2, 3)
    # Not only at the end: a mask may have holes.
    mask = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=bool) if masked else None
    check_gradients(lambda *a: op_of(kind)(*a, mask, reverse=reverse), arrays, tolerance=1e-7)


@pytest.mark.parametrize("kind", GATES)
def test_a_sequence_in_two_halves(kind):
    arrays = inputs(kind, 2, 6, 3, 4)
    x, weights, states = arrays[0], arrays[1 : -STATES[kind]], arrays[-STATES[kind] :]
    whole = op_of(kind)(x, *weights, *states)
    first = op_of(kind)(x[:, :4], *weights, *states)
    second = op_of(kind)(x[:, 4:], *weights, *first[1:])
    np.testing.assert_array_equal(np.concatenate((first[0], second[0]), axis=1), whole[0])
    for a, b in zip(second[1:], whole[1:]):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", GATES)
def test_reverse_is_the_flipped_sequence(kind):
    arrays = inputs(kind, 2, 5, 3, 4)
    backwards = op_of(kind)(*arrays, reverse=True)
    flipped = op_of(kind)(arrays[0][:, ::-1], *arrays[1:])
    np.testing.assert_array_equal(backwards[0], flipped[0][:, ::-1])
    np.testing.assert_array_equal(backwards[1], flipped[1])


@pytest.mark.parametrize("kind", GATES)
def test_masked_steps_change_nothing(kind):
    arrays = inputs(kind, 2, 5, 3, 4)
    mask = prefix_mask([3, 0], 5)
    y, h, *_ = op_of(kind)(*arrays, mask)
    short, last, *_ = op_of(kind)(arrays[0][:, :3], *arrays[1:])
    np.testing.assert_allclose(y[0, :3], short[0], rtol=1e-12)
    np.testing.assert_allclose(h[0], last[0], rtol=1e-12)
    assert not y[0, 3:].any()
    assert not y[1].any()
    np.testing.assert_array_equal(h[1], arrays[-STATES[kind]][1])


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("N", [0, 1])
def test_small_batches_and_dtype(kind, N):
    arrays = inputs(kind, N, 3, 2, 4, dtype=np.float32)
    for a in arrays:
        a.flags.writeable = False
    tensors = [xn.Tensor(a, requires_grad=True) for a in arrays]
    outputs = op_of(kind)(*tensors)
    assert [o.shape for o in outputs] == [(N, 3, 4)] + [(N, 4)] * STATES[kind]
    sum(o.sum() for o in outputs).backward()
    assert all(o.dtype == np.float32 for o in outputs)
    assert all(xn.to_numpy(t.grad).dtype == np.float32 and xn.to_numpy(t.grad).shape == t.shape for t in tensors)


@pytest.mark.parametrize("kind", GATES)
def test_runs_under_the_standard_alone(kind):
    strict = pytest.importorskip("array_api_strict")
    arrays = inputs(kind, 2, 3, 2, 3)
    mask = prefix_mask([3, 1], 3)
    expected = op_of(kind)(*arrays, mask)
    tensors = [xn.Tensor(strict.asarray(a), requires_grad=True) for a in arrays]
    outputs = op_of(kind)(*tensors, strict.asarray(mask))
    sum(o.sum() for o in outputs).backward()
    for got, want in zip(outputs, expected):
        np.testing.assert_allclose(np.asarray(got.array._array), want, rtol=1e-12)
    assert all(xn.to_numpy(t.grad).shape == t.shape for t in tensors)


def test_long_lstm_gates_saturate_without_overflow():
    x = np.full((1, 3, 1), 1e4, dtype=np.float32)
    y, h, c = xn.ops.lstm(x, np.ones((1, 8), np.float32), np.ones((2, 8), np.float32))
    np.testing.assert_allclose(c[0], 3.0)
    np.testing.assert_allclose(h[0], np.tanh(3.0), rtol=1e-6)
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: np.zeros((2, 5))}, r"lstm: x has shape \(2, 5\), expected sequences"),
        ({0: np.zeros((2, 0, 3))}, "at least one step"),
        ({1: np.zeros((3, 12))}, r"kernel has shape \(3, 12\), expected \(3, 16\)"),
        ({3: np.zeros(4)}, r"bias has shape \(4,\), expected \(16,\)"),
        ({4: np.zeros((1, 4))}, r"h has shape \(1, 4\), expected \(2, 4\)"),
        ({6: np.ones((2, 4), bool)}, r"mask has shape \(2, 4\), expected \(2, 5\)"),
    ],
)
def test_wrong_shapes(change, message):
    arrays = [*inputs("lstm", 2, 5, 3, 4), np.ones((2, 5), bool)]
    for place, array in change.items():
        arrays[place] = array
    with pytest.raises(xn.ShapeError, match=message):
        xn.ops.lstm(*arrays)


@pytest.mark.parametrize("kind", GATES)
def test_a_state_that_is_not_finite_reaches_no_gradient_of_masked_steps(kind):
    arrays = inputs(kind, 3, 4, 2, 5)
    first = len(arrays) - STATES[kind]
    for state in arrays[first:]:
        state[1] = np.nan
    mask = np.ones((3, 4), bool)
    mask[1] = False
    tensors = [xn.Tensor(a, requires_grad=True) for a in arrays]
    y, *_ = op_of(kind)(*tensors, mask)
    (y * y).sum().backward()
    gradients = [np.asarray(tensor.grad) for tensor in (*tensors[:2], *tensors[3:first])]
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not gradients[0][1].any()


# -- on a GPU --


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("given", ["bias", "states", "mask", "everything", "nothing"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 4, 7), (70, 2, 3, 33)])
@pytest.mark.parametrize("kind", GATES)
def test_those_of_a_gpu_are_the_reference(kind, dtype, reverse, given, shape):
    from tests.gpu import on_gpu

    N, T, C, H = shape
    arrays = inputs(kind, N, T, C, H)
    first = len(arrays) - STATES[kind]
    mask = np.random.default_rng(1).random((N, T)) < 0.7
    biases = arrays[3:first] if given in ("bias", "everything") else [None] * (first - 3)
    states = arrays[first:] if given in ("states", "everything") else [None] * STATES[kind]
    rest = [*biases, *states, mask if given in ("mask", "everything") else None]
    weights = [np.random.default_rng(2).standard_normal(s) for s in ((N, T, H), *[(N, H)] * STATES[kind])]

    def run(convert, back):
        given = [None if a is None else xn.Tensor(convert(a), requires_grad=a is not mask) for a in (*arrays[:3], *rest)]
        outputs = op_of(kind)(*given, reverse=reverse)
        sum((xn.ops.multiply(o, convert(w))).sum() for o, w in zip(outputs, weights)).backward()
        return [back(v) for v in (*(o.array for o in outputs), *(t.grad for t in given if t is not None and t.requires_grad))]

    expected = run(lambda a: a, np.asarray)
    with on_gpu() as gpu:
        import cupy

        made = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        found = run(lambda a: cupy.asarray(a if a is mask else a.astype(made)), lambda a: gpu.numpy(a).astype(np.float64))
        for name in (f"{kind}_step<", f"{kind}_step_backward<"):
            assert sum(launched.startswith(name) for launched in gpu.launches) == T
    tolerance = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-2, "bfloat16": 1.5e-1}[dtype]  # a few roundings a step
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * max(1, abs(other).max()))


@pytest.mark.cuda
@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
def test_activations_of_the_simple_network_on_a_gpu(activation):
    from tests.gpu import on_gpu

    arrays = inputs("rnn", 3, 4, 2, 5)

    def run(convert):
        given = [xn.Tensor(convert(a), requires_grad=True) for a in arrays]
        y, _ = xn.ops.rnn(*given, activation=activation)
        (y * y).sum().backward()
        return [y.array, *(t.grad for t in given)]

    expected = run(np.asarray)
    with on_gpu() as gpu:
        for one, other in zip(run(gpu.array), expected, strict=True):
            np.testing.assert_allclose(gpu.numpy(one), other, rtol=1e-11, atol=1e-11)


@pytest.mark.cuda
@pytest.mark.parametrize("shared", ["rows", "columns", "negative"])
@pytest.mark.parametrize("kind", GATES)
def test_those_of_a_gpu_take_views(kind, shared):
    from tests.gpu import on_gpu

    arrays = inputs(kind, 3, 5, 4, 7)
    view = {"rows": lambda a: np.repeat(a, 2, 0)[::2], "columns": lambda a: np.repeat(a, 2, -1)[..., ::2],
            "negative": lambda a: np.ascontiguousarray(a[::-1])[::-1]}[shared]  # fmt: skip
    expected = op_of(kind)(*arrays)
    with on_gpu() as gpu:
        found = op_of(kind)(*(gpu.array(view(a)) for a in arrays))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(gpu.numpy(one), other, rtol=1e-12, atol=1e-12)
