"""What a constructor refuses is refused when it is set later, and what it takes counts."""

import copy
import inspect
import math
import pickle
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet import layers, training
from xpnet.data import preprocessing
from xpnet.runtime import peers
from xpnet.runtime.set_later import settings_of

X, Y = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32), np.arange(40) % 3
NEEDED: dict[str, Any] = {
    "learning_rate": 0.1, "units": 4, "filters": 4, "window": 3, "rate": 0.1, "symbols": 5, "groups": 2, "shape": (4,),
    "path": "a.txt", "folder": "a", "activation": "tanh", "model": xn.Sequential([xn.Dense(3)], input_shape=(6,)),
    "loss": "softmax_cross_entropy", "weights": np.ones(3), "optimizer": xn.optim.SGD(0.1),
    "layers": [xn.Dense(3)], "body": xn.Dense(6), "layer": xn.LSTM(3),
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {"ClipGradients": {"norm": 1.0}, "RNN": {"activation": "tanh"}}
BAD: tuple[Any, ...] = (
    -1,
    -0.001,
    0,
    1,
    1.5,
    2,
    4,
    math.nan,
    math.inf,
    "a",
    "l2",
    None,
    (),
    [],
    (1, 2, 3),
    {},
    True,
    object(),
    X,
)
KEPT_AS = {"RMSprop.decay": "rate_decay"}
NOT_SET = {"Sequential.layers", "Sequential.input_shape", "Bidirectional.layer", "Residual.body", "Residual.shortcut",
           "Trainer.loss_scale"}  # fmt: skip
"""Layers in others, and what has a remedy of its own."""


def kinds() -> dict[str, Any]:
    found: dict[str, Any] = {"Trainer": xn.Trainer}
    for module in (layers, xn.optim, training, preprocessing):
        for name, made in vars(module).items():
            bases = (
                layers.Module,
                xn.optim.Optimizer,
                xn.optim.LossScale,
                xn.Callback,
                preprocessing.Transform,
                training.ClassWeighted,
            )
            if isinstance(made, type) and issubclass(made, bases) and not inspect.isabstract(made) and name[0] != "_":
                found[name] = made
    return {name: made for name, made in found.items() if name not in ("Module", "Callback", "Compose")}


def needed(made: Any) -> dict[str, Any]:
    names = [n for n, p in settings_of(made).items() if p.default is p.empty]
    return {**{n: NEEDED[n] for n in names}, **MORE.get(made.__name__, {})}


CASES = [
    pytest.param(made, name, id=f"{made.__name__}.{name}")
    for made in kinds().values()
    for name in settings_of(made)
    if name not in ("device", "dtype") and not (name == "seed" and made is not xn.Trainer)
]


def test_the_walk_finds_the_settings():
    ids = {str(case.id) for case in CASES}
    assert len(ids) > 200
    assert {"Adam.beta1", "LossScale.growth", "LBFGS.history", "Rprop.shrink", "EarlyStopping.mode", "ClipGradients.norm",
            "Checkpoint.keep", "ClassWeighted.weights", "Trainer.accumulate",
            "BatchNorm.momentum", "Dropout.rate", "Whiten.kind"} <= ids  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("made", "name"), CASES)
def test_what_every_constructor_refuses_is_refused_later(made, name):
    case = f"{made.__name__}.{name}"
    if case in NOT_SET:
        return
    attribute = KEPT_AS.get(case, name)
    arguments = needed(made)
    thing = made(**arguments)
    before = getattr(thing, attribute)
    for value in BAD:
        try:
            made(**{**arguments, name: value})
        except (TypeError, ValueError) as error:
            refused: Exception = error
        else:
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            setattr(thing, attribute, value)
        kinds_of_error = [kind for kind in (TypeError, ValueError) if isinstance(refused, kind)]
        assert any(isinstance(caught.value, kind) for kind in kinds_of_error), (value, caught.value)
        assert getattr(thing, attribute) is before
    setattr(thing, attribute, before)  # what is right is taken


GOOD = [
    (lambda: xn.optim.SGD(0.1, 0.9), "momentum", 0.5),
    (lambda: xn.optim.SGD(0.1), "momentum", 0.9),
    (lambda: xn.optim.SGD(0.1, 0.9), "momentum", 0.0),
    (lambda: xn.optim.SGD(0.1, 0.9), "nesterov", True),
    (lambda: xn.optim.SGD(0.1, 0.9), "form", "inertia"),
    (lambda: xn.optim.SGD(0.1), "weight_decay", 0.5),
    (lambda: xn.optim.SGD(0.1), "learning_rate", 0.5),
    (lambda: xn.optim.Adam(0.1), "amsgrad", True),
    (lambda: xn.optim.Adam(0.1), "beta2", 0.5),
    (lambda: xn.optim.Adam(0.1, amsgrad=True), "amsgrad", False),
    (lambda: xn.optim.RMSprop(0.1), "momentum", 0.9),
    (lambda: xn.optim.RMSprop(0.1), "centered", True),
    (lambda: xn.optim.RMSprop(0.1, centered=True, momentum=0.9), "momentum", 0.0),
    (lambda: xn.optim.Rprop(0.1), "grow", 3.0),
    (lambda: xn.optim.Quickprop(0.1), "growth", 3.0),
]


