"""Examples of every layer. To add a layer to the contract, add a line to LAYERS.

    layer("Dense", lambda: xn.Dense(4), (3,), lambda x, p: oracles.dense(x, p["kernel"], p["bias"]), wrong=[...])

The third argument is the shape of an example; the oracle gets the batch and the layer's parameters and buffers by name. `wrong`
lists shapes of examples that the layer must refuse, each with what the message must contain; ANY if there are none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import xpnet as xn
from tests import oracles

Says = tuple[str, ...]


@dataclass(frozen=True)
class LayerCase:
    """One example of a layer."""

    name: str
    make: Callable[[], Any]
    shape: tuple[int, ...]
    oracle: Callable[..., Any]
    training_oracle: Callable[..., Any] | None
    wrong: tuple[tuple[tuple[int, ...], Says], ...]
    integers: int | None
    differentiable: bool

    @property
    def id(self) -> str:
        return f"{self.make()!r}".replace(" ", "")

    def batch(self, examples: int = 3, dtype: str = "float64", seed: int = 0) -> np.ndarray:
        random = np.random.default_rng((seed, 7))
        shape = (examples, *self.shape)
        if self.integers is not None:
            return random.integers(0, self.integers, shape)
        return random.standard_normal(shape).astype(dtype)

    def model(self, dtype: str = "float64") -> Any:
        """Return a model of this layer alone; its path is "0"."""
        return xn.Sequential([self.make()], input_shape=self.shape, dtype=dtype, seed=3)

    def expected(self, x: np.ndarray, state: dict[str, np.ndarray], training: bool) -> np.ndarray:
        plain = {name.removeprefix("0."): np.array(values) for name, values in state.items()}
        oracle = self.training_oracle if training and self.training_oracle is not None else self.oracle
        found: np.ndarray = oracle(x, plain)
        return found


def layer(
    name: str,
    make: Callable[[], Any],
    shape: tuple[int, ...],
    oracle: Callable[..., Any],
    *,
    training: Callable[..., Any] | None = None,
    wrong: Any,
    integers: int | None = None,
    differentiable: bool = True,
) -> LayerCase:
    """Make a case; `training` is the oracle in training mode if it differs, `integers` one more than the largest input."""
    return LayerCase(name, make, shape, oracle, training, tuple(wrong), integers, differentiable)


ANY: tuple[Any, ...] = ()
IMAGE = (((4,), ("(4,)|(2, 4)", "H, W, C")),)
"""What all layers of images must refuse; `|` separates alternatives: the shape of the example or of the batch."""


def dropout(rate: float, *, inverted: bool = True, spatial: bool = False) -> Callable[..., np.ndarray]:
    """Return the oracle of dropout in the first call of layer "0" with seed 3: lane i % 4 of word i // 4 of Philox."""

    def apply(x: np.ndarray, p: Any) -> np.ndarray:
        path = hashlib.blake2b(b"0\0dropout", digest_size=8).digest()
        key = np.array([3, int.from_bytes(path, "little")], np.uint64)
        shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]) if spatial else x.shape
        count = int(np.prod(shape))
        words = [int(w) for w in np.random.Philox(key=key, counter=np.zeros(4, np.uint64)).random_raw(count // 4 + 1)]
        keep = [(words[i // 4] >> (16 * (i % 4))) % 65536 >= round(rate * 65536) for i in range(count)]
        return oracles.dropped(x, np.array(keep).reshape(shape), rate, inverted)

    return apply


def _stem(x: np.ndarray, p: Any) -> np.ndarray:
    y = oracles.conv2d(x, p["0.kernel"], p["0.bias"], activation="relu")
    y = oracles.max_pool2d(y, 2)
    return oracles.dense(y.reshape(len(y), 8), p["3.kernel"], p["3.bias"])


def _shifted(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, dilation: int) -> np.ndarray:
    """Compute a causal convolution over sequences, padded in front."""
    return oracles.conv1d(x, kernel, bias, padding=(dilation * (len(kernel) - 1), 0), dilation=dilation)


def _last(result: Any) -> np.ndarray:
    """Return the last output: that of a recurrent layer without return_sequences."""
    last: np.ndarray = result[1]
    return last


SEQUENCE = (((4,), ("(4,)", "(T, C)")), ((2, 3, 4), ("(2, 3, 4)", "(T, C)")))
SIDES = ("forwards", "backwards")
LSTM = ("kernel", "recurrent_kernel", "bias")
GRU = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")

LAYERS = [
    *[
        layer(type(make()).__name__, make, (2, 5), lambda x, p, f=function: f(x), wrong=ANY)
        for make, function in (
            (xn.ReLU, oracles.relu), (xn.Sigmoid, oracles.sigmoid), (xn.Tanh, oracles.tanh), (xn.SELU, oracles.selu),
            (xn.SiLU, oracles.silu), (xn.Softplus, oracles.softplus), (xn.Softsign, oracles.softsign),
            (xn.HardSigmoid, oracles.hard_sigmoid), (xn.LeakyReLU, oracles.leaky_relu), (xn.ELU, oracles.elu),
            (xn.GELU, oracles.gelu), (xn.Softmax, oracles.softmax),
        )
    ],
    layer("LeakyReLU", lambda: xn.LeakyReLU(0.2), (5,), lambda x, p: oracles.leaky_relu(x, slope=0.2), wrong=ANY),
    layer("ELU", lambda: xn.ELU(alpha=2.0), (5,), lambda x, p: oracles.elu(x, alpha=2.0), wrong=ANY),
    layer("GELU", lambda: xn.GELU(approximate=True), (5,), lambda x, p: oracles.gelu(x, approximate=True), wrong=ANY),
    layer("Softmax", lambda: xn.Softmax(axis=1), (3, 2), lambda x, p: oracles.softmax(x, axis=1), wrong=ANY),
    layer("Step", xn.Step, (5,), lambda x, p: oracles.step(x), wrong=ANY, differentiable=False),
    layer("Activation", lambda: xn.Activation("tanh"), (4,), lambda x, p: oracles.tanh(x), wrong=ANY),
    layer("Activation", lambda: xn.Activation("linear"), (4,), lambda x, p: x, wrong=ANY),
    layer("Activation", lambda: xn.Activation("log_softmax"), (4,), lambda x, p: oracles.log_softmax(x), wrong=ANY),
    # dense
    layer(
        "Dense", lambda: xn.Dense(4, "relu"), (3,),
        lambda x, p: oracles.dense(x, p["kernel"], p["bias"], activation="relu"),
        wrong=[((), ("(N,)", "(N, 1)"))],
    ),
    layer("Dense", lambda: xn.Dense(4, "elu"), (3,),
          lambda x, p: oracles.elu(oracles.dense(x, p["kernel"], p["bias"])), wrong=ANY),
    layer("Dense", lambda: xn.Dense(2, use_bias=False), (3, 5), lambda x, p: oracles.dense(x, p["kernel"]), wrong=ANY),
    # convolutions
    layer(
        "Conv2D", lambda: xn.Conv2D(4, 3), (5, 6, 2), lambda x, p: oracles.conv2d(x, p["kernel"], p["bias"]),
        wrong=[*IMAGE, ((2, 6, 2), ("height", "window of 3"))],
    ),
    layer(
        "Conv2D", lambda: xn.Conv2D(4, (3, 2), stride=2, padding="same", groups=2, activation="sigmoid"), (5, 6, 2),
        lambda x, p: oracles.conv2d(x, p["kernel"], p["bias"], stride=2, padding="same", groups=2, activation="sigmoid"),
        wrong=[((5, 6, 3), ("3 input channels", "groups=2"))],
    ),
    layer(
        "Conv2D", lambda: xn.Conv2D(3, 3, padding=((2, 1), (0, 3)), dilation=2, use_bias=False), (4, 5, 2),
        lambda x, p: oracles.conv2d(x, p["kernel"], padding=((2, 1), (0, 3)), dilation=2), wrong=IMAGE,
    ),
    # pooling
    layer("MaxPool2D", lambda: xn.MaxPool2D(2), (4, 5, 2), lambda x, p: oracles.max_pool2d(x, 2),
          wrong=[*IMAGE, ((1, 4, 2), ("height", "window of 2"))]),
    layer("MaxPool2D", lambda: xn.MaxPool2D(3, 2, 1), (5, 5, 2),
          lambda x, p: oracles.max_pool2d(x, 3, stride=2, padding=1), wrong=IMAGE),
    layer("AveragePool2D", lambda: xn.AveragePool2D((2, 3), stride=1), (4, 5, 2),
          lambda x, p: oracles.average_pool2d(x, (2, 3), stride=1), wrong=IMAGE),
    layer("AveragePool2D", lambda: xn.AveragePool2D(3, 2, 1, count_include_pad=True), (5, 5, 1),
          lambda x, p: oracles.average_pool2d(x, 3, stride=2, padding=1, count_include_pad=True), wrong=IMAGE),
    layer("LpPool2D", lambda: xn.LpPool2D(2), (4, 4, 2), lambda x, p: oracles.lp_pool2d(x, 2), wrong=IMAGE),
    layer("LpPool2D", lambda: xn.LpPool2D(2, 1, p=3), (3, 4, 1), lambda x, p: oracles.lp_pool2d(x, 2, stride=1, p=3),
          wrong=IMAGE),
    layer("GlobalAveragePool2D", xn.GlobalAveragePool2D, (3, 4, 2), lambda x, p: oracles.global_average_pool2d(x), wrong=IMAGE),
    # shapes
    layer("Flatten", xn.Flatten, (2, 3, 2), lambda x, p: x.reshape(len(x), 12), wrong=ANY),
    layer("Reshape", lambda: xn.Reshape((3, 4)), (2, 6), lambda x, p: oracles.reshape(x, (len(x), 3, 4)),
          wrong=[((5,), ("(5,)", "(3, 4)"))]),
    layer("Reshape", lambda: xn.Reshape((-1, 2)), (2, 3), lambda x, p: oracles.reshape(x, (len(x), 3, 2)),
          wrong=[((5,), ("(5,)", "(-1, 2)"))]),
    # dropout
    layer("Dropout", lambda: xn.Dropout(0.4), (2, 7), lambda x, p: x, training=dropout(0.4), wrong=ANY),
    layer("Dropout", lambda: xn.Dropout(0.4, spatial=True), (2, 3, 5), lambda x, p: x, training=dropout(0.4, spatial=True),
          wrong=ANY),
    layer("Dropout", lambda: xn.Dropout(0.4, inverted=False), (7,), lambda x, p: 0.6 * x,
          training=dropout(0.4, inverted=False), wrong=ANY),
    layer("Dropout", lambda: xn.Dropout(0.0), (7,), lambda x, p: x, wrong=ANY),
    layer("Dropout", lambda: xn.Dropout(1.0), (7,), lambda x, p: x, training=dropout(1.0), wrong=ANY),
    # containers
    layer(
        "Residual", lambda: xn.Residual([xn.Dense(4, "tanh"), xn.Dense(3)]), (3,),
        lambda x, p: x + oracles.dense(
            oracles.dense(x, p["body.0.kernel"], p["body.0.bias"], activation="tanh"), p["body.1.kernel"], p["body.1.bias"]
        ),
        wrong=[((5,), ("(3,)", "(5,)", "shortcut"))],
    ),
    layer(
        "Residual", lambda: xn.Residual(xn.Dense(4), xn.Dense(4, use_bias=False)), (3,),
        lambda x, p: oracles.dense(x, p["body.kernel"], p["body.bias"]) + oracles.dense(x, p["shortcut.kernel"]),
        wrong=[((), ("(N,)",))],
    ),
    layer(
        "Sequential", lambda: xn.Sequential([xn.Conv2D(2, 3, activation="relu"), xn.MaxPool2D(2), xn.Flatten(), xn.Dense(3)]),
        (6, 6, 1), _stem, wrong=IMAGE,
    ),
    layer("Conv1D", lambda: xn.Conv1D(4, 3, padding="same", activation="relu"), (6, 2),
          lambda x, p: oracles.conv1d(x, p["kernel"], p["bias"], padding="same", activation="relu"),
          wrong=[((4,), ("(4,)", "(L, C)"))]),
    layer("Conv1D", lambda: xn.Conv1D(2, 2, padding="causal", dilation=2), (5, 2),
          lambda x, p: _shifted(x, p["kernel"], p["bias"], 2), wrong=[((4,), ("(4,)", "(L, C)"))]),
    layer("Conv2DTranspose", lambda: xn.Conv2DTranspose(3, 3, stride=2, padding=1, output_padding=1), (3, 4, 2),
          lambda x, p: oracles.conv_transpose2d(x, p["kernel"], p["bias"], stride=2, padding=1, output_padding=1), wrong=IMAGE),
    layer("Conv2DTranspose", lambda: xn.Conv2DTranspose(4, 2, stride=2, padding="same", groups=2, activation="tanh"), (2, 3, 2),
          lambda x, p: np.tanh(oracles.conv_transpose2d(x, p["kernel"], p["bias"], stride=2, padding="same", groups=2)),
          wrong=[*IMAGE, ((2, 3, 3), ("3", "groups=2"))]),
    # normalisation
    layer(
        "BatchNorm", lambda: xn.BatchNorm(epsilon=0.01), (4,),
        lambda x, p: oracles.batch_norm_inference(
            x, p["scale"], p["offset"], mean=p["running_mean"], variance=p["running_variance"], epsilon=0.01
        ),
        training=lambda x, p: oracles.batch_norm(x, p["scale"], p["offset"], epsilon=0.01),
        wrong=[((), ("(..., C)",))],
    ),
    layer(
        "BatchNorm", lambda: xn.BatchNorm(use_scale=False, use_offset=False), (2, 3, 2),
        lambda x, p: oracles.batch_norm_inference(x, mean=p["running_mean"], variance=p["running_variance"]),
        training=lambda x, p: oracles.batch_norm(x), wrong=[((), ("(..., C)",))],
    ),
    layer("LayerNorm", xn.LayerNorm, (3, 4), lambda x, p: oracles.layer_norm(x, p["scale"], p["offset"]),
          wrong=[((), ("()", "axes=1"))]),
    layer("LayerNorm", lambda: xn.LayerNorm(2, use_offset=False), (2, 3, 4),
          lambda x, p: oracles.layer_norm(x, p["scale"], axis=(2, 3)), wrong=[((4,), ("(4,)", "axes=2"))]),
    layer("GroupNorm", lambda: xn.GroupNorm(2), (2, 3, 4),
          lambda x, p: oracles.group_norm(x, p["scale"], p["offset"], groups=2),
          wrong=[((2, 3, 3), ("3 channels", "groups=2"))]),
    layer("InstanceNorm", xn.InstanceNorm, (2, 3, 2),
          lambda x, p: oracles.group_norm(x, p["scale"], p["offset"], groups=2), wrong=[((), ("(..., C)",))]),
    layer("LocalResponseNorm", lambda: xn.LocalResponseNorm(3, alpha=0.5), (2, 2, 4),
          lambda x, p: oracles.local_response_norm(x, size=3, alpha=0.5), wrong=IMAGE),
    # symbols and sequences
    layer("Embedding", lambda: xn.Embedding(5, 3), (4,), lambda x, p: oracles.embedding(x, p["table"]), integers=5, wrong=ANY),
    layer("Embedding", lambda: xn.Embedding(5, 3, padding=2), (2, 3),
          lambda x, p: oracles.embedding(x, p["table"]) * (x != 2)[..., None], integers=5, wrong=ANY),
    layer("RNN", lambda: xn.RNN(3), (4, 2), lambda x, p: _last(oracles.rnn(x, *(p[n] for n in LSTM))), wrong=SEQUENCE),
    layer("RNN", lambda: xn.RNN(3, "relu", return_sequences=True, use_bias=False, reverse=True), (3, 2),
          lambda x, p: oracles.rnn(x, p["kernel"], p["recurrent_kernel"], activation="relu", reverse=True)[0], wrong=SEQUENCE),
    layer("LSTM", lambda: xn.LSTM(2), (3, 2), lambda x, p: _last(oracles.lstm(x, *(p[n] for n in LSTM))), wrong=SEQUENCE),
    layer("LSTM", lambda: xn.LSTM(2, return_sequences=True), (3, 2),
          lambda x, p: oracles.lstm(x, *(p[n] for n in LSTM))[0], wrong=SEQUENCE),
    layer("GRU", lambda: xn.GRU(2), (3, 2), lambda x, p: _last(oracles.gru(x, *(p[n] for n in GRU))), wrong=SEQUENCE),
    layer(
        "Bidirectional", lambda: xn.Bidirectional(xn.RNN(2, return_sequences=True)), (3, 2),
        lambda x, p: np.concatenate(
            [oracles.rnn(x, *(p[f"{side}.{n}"] for n in LSTM), reverse=side == "backwards")[0] for side in SIDES], axis=-1
        ),
        wrong=SEQUENCE,
    ),
    layer(
        "Bidirectional", lambda: xn.Bidirectional(xn.GRU(2), merge="mean"), (3, 2),
        lambda x, p: np.mean(
            [_last(oracles.gru(x, *(p[f"{side}.{n}"] for n in GRU), reverse=side == "backwards")) for side in SIDES], axis=0
        ),
        wrong=SEQUENCE,
    ),
]  # fmt: skip
