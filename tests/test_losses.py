import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet as xn
from xpnet import losses
from xpnet.inspect import check_gradients

RNG = np.random.default_rng(0)


def torch_losses():
    """Per name: (prediction, target) -> PyTorch's terms, before they are reduced."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    signs = lambda y: torch.where(y > 0, 1.0, -1.0)  # noqa: E731
    return {
        "softmax_cross_entropy": lambda p, y: F.cross_entropy(p, y, reduction="none"),
        "negative_log_likelihood": lambda p, y: F.nll_loss(p, y, reduction="none"),
        "hinge": lambda p, y: F.multi_margin_loss(p, y, reduction="none") * p.shape[1],
        "squared_hinge": lambda p, y: F.multi_margin_loss(p, y, p=2, reduction="none") * p.shape[1],
        "sigmoid_cross_entropy": lambda p, y: F.binary_cross_entropy_with_logits(p, y, reduction="none"),
        "attribute_logistic": lambda p, y: F.binary_cross_entropy_with_logits(p, y, reduction="none").sum(-1),
        "attribute_hinge": lambda p, y: F.relu(1 - p * signs(y)).sum(-1),
        "mean_squared_error": lambda p, y: F.mse_loss(p, y, reduction="none"),
        "half_squared_error": lambda p, y: F.mse_loss(p, y, reduction="none") / 2,
        "quadratic_cost": lambda p, y: F.mse_loss(p, y, reduction="none").sum(-1) / 2,
        "mean_absolute_error": lambda p, y: F.l1_loss(p, y, reduction="none"),
        "huber": lambda p, y: F.huber_loss(p, y, reduction="none"),
        "contrastive": lambda p, y: _contrastive(torch, p, y),
        "triplet": lambda p, y: F.triplet_margin_loss(p[:, 0], p[:, 1], p[:, 2], eps=0.0, reduction="none"),
    }


def _contrastive(torch, p, y):
    d = (p[:, 0] - p[:, 1]).norm(dim=1)
    return torch.where(y > 0, d**2, torch.relu(1 - d) ** 2) / 2


CLASSES = ("softmax_cross_entropy", "negative_log_likelihood", "hinge", "squared_hinge")
BINARY = ("sigmoid_cross_entropy", "attribute_logistic", "attribute_hinge")
NAMES = sorted({f.__name__ for f in losses.NAMES.values()})


def example(name, N=4, K=3, seed=0):
    """A prediction and a target that suit the loss, float64."""
    rng = np.random.default_rng(seed)
    if name in CLASSES:
        return rng.standard_normal((N, K)) * 2, rng.integers(0, K, N)
    if name in BINARY:
        return rng.standard_normal((N, K)) * 2, rng.integers(0, 2, (N, K)).astype(float)
    if name == "contrastive":
        return rng.standard_normal((N, 2, K)), rng.integers(0, 2, N)
    if name == "triplet":
        return rng.standard_normal((N, 3, K)), np.zeros(N)
    return rng.standard_normal((N, K)) * 2, rng.standard_normal((N, K))


def test_every_loss_is_compared():
    pytest.importorskip("torch")
    assert set(NAMES) == set(torch_losses())
    assert all(losses.get(name) is function for name, function in losses.NAMES.items())
    assert all(losses.get(name).__name__ == name for name in NAMES)


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@given(N=st.integers(1, 5), K=st.integers(2, 5), seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_equals_pytorch(name, reduction, N, K, seed):
    torch = pytest.importorskip("torch")
    p, y = example(name, N, K, seed)
    tp = torch.tensor(p, requires_grad=True)
    terms = torch_losses()[name](tp, torch.tensor(y))
    expected = {"mean": terms.mean, "sum": terms.sum, "none": lambda: terms}[reduction]()
    (expected**2).sum().backward()
    mine = xn.Tensor(p, requires_grad=True)
    loss = losses.get(name)(mine, y, reduction=reduction)
    (loss * loss).sum().backward()
    assert loss.shape == tuple(expected.shape)
    np.testing.assert_allclose(loss.array, expected.detach().numpy(), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(xn.to_numpy(mine.grad), tp.grad.numpy(), rtol=1e-10, atol=1e-12)
    # Native arrays in, a native array out.
    np.testing.assert_array_equal(losses.get(name)(p, y, reduction=reduction), loss.array)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    p, y = example(name)
    check_gradients(lambda t: losses.get(name)(t, y), [p], tolerance=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("N", [0, 1, 3])
def test_dtype_and_empty_batches(name, reduction, N):
    p, y = example(name, N)
    mine = xn.Tensor(p.astype(np.float32), requires_grad=True)
    y = y if y.dtype.kind == "i" else y.astype(np.float64)  # a wider target does not widen the loss
    y.flags.writeable = False
    if N == 0 and reduction == "mean":
        with pytest.raises(ValueError, match=f"{name}: the mean of an empty batch is not defined"):
            losses.get(name)(mine, y, reduction=reduction)
        return
    loss = losses.get(name)(mine, y, reduction=reduction)
    loss.sum().backward()
    assert loss.dtype == xn.to_numpy(mine.grad).dtype == np.float32
    assert np.isfinite(loss.array).all()
    if N == 0:
        assert not loss.array.any()


@pytest.mark.parametrize("name", [n for n in NAMES if n not in CLASSES and n != "triplet"])
def test_integer_and_boolean_targets_keep_the_dtype(name):
    p, y = example(name)
    p = p.astype(np.float32)
    hard = y > 0
    expected = losses.get(name)(p, hard.astype(np.float32))
    for kind in (np.int64, np.uint8, bool):
        loss = losses.get(name)(p, hard.astype(kind))
        assert loss.dtype == np.float32
        np.testing.assert_array_equal(loss, expected)


@pytest.mark.parametrize("name", NAMES)
def test_runs_under_the_standard_alone(name):
    strict = pytest.importorskip("array_api_strict")
    p, y = example(name)
    mine = xn.Tensor(strict.asarray(p), requires_grad=True)
    loss = losses.get(name)(mine, strict.asarray(y))
    loss.backward()
    np.testing.assert_allclose(float(loss.array), losses.get(name)(p, y), rtol=1e-12)
    assert xn.to_numpy(mine.grad).shape == p.shape


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-1e4, -800.0, -50.0, 0.0, 50.0, 800.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logistic_loss_of_large_logits(label, logit, dtype):
    x = xn.Tensor(np.array([logit], dtype), requires_grad=True)
    loss = losses.sigmoid_cross_entropy(x, np.array([label]))
    loss.backward()
    away = logit if label == 0 else -logit  # log(1 + exp(away))
    expected = away if away > 100 else math.log1p(math.exp(away))
    np.testing.assert_allclose(loss.array, expected, rtol=1e-6 if dtype == np.float32 else 1e-14, atol=1e-40)
    slope = 1.0 if away > 100 else 0.0 if away < -100 else 1 / (1 + math.exp(-away))
    np.testing.assert_allclose(xn.to_numpy(x.grad), [slope * (1 - 2 * label)], rtol=1e-6, atol=1e-15)


def test_numbers_of_the_linear_classification_text():
    """Scores 13, -7, 11 of which the first is right, with a margin of 10; and the three pictures of the lecture."""
    assert losses.hinge(np.array([[13.0, -7.0, 11.0]]), np.array([0]), margin=10) == 8
    scores = np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])
    terms = losses.hinge(scores, np.array([0, 1, 2]), reduction="none")
    np.testing.assert_allclose(terms, [2.9, 0, 12.9])
    np.testing.assert_allclose(losses.squared_hinge(scores[:1], np.array([0])), 2.9**2)
    one_hot = np.eye(3)
    np.testing.assert_array_equal(losses.hinge(scores, one_hot, reduction="none"), terms)


def test_attribute_labels_of_both_conventions():
    scores, y = example("attribute_hinge")
    np.testing.assert_array_equal(losses.attribute_hinge(scores, y), losses.attribute_hinge(scores, 2 * y - 1))
    assert losses.attribute_hinge(np.array([[0.5, -2.0]]), np.array([[1, 0]])) == 0.5


def test_quadratic_cost_is_the_textbooks():
    a, y = np.array([[0.75136507, 0.772928465]]), np.array([[0.01, 0.99]])
    np.testing.assert_allclose(losses.quadratic_cost(a, y), 0.298371109, rtol=1e-8)
    np.testing.assert_allclose(losses.half_squared_error(a, y, reduction="sum"), 0.298371109, rtol=1e-8)
    np.testing.assert_allclose(losses.half_squared_error(a, y, reduction="none")[0], [0.274811083, 0.023560026], rtol=1e-7)
    a, y = RNG.standard_normal((5, 2, 3)), RNG.standard_normal((5, 2, 3))
    np.testing.assert_allclose(losses.quadratic_cost(a, y), ((a - y) ** 2).sum() / 10)
    np.testing.assert_allclose(losses.quadratic_cost(a[:, 0, 0], y[:, 0, 0]), ((a - y)[:, 0, 0] ** 2).sum() / 10)


def test_negative_log_likelihood_of_probabilities_and_impossible_classes():
    p = np.array([[0.5, 0.5, 0.0]])
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    mine = xn.Tensor(log_p, requires_grad=True)
    with np.errstate(invalid="ignore"):
        loss = losses.negative_log_likelihood(mine, np.array([[0.25, 0.75, 0.0]]))
        loss.backward()
    np.testing.assert_allclose(loss.array, math.log(2))
    np.testing.assert_allclose(xn.to_numpy(mine.grad), [[-0.25, -0.75, 0]])


@pytest.mark.torch
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_equals_pytorch(smoothing):
    torch = pytest.importorskip("torch")
    p, y = example("softmax_cross_entropy")
    expected = torch.nn.functional.cross_entropy(torch.tensor(p), torch.tensor(y), label_smoothing=smoothing)
    np.testing.assert_allclose(losses.softmax_cross_entropy(p, y, label_smoothing=smoothing), expected, rtol=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("delta", [0.1, 1.0, 3.0])
def test_huber_deltas_equal_pytorch(delta):
    torch = pytest.importorskip("torch")
    p, y = example("huber", 20)
    expected = torch.nn.functional.huber_loss(torch.tensor(p), torch.tensor(y), delta=delta)
    np.testing.assert_allclose(losses.huber(p, y, delta=delta), expected, rtol=1e-12)


def test_equal_embeddings_have_a_finite_gradient():
    e = np.ones((2, 3, 4))
    cases: tuple[tuple[Any, Any], ...] = ((losses.contrastive, np.array([1, 0])), (losses.triplet, None))
    for loss, target in cases:
        t = xn.Tensor(e[:, :2] if target is not None else e, requires_grad=True)
        loss(t, target).backward()
        assert np.isfinite(xn.to_numpy(t.grad)).all()


def test_a_siamese_pair_shares_its_weights():
    """Two images of one network: its gradient is the sum over both uses."""
    net = xn.Sequential([xn.Dense(4, "tanh"), xn.Dense(2)], input_shape=(3,), dtype="float64")
    a, b = RNG.standard_normal((2, 6, 3))
    same = np.array([1, 0, 1, 0, 1, 0])

    def cost(kernel):
        net[0].kernel.array[...] = kernel
        return losses.contrastive(xn.ops.stack([net(a), net(b)], axis=1), same)

    kernel = net[0].kernel.array.copy()
    cost(kernel).backward()
    step = np.zeros_like(kernel)
    step[1, 2] = 1e-6
    numeric = (float(cost(kernel + step).array) - float(cost(kernel - step).array)) / 2e-6
    np.testing.assert_allclose(net[0].kernel.grad[1, 2], numeric, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.get("l3"), "unknown loss 'l3': expected a function or one of softmax_cross_entropy"),
        (lambda: losses.huber(np.zeros(3), np.zeros(3), delta=0), "delta must be above 0"),
        (lambda: losses.mean_absolute_error(np.zeros((3, 1)), np.zeros(3)), r"use target.reshape\(3, 1\)"),
        (lambda: losses.sigmoid_cross_entropy(np.zeros((3, 1)), np.zeros(4)), "reshape one of them"),
        (lambda: losses.hinge(np.zeros((3, 2)), np.array([0, 1, 2])), "hinge: labels run from 0 to 2"),
        (lambda: losses.hinge(np.zeros((3, 2)), np.array([[0], [1], [1]])), r"integer labels have shape \(3, 1\)"),
        (lambda: losses.huber(np.zeros(3), np.zeros(3), reduction="max"), '"mean", "sum" or "none"'),
        (lambda: losses.contrastive(np.zeros((3, 2)), np.zeros(3)), r"expected \(N, 2, D\)"),
        (lambda: losses.contrastive(np.zeros((3, 2, 2)), np.zeros(2)), r"expected \(3,\)"),
        (lambda: losses.triplet(np.zeros((3, 2, 2))), r"expected \(N, 3, D\)"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("loss", "prediction", "target", "expected"), [
    (losses.half_squared_error, [[300.0, 0.0]], [[0.0, 0.0]], 22500.0),
    (losses.quadratic_cost, [[300.0, 0.0]], [[0.0, 0.0]], 45000.0),
    (losses.mean_squared_error, [[300.0, 0.0]], [[0.0, 0.0]], 45000.0),
    (losses.huber, [[300.0, 0.0]], [[0.0, 0.0]], 149.75),
    (losses.triplet, [[[0.0] * 4, [200.0] * 4, [150.0] * 4]], None, 101.0),
    (losses.contrastive, [[[0.0] * 4, [100.0] * 4]], [1], 20000.0),
])  # fmt: skip
def test_16_bit_losses_are_finite_where_the_result_is(loss: Any, prediction: Any, target: Any, expected: float):
    x: Any = xn.Tensor(np.array(prediction, np.float16), requires_grad=True)
    y = loss(x, None if target is None else np.array(target, np.float16))
    y.backward()
    assert y.array.dtype == np.float16
    np.testing.assert_allclose(float(y), expected, rtol=1e-3)
    assert x.grad.dtype == np.float16
    assert np.isfinite(x.grad).all()
