"""The words of Keras, PyTorch and scikit-learn: what they are called here."""

from __future__ import annotations

import difflib
import dis
import re
import sys
import types
from collections.abc import Container, Iterable
from typing import Any

_LEAVE_OUT = "leave it out: it is found from the first input, or from input_shape= of xn.Sequential"
_OF_MODEL = "the whole model has one: xn.Sequential(..., {}=...)"
_OF_FIT = "it is an argument of trainer.fit"
_OF_TRAINER = "it is an argument of xn.Trainer"
_CLIP = "use the callback xn.training.ClipGradients"
_SPLIT = "divide the data with xn.data.split and give fit(..., validation=(x, y))"
_INPUTS = "data are one pair: {}((x, y))"

KEYWORDS: dict[str, str] = {
    # layers
    "bias": "use_bias", "kernel_size": "window", "pool_size": "window", "strides": "stride", "out_channels": "filters",
    "out_features": "units", "hidden_size": "units", "num_embeddings": "symbols", "input_dim": "symbols",
    "embedding_dim": "units", "output_dim": "units", "dilation_rate": "dilation", "negative_slope": "slope",
    "eps": "epsilon", "p": "rate", "affine": "use_scale", "center": "use_offset", "scale": "use_scale",
    "go_backwards": "reverse", "nonlinearity": "activation", "num_groups": "groups", "padding_idx": "padding",
    "recurrent_activation": "leave it out: gates are sigmoids", "batch_first": "leave it out: inputs are (N, T, C) always",
    "bidirectional": "leave it out: use xn.Bidirectional(layer)",
    "num_layers": "leave it out: stack the layers in xn.Sequential",
    "in_channels": _LEAVE_OUT, "in_features": _LEAVE_OUT, "input_size": _LEAVE_OUT, "num_features": _LEAVE_OUT,
    "normalized_shape": _LEAVE_OUT, "data_format": "leave it out: images are (N, H, W, C) always",
    "name": "a layer's name is its path in the model, such as '0'", "trainable": "set layer.trainable = False afterwards",
    "dtype": _OF_MODEL.format("dtype"), "device": _OF_MODEL.format("device"), "seed": _OF_MODEL.format("seed"),
    "input_shape": _OF_MODEL.format("input_shape"),
    # optimizers, schedules, callbacks
    "lr": "learning_rate", "learning_rate_init": "learning_rate", "initial_learning_rate": "rate",
    "betas": "give beta1= and beta2=", "beta_1": "beta1", "beta_2": "beta2", "rho": "decay", "gamma": "factor",
    "params": "give optimizer.step(model) the model, not the optimizer", "clipnorm": _CLIP, "clipvalue": _CLIP,
    "max_grad_norm": _CLIP, "gradient_clip_val": _CLIP, "gradient_clip_norm": _CLIP,
    "max_norm": "norm", "decay_steps": "steps", "T_max": "steps", "step_size": "every", "max_lr": "rate",
    "total_steps": "steps", "min_lr": "lowest", "restore_best_weights": "restore_best", "filepath": "folder",
    "save_best_only": 'best="val_loss" keeps the best one as best.ckpt', "save_freq": "every_steps",
    "verbose": _OF_FIT, "batch_size": _OF_FIT, "epochs": _OF_FIT,
    # Trainer and fit
    "criterion": "loss", "validation_data": "validation", "validation_split": _SPLIT, "callbacks": _OF_TRAINER,
    "nb_epoch": "epochs", "max_iter": "epochs", "max_epochs": "epochs", "num_epochs": "epochs",
    "accumulate_grad_batches": "accumulate", "gradient_accumulation_steps": "accumulate",
    "steps_per_epoch": "use xn.data.Batches(..., samples_per_epoch=...)", "initial_epoch": "resume",
    "class_weight": "use loss=xn.training.ClassWeighted(loss, weights)", "loss": _OF_TRAINER, "optimizer": _OF_TRAINER,
    "metrics": _OF_TRAINER, "sample_weight": "use xn.data.Batches(..., weights=...)",
    "x": _INPUTS.format("fit"), "y": _INPUTS.format("fit"), "X": _INPUTS.format("fit"),
    # data
    "num_workers": "workers", "test_size": "fraction", "random_state": "seed", "num_classes": "classes",
}  # fmt: skip
"""Arguments by their names elsewhere: a name here, or a phrase, which has spaces."""

POSITIONS: dict[str, str] = {
    "Sequential": "layers are one list: xn.Sequential([xn.Dense(8), xn.Dense(3)])",
    "Trainer": "everything but the model is given by keyword: xn.Trainer(model, loss=..., optimizer=...)",
    "Trainer.fit": "data are one pair, and the rest is given by keyword: fit((x, y), epochs=5)",
    "Trainer.evaluate": "data are one pair: evaluate((x, y))",
}
"""What to do where a call gives too many positional arguments."""

