"""The first step of a run: what would train nothing, or the wrong thing, without an error."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.inspect import diagnose

RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 32)
BITS = (Y > 0)[:, None]

OUTSIDE = xn.Dense(3)


class Made(xn.Module):
    """A Module of two functions: one sets its attributes, one is its forward pass."""

    run: Any
    body: Any
    out: Any
    more: Any
    scale: Any

    def __init__(self, setup: Any, run: Any) -> None:
        setup(self)
        self.__dict__["run"] = run

    def forward(self, x: Any) -> Any:
        return self.run(self, x)


class Other:
    def __init__(self) -> None:
        self.layer = xn.Dense(3)


def late(self, x):
    if not self.layers:
        self.layers.append(xn.Dense(3))
    return self.layers[0](x)


def nothing(self):
    pass


def two(self):
    self.body, self.out = xn.Dense(5), xn.Dense(3)


def holds(**attributes):
    """A setup that assigns new layers: a function makes each attribute's value."""

    def setup(self):
        for name, make in attributes.items():
            setattr(self, name, make())

    return setup


def trainer(model, loss: Any = "softmax_cross_entropy", **keywords):
    return xn.Trainer(model, loss=loss, optimizer=xn.optim.SGD(0.1), **keywords)


def fit(model, loss: Any = "softmax_cross_entropy", y=Y, **keywords):
    return trainer(model, loss, **keywords).fit((X, y), batch_size=16, verbose=False)


def chain(*layers):
    return xn.Sequential([xn.Dense(4, "relu"), *layers], input_shape=(4,))


HIDDEN = {
    "an object": (holds(other=Other), lambda self, x: self.other.layer(x)),
    "a closure": (holds(f=lambda: (lambda layer: lambda x: layer(x))(xn.Dense(3))), lambda self, x: self.f(x)),
    "global": (nothing, lambda self, x: OUTSIDE(x)),
    "beside one that is known": (holds(body=lambda: xn.Dense(4)), lambda self, x: OUTSIDE(self.body(x))),
    "made in forward": (nothing, lambda self, x: xn.Dense(3)(x)),
    "a list filled in forward": (holds(layers=list), late),
}


@pytest.mark.parametrize("where", HIDDEN)
def test_a_layer_that_the_model_does_not_know_is_refused(where):
    with pytest.raises(ValueError, match=r"not the model's.*kernel \(4, 3\).*__init__"):
        fit(Made(*HIDDEN[where]))
    with pytest.raises(ValueError, match="not the model's"):
        trainer(Made(*HIDDEN[where])).step(X, Y)
    if where != "a list filled in forward":  # which is found at the second call
        assert [finding.kind for finding in diagnose(Made(*HIDDEN[where]), X, Y)] == ["nothing to train"]


HELD = {
    "nested list": (holds(blocks=lambda: [[xn.Dense(3)]]), lambda self, x: self.blocks[0][0](x)),
    "private nested list": (holds(_blocks=lambda: [[xn.Dense(3)]]), lambda self, x: self._blocks[0][0](x)),
    "a list in a list of layers": (holds(blocks=lambda: [xn.Dense(3), [xn.Dense(3)]]), lambda self, x: self.blocks[1][0](x)),
    "dict": (holds(blocks=lambda: {"a": xn.Dense(3)}), lambda self, x: self.blocks["a"](x)),
    "dict of lists": (holds(blocks=lambda: {"a": [xn.Dense(3)]}), lambda self, x: self.blocks["a"][0](x)),
    "set": (holds(blocks=lambda: {xn.Dense(3)}), lambda self, x: next(iter(self.blocks))(x)),
    "tuple of Parameters": (
        holds(blocks=lambda: (xn.Parameter(np.ones((4, 3), np.float32)),)),
        lambda self, x: xn.ops.matmul(x, self.blocks[0]),
    ),
    "list of Tensors": (
        holds(blocks=lambda: [xn.Tensor(np.ones((4, 3), np.float32), requires_grad=True)]),
        lambda self, x: xn.ops.matmul(x, self.blocks[0]),
    ),
}


@pytest.mark.parametrize("how", HELD)
def test_a_container_with_layers_put_in_unseen_is_refused(how):
    advice = "Parameters.*an attribute of its own.*setattr" if how.endswith(("Parameters", "Tensors")) else "layers.*flat list"
    with pytest.raises(TypeError, match=rf"self\._?blocks holds {advice}"):
        Made(*HELD[how])(X)
    with pytest.raises(TypeError, match=r"layer '0' \(Made\)"):
        xn.Sequential([Made(*HELD[how])])


def test_a_container_may_hold_layers_that_the_model_knows():
    model = Made(two, lambda self, x: self.by_name["out"](self.by_name["body"][0](x)))
    model.by_name = {"out": model.out, "body": [model.body]}
    fit(model)
    assert len(model.parameters()) == 4