def weights(optimizer: Any) -> Any:
    model = xn.Sequential([xn.Dense(8, "tanh"), xn.Dense(3)], input_shape=(6,), seed=1)
    xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer).fit((X, Y), epochs=3, batch_size=20, verbose=False)
    return model.flat_parameters.values


@pytest.mark.parametrize(("make", "name", "value"), GOOD)
def test_what_is_set_before_the_first_step_counts_as_if_it_had_been_given(make, name, value):
    later = make()
    setattr(later, name, value)
    kind: Any = type(later)
    given = {n: getattr(later, n) for n in settings_of(kind) if not callable(getattr(later, n))}
    np.testing.assert_array_equal(weights(later), weights(kind(**given)))
    assert not np.array_equal(weights(make()), weights(kind(**given)))


def test_a_momentum_that_begins_and_ends_within_a_run_gets_its_velocity():
    w = xn.Parameter(np.zeros(1))
    optimizer = xn.optim.SGD(1.0)

    def step() -> float:
        w.set_gradient(np.ones(1))
        optimizer.step([w])
        return float(w.array[0])

    assert step() == -1
    optimizer.momentum = 0.5
    assert [step(), step()] == [-2, -3.5]
    optimizer.load_state(optimizer.state())
    optimizer.momentum = 0
    assert step() == -4.5
    assert optimizer.state()["slots"] == {}
    optimizer.load_state(optimizer.state())


def test_settings_that_do_not_go_together_are_refused_later():
    rprop = xn.optim.Rprop()
    with pytest.raises(ValueError, match="smallest <= largest"):
        rprop.smallest = 100.0
    sgd = xn.optim.SGD(0.1, 0.9, nesterov=True)
    with pytest.raises(ValueError, match="nesterov=True needs a momentum"):
        sgd.momentum = 0
    clip = training.ClipGradients(norm=1.0)
    with pytest.raises(ValueError, match="norm or value, one of them"):
        clip.value = 1.0
    assert (rprop.smallest, sgd.momentum, clip.value) == (1e-6, 0.9, None)
    with pytest.raises(AttributeError, match=r"setting 'decay' would do nothing; use optimizer.rate_decay"):
        xn.optim.RMSprop().decay = 0.5  # type: ignore[method-assign, assignment]
    with pytest.raises(AttributeError, match=r"use trainer.optimizer.loss_scale"):
        trainer().loss_scale = xn.optim.LossScale()


def test_a_layer_keeps_what_its_constructor_makes_of_a_setting():
    layer: Any = xn.Conv2D(4, 3)
    layer.stride = 2
    assert layer.stride == (2, 2)
    both = xn.Bidirectional(xn.LSTM(3))
    with pytest.raises(ValueError, match="merge must be one of"):
        both.merge = "foo"
    both.merge = "sum"
    assert xn.Sequential([both], input_shape=(5, 2)).predict(np.zeros((1, 5, 2), np.float32)).shape == (1, 3)


def test_an_initializer_that_one_recurrent_layer_takes_from_another_makes_the_same_values():
    one, other, third = xn.LSTM(3), xn.LSTM(3), xn.LSTM(3)
    other.kernel_initializer = one.kernel_initializer
    third.kernel_initializer = "glorot_uniform"
    found = [xn.Sequential([layer], input_shape=(4, 2))[0].kernel.array for layer in (one, other, third)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_another_activation_of_a_layer_counts_and_is_saved(tmp_path):
    model = xn.Sequential([xn.layers.Activation("tanh")], input_shape=(2,))
    assert model[0].activation == "tanh"
    model[0].activation = "relu"
    x = np.array([[-1, 2]], np.float32)
    np.testing.assert_array_equal(model.predict(x), [[0, 2]])
    model.save(tmp_path / "a.xpnet")
    np.testing.assert_array_equal(xn.load(tmp_path / "a.xpnet").predict(x), [[0, 2]])


def test_classes_of_a_user_keep_their_own_attributes():
    class Mine(xn.Dropout):
        def __init__(self) -> None:
            super().__init__(0.5)
            self.noise = -3

    class Own(xn.optim.SGD):
        def __init__(self) -> None:
            self.momentum = 0.5  # before the base's
            super().__init__(0.1, 0.9)
            self.beta1 = 7

    mine = Mine()
    mine.noise, mine.inverted = "any", False  # type: ignore[assignment]
    with pytest.raises(ValueError, match="rate must be in"):
        mine.rate = 2.0
    assert Own().momentum == 0.9
    with pytest.raises(ValueError, match="momentum must be in"):
        Own().momentum = 2.0


# -- callbacks and the Trainer --


def trainer(*callbacks: Any, **settings: Any) -> Any:
    model = xn.Sequential([xn.Dense(8, "relu"), xn.Dense(8, "relu"), xn.Dense(3)], input_shape=(6,))
    return xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), callbacks=callbacks, **settings)