_LAYERS = "layers are found in xpnet itself, such as xn.Dense"
_SHAPE = "use xn.Sequential([...], input_shape=...)"
_TRAIN = "training is a Trainer's: xn.Trainer(model, loss=..., optimizer=..., metrics=[...]).fit((x, y))"
_CLEARED = "optimizer.step(model) clears the gradients itself; model.zero_grad() drops them"
_PARTS = "its parts are dataset.train and dataset.test, pairs (x, y); xn.data.split divides one of them"
_SCHEDULE = "a schedule is the learning rate: learning_rate=xn.optim.schedules.Step(...)"
_DROPOUT = "put xn.Dropout(rate) between the layers"
_MOVE = "use xn.to_device(tensor.array, device); a model moves with model.to(device)"

ATTRIBUTES: dict[str, dict[str, str]] = {
    "xpnet": {
        "Linear": "Dense", "Conv1d": "Conv1D", "Conv2d": "Conv2D", "ConvTranspose2d": "Conv2DTranspose",
        "MaxPool2d": "MaxPool2D", "MaxPooling2D": "MaxPool2D", "AvgPool2d": "AveragePool2D",
        "AveragePooling2D": "AveragePool2D", "AdaptiveAvgPool2d": "GlobalAveragePool2D",
        "GlobalAveragePooling2D": "GlobalAveragePool2D", "BatchNorm1d": "BatchNorm", "BatchNorm2d": "BatchNorm",
        "BatchNormalization": "BatchNorm", "LayerNormalization": "LayerNorm", "Dropout2d": "use xn.Dropout(rate, spatial=True)",
        "SimpleRNN": "RNN", "PReLU": "LeakyReLU", "Model": "use xn.Module or xn.Sequential([...])", "nn": _LAYERS,
        "keras": _LAYERS, "tensor": "use xn.Tensor(array)", "Input": _SHAPE, "InputLayer": _SHAPE,
        "optimizers": "optim", "SGD": "optim.SGD", "Adam": "optim.Adam", "AdamW": "optim.AdamW", "RMSprop": "optim.RMSprop",
        "lr_scheduler": "optim.schedules", "callbacks": "training", "EarlyStopping": "training.EarlyStopping",
        "ModelCheckpoint": "training.Checkpoint", "ReduceLROnPlateau": "training.ReduceOnPlateau",
        "DataLoader": "data.Batches", "Dataset": "data.Batches", "datasets": 'data.load("mnist")', "utils": "data",
        "train_test_split": "data.split", "CrossEntropyLoss": "losses.softmax_cross_entropy",
        "MSELoss": "losses.mean_squared_error", "MLPClassifier": "models.mlp", "functional": "ops",
        "from_numpy": "Tensor", "load_model": "load", "GradientTape": "value_and_grad", "grad": "value_and_grad",
        "manual_seed": "give the model and the Trainer seed=", "save": "model.save(path) writes a model",
    },
    "Module": {
        "compile": "give loss, optimizer and metrics to xn.Trainer(model, loss=..., optimizer=..., metrics=[...])",
        "fit": _TRAIN, "partial_fit": _TRAIN, "train_on_batch": _TRAIN,
        "evaluate": "use xn.Trainer(model, loss=..., optimizer=...).evaluate((x, y))",
        "score": "use xn.Trainer(model, loss=..., optimizer=..., metrics=[...]).evaluate((x, y))",
        "predict_proba": "use predict; xn.ops.softmax turns logits into probabilities",
        "state_dict": "state", "load_state_dict": "load_state", "get_weights": "state", "set_weights": "load_state",
        "weights": "parameters", "named_parameters": "parameters", "trainable_variables": "parameters",
        "count_params": "count_parameters", "register_buffer": "add_buffer", "register_parameter": "add_parameter",
        "requires_grad_": "freeze", "cuda": 'to("cuda")', "cpu": 'to("cpu")', "children": "modules",
        "float": "the dtype is chosen when a model is made: dtype=", "half": "the dtype is chosen when a model is made: dtype=",
        "double": "the dtype is chosen when a model is made: dtype=",
        "weight": "a layer's weights are its kernel: layer.kernel",
        "add": "layers are one list: xn.Sequential([...])", "append": "layers are one list: xn.Sequential([...])",
        "get_layer": "use model.layers[i], or the attribute that the layer was assigned to",
        "apply": "use model.modules()", "to_json": "save",
    },
    "Tensor": {
        "numpy": "use xn.to_numpy(tensor), or tensor.array",
        "data": "array", "cpu": "use xn.to_numpy(tensor)", "to": _MOVE, "cuda": _MOVE, "view": "reshape",
        "dim": "ndim", "argmax": "use tensor.array.argmax(...): it has no gradient", "permute": "use xn.ops.transpose",
        "unsqueeze": "use reshape", "squeeze": "use reshape", "requires_grad_": "use xn.Tensor(array, requires_grad=True)",
        "tolist": "use xn.to_numpy(tensor).tolist()", "grad_fn": "node",
    },
    "Trainer": {
        "predict": "use trainer.model.predict(x)", "train": "fit", "validate": "evaluate", "score": "evaluate",
        "compile": "everything is given to xn.Trainer(...) itself", "save": "use trainer.model.save(path)",
        "summary": "use trainer.model.summary()", "stop_training": "stop", "test": "evaluate",
        "zero_grad": _CLEARED, "lr": "use trainer.optimizer.learning_rate",
    },
    "Optimizer": {
        "zero_grad": _CLEARED, "lr": "learning_rate", "state_dict": "state",
        "param_groups": "there is one group: use optimizer.learning_rate, and model.freeze(path)",
        "load_state_dict": "load_state", "minimize": "compute the loss, call loss.backward(), then step(model)",
        "apply_gradients": "step", "add_param_group": "step(model) takes the model, or a list of Parameters",
        "lr_scheduler": _SCHEDULE, "scheduler": _SCHEDULE, "clipnorm": _CLIP, "clipvalue": _CLIP, "global_clipnorm": _CLIP,
    },
    "Dataset": {
        "data": _PARTS, "target": _PARTS, "validation": _PARTS, "target_names": "class_names",
    },
    "_Normalization": {"gamma": "scale", "beta": "offset", "bias": "offset"},
    "BatchNorm": {
        "running_var": "running_variance", "moving_mean": "running_mean", "moving_variance": "running_variance",
        "track_running_stats": "with layer.trainable = False the running statistics are used in training, too",
    },
    "Recurrent": {
        "dropout": _DROPOUT, "recurrent_dropout": _DROPOUT, "activation": "it is tanh, but for xn.RNN(units, activation)",
    },
    "LeakyReLU": {"alpha": "slope"},
    "MaxPool2D": {"ceil_mode": "sizes are rounded down"},
    "SGD": {"maximize": "negate the loss", "dampening": "the gradient enters the velocity whole"},
    "RMSprop": {"alpha": "rate_decay", "rho": "rate_decay"},
    "EarlyStopping": {
        "baseline": "what is better is found from the first epoch on", "start_from_epoch": "every epoch counts; use patience",
    },
    "ReduceOnPlateau": {"cooldown": "patience begins again after each reduction", "threshold": "min_delta"},
    "History": {"history": 'it is the dict itself: history["loss"]', "epoch": "epochs"},
}  # fmt: skip
"""Attributes by their names elsewhere, of each class and of the package: as in KEYWORDS."""

