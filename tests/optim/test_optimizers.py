"""Every optimizer against PyTorch's, or against a loop over single numbers where PyTorch has none."""

import copy
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet as xn
from xpnet.ops.updates.rule import Rule

SHAPES = [(3, 2), (5,), (2, 1, 2)]


def pairs():
    """Per name: ours, and the arguments of PyTorch's."""
    o = xn.optim
    return {
        "sgd": (lambda **k: o.SGD(0.1, **k), "SGD", {"lr": 0.1}),
        "momentum": (lambda **k: o.SGD(0.1, 0.9, **k), "SGD", {"lr": 0.1, "momentum": 0.9}),
        "nesterov": (lambda **k: o.SGD(0.1, 0.9, True, **k), "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        "inertia": (
            lambda **k: o.SGD(0.1, 0.8, form="inertia", **k),
            "SGD",
            {"lr": 0.1, "momentum": 0.8, "dampening": 0.8},
        ),
        "adagrad": (lambda **k: o.Adagrad(0.1, **k), "Adagrad", {"lr": 0.1}),
        "adagrad from 1": (
            lambda **k: o.Adagrad(0.1, initial=1.0, **k),
            "Adagrad",
            {"lr": 0.1, "initial_accumulator_value": 1.0},
        ),
        "rmsprop": (lambda **k: o.RMSprop(0.01, 0.95, **k), "RMSprop", {"lr": 0.01, "alpha": 0.95}),
        "rmsprop centered": (
            lambda **k: o.RMSprop(0.01, 0.9, centered=True, **k),
            "RMSprop",
            {"lr": 0.01, "alpha": 0.9, "centered": True},
        ),
        "rmsprop momentum": (
            lambda **k: o.RMSprop(0.01, 0.9, momentum=0.5, **k),
            "RMSprop",
            {"lr": 0.01, "alpha": 0.9, "momentum": 0.5},
        ),
        "rmsprop centered momentum": (
            lambda **k: o.RMSprop(0.01, 0.9, centered=True, momentum=0.5, **k),
            "RMSprop",
            {"lr": 0.01, "alpha": 0.9, "centered": True, "momentum": 0.5},
        ),
        "adam": (lambda **k: o.Adam(0.01, **k), "Adam", {"lr": 0.01}),
        "adam betas": (
            lambda **k: o.Adam(0.01, 0.5, 0.6, 1e-3, **k),
            "Adam",
            {"lr": 0.01, "betas": (0.5, 0.6), "eps": 1e-3},
        ),
        "amsgrad": (lambda **k: o.Adam(0.01, amsgrad=True, **k), "Adam", {"lr": 0.01, "amsgrad": True}),
        "adamw": (lambda **k: o.AdamW(0.01, **{"weight_decay": 0.0, **k}), "AdamW", {"lr": 0.01}),
        "adamw amsgrad": (
            lambda **k: o.AdamW(0.01, amsgrad=True, **{"weight_decay": 0.0, **k}),
            "AdamW",
            {"lr": 0.01, "amsgrad": True},
        ),
        "nadam": (lambda **k: o.Nadam(0.01, **k), "NAdam", {"lr": 0.01}),
        "nadam decay": (
            lambda **k: o.Nadam(0.01, momentum_decay=0.1, **k),
            "NAdam",
            {"lr": 0.01, "momentum_decay": 0.1},
        ),
        "adamax": (lambda **k: o.Adamax(0.01, **k), "Adamax", {"lr": 0.01}),
        "rprop": (lambda **k: o.Rprop(0.01, **k), "Rprop", {"lr": 0.01}),
        "rprop limits": (
            lambda **k: o.Rprop(0.1, 1.5, 0.3, 0.05, 0.2, **k),
            "Rprop",
            {"lr": 0.1, "etas": (0.3, 1.5), "step_sizes": (0.05, 0.2)},
        ),
    }  # fmt: skip