def test_a_mode_that_is_set_counts(tmp_path):
    stopping = training.EarlyStopping("loss", patience=0)
    stopping.mode = "max"
    run = trainer(stopping)
    run.fit((X, Y), epochs=10, verbose=False)
    assert stopping.mode == "max"
    assert run.history.epochs == 2
    stopping.mode = None
    assert stopping.mode == "min"
    best = training.Checkpoint(tmp_path, best="loss")
    best.mode = "max"
    run = trainer(best)
    run.fit((X, Y), epochs=3, verbose=False)
    assert best.mode == "max"
    assert best.best_value == max(run.history["loss"])


def test_weights_of_classes_that_are_set_count_after_a_call():
    loss = training.ClassWeighted("softmax_cross_entropy", np.ones(3))
    before = float(loss(X[:, :3], Y))
    loss.weights = np.full(3, 2.0)
    assert float(loss(X[:, :3], Y)) == pytest.approx(2 * before)
    loss.loss = xn.losses.softmax_cross_entropy
    with pytest.raises(ValueError, match="finite, not negative"):
        loss.weights = np.array([1.0, -1.0, 1.0])


def test_functions_of_a_lambda_callback_that_are_set_are_called():
    seen: list[str] = []
    callback = training.LambdaCallback()
    assert callback.adds == ()
    callback.step_end = lambda run: seen.append("step")
    callback.epoch_end = lambda run, values: seen.append("epoch")
    assert callback.adds is None
    trainer(callback).fit((X, Y), batch_size=20, verbose=False)
    assert seen == ["step", "step", "epoch"]


def test_recompute_that_is_set_counts():
    run = trainer()
    run.recompute = True
    assert [len(ranges) for ranges in run.segments.values()] == [1]
    assert run.recompute is True
    with pytest.raises(ValueError, match="recompute names the layer"):
        run.recompute = ["9"]
    run.recompute = False
    assert run.segments == {}


def after_three_batches(second: int, tmp_path: Any = None, first: int = 4) -> Any:
    """Train on three of four batches, with `accumulate` at first; go on with the second; return the change and the updates."""
    cut = training.LambdaCallback(step_end=lambda run: setattr(run, "stop", run.iteration == 3))
    run = trainer(cut, accumulate=first)
    start = run.model.flat_parameters.values.copy()
    run.fit((X, Y), batch_size=10, shuffle=False, verbose=False)
    assert run.pending == 3
    if tmp_path is None:
        run.accumulate = second
    else:  # through a checkpoint, which another Trainer loads
        training.save_checkpoint(run, tmp_path / "a.ckpt")
        run = trainer(cut, accumulate=second)
        training.load_checkpoint(run, tmp_path / "a.ckpt")
    cut.step_end = None
    run.fit((X, Y), batch_size=10, shuffle=False, verbose=False)
    return run.model.flat_parameters.values - start, run.optimizer.iterations


@pytest.mark.parametrize("second", [1, 2, 3, 8])
@pytest.mark.parametrize("saved", [False, True])
def test_batches_that_wait_count_in_the_next_update_whatever_accumulate_becomes(second, saved, tmp_path):
    expected, updates = after_three_batches(4)
    assert updates == 1
    found, updates = after_three_batches(second, tmp_path if saved else None)
    assert updates == 1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_accumulate_that_is_set_counts_as_given():
    later = trainer()
    later.accumulate = 2
    later.fit((X, Y), batch_size=10, shuffle=False, verbose=False)
    given = trainer(accumulate=2)
    given.fit((X, Y), batch_size=10, shuffle=False, verbose=False)
    np.testing.assert_array_equal(later.model.flat_parameters.values, given.model.flat_parameters.values)
    assert later.optimizer.iterations == 2