def test_a_tensor_with_a_gradient_is_refused_as_an_attribute():
    with pytest.raises(TypeError, match=r"self\.w is a Tensor.*xn\.Parameter"):
        Made(holds(w=lambda: xn.Tensor(np.ones(3), requires_grad=True)), None)


def test_what_an_operation_made_may_be_kept():
    def run(self, x):
        self.last = self.out(self.body(x))
        return self.last

    fit(Made(two, run))


UNTRAINABLE = {
    "no Parameters": (lambda: Made(holds(w=lambda: np.ones((4, 3), np.float32)), lambda self, x: x @ self.w), "no Parameters"),
    "an empty chain": (lambda: xn.Sequential([]), "no Parameters"),
    "all frozen": (lambda: chain(xn.Dense(3)).freeze(), "frozen.*unfreeze"),
    "wrapped again": (lambda: Made(two, lambda self, x: xn.Tensor(self.out(self.body(x)).array)), "does not depend on any"),
    "a layer that is not used": (lambda: Made(two, lambda self, x: self.body(x)), "forward has not used them"),
}


@pytest.mark.parametrize("what", UNTRAINABLE)
def test_a_model_with_nothing_to_train_is_refused(what):
    make, says = UNTRAINABLE[what]
    with pytest.raises(ValueError, match=says):
        fit(make())


def test_a_loss_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match=r"does not depend on any Parameter.*loss function free"):
        fit(chain(xn.Dense(3)), free)


def free(prediction, target):
    return xn.Tensor(np.float32(1))


OUTPUTS = {
    "None": (lambda h: None, "returned None.*return"),
    "array": (lambda h: h.array, r"returned ndarray \(16, 3\).*xn\.ops"),
    "tuple": (lambda h: (h, h), r"a tuple of 2 outputs, and xn\.losses\.softmax_cross_entropy takes one"),
    "dict": (lambda h: {"a": h}, "a dict of 1 outputs"),
}


@pytest.mark.parametrize("what", OUTPUTS)
def test_an_output_that_no_loss_takes_is_the_models_fault(what):
    change, says = OUTPUTS[what]
    with pytest.raises(TypeError, match=f"Made: forward {says}" if what in ("None", "array") else says):
        fit(Made(two, lambda self, x: change(self.out(self.body(x)))))


def test_parameters_that_the_loss_does_not_reach_are_named_once():
    model = Made(two, lambda self, x: self.out(np.tanh(self.body(x).array)))
    run = trainer(model)
    with pytest.warns(RuntimeWarning, match=r"not trained in this step: body\.kernel, body\.bias") as said:
        run.fit((X, Y), batch_size=16, verbose=False)
    assert len(said) == 1
    run.fit((X, Y), batch_size=16, verbose=False)  # the same model
    model.more = xn.Dense(2)
    model.more(X)
    with pytest.warns(RuntimeWarning, match=r"more\.kernel"):  # it has changed
        run.step(X, Y)


def test_what_the_loss_alone_uses_is_trained():
    model = Made(two, lambda self, x: self.out(self.body(x)))
    model.scale = xn.Parameter(np.ones((), np.float32))
    fit(model, lambda p, t: xn.losses.softmax_cross_entropy(p * model.scale, t))
    assert float(model.scale.array) != 1


def test_other_networks_in_the_loss_frozen_parts_and_several_outputs_are_fine():
    judge = chain(xn.Dense(1))
    fit(chain(xn.Dense(4)), lambda p, t: xn.losses.sigmoid_cross_entropy(judge(p), np.ones((16, 1))))  # GAN
    frozen = Made(two, lambda self, x: self.out(self.body(x)))
    frozen(X)
    frozen.body.freeze()
    fit(frozen)
    outside = xn.Dense(4)
    outside(X)
    outside.freeze()
    fit(Made(holds(out=lambda: xn.Dense(3)), lambda self, x: self.out(outside(x))))
    both = Made(two, lambda self, x: (self.out(self.body(x)), self.body(x)))
    fit(both, lambda p, t: xn.losses.softmax_cross_entropy(p[0], t))


def test_a_layer_that_this_step_does_not_use_is_not_refused():
    model = Made(two, lambda self, x: self.out(x))
    model.body(X)
    with pytest.warns(RuntimeWarning, match=r"body\.kernel"):
        fit(model)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_recomputed_and_16_bit_models_are_understood(dtype):
    model = xn.Sequential([xn.Dense(4, "relu"), xn.Dense(4, "relu"), xn.Dense(3)], input_shape=(4,), dtype=dtype)
    fit(model)
    fit(model, recompute=True)


# -- the last operation --


def Log():
    return xn.Activation("log_softmax")