NAMES = sorted(pairs())


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 999), steps=st.integers(3, 6), decay=st.sampled_from([0.0, 0.1]))
@settings(max_examples=6, deadline=None)
def test_equals_pytorch(name, seed, steps, decay):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    make, kind, options = pairs()[name]
    if "rprop" in name and decay:
        return  # PyTorch's has none
    values = [rng.standard_normal(s) for s in SHAPES]
    mine = [xn.Parameter(v.copy()) for v in values]
    theirs = [torch.nn.Parameter(torch.tensor(v)) for v in values]
    optimizer = make(weight_decay=decay)
    reference = getattr(torch.optim, kind)(theirs, **options, **({} if "rprop" in name else {"weight_decay": decay}))
    if name == "inertia":  # PyTorch begins with the first gradient where the formula begins with 0
        for p in theirs:
            reference.state[p]["momentum_buffer"] = torch.zeros_like(p)
    for _ in range(steps):
        for p, t in zip(mine, theirs):
            gradient = rng.standard_normal(p.shape) + 0.3
            p.grad = gradient.copy()
            t.grad = torch.tensor(gradient)
        optimizer.step(mine)
        reference.step()
    # PyTorch keeps the product of NAdam's momenta in float32.
    tolerance = 1e-7 if "nadam" in name else 1e-11
    for p, t in zip(mine, theirs):
        np.testing.assert_allclose(xn.to_numpy(p.array), t.detach().numpy(), rtol=tolerance, atol=tolerance / 100)
        assert p.grad is None


def quickprop_loop(w, gradients, learning_rate, growth):
    """Fahlman's algorithm for one weight, case by case."""
    step = slope = 0.0
    for gradient in gradients:
        g = gradient(w)
        limit = growth / (1 + growth) * slope
        if step == 0:
            new = -learning_rate * g
        else:
            toward = (g < 0) == (step > 0) and g != 0
            new = -learning_rate * g if toward else 0.0
            if (g <= limit) if step > 0 else (g >= limit):
                new += growth * step
            else:
                new += step * g / (slope - g)
        w, step, slope = w + new, new, g
    return w


@given(start=st.floats(-3, 3), seed=st.integers(0, 99), steps=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_quickprop_equals_the_algorithm_case_by_case(start, seed, steps):
    noise = np.random.default_rng(seed).standard_normal(steps)
    gradients = [lambda w, n=n: math.sin(w) + 0.1 * w + n for n in noise]
    p = xn.Parameter(np.array([start]))
    optimizer = xn.optim.Quickprop(0.05)
    for gradient in gradients:
        p.grad = np.array([gradient(p.array[0])])
        optimizer.step([p])
    np.testing.assert_allclose(xn.to_numpy(p.array[0]), quickprop_loop(start, gradients, 0.05, 1.75), rtol=1e-9, atol=1e-11)


def test_quickprop_jumps_to_the_bottom_of_a_parabola():
    w = xn.Parameter(np.array([3.0, -2.0]))
    optimizer = xn.optim.Quickprop(0.4)
    for _ in range(2):
        w.grad = 2 * (w.array - 1)
        optimizer.step([w])
    # The first step went 4/5 of the way; the second is the jump and 0.4 times the slope that was left.
    left = np.array([0.4, -0.6])
    np.testing.assert_allclose(xn.to_numpy(w.array), 1 - 0.4 * 2 * left, rtol=1e-12)


def rosenbrock(w):
    x, y = w[0], w[1]
    return (1 - x) ** 2 + 10 * (y - x * x) ** 2


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (lambda: xn.optim.SGD(0.005, 0.9), 800),
        (lambda: xn.optim.SGD(0.02, 0.9, form="inertia"), 2000),
        (lambda: xn.optim.Adagrad(0.5), 2000),
        (lambda: xn.optim.RMSprop(xn.optim.schedules.Cosine(0.02, 1500)), 1500),
        (lambda: xn.optim.Adam(0.05), 1000),
        (lambda: xn.optim.Adam(0.05, amsgrad=True), 1500),
        (lambda: xn.optim.Nadam(0.05), 1500),
        (lambda: xn.optim.Adamax(0.1), 1000),
        (lambda: xn.optim.Rprop(0.01), 1000),
    ],
)
def test_each_finds_the_bottom_of_a_curved_valley(make, steps):
    w = xn.Parameter(np.array([-1.0, 1.0]))
    optimizer = make()
    for _ in range(steps):
        rosenbrock(w).backward()
        optimizer.step([w])
    np.testing.assert_allclose(xn.to_numpy(w.array), [1, 1], atol=0.03)


