"""Arguments of another kind than an annotation says, and the words of other libraries: one error that says what is meant."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet import report
from xpnet.io import model_file
from xpnet.layers.tree import ModuleTree
from xpnet.optim import Optimizer
from xpnet.runtime import peers, settings
from xpnet.training import checkpoint, search

MODULES = [report, model_file, checkpoint, search]  # imported, so that their classes and functions are found
F = np.random.default_rng(0).random((16, 4), dtype=np.float32)
G = np.arange(16) % 3


def below(kind: type) -> set[type]:
    subclasses: list[type] = type.__subclasses__(kind)
    found = {sub for sub in subclasses if sub.__module__.startswith("xpnet.")}
    return found.union(*(below(sub) for sub in found))


CLASSES = sorted(below(settings.Checked) | below(ModuleTree), key=lambda kind: (kind.__module__, kind.__name__))
FUNCTIONS = [
    xn.Trainer.fit, xn.Trainer.evaluate, xn.Module.save, xn.Module.summary, xn.load, xn.models.mlp, xn.models.cnn,
    xn.data.load, xn.data.split, xn.data.class_weights, xn.data.preprocessing.one_hot, xn.training.find_learning_rate,
    xn.training.overfit_one_batch, xn.training.save_checkpoint, xn.training.load_checkpoint,
]  # fmt: skip


def parameters(call: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a function, or of a constructor with those that it passes on to its bases."""
    if not isinstance(call, type):
        return dict(inspect.signature(call).parameters)
    found: dict[str, inspect.Parameter] = {}
    for constructor in settings._constructors(call):
        found = {**inspect.signature(constructor).parameters, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(constructor).parameters.values()):
            break
    return {name: p for name, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name != "self"}


def arguments() -> list[Any]:
    found = []
    calls: list[Any] = [*CLASSES, *FUNCTIONS]
    for call in calls:
        if isinstance(call, type) and inspect.isabstract(call):
            continue
        for name, parameter in parameters(call).items():
            if isinstance(parameter.annotation, str) and settings._kinds(parameter.annotation):
                found.append(pytest.param(call, name, parameter, id=f"{call.__qualname__}.{name}"))
    return found


ARGUMENTS = arguments()


def test_the_walk_finds_the_arguments():
    ids = {str(case.id) for case in ARGUMENTS}
    assert len(ids) > 250
    assert {"Dense.use_bias", "LSTM.stateful", "Conv1D.groups", "Adam.beta1", "EarlyStopping.patience", "Checkpoint.best",
            "ClipGradients.norm", "Trainer.loss_scale", "Trainer.seed", "Trainer.callbacks", "Trainer.fit.shuffle",
            "Batches.drop_last", "Flip.vertical", "Scaled.mode", "Cosine.rate", "ImageFolder.fit", "LossScale.initial",
            "MaxNorm.limit", "PCA.components", "Module.save.path", "RunReport.folder", "cnn.input_shape"} <= ids  # fmt: skip


@pytest.mark.parametrize(("call", "name", "parameter"), ARGUMENTS)
def test_every_argument_of_another_kind_is_refused_by_name(call, name, parameter):
    for value in [object(), {}, print, 5, 2.5, "no", None, [object()]]:
        if any(kind.fits(value) for kind in settings._kinds(parameter.annotation)) or value is parameter.default:
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            call(**{name: value})
        message = str(caught.value)
        assert message.startswith(f"{call.__qualname__}: {name} must be ")
        assert "got " in message
        assert len(message) < 300


@pytest.mark.parametrize("call", [*dict.fromkeys(case.values[0] for case in ARGUMENTS)], ids=lambda call: call.__qualname__)
def test_every_unknown_keyword_is_refused_with_the_known_ones(call):
    with pytest.raises(
        TypeError, match=rf"^{re.escape(call.__qualname__)} got an unexpected keyword argument 'zzz': it takes "
    ):
        call(zzz=1)


def test_a_class_of_the_user_has_its_own_constructor():
    class Net(xn.Module):
        def __init__(self, units: int) -> None:
            super().__init__()
            self.units: Any = units

    assert Net("many").units == "many"  # type: ignore[arg-type]


# -- words of other libraries --

