"""Code in a step or a prediction that draws random numbers on the host: every draw is made, and none twice."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import pytest

import xpnet as xn

pytestmark = pytest.mark.cuda

X = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)
Y = np.arange(48) % 3
SOURCES = ["random", "numpy.random", "Generator", "RandomState", "Random"]


class Drawing(xn.Module):
    """A layer that draws from a generator of the host, to decide something or to add noise."""

    def __init__(self, source: str, noise: bool) -> None:
        super().__init__()
        self.body = xn.Dense(8, "relu")
        self.head = xn.Dense(3)
        self.noise = noise
        made: dict[str, Any] = {
            "Generator": np.random.default_rng(5), "RandomState": np.random.RandomState(5), "Random": random.Random(5),
        }  # fmt: skip
        self.source = made.get(source, random if source == "random" else np.random)

    def forward(self, x: Any) -> Any:
        h = self.body(x)
        number = float(self.source.random())
        if self.noise:
            return self.head(h * number)
        return self.head(h if number < 0.5 else -h)


def run(device: str, capture: bool, source: str, noise: bool) -> tuple[list[float], Any, float]:
    random.seed(3)
    np.random.seed(3)
    model = Drawing(source, noise).to(device)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), capture=capture)
    losses: list[float] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*cannot be recorded.*")
        for _ in range(2):
            losses += trainer.fit((X, Y), epochs=2, batch_size=12, verbose=False)["loss"]
        predictions = [xn.to_numpy(model.predict(X[:4])) for _ in range(4)]
    return losses, predictions, float(model.source.random())


@pytest.mark.parametrize("noise", [False, True], ids=["decides", "scales"])
@pytest.mark.parametrize("source", SOURCES)
def test_draws_on_the_host_are_those_of_the_cpu(source, noise):
    losses, predictions, following = run("cpu", True, source, noise)
    for capture in (True, False):
        found = run("cuda", capture, source, noise)
        np.testing.assert_allclose(found[0], losses, rtol=1e-4)
        for ours, theirs in zip(found[1], predictions):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
        assert found[2] == following


def test_the_warning_says_what_draws():
    model = Drawing("Generator", True).to("cuda")
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
    with pytest.warns(RuntimeWarning, match="runs launch by launch: random numbers are drawn on the host"):
        trainer.fit((X, Y), batch_size=12, verbose=False)


class Keyed(xn.Module):
    """A random layer with a generator of the package's own, made anew for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.head = xn.Dense(3)

    def forward(self, x: Any) -> Any:
        if not self.training:
            return self.head(x)
        drawn = xn.random.generator(xn.random.key(4, "noise"), self.next_random_step()).normal(size=6).astype(np.float32)
        return self.head(x + xn.to_device(drawn, self.context.device))


def test_the_packages_generator_takes_a_counter_on_the_device():
    def losses(device: str) -> list[float]:
        model = Keyed().to(device)
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*cannot be recorded.*")
            return trainer.fit((X, Y), epochs=3, batch_size=12, verbose=False)["loss"]

    np.testing.assert_allclose(losses("cuda"), losses("cpu"), rtol=1e-5)


def test_checks_before_a_run_take_host_data():
    model = xn.Sequential([xn.Dense(8, "relu"), xn.Dense(3)], input_shape=(6,), device="cuda")
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.05))
    assert len(xn.training.overfit_one_batch(trainer, X[:8], Y[:8], steps=3)) == 3
    xn.inspect.diagnose(model, X, Y)
