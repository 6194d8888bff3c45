"""What layers are given, and what their attributes hold: what would do nothing or fail later is refused, by name."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.layer_cases import LAYERS
from tests.test_arguments import parameters
from xpnet import initializers, regularizers
from xpnet.optim.optimizer import Optimizer

KINDS = [getattr(xn, name) for name in xn.layers.__all__ if inspect.isclass(getattr(xn, name, None))]
KINDS = [kind for kind in KINDS if issubclass(kind, xn.Module) and kind is not xn.Module]
ENDINGS = ("activation", "regularizer", "constraint", "initializer")


def smallest(kind: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a case of this layer."""
    made = next(case for case in LAYERS if type(case.make()) is kind).make()
    args, keywords = made._arguments
    return args, dict(keywords)


TAKES = [(kind, name) for kind in KINDS for name in parameters(kind) if name.endswith(ENDINGS)]


def values(name: str) -> dict[str, Any]:
    """Things that are none of what the argument takes."""
    ending = name.rpartition("_")[2]
    kinds = {"activation": xn.ReLU, "regularizer": regularizers.L2, "constraint": regularizers.MaxNorm}
    found = {"class": kinds.get(ending, initializers.He), "array": np.ones((2, 3)), "list": [1], "ufunc": np.tanh}
    return found | {"NumPy": np.zeros, "math": math.tanh, "name": "no such name"}


@pytest.mark.parametrize(("kind", "name"), TAKES, ids=lambda part: getattr(part, "__name__", part))
def test_every_argument_of_every_layer_is_checked_when_it_is_made(kind, name):
    args, keywords = smallest(kind)
    for value in values(name).values():
        with pytest.raises((TypeError, ValueError), match=rf"^{kind.__name__}: .*{name.rpartition('_')[2]}"):
            kind(*args, **{**keywords, name: value})


@pytest.mark.parametrize("library", ["torch"])
def test_functions_of_other_libraries_are_refused(library):
    torch = pytest.importorskip(library)
    for function in (torch.tanh, torch.nn.functional.relu, torch.nn.ReLU()):
        with pytest.raises(TypeError, match=r"Dense: activation got .* of torch"):
            xn.Dense(3, function)
    with pytest.raises(TypeError, match="of torch"):
        xn.Dense(3, kernel_initializer=torch.nn.init.xavier_uniform_)


def test_what_is_meant_is_taken():
    def own(x):
        return xn.ops.tanh(x)

    for activation in ("relu", "linear", None, own, lambda x: x, xn.ReLU(), xn.ops.relu):
        xn.Sequential([xn.Dense(3, activation)], input_shape=(2,))
    layer = xn.Dense(3, kernel_initializer=0, bias_initializer=2)
    layer(np.ones((1, 2), np.float32))
    assert not xn.to_numpy(layer.kernel.array).any()
    assert (xn.to_numpy(layer.bias.array) == 2).all()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_layer_names_itself_for_an_argument_that_it_does_not_take(kind):
    args, keywords = smallest(kind)
    with pytest.raises(TypeError, match=rf"^{kind.__name__} got an unexpected keyword argument 'colour': it takes "):
        kind(*args, **keywords, colour=1)
    below = type("Below", (kind,), {})
    with pytest.raises(TypeError, match=r"^Below got an unexpected keyword argument"):
        below(*args, **keywords, colour=1)


@pytest.mark.parametrize("kind", [xn.Conv2D, xn.Conv2DTranspose, xn.Conv1D, xn.MaxPool2D, xn.AveragePool2D, xn.LpPool2D])
@pytest.mark.parametrize(
    "wrong", [{"padding": "some"}, {"padding": -1}, {"padding": (1, 2, 3)}, {"stride": 0}, {"window": 0}, {"window": 2.5}]
)
def test_errors_of_windows_name_the_layer(kind, wrong):
    window = wrong.get("window", 3)
    rest = {name: value for name, value in wrong.items() if name != "window"}
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: .*{next(iter(wrong))}"):
        kind(*((window,) if "Pool" in kind.__name__ else (4, window)), **rest)


# -- what attributes hold --


def dense():
    return xn.Sequential([xn.Dense(5, "relu"), xn.Dense(3)], input_shape=(6,))