OWNERS: dict[str, Any] = {
    "xpnet": xn, "Module": xn.Sequential([xn.Dense(3)], input_shape=(4,)), "Tensor": xn.Tensor(F),
    "Optimizer": xn.optim.Adam(0.1), "History": xn.History(), "Dataset": xn.data.load("iris"),
    "_Normalization": xn.Sequential([xn.LayerNorm()], input_shape=(4,))[0],
    "BatchNorm": xn.Sequential([xn.BatchNorm()], input_shape=(4,))[0], "Recurrent": xn.LSTM(2), "LeakyReLU": xn.LeakyReLU(),
    "MaxPool2D": xn.MaxPool2D(2), "SGD": xn.optim.SGD(0.1), "RMSprop": xn.optim.RMSprop(),
    "EarlyStopping": xn.training.EarlyStopping(), "ReduceOnPlateau": xn.training.ReduceOnPlateau(),
    "Trainer": xn.Trainer(xn.Sequential([xn.Dense(3)]), loss="mse", optimizer=xn.optim.SGD(0.1)),
}  # fmt: skip
TAKEN = {name for call in [*CLASSES, *FUNCTIONS, xn.data.Batches] for name in parameters(call)}


def resolves(owner: Any, name: str) -> bool:
    place = owner
    for part in re.sub(r"\(.*", "", name).split("."):
        if not hasattr(place, part):
            return False
        place = getattr(place, part)
    return True


@pytest.mark.parametrize(("word", "ours"), peers.KEYWORDS.items())
def test_every_keyword_of_others_leads_to_one_of_ours(word, ours):
    assert " " in ours or ours in TAKEN
    for name in re.findall(r"xn\.([A-Za-z_.]+\w)", ours):
        assert resolves(xn, name), name
    assert ours in peers.keyword_hint(word, [ours])


def test_every_owner_of_words_is_tested():
    assert peers.ATTRIBUTES.keys() == OWNERS.keys()


@pytest.mark.parametrize(
    ("owner", "word", "ours"),
    [(owner, word, ours) for owner, words in peers.ATTRIBUTES.items() for word, ours in words.items()],
)
def test_every_attribute_of_others_leads_to_one_of_ours(owner, word, ours):
    instance = OWNERS[owner]
    if owner == "xpnet" and word == "tensor":  # the old name of a module
        with pytest.raises(TypeError, match=re.escape(ours)):
            xn.tensor([1.0])
        return
    with pytest.raises(AttributeError) as caught:
        getattr(instance, word)
    assert ours in str(caught.value)
    if " " not in ours:
        assert resolves(instance, ours)
    for name in re.findall(r"xn\.([A-Za-z_.]+\w)", ours):
        assert resolves(xn, name), name


def test_an_import_of_a_name_of_others_says_what_it_is_called():
    with pytest.raises(ImportError, match=r"cannot import name 'Conv2d'.*xn\.Conv2D"):
        exec("from xpnet import Conv2d")
    assert not hasattr(xn, "Conv2d")
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        xn.nothing


def test_the_error_of_a_property_is_its_own():
    class Net(xn.Module):
        @property
        def width(self) -> int:
            return self.missing  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="'missing'"):
        Net().width


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: xn.Sequential(xn.Dense(3), xn.Dense(2)), r"layers are one list: xn.Sequential\(\["),  # type: ignore[arg-type, call-arg]
        (lambda: OWNERS["Trainer"].fit(F, G), r"fit\(\(x, y\), epochs=5\)"),
        (lambda: OWNERS["Trainer"].fit(x=F, y=G), r"fit\(\(x, y\)\)"),
        (lambda: OWNERS["Trainer"].evaluate(F, G), r"evaluate\(\(x, y\)\)"),
        (lambda: xn.Dense(3, kernel_initializer=np.ones((4, 3))), "kernel_initializer must be an initializer"),
        (lambda: xn.Residual(3), "Residual: body must be a Module .* or a list of layers"),  # type: ignore[arg-type]
        (lambda: xn.Conv2D(filter=4, window=3), "did you mean filters"),  # type: ignore[call-arg]
        (lambda: xn.Conv1D(4, 3, strides=2), "it is called stride here"),
        (lambda: xn.LSTM(hidden_size=3), "LSTM got .* it is called units here"),  # type: ignore[call-arg]
        (lambda: xn.optim.Adam(F), "learning_rate must be a number or a schedule"),  # type: ignore[arg-type]
        (lambda: xn.optim.Adam(0.1).step(xn.Tensor(F)), "step takes the model"),  # type: ignore[arg-type]
        (lambda: xn.optim.Adam(0.1).step([1]), "step takes the model"),  # type: ignore[list-item]
        (lambda: OWNERS["Module"](F.tolist()), "Sequential: expected arrays of examples .* got list"),
        (lambda: OWNERS["Module"](None), "Sequential: expected arrays of examples .* got NoneType"),
        (lambda: xn.losses.get(xn.Dense), "a loss is a name or a function"),
        (lambda: xn.optim.Adam(lambda step: None).current_learning_rate, "learning rate of step 0 must be a number .* None"),  # type: ignore[arg-type, return-value]
        (lambda: xn.optim.Adam(lambda step: "fast").current_learning_rate, "learning rate of step 0 must be a number"),  # type: ignore[arg-type, return-value]
    ],
)
def test_a_call_that_others_take_says_how_it_is_written_here(call, words):
    with pytest.raises(TypeError, match=words):
        call()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model", [xn.Dense(3)], "model must be a Module"), ("loss", ["mse"], "a loss is a name"),
        ("optimizer", "sgd", "optimizer must be"), ("metrics", [3], "a metric is a name"),
        ("callbacks", [xn.training.Timing], "callbacks must be"),
        ("callbacks", xn.training.Timing(), "callbacks must be a list"),
    ],
)  # fmt: skip
def test_what_a_trainer_is_given_later_is_checked(name, value, words):
    trainer = xn.Trainer(xn.Sequential([xn.Dense(3)]), loss="mse", optimizer=xn.optim.SGD(0.1))
    with pytest.raises(TypeError, match=words):
        setattr(trainer, name, value)