@pytest.mark.parametrize("name", [*NAMES, "quickprop"])
def test_a_saved_state_continues_the_run(name):
    make = pairs()[name][0] if name in NAMES else lambda **k: xn.optim.Quickprop(0.01, **k)
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((6, 4)).astype(np.float32)

    def run(p, optimizer, part):
        for g in part:
            p.grad = g.copy()
            optimizer.step([p])

    whole, optimizer = xn.Parameter(np.ones(4, np.float32)), make()
    run(whole, optimizer, gradients)
    first, begun = xn.Parameter(np.ones(4, np.float32)), make()
    run(first, begun, gradients[:3])
    second, continued = xn.Parameter(xn.to_numpy(first.array).copy()), make()
    continued.load_state(begun.state())
    run(second, continued, gradients[3:])
    np.testing.assert_array_equal(second.array, whole.array)
    assert whole.array.dtype == np.float32
    assert all(slot.dtype == np.float32 for slot in optimizer.slots.values())


@pytest.mark.parametrize("name", [*NAMES, "quickprop"])
def test_weight_decay_in_the_same_pass_where_the_rule_does_it(name, monkeypatch):
    """As on a GPU, where the rules decay the weights themselves."""
    make = pairs()[name][0] if name != "quickprop" else xn.optim.Quickprop
    call = Rule.__call__

    def fused(rule, w, g, *slots, weight_decay=0.0, decayed=0, decoupled=False, **settings):
        assert not weight_decay or rule.decays(w)
        if decoupled:
            w[:decayed] *= 1 - settings["learning_rate"] * weight_decay
        else:
            g[:decayed] += weight_decay * w[:decayed]
        call(rule, w, g, *slots, **settings)

    def trained():
        parameters = [xn.Parameter(np.linspace(-1.0, 1.0, 6).reshape(3, 2)), xn.Parameter(np.ones(2), decay=False)]
        optimizer = make(weight_decay=0.1)
        for _ in range(3):
            for p in parameters:
                p.grad = 0.5 * p.array + 0.1
            optimizer.step(parameters)
        return [p.array for p in parameters]

    expected = trained()
    monkeypatch.setattr(Rule, "__call__", fused)
    monkeypatch.setattr(Rule, "decays", lambda rule, w: True)
    for found, wanted in zip(trained(), expected):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("name", [*NAMES, "quickprop"])
def test_gaps_of_the_flat_parameters_stay_zero(name):
    make = pairs()[name][0] if name in NAMES else lambda **k: xn.optim.Quickprop(0.01, **k)
    model = xn.Sequential([xn.Dense(3), xn.Dense(2)], input_shape=(5,))
    optimizer = make()
    for _ in range(3):
        xn.losses.mean_squared_error(model(np.ones((2, 5), np.float32)), np.ones((2, 2), np.float32)).backward()
        optimizer.step(model)
    used = np.zeros(model.flat_parameters.values.shape, bool)
    for parameter, where in zip(model.flat_parameters.parameters, model.flat_parameters.slices):
        used[where] = True
        assert np.isfinite(xn.to_numpy(parameter.array)).all()
    assert not model.flat_parameters.values[~used].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xn.optim.SGD(0.1, 0.9, form="ball"), '"velocity" or "inertia"'),
        (lambda: xn.optim.SGD(0.1, 0.9, True, form="inertia"), 'form="velocity"'),
        (lambda: xn.optim.RMSprop(0.1, 1.0), "decay and momentum must be in"),
        (lambda: xn.optim.Rprop(0.1, grow=0.9), "0 < shrink < 1 < grow"),
        (lambda: xn.optim.Quickprop(0.1, 0.0), "growth must be above 0"),
        (lambda: xn.optim.Adamax(0.1, 1.0), "Adamax: beta1 and beta2"),
        (lambda: xn.optim.LBFGS(0), "max_iterations must be at least 1"),
        (lambda: xn.optim.LBFGS(history=0), "history must be at least 1"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [lambda: xn.optim.SGD(0.1), lambda: xn.optim.Adam(lambda step: 0.1 / (1 + step))])