ON_TRAINER: dict[str, str] = {
    "stop_training": "use trainer.stop = True", "should_stop": "use trainer.stop = True",
    **dict.fromkeys(("lr", "learning_rate"), "use trainer.optimizer.learning_rate"),
    **dict.fromkeys(("lr_scheduler", "scheduler"), _SCHEDULE), "weight_decay": "use trainer.optimizer.weight_decay",
    "steps_per_epoch": KEYWORDS["steps_per_epoch"], "drop_last": "use xn.data.Batches(..., drop_last=True)",
    "precision": _OF_MODEL.format("dtype"), "loss_fn": "use trainer.loss", "loss_function": "use trainer.loss",
    "optimiser": "use trainer.optimizer", "metric": "use trainer.metrics", "callback": "use trainer.callbacks",
    "loss_scale": "use trainer.optimizer.loss_scale", "device": "use trainer.model.to(device)",
    **dict.fromkeys(("batch_size", "epochs", "shuffle", "verbose", "validation", "resume"), _OF_FIT),
    **dict.fromkeys(("max_epochs", "num_epochs", "nb_epoch", "max_iter"), f"{_OF_FIT}, epochs="),
    **{name: KEYWORDS[name] for name in ("validation_split", "class_weight", "sample_weight", "max_grad_norm",
                                         "gradient_clip_val", "gradient_clip_norm", "clipnorm", "clipvalue")},
    "validation_data": f"{_OF_FIT}, validation=", "val_data": f"{_OF_FIT}, validation=",
    "criterion": "use trainer.loss", "random_state": "use trainer.seed",
    **dict.fromkeys(("accumulate_grad_batches", "gradient_accumulation_steps"), "use trainer.accumulate"),
}  # fmt: skip
"""Attributes that would do nothing when they are set on a Trainer, and what to do instead."""