def test_loss_and_metrics_may_be_set_by_name_later():
    trainer = xn.Trainer(xn.Sequential([xn.Dense(3)]), loss="mse", optimizer=xn.optim.SGD(0.1))
    trainer.loss, trainer.metrics = "softmax_cross_entropy", ["accuracy"]
    assert set(trainer.fit((F, G), verbose=False)) == {"loss", "accuracy"}


@pytest.mark.parametrize("value", ["good", F, None])
def test_a_callback_that_records_no_number_is_named(value):
    class Adds(xn.Callback):
        def on_epoch_end(self, trainer: xn.Trainer, values: dict[str, Any]) -> None:
            values["mine"] = value

    trainer = xn.Trainer(
        xn.Sequential([xn.Dense(3)]), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), callbacks=[Adds()]
    )
    with pytest.raises(TypeError, match=r"the value 'mine' of an epoch must be a number, got .* a callback"):
        trainer.fit((F, G), verbose=False)


def with_checkpoints(folder: Path, **more: Any) -> xn.Trainer:
    model = xn.Sequential([xn.Dense(3)], input_shape=(4,))
    return xn.Trainer(
        model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), callbacks=[xn.training.Checkpoint(folder)], **more
    )


def test_a_run_goes_on_from_a_folder(tmp_path):
    with_checkpoints(tmp_path / "run" / "checkpoints").fit((F, G), verbose=False, epochs=2)
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        trainer = with_checkpoints(tmp_path / "other")
        trainer.fit((F, G), verbose=False, epochs=2, resume=folder)
        assert trainer.epoch == 2
    with pytest.raises(FileNotFoundError, match=r"no checkpoints step-\*\.ckpt in this folder"):
        with_checkpoints(tmp_path / "other").fit((F, G), verbose=False, resume=tmp_path)
    with pytest.raises(TypeError, match=r"Trainer\.fit: resume must be a string or a path or None, got True"):
        with_checkpoints(tmp_path / "other").fit((F, G), resume=True)  # type: ignore[arg-type]


def test_a_file_in_the_place_of_a_folder_of_checkpoints(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="Checkpoint needs a folder, and a file is in its place"):
        with_checkpoints(tmp_path / "file").fit((F, G), verbose=False)


@pytest.mark.parametrize("log", [xn.training.JSONLog, xn.training.CSVLog])
def test_a_log_that_cannot_be_written_is_a_warning(tmp_path, log):
    trainer = xn.Trainer(
        xn.Sequential([xn.Dense(3)]), loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1),
        callbacks=[log(tmp_path / "none" / "log")],
    )  # fmt: skip
    with pytest.warns(RuntimeWarning, match="could not be written"):
        assert len(trainer.fit((F, G), epochs=2, verbose=False)["loss"]) == 2


def test_every_optimizer_of_another_library_is_refused():
    class Other:
        def step(self) -> None: ...

    assert not isinstance(Other(), Optimizer)
    with pytest.raises(TypeError, match=r"optimizer must be an object such as xn\.optim\.Adam"):
        xn.Trainer(xn.Sequential([xn.Dense(3)]), loss="mse", optimizer=Other())  # type: ignore[arg-type]