@pytest.mark.parametrize("make", [np.ones, lambda shape: xn.Tensor(np.ones(shape)), lambda shape: 2.0])
def test_a_parameter_is_not_replaced_by_what_is_none(make):
    model = dense()
    with pytest.raises(TypeError, match=r"layer '0' \(Dense\): kernel is a Parameter"):
        model[0].kernel = make((6, 5))
    assert "0.kernel" in model.parameters()
    model[0].kernel = xn.Parameter(np.ones((6, 5), np.float32))
    assert (model.parameters()["0.kernel"].array == 1).all()


def test_what_is_deleted_is_gone():
    model = dense()
    del model[0].bias
    assert "0.bias" not in model.parameters()
    holder = xn.Residual([xn.Dense(6)])
    holder(np.ones((1, 6), np.float32))
    del holder.body
    assert not holder.parameters()


def test_a_parameter_that_is_not_made_yet_says_when_it_will_be():
    with pytest.raises(AttributeError, match=r"Dense has no kernel yet: .*first call"):
        _ = xn.Dense(3).kernel
    with pytest.raises(AttributeError, match="layer '0'"):
        _ = xn.Sequential([xn.Dense(3)])[0].kernel
    with pytest.raises(AttributeError, match="object has no attribute 'kernal'"):
        _ = xn.Dense(3).kernal  # type: ignore[attr-defined]
    assert not hasattr(xn.Dense(3), "kernel")
    assert copy.deepcopy(dense())[0].kernel.shape == (6, 5)
    assert pickle.loads(pickle.dumps(dense()))[0].kernel.shape == (6, 5)


def test_the_error_of_a_property_is_its_own():
    class Broken(xn.Dense):
        @property
        def size(self) -> int:
            return self.no_such_thing  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = Broken(3).size


class Nothing(xn.Module):
    def forward(self, x):
        pass


def test_a_layer_after_one_that_returned_none_says_so():
    for before in (Nothing(), xn.Dense(4, lambda x: None), lambda x: None):
        with pytest.raises(TypeError, match=r"layer '1' \(Dense\): its input is None"):
            xn.Sequential([before, xn.Dense(3)])(np.ones((2, 4), np.float32))
    with pytest.raises(TypeError, match="forward returned NoneType"):
        xn.Sequential([Nothing(), xn.Dense(3)], input_shape=(4,))
    with pytest.raises(TypeError, match=r"softmax_cross_entropy\(\) got None for logits"):
        xn.losses.softmax_cross_entropy(None, np.zeros(2, int))


def test_layers_that_forward_leaves_out_are_named():
    class Partly(xn.Module):
        def __init__(self):
            self.used, self.unused = xn.Dense(3), xn.Dense(3)

        def forward(self, x):
            return self.used(x)

    model = Partly()
    model(np.ones((2, 4), np.float32))
    with pytest.raises(ValueError, match=r"the layers unused .* forward has not used them"):
        _ = model.flat_parameters
    model.unused.materialize((4,))
    assert len(model.flat_parameters.parameters) == 4


# -- names that other libraries give a meaning --

OPTIMIZERS = [getattr(xn.optim, name) for name in xn.optim.__all__]
OPTIMIZERS = [kind for kind in OPTIMIZERS if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer]


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_every_optimizer_refuses_the_learning_rate_under_other_names(kind):
    optimizer = kind() if "learning_rate" not in inspect.signature(kind).parameters else kind(0.1)
    for name in ("lr", "param_groups", "clipnorm", "clipvalue"):
        with pytest.raises(AttributeError, match=f"setting '{name}' would do nothing; "):
            setattr(optimizer, name, 0.5)
        assert not hasattr(optimizer, name)


def test_a_trainer_refuses_the_names_of_others():
    trainer = xn.Trainer(dense(), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
    for name, says in (("stop_training", "trainer.stop"), ("should_stop", "trainer.stop"), ("lr", "learning_rate")):
        with pytest.raises(AttributeError, match=f"setting '{name}' would do nothing; use .*{says}"):
            setattr(trainer, name, True)
    with pytest.raises(AttributeError, match=r"trainer\.stop"):
        trainer.model.stop_training = True


def test_a_class_of_the_users_may_give_them_a_meaning():
    class Own(xn.optim.SGD):
        def __init__(self, lr):
            super().__init__(lr)
            self.lr = lr

    class Defined(xn.Trainer):
        lr = 3

    own = Own(0.5)
    assert own.lr == 0.5
    own.lr = 0.25
    assert own.lr == 0.25
    defined = Defined(dense(), loss="softmax_cross_entropy", optimizer=own)
    defined.lr = 4
    assert defined.lr == 4