WRONG: dict[str, tuple[str, Any, Any, str]] = {
    "softmax": ("softmax_cross_entropy", Y, lambda: [xn.Dense(3), xn.Softmax()], "applies softmax itself"),
    "fused": ("softmax_cross_entropy", Y, lambda: [xn.Dense(3, "softmax")], "applies softmax itself"),
    "reshaped": ("softmax_cross_entropy", Y, lambda: [xn.Dense(3, "softmax"), xn.Reshape((3,))], "applies softmax itself"),
    "log_softmax": ("softmax_cross_entropy", Y, lambda: [xn.Dense(3), Log()], "logarithms of probabilities already"),
    "sigmoid": ("sigmoid_cross_entropy", BITS, lambda: [xn.Dense(1, "sigmoid")], "applies sigmoid itself"),
    "attributes": ("attribute_logistic", BITS, lambda: [xn.Dense(1), xn.Sigmoid()], "applies sigmoid itself"),
    "logits": ("negative_log_likelihood", Y, lambda: [xn.Dense(3)], "log_softmax"),
    "probabilities": ("nll", Y, lambda: [xn.Dense(3), xn.Softmax()], "log_softmax"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_activation_before_a_loss_that_applies_it_is_a_warning(case):
    loss, y, layers, says = WRONG[case]
    function = xn.losses.get(loss)
    ways: list[Any] = [loss, partial(function, reduction="mean")]
    if "likelihood" not in function.__name__:
        ways.append(lambda p, t: function(p, t) * 2.0)
    for way in ways:
        with pytest.warns(RuntimeWarning, match=says) as said:
            fit(chain(*layers()), way, y)
        assert len(said) == 1
    assert [f.kind for f in diagnose(chain(*layers()), X, y, loss) if f.kind == "outputs"] == ["outputs"]


def test_the_right_activation_is_none():
    fit(chain(xn.Dense(3), Log()), "nll")
    fit(chain(xn.Dense(3), xn.ReLU()))
    fit(chain(xn.Dense(1, "sigmoid")), "mse", BITS)


def test_binary_accuracy_of_a_sigmoid_is_refused():
    for metric in ("binary_accuracy", xn.metrics.binary_accuracy):
        with pytest.raises(ValueError, match=r"all\s+are; leave the sigmoid"):
            fit(chain(xn.Dense(1, "sigmoid")), "mse", BITS, metrics=[metric])
    fit(chain(xn.Dense(1)), "sigmoid_cross_entropy", BITS, metrics=["binary_accuracy"])


def test_a_step_that_was_looked_at_is_undone_where_it_is_refused():
    model = chain(xn.Dense(1, "sigmoid"))
    before = {name: np.array(array) for name, array in model.state().items()}
    run = trainer(model, "mse", metrics=["binary_accuracy"])
    with pytest.raises(ValueError, match="sigmoid"):
        run.fit((X, BITS), verbose=False)
    assert run.iteration == 0
    for name, array in model.state().items():
        np.testing.assert_array_equal(array, before[name])
    run.metrics = {}
    run.fit((X, BITS), verbose=False)


# -- penalties --


@pytest.mark.parametrize(
    "penalty", [lambda w: 1.0, lambda w: None, lambda w: xn.Tensor(np.float32(1)), lambda w: xn.ops.square(w)]
)
def test_a_penalty_that_is_no_number_on_the_tape_is_refused(penalty):
    model = xn.Sequential([xn.Dense(3, kernel_regularizer=penalty)], input_shape=(4,))
    with pytest.raises(TypeError, match=r"regularizer .* of the parameter '0\.kernel' returned"):
        fit(model)
    pytest.importorskip("scipy")
    with pytest.raises(TypeError, match="regularizer"):
        xn.optim.LBFGS(max_iterations=1).minimize(model, "softmax_cross_entropy", (X, Y))


def test_a_model_that_is_only_evaluated_may_have_no_parameters():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(xn.Sequential([xn.ReLU()])).evaluate((X, Y))


@pytest.mark.cuda
def test_steps_on_a_gpu_are_looked_at_and_stay_recorded():
    x, y = xn.to_device(X, "cuda"), xn.to_device(Y, "cuda")

    def chained(*layers):
        return xn.Sequential([xn.Dense(4, "relu"), *layers], input_shape=(4,), device="cuda")

    outside = xn.Sequential([xn.Dense(3)], input_shape=(4,), device="cuda")
    for model, says in (
        (chained(lambda h: outside(h)), "not the model's"),
        (chained(xn.Dense(3)).freeze(), "frozen"),
    ):
        with pytest.raises(ValueError, match=says):
            trainer(model).fit((x, y), batch_size=16, verbose=False)
    with pytest.warns(RuntimeWarning, match="applies softmax itself") as said:
        trainer(chained(xn.Dense(3), xn.Softmax())).fit((x, y), epochs=3, batch_size=16, verbose=False)
    assert len(said) == 1
    lost = chained(lambda h: xn.Tensor(getattr(h, "array", h)), xn.Dense(3))
    with pytest.warns(RuntimeWarning, match=r"not trained in this step: 0\.kernel") as said:
        trainer(lost).fit((x, y), epochs=3, batch_size=16, verbose=False)
    assert len(said) == 1
