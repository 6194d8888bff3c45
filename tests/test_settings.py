"""Numbers that are out of range are refused by every constructor: layers, optimizers, schedules, augmentations and the rest."""

import inspect
import math
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet import initializers, layers, regularizers
from xpnet.data import augment, preprocessing
from xpnet.layers.module import Module
from xpnet.optim import schedules
from xpnet.runtime.settings import check_numbers, check_whole

ARGUMENTS: dict[str, Any] = {
    "units": 4, "filters": 4, "window": 3, "rate": 0.1, "steps": 100, "every": 10, "factor": 0.5, "decay": 0.1, "symbols": 5,
    "after": 0.1, "strength": 0.1, "l1": 0.1, "l2": 0.1, "limit": 1.0, "size": 4, "shape": (4,), "groups": 1, "count": 2,
    "boundaries": [3], "rates": [0.1, 0.01], "inner": initializers.Zeros(), "begin": 1, "end": 2, "shift": 0.5, "pixels": 2,
    "degrees": 10.0, "mean": (0.5,), "std": (0.2,), "padding": 1, "activation": "relu",
}  # fmt: skip
"""Values for arguments without a default."""

HAND_MADE = {"Bidirectional", "Residual", "Sequential", "Module", "Augmentation", "Transform", "Initializer", "Spec"}
"""Classes without numbers of their own, or that are not made directly."""

SIGNED = {
    "LeakyReLU.slope", "LSTM.forget_bias", "Softmax.axis", "MinMax.low", "Crop.fill", "Cutout.fill", "Elastic.fill",
    "Shift.fill", "Rotation.fill", "Constant.value", "Zeros.value", "Ones.value", "Orthogonal.gain", "Uniform.low",
    "Uniform.high", "Shifted.shift", "Reshape.shape", "Normalise.mean",
}  # fmt: skip
"""Numbers that may be negative."""

ANY = {"mask_value", "seed"}  # a mask value is compared with; a seed is any integer


def numbers() -> list[Any]:
    """Every number that a constructor takes: its class, name, and the arguments that the class needs besides."""
    found = []
    kinds: dict[str, Any] = {}
    for module in (layers, xn.optim, schedules, augment, preprocessing, initializers, regularizers):
        for name, made in vars(module).items():
            if isinstance(made, type) and made.__module__.startswith("xpnet.") and not name.startswith("_"):
                kinds.setdefault(name, made)
    for name, made in sorted(kinds.items()):
        if name in HAND_MADE or inspect.isabstract(made) or getattr(made, "_is_protocol", False):
            continue
        own: dict[str, inspect.Parameter] = {}
        for cls in made.__mro__:
            if "__init__" in vars(cls) and cls is not object:
                own = {**inspect.signature(vars(cls)["__init__"]).parameters, **own}
                if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(vars(cls)["__init__"]).parameters.values()):
                    break
        own = {p: v for p, v in own.items() if p != "self" and v.kind not in (v.VAR_KEYWORD, v.VAR_POSITIONAL)}
        needed = {p: ARGUMENTS[p] for p, v in own.items() if v.default is v.empty and p in ARGUMENTS}
        if any(v.default is v.empty and p not in ARGUMENTS for p, v in own.items()):
            continue
        for p, v in own.items():
            usual = needed.get(p, v.default)
            optional = usual is None and any(t in str(v.annotation) for t in ("int", "float"))
            pair = isinstance(usual, tuple) and any(isinstance(part, float) for part in usual)
            if p not in ANY and (optional or pair or (isinstance(usual, (int, float)) and not isinstance(usual, bool))):
                found.append(pytest.param(made, p, needed, usual, id=f"{name}.{p}"))
    return found


NUMBERS = numbers()


def test_the_walk_finds_the_numbers():
    ids = {str(case.id) for case in NUMBERS}
    assert len(ids) > 130
    assert {"Adam.learning_rate", "LSTM.forget_bias", "OneCycle.up", "Mixup.classes", "He.gain", "MaxNorm.limit",
            "PCA.components", "Conv2D.window", "Dropout.rate", "SGD.momentum", "LBFGS.history", "LossScale.growth",
            "Normalise.std"} <= ids  # fmt: skip


def refused(make):
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    message = str(caught.value)
    assert len(message) < 400
    return message


@pytest.mark.parametrize(("made", "name", "needed", "usual"), NUMBERS)
def test_numbers_out_of_range_are_refused(made, name, needed, usual):
    made(**{**needed, name: usual})  # what is usual is taken
    signed = f"{made.__name__}.{name}" in SIGNED
    bad = [math.nan, math.inf, -math.inf] if signed else [math.nan, math.inf, -math.inf, -1, -0.001]
    for value in bad:
        given = (value,) if isinstance(usual, tuple) else value
        message = refused(lambda given=given: made(**{**needed, name: given}))
        assert str(value) in message or name in message


@pytest.mark.parametrize(("made", "name", "needed", "usual"), NUMBERS)
def test_a_number_is_no_text(made, name, needed, usual):
    if name == "padding" and made.__name__ != "Crop" and made.__name__ != "Embedding":
        return  # "same"
    refused(lambda: made(**{**needed, name: "0.1"}))