def test_an_optimizer_belongs_to_one_model(make):
    x, y = np.ones((4, 3), np.float32), np.zeros(4, np.int64)

    def model(seed):
        return xn.Sequential([xn.Dense(2)], input_shape=(3,), seed=seed)

    def trainer(model, optimizer):
        return xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer)

    first, second, optimizer = model(0), model(1), make()
    optimizer.bind(first)
    optimizer.bind(second)  # nothing to inherit yet
    optimizer.bind(first)
    trainer(first, optimizer).fit((x, y), verbose=False)
    before = second.flat_parameters.values.copy()
    for refused in (
        lambda: trainer(second, optimizer).fit((x, y), verbose=False),
        lambda: trainer(second, optimizer).step(x, y),
        lambda: optimizer.step(second),
        lambda: optimizer.step(second.parameters()),
        lambda: trainer(xn.Sequential([xn.Dense(2)]), optimizer).fit((x, y), verbose=False),  # not built yet
    ):
        with pytest.raises(ValueError, match=r"1 steps with another model.*make a new optimizer"):
            refused()
    np.testing.assert_array_equal(second.flat_parameters.values, before)
    # The same model: in another Trainer, moved, with frozen parameters, with a new last layer.
    trainer(first, optimizer).fit((x, y), verbose=False)
    first.layers[0].bias.requires_grad = False
    trainer(first, optimizer).fit((x, y), verbose=False)
    first.to("cpu")
    trainer(first, optimizer).fit((x, y), verbose=False)
    assert optimizer.iterations == 4
    copied, with_it = copy.deepcopy((first, optimizer))
    trainer(copied, with_it).fit((x, y), verbose=False)
    assert with_it.iterations == 5


class _NewWeights(xn.optim.Optimizer):
    def update(self, w, g, learning_rate):
        w = w - learning_rate * g


class _Returned(xn.optim.Optimizer):
    def update(self, w, g, learning_rate):
        return w - learning_rate * g


class _InPlace(xn.optim.Optimizer):
    def update(self, w, g, learning_rate):
        w -= learning_rate * g


class _NewName(xn.optim.Optimizer):
    def update(self, w, g, learning_rate):
        w = w.reshape(-1)
        w[...] = w - learning_rate * g


@pytest.mark.parametrize("kind", [_NewWeights, _Returned])
def test_an_update_that_loses_the_new_weights_is_refused(kind):
    model = xn.Sequential([xn.Dense(2)], input_shape=(3,))
    trainer = xn.Trainer(model, loss="mean_squared_error", optimizer=kind(0.1))
    with pytest.raises(TypeError, match=r"update returned or assigned new weights, which are lost; write into"):
        trainer.fit((np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)), verbose=False)


@pytest.mark.parametrize("kind", [_InPlace, _NewName])
@pytest.mark.parametrize("rate", [0.1, 0.0, lambda step: 0.1 * step])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_an_update_that_writes_into_the_weights_runs(kind, rate, target):
    """Also where there is nothing to change: a learning rate or gradients of 0."""
    model = xn.Sequential([xn.Dense(2, kernel_initializer="zeros")], input_shape=(3,))
    x, y = np.ones((4, 3), np.float32), np.full((4, 2), target, np.float32)
    xn.Trainer(model, loss="mean_squared_error", optimizer=kind(rate)).fit((x, y), verbose=False, epochs=2)
    assert bool(np.any(model.layers[0].kernel.array)) == bool(target and rate)
