import math

import numpy as np
import pytest

import xpnet as xn
from xpnet.optim import schedules as s


def torch_rates(make, steps):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.torch
@pytest.mark.parametrize(
    ("ours", "theirs", "steps"),
    [
        (s.Constant(0.5), lambda m, o: m.ConstantLR(o, 1.0), 5),
        (s.Step(0.5, 3, 0.2), lambda m, o: m.StepLR(o, 3, 0.2), 20),
        (s.Exponential(0.5, 0.9), lambda m, o: m.ExponentialLR(o, 0.9), 20),
        (s.InverseTime(0.5, 0.1), lambda m, o: m.LambdaLR(o, lambda t: 1 / (1 + 0.1 * t)), 20),
        (s.Cosine(0.5, 20, 0.01), lambda m, o: m.CosineAnnealingLR(o, 20, 0.01), 20),
        (s.Piecewise([3, 7], [0.5, 0.05, 0.01]), lambda m, o: m.LambdaLR(o, lambda t: [1, 0.1, 0.02][(t >= 3) + (t >= 7)]), 20),
        (s.OneCycle(0.5, 50), lambda m, o: m.OneCycleLR(o, 0.5, 50), 50),
        (
            s.OneCycle(0.5, 20, 0.5, 10, 100),
            lambda m, o: m.OneCycleLR(o, 0.5, 20, pct_start=0.5, div_factor=10, final_div_factor=100),
            20,
        ),
    ],
)
def test_equals_pytorch(ours, theirs, steps):
    got = [ours(i) for i in range(steps)]
    assert all(type(rate) is float for rate in got)
    np.testing.assert_allclose(got, torch_rates(theirs, steps), rtol=1e-10, atol=1e-15)


def test_warm_up_joins_another_schedule():
    schedule = s.WarmUp(s.Exponential(0.4, 0.5), 4, 0.1)
    np.testing.assert_allclose([schedule(i) for i in range(7)], [0.1, 0.175, 0.25, 0.325, 0.4, 0.2, 0.1])
    assert [s.WarmUp(1.0, 2)(i) for i in range(4)] == [0.0, 0.5, 1.0, 1.0]


def test_the_ends_stay():
    assert s.Cosine(1.0, 10, 0.2)(1000) == 0.2
    assert math.isclose(s.OneCycle(1.0, 10)(1000), 1 / 25 / 1e4)
    assert s.Exponential(1.0, 0.1, 100)(100) == 0.1


def test_an_optimizer_follows_a_schedule():
    w = xn.Parameter(np.zeros(1))
    optimizer = xn.optim.SGD(s.Piecewise([2], [1.0, 0.1]))
    places = []
    for _ in range(4):
        w.grad = np.ones(1)
        optimizer.step([w])
        places.append(float(w.array[0]))
    np.testing.assert_allclose(places, [-1, -2, -2.1, -2.2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: s.Step(1.0, 0), "every must be above 0"),
        (lambda: s.Piecewise([1, 2], [1.0]), "one rate more"),
        (lambda: s.Piecewise([3, 2], [1.0, 1.0, 1.0]), "growing boundaries"),
        (lambda: s.Cosine(1.0, 0), "steps must be above 0"),
        (lambda: s.WarmUp(1.0, 0), "steps must be above 0"),
        (lambda: s.OneCycle(1.0, 3), "more than one step"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