BOUNDARIES = [
    # name, setting, taken, refused
    (xn.Dropout, "rate", (0, 1), (-1e-9, 1 + 1e-9)),
    (xn.BatchNorm, "momentum", (0, 1), (1.1,)),
    (xn.BatchNorm, "epsilon", (1e-12,), (0,)),
    (xn.optim.Adam, "beta1", (0, 0.999), (1,)),
    (xn.optim.Adam, "learning_rate", (0, 10), (-1e-9,)),
    (xn.optim.SGD, "momentum", (0, 0.99), (1, 1.5)),
    (xn.optim.RMSprop, "decay", (0, 0.99), (1,)),
    (xn.optim.LBFGS, "max_iterations", (1, 100), (0, 1.5)),
    (xn.optim.LossScale, "growth", (1.5, 4), (1,)),
    (xn.optim.LossScale, "growth_interval", (1,), (0, 2.5)),
    (schedules.Step, "every", (1, 7), (0, 2.5)),
    (schedules.Cosine, "steps", (1, 2.5), (0,)),
    (schedules.OneCycle, "up", (0.1, 0.9), (0, 1)),
    (regularizers.MaxNorm, "limit", (1e-3,), (0,)),
    (regularizers.L2, "strength", (0, 1), (-1e-9,)),
    (augment.Flip, "p", (0, 1), (1.001,)),
    (augment.Cutout, "size", (1, 8), (0, 2.5)),
    (augment.Crop, "padding", (0, 4), (2.5,)),
    (augment.Crop, "size", ((8, 8),), (8, (8,), (8, 0), (8, 2.5))),
    (augment.Mixup, "alpha", (0.01, 10), (0,)),
    (preprocessing.PCA, "components", (None, 1, 5), (0, 0.95)),
    (xn.Dense, "units", (1, np.int64(3)), (0, 2.0, 2.5)),
    (xn.Conv2D, "groups", (1, 2, np.int64(4)), (0, 3, 1.5)),
    (xn.Conv1D, "window", (1, 5), (0, 2.5)),
    (xn.MaxPool2D, "window", (1, (2, 3)), (0, 2.5)),
    (xn.MaxPool2D, "padding", (0, 1, "same", "valid"), (3, 0.5)),
    (xn.Embedding, "padding", (None, 0, 4), (5, 1.5)),
    (xn.LocalResponseNorm, "size", (1, 5), (4, 2.5)),
    (initializers.Sparse, "connections", (1, 15), (0, 2.5)),
    (initializers.Scaled, "mode", ("in", "out", "average"), ("fan",)),
]  # fmt: skip


@pytest.mark.parametrize(("made", "name", "taken", "bad"), BOUNDARIES, ids=lambda v: getattr(v, "__name__", None))
def test_boundaries(made, name, taken, bad):
    needed = {p: ARGUMENTS[p] for p, v in inspect.signature(made).parameters.items() if v.default is v.empty and p in ARGUMENTS}
    for value in taken:
        made(**{**needed, name: value})
    for value in bad:
        refused(lambda value=value: made(**{**needed, name: value}))


@pytest.mark.parametrize("rate", [math.nan, math.inf, -0.1])
def test_a_rate_that_is_set_is_checked_at_once_and_a_scheduled_one_at_its_step(rate):
    model = xn.Sequential([xn.Dense(2)], input_shape=(3,))
    x, y = np.ones((4, 3), np.float32), np.array([0, 1, 0, 1])
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(lambda step: rate if step == 2 else 0.1))
    trainer.step(x, y)
    trainer.step(x, y)
    with pytest.raises(ValueError, match="SGD: the learning rate of step 2 must be at least 0 and finite, got"):
        trainer.step(x, y)
    optimizer = xn.optim.Adam(0.1)
    with pytest.raises(ValueError, match="Adam: learning_rate must be at least 0 and finite, got"):
        optimizer.learning_rate = rate
    assert optimizer.learning_rate == 0.1
    optimizer.factor = rate
    with pytest.raises(ValueError, match="Adam: the learning rate of step 0"):
        xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer).step(x, y)


def test_messages():
    with pytest.raises(ValueError, match=r"^Adam: beta1 must be in \[0, 1\), got nan$"):
        check_numbers("Adam", "[0, 1)", beta1=math.nan)
    with pytest.raises(ValueError, match=r"^Adam: epsilon must be at least 0 and finite, got -1$"):
        check_numbers("Adam", "[0, inf)", epsilon=-1)
    with pytest.raises(ValueError, match=r"^L2: strength must be above 0 and finite, got inf$"):
        check_numbers("L2", "(0, inf)", strength=math.inf)
    with pytest.raises(ValueError, match=r"^Ones: value must be finite, got nan$"):
        check_numbers("Ones", "(-inf, inf)", value=math.nan)
    with pytest.raises(TypeError, match=r"^SGD: momentum must be a number in .*, got '0.9'$"):
        check_numbers("SGD", "[0, 1)", momentum="0.9")
    with pytest.raises(ValueError, match=r"^Cutout: size must be at least 1 and whole, got 2.5$"):
        check_whole("Cutout", 1, size=2.5)
    check_numbers("any", "[0, 1]", array=np.array(0.5), scalar=np.float32(1), whole=np.int8(0))


def test_every_layer_is_walked():
    of_layers = {n for n, c in vars(layers).items() if isinstance(c, type) and issubclass(c, Module)} - HAND_MADE
    walked = {str(case.id).split(".")[0] for case in NUMBERS}
    assert {n for n in of_layers if n not in walked} <= {
        "ReLU", "Sigmoid", "Tanh", "SELU", "SiLU", "Softplus", "Softsign", "HardSigmoid", "GELU", "Step", "Activation",
        "Flatten", "Reshape", "GlobalAveragePool2D",
    }  # fmt: skip