_STEP = "write the step as a function or loop of your own with value_and_grad, or give loss= a function"

OF_MODELS: dict[str, str] = {
    **dict.fromkeys(("train_step", "training_step"), _STEP),
    **dict.fromkeys(("test_step", "validation_step"), "give the Trainer metrics= functions"),
    "predict_step": "write what follows the network in its forward, or in a function of your own",
    "configure_optimizers": "give the Trainer optimizer=",
    "compute_loss": "give it to the Trainer: loss=model.compute_loss, a function (prediction, target)",
    "compute_metrics": "give the Trainer metrics= functions",
    "backward": "gradients are found by the tape from what forward computes; an operation with a gradient of its own is an "
    "xn.ops.op",
}  # fmt: skip
"""Methods of a model that the training loops of other libraries call, and a Trainer does not."""

METHODS: dict[str, dict[str, str]] = {
    "Module": {"call": "forward"},
    "Trainer": {
        "train_step": _STEP, "training_step": _STEP, "validation_step": "give metrics= functions",
        "test_step": "give metrics= functions", "compute_loss": "give loss= a function (prediction, target)",
        "configure_optimizers": "give optimizer= an Optimizer",
        **dict.fromkeys(
            ("on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end", "on_batch_end", "on_train_batch_end",
             "on_train_start", "on_fit_begin", "on_fit_end", "on_step_end"),
            "write a subclass of xn.Callback and give callbacks=[...]",
        ),
    },
    "Optimizer": {"update_step": "update", "apply_gradients": "step", "get_updates": "update"},
}  # fmt: skip
"""Methods that subclasses of other libraries' classes define, and that nothing here would call: as in KEYWORDS."""


def close(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant, or None."""
    found = difflib.get_close_matches(word, list(known), 1)
    return found[0] if found else None


def keyword_hint(name: str, taken: Iterable[str]) -> str:
    """Return what to give instead of an unknown keyword argument, to a call that takes those of `taken`."""
    taken = [t for t in taken if not t.startswith("_")]
    ours = KEYWORDS.get(name)
    if ours is not None and (ours in taken or " " in ours):
        return ours if " " in ours else f"it is called {ours} here"
    meant = close(name, taken)
    return f"did you mean {meant}?" if meant else f"it takes {', '.join(taken)}" if taken else "it takes no arguments"


def setting_hint(name: str, taken: Container[str], of_layer: bool, owner: str = "") -> str:
    """Return what a setting of other libraries is here, where something with the settings `taken` has no such; "": not known.

    of_layer: whether the thing is one layer, to which what is left out here would belong.
    owner: its class, which ATTRIBUTES may know.
    """
    if name in taken:
        return ""
    own = ATTRIBUTES.get(owner, {}).get(name, "")
    if own:
        return own if " " in own else f"it is called {own} here"
    ours = KEYWORDS.get(name, "")
    if " " not in ours:
        return f"it is called {ours} here" if ours in taken else ""
    if ours.startswith("leave it out"):
        return ours if of_layer else ""
    return ours if any(word in taken for word in re.findall(r"(\w+)=", ours)) else ""


def attribute_hint(owner: str, name: str) -> str:
    """Return what to use instead of an attribute that a class, or the package itself, does not have; "" if nothing is known."""
    ours = ATTRIBUTES.get(owner, {}).get(name)
    if ours is None:
        return ""
    return f"; {ours}" if " " in ours else f"; it is {'xn.' if owner == 'xpnet' else ''}{ours} here"


def missing_attribute(instance: Any, name: str) -> Any:
    """Raise the AttributeError of a missing attribute, with what it is called here: the `__getattr__` of a class.

    Python suggests similar names of the class itself where it prints the error.
    """
    kinds = type(instance).__mro__
    if any(name in vars(kind) for kind in kinds):  # a property raised it: its own error says why
        return object.__getattribute__(instance, name)
    hint = next((hint for kind in kinds if (hint := attribute_hint(kind.__name__, name))), "")
    raise AttributeError(f"{type(instance).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=instance)


def missing_name(name: str, module: types.ModuleType) -> Exception:
    """Return the error of a name that a module does not have: to be raised in its `__getattr__`.

    An AttributeError; an ImportError with the same hint in ``from xpnet import name``, where Python would leave the hint out.
    """
    hint = attribute_hint(module.__name__, name)
    frame = sys._getframe(2)
    if hint and frame.f_code.co_code[frame.f_lasti] == dis.opmap["IMPORT_FROM"]:
        return ImportError(f"cannot import name {name!r} from {module.__name__!r}{hint}", name=module.__name__)
    return AttributeError(f"module {module.__name__!r} has no attribute {name!r}{hint}", name=name, obj=module)