def test_a_trainer_is_copied_but_not_pickled():
    run = trainer()
    run.fit((X, Y), verbose=False)
    with pytest.raises(TypeError, match=r"a Trainer cannot be pickled: save its model with model.save.*Checkpoint"):
        pickle.dumps(run)
    assert copy.copy(run).model is run.model
    twin = copy.deepcopy(run)
    assert twin.model is not run.model
    assert twin.history == run.history
    assert twin.optimizer.iterations == run.optimizer.iterations


# -- settings under the names of other libraries --

KNOWN = {name: dict(settings_of(made)) for name, made in kinds().items()}
FOREIGN = [
    pytest.param(made, word, id=f"{name}.{word}")
    for name, made in kinds().items()
    for word, ours in peers.KEYWORDS.items()
    if name != "Trainer" and ours in KNOWN[name] and word not in KNOWN[name]
]


def has_parameter(thing, word):
    return isinstance(thing, xn.Module) and word in getattr(type(thing), "__annotations__", {})


@pytest.mark.parametrize(("made", "word"), FOREIGN)
def test_the_name_that_others_give_a_setting_is_refused_with_ours(made, word):
    thing = made(**needed(made))
    with pytest.raises(AttributeError, match=f"setting '{word}' would do nothing; ") as caught:
        setattr(thing, word, 1)
    assert peers.KEYWORDS[word] in str(caught.value)
    assert not hasattr(thing, word) or has_parameter(thing, word)
    copy.deepcopy(thing)


@pytest.mark.parametrize("word", sorted(peers.ON_TRAINER))
def test_a_trainer_refuses_what_is_given_elsewhere(word):
    trainer = xn.Trainer(**needed(xn.Trainer))
    with pytest.raises(AttributeError, match=f"setting '{word}' would do nothing; ") as caught:
        setattr(trainer, word, 1)
    assert peers.ON_TRAINER[word] in str(caught.value)


def test_what_belongs_to_a_layer_is_refused_on_layers_alone():
    for word in ("data_format", "in_channels", "input_size", "batch_first", "num_layers"):
        with pytest.raises(AttributeError, match=f"setting '{word}' would do nothing; leave it out"):
            setattr(xn.Conv2D(2, 3), word, 1)
        model: Any = xn.Sequential([xn.Dense(3)])
        setattr(model, word, 1)
        assert getattr(model, word) == 1
    with pytest.raises(AttributeError, match=r"Adam: setting 'betas' would do nothing; give beta1= and beta2="):
        xn.optim.Adam().betas = (0.8, 0.9)  # type: ignore[attr-defined]


def test_parameters_keep_the_names_that_are_words_of_settings():
    norm, dense = xn.BatchNorm(), xn.Dense(3)
    for layer, name in ((norm, "scale"), (dense, "bias")):
        layer.materialize((3,))
        setattr(layer, name, xn.Parameter(np.zeros(3, np.float32)))
        assert layer.parameters()[name] is getattr(layer, name)


def test_a_class_of_the_users_may_give_the_names_a_meaning():
    class Read(xn.Dropout):
        def forward(self, x):
            return super().forward(x) * self.p  # type: ignore[attr-defined]

    class Defined(xn.optim.Adam):
        betas = (0.9, 0.99)

    class Written(xn.Trainer):
        def prepare(self):
            self.epochs = 3
            setattr(self, "batch_size", 4)  # noqa: B010

    dropout, adam, trainer = Read(0.5), Defined(), Written(**needed(xn.Trainer))
    dropout.p = 0.25
    adam.betas = (0.8, 0.9)
    trainer.prepare()
    trainer.epochs += 1
    assert (dropout.p, adam.betas, trainer.epochs, trainer.batch_size) == (0.25, (0.8, 0.9), 4, 4)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="it is called epsilon here"):
        adam.eps = 1e-3  # type: ignore[attr-defined]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_class_of_the_users_gets_the_state_of_a_momentum_that_begins_later(momentum):
    class Counting(xn.optim.SGD):
        def __init__(self, momentum):
            super().__init__(0.1, momentum)
            self.slot_names = (*self.slot_names, "sum")

        def update(self, w, g, learning_rate):
            self.slots["sum"] += abs(g)
            super().update(w, g, learning_rate)

    def weights(kind, late):
        model = xn.Sequential([xn.Dense(3)], input_shape=(6,))
        optimizer = kind(momentum)
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer)
        trainer.fit((X, Y), verbose=False)
        optimizer.momentum = late
        trainer.fit((X, Y), epochs=2, verbose=False)
        return model[0].kernel.array, optimizer

    for late in (0.0, 0.9):
        own, optimizer = weights(Counting, late)
        np.testing.assert_array_equal(own, weights(lambda momentum: xn.optim.SGD(0.1, momentum), late)[0])
        assert (*sorted(optimizer.slots),) == (("sum", "velocity") if late else ("sum",))
        assert optimizer.slots["sum"].max() > 0
