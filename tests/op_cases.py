"""Examples of every operation and of wrong calls. To add an operation to the contract, add a line to CASES and one to WRONG."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from tests import oracles
from tests.cases import B, I, P, X, case, wrong
from tests.oracles import elementwise
from xpnet import ops
from xpnet.backend import dtype_name
from xpnet.random import Key

KEY = Key(0x0123456789ABCDEF, 0xFEDCBA9876543210)


def dropout_oracle(
    x: Any, rate: float = 0.5, *, key: Key, step: int = 0, shape: Any = None, inverted: bool = True
) -> np.ndarray:
    """Lane i % 4 of word i // 4 of NumPy's Philox decides about element i."""
    shape = x.shape if shape is None else shape
    bits = np.random.Philox(key=np.array(key, np.uint64), counter=np.array([0, 0, step, 0], np.uint64))
    count = int(np.prod(shape))
    words = [int(w) for w in bits.random_raw(count // 4 + 1)]
    keep = [(words[i // 4] >> (16 * (i % 4))) % 65536 >= round(rate * 65536) for i in range(count)]
    return oracles.dropped(x, np.array(keep, bool).reshape(shape), rate, inverted)


def indexed(x: Any, *, index: Any) -> np.ndarray:
    """x[index] through Python's own lists where the index is plain, through NumPy's otherwise."""
    return np.asarray(x[index])


CASES = [
    # activations
    case("step", X(3, 4)),
    *[
        case(name, X(3, 5))
        for name in (
            "relu", "leaky_relu", "elu", "selu", "gelu", "sigmoid", "hard_sigmoid", "silu", "tanh", "softplus", "softsign",
        )
    ],
    case("relu", X(2, 3, 2, 3)),
    case("relu", P()),
    case("leaky_relu", X(2, 5), slope=0.3),
    case("elu", X(2, 5), alpha=0.5),
    case("gelu", X(3, 5), approximate=True),
    case("softmax", X(3, 5)),
    case("softmax", X(2, 4, 3), axis=1),
    case("log_softmax", X(3, 5)),
    case("log_softmax", X(2, 3, 4), axis=1),
    # arithmetic, with broadcasting and Python numbers
    *[
        case(name, *inputs, oracle=elementwise(rule))
        for name, rule in (
            ("add", lambda x, y: x + y),
            ("subtract", lambda x, y: x - y),
            ("multiply", lambda x, y: x * y),
            ("divide", lambda x, y: x / y),
            ("maximum", lambda x, y: x if x > y else y),
            ("minimum", lambda x, y: x if x < y else y),
        )
        for inputs in (
            (X(3, 4, kind="positive"), X(3, 4, kind="positive")),
            (X(3, 1, 4), P(2, 1, kind="positive")),
            (P(), X(2, 3, kind="positive")),
            (X(2, 3), 1.5),
            (0.5, X(2, 3, kind="positive")),
        )
    ],
    *[
        case("power", *inputs, oracle=elementwise(lambda x, y: x**y))
        for inputs in (
            (X(3, 4, kind="positive"), X(3, 4)),
            (X(2, 3), 3),
            (X(2, 3), 0),
            (X(2, 3, kind="positive"), -0.5),
            (2.0, X(2, 3)),
            (X(3, 4, kind="positive"), P(4)),
        )
    ],
    case("negative", X(3, 4), oracle=elementwise(lambda x: -x)),
    case("abs", X(3, 4), oracle=elementwise(lambda x: -x if x < 0 else x)),
    case("exp", X(3, 4), oracle=elementwise(np.exp)),
    case("log", X(3, 4, kind="positive"), oracle=elementwise(np.log)),
    case("sqrt", X(3, 4, kind="positive"), oracle=elementwise(np.sqrt)),
    case("square", X(3, 4), oracle=elementwise(lambda x: x * x)),
    case("clip", X(3, 4), low=-0.5, high=0.7),
    case("clip", X(3, 4), low=0.1),
    case("clip", X(3, 4), high=0.1),
    case("select", X(3, 4), X(3, 4), condition=B(3, 4), oracle=oracles.where),
    case("select", X(3, 4), 0.0, condition=B(3, 4), oracle=oracles.where),
    case(
        "where", X(3, 1), P(4), condition=B(3, 4), function=lambda x, y, condition: ops.where(condition, x, y)
    ),
    # reductions
    *[
        case(name, x, **settings)
        for name in ("sum", "mean", "max", "min", "var", "std")
        for x, settings in (
            (P(2, 3, 4), {}),
            (X(2, 3, 4), {"axis": 1}),
            (X(2, 3, 4), {"axis": (-1, 1)}),
            (X(2, 3, 4), {"axis": -1, "keepdims": True}),
            (P(3), {"axis": 0}),
        )
    ],
    case("sum", X(3, 4)),
    *[case(name, X(5, 2, 3), axis=axis, correction=1) for name in ("var", "std") for axis in (1, (0, 2), None)],
    # products
    case("matmul", X(3, 4), P(4, 2)),
    case("matmul", X(2, 3, 4), X(2, 4, 2)),
    case("matmul", X(2, 3, 4), P(4, 2)),
    case("matmul", P(3, 4), X(2, 4, 2)),
    case("matmul", X(2, 1, 3, 4), P(5, 4, 2)),
    case("matmul", P(4), P(4)),
    case("matmul", X(3, 4), P(4)),
    case("matmul", P(4), P(4, 3)),
    case("matmul", X(2, 3, 4), P(4)),
    case("matmul", P(4), X(2, 4, 3)),
    case("dense", X(4, 3), P(3, 5)),
    case("dense", X(4, 3), P(3, 5), P(5)),
    case("dense", X(2, 3, 4), P(4, 5), P(5)),
    case("dense", P(3), P(3, 2), P(2)),
    *[case("dense", X(4, 3), P(3, 5), P(5), activation=a) for a in ("relu", "sigmoid", "tanh")],
    # windows
    *[
        case("im2col", X(2, 5, 6, 2), **settings)
        for settings in (
            {"window": 3},
            {"window": (2, 3), "stride": (2, 1), "padding": 1},
            {"window": 3, "stride": 2, "padding": "same"},
            {"window": 2, "dilation": (2, 3), "padding": ((1, 0), (2, 1))},
            {"window": 1},
        )
    ],
    case("col2im", X(2, 3, 4, 3, 3, 2), input_shape=lambda n: (n, 5, 6, 2), window=3),
    case(
        "col2im", X(2, 3, 3, 2, 3, 2), input_shape=lambda n: (n, 5, 7, 2), window=(2, 3), stride=2, padding=((1, 0), (0, 1)),
    ),
    case("col2im", X(1, 3, 2, 2, 2, 1), input_shape=lambda n: (n, 5, 5, 1), window=2, dilation=(2, 3)),
    case("conv2d", X(2, 5, 6, 3), P(3, 3, 3, 4)),
    case("conv2d", X(2, 5, 6, 3), P(3, 3, 3, 4), P(4), padding="same"),
    case("conv2d", X(2, 6, 7, 2), P(3, 2, 2, 3), P(3), stride=2, padding=1),
    case("conv2d", X(2, 5, 6, 2), P(2, 3, 2, 3), stride=(1, 2), padding=((0, 1), (2, 0))),
    case("conv2d", X(2, 7, 7, 2), P(3, 3, 2, 2), padding=(2, 1), dilation=2),
    case("conv2d", X(2, 5, 5, 2), P(3, 3, 2, 2), P(2), stride=2, padding="same", dilation=1),
    case("conv2d", X(2, 5, 5, 4), P(3, 3, 2, 6), P(6), groups=2, padding=1),
    case("conv2d", X(2, 5, 5, 3), P(3, 3, 1, 6), P(6), groups=3, stride=2),
    case("conv2d", X(2, 5, 5, 4), P(3, 3, 1, 4), groups=4, padding="same"),
    case("conv2d", X(3, 4, 5, 3), P(1, 1, 3, 4), P(4)),
    case("conv2d", X(3, 5, 5, 3), P(1, 1, 3, 4), stride=2),
    case("conv2d", X(2, 3, 4, 2), P(3, 4, 2, 3), P(3)),
    case("conv2d", X(1, 9, 9, 8), P(3, 3, 8, 8), P(8), padding="same", activation="relu"),
    *[case("conv2d", X(2, 4, 4, 2), P(3, 3, 2, 3), P(3), padding=1, activation=a) for a in ("relu", "sigmoid", "tanh")],
    # Of a size whose windows hold no two values that 16 bits cannot tell apart.
    case("conv2d_max_pool2d", X(2, 4, 5, 2), P(3, 2, 2, 3), P(3), window=2, padding=1),
    case("conv2d_max_pool2d", X(2, 7, 6, 2), P(3, 3, 2, 2), P(2), window=3, pool_stride=2, pool_padding=1, activation="tanh"),
    case("conv1d", X(2, 7, 3), P(3, 3, 4), P(4), padding="same"),
    case("conv1d", X(2, 8, 4), P(3, 2, 4), stride=2, padding=(1, 0), groups=2),
    case("conv1d", X(2, 9, 2), P(3, 2, 3), dilation=2, padding=1, activation="tanh"),
    case("conv_transpose2d", X(2, 3, 4, 2), P(3, 3, 2, 3), P(3)),
    case("conv_transpose2d", X(2, 3, 3, 2), P(2, 3, 2, 3), stride=(2, 3), padding=((1, 0), (0, 1))),
    case("conv_transpose2d", X(2, 3, 3, 2), P(3, 3, 2, 3), stride=2, padding=1, output_padding=1),
    case("conv_transpose2d", X(2, 3, 3, 2), P(2, 3, 2, 3), dilation=(3, 2), output_padding=(2, 1), padding=((1, 0), (0, 1))),
    case("conv_transpose2d", X(2, 3, 3, 4), P(3, 3, 2, 6), P(6), stride=2, padding="same", groups=2),
    case("conv_transpose2d", X(2, 4, 3, 2), P(2, 2, 2, 2), dilation=2, padding=1),
    *[
        case(name, x, **settings)
        for name in ("max_pool2d", "max_pool2d_with_switches", "average_pool2d", "lp_pool2d")
        for x, settings in (
            (X(2, 4, 6, 3), {"window": 2}),
            (X(2, 5, 7, 3), {"window": 3, "stride": 2}),
            (X(2, 5, 5, 4), {"window": 3, "stride": 2, "padding": 1}),
            (X(2, 5, 6, 2), {"window": (2, 3), "stride": (1, 2), "padding": ((1, 0), (0, 2))}),
            (X(2, 5, 5, 1), {"window": 2, "padding": "same"}),
            (X(2, 3, 4, 2), {"window": (3, 4)}),
        )
    ],
    case("average_pool2d", X(2, 5, 5, 2), window=3, stride=2, padding=1, count_include_pad=True),
    case("lp_pool2d", X(2, 4, 4, 2), window=2, p=3.0),
    case("lp_pool2d", X(2, 4, 4, 2), window=2, p=1.0),
    case("global_average_pool2d", X(2, 3, 4, 3)),
    # normalisation
    *[
        case("batch_norm_with_statistics", x, *vectors, epsilon=1e-3)
        for x in (P(5, 3), P(2, 3, 2, 3))
        for vectors in ((), (P(3), P(3)))
    ],
    case("batch_norm_with_statistics", P(4, 16, 17, 16), P(16), P(16)),  # large enough for the way that takes chunks
    *[
        case("batch_norm_training", P(2, 3, 2, 3), *vectors, epsilon=1e-3, activation=activation)
        for vectors in ((), (P(3), P(3)), (P(3), P(3), P(2, 3, 2, 3)))
        for activation in (None, "relu")
    ],
    case("batch_norm_training", P(4, 16, 17, 16), P(16), P(16), P(4, 16, 17, 16), activation="relu"),
    case("batch_norm", P(4, 2, 3), P(3)),
    case("batch_norm", X(4, 3), P(3), P(3), mean=P(3), variance=P(3, kind="positive")),
    case("batch_norm_inference", X(4, 3), mean=P(3), variance=P(3, kind="positive")),
    case("batch_norm_inference", X(2, 2, 2, 3), P(3), P(3), mean=P(3), variance=P(3, kind="positive"), epsilon=0.1),
    case("layer_norm", X(3, 5)),
    case("layer_norm", X(3, 5), P(5), P(5), epsilon=1e-3),
    case("layer_norm", X(2, 3, 4), P(3, 4), P(3, 4), axis=(1, 2)),
    case("layer_norm", X(2, 3, 4), P(4), None),
    case("group_norm", X(2, 3, 2, 4), P(4), P(4), groups=2),
    case("group_norm", X(2, 5, 4), groups=1),
    case("group_norm", X(2, 5, 3), P(3), groups=3, epsilon=1e-2),
    case("local_response_norm", X(2, 2, 2, 7)),
    case("local_response_norm", X(2, 2, 2, 4), size=3, k=1.0, alpha=0.5, beta=0.6),
    case("local_response_norm", X(2, 2, 1, 3), size=1, alpha=0.5),
    # dropout
    case("dropout", X(3, 7), rate=0.5, key=KEY, step=3, oracle=dropout_oracle),
    case("dropout", X(3, 7), rate=0.3, key=KEY, inverted=False, oracle=dropout_oracle),
    case("dropout", X(2, 3, 2, 5), rate=0.4, key=KEY, shape=lambda n: (n, 1, 1, 5), oracle=dropout_oracle),
    case("dropout", X(2, 3), rate=0.0, key=KEY, oracle=dropout_oracle),
    case("dropout", X(2, 3), rate=1.0, key=KEY, oracle=dropout_oracle),
    # embedding, losses
    case("embedding", I(3, 4, high=5), P(5, 2)),
    case("embedding", I(6, high=3), P(3, 4)),
    case("scatter_rows", X(6, 4), I(6, high=3), size=3),
    case("scatter_rows", X(5, 2), I(5, high=40), size=37),
    case("scatter_rows", P(40, 35), I(40, high=4, batched=False), size=70),
    case("softmax_cross_entropy", X(4, 3), I(4, high=3)),
    case("softmax_cross_entropy", X(4, 3), X(4, 3, kind="probabilities", grad=False)),
    case("softmax_cross_entropy", X(4, 3), X(4, 3, kind="positive", grad=False), reduction="sum"),
    case("softmax_cross_entropy", X(2, 3, 4), I(2, 3, high=4), reduction="none"),
    case("softmax_cross_entropy", X(4, 3), I(4, high=3), label_smoothing=0.2),
    case("softmax_cross_entropy", X(4, 3), X(4, 3, kind="positive", grad=False), reduction="none", label_smoothing=0.3),
    case("sigmoid_cross_entropy", X(4, 3), I(4, 3, high=2)),
    case("sigmoid_cross_entropy", X(4), X(4, kind="fractions", grad=False), reduction="sum"),
    case("sigmoid_cross_entropy", X(2, 3), B(2, 3), reduction="none"),
    case("squared_error", X(4, 3), X(4, 3)),
    case("squared_error", X(4, 3), X(4, 3, grad=False), reduction="sum", scale=0.5),
    case("squared_error", X(2, 3), I(2, 3, high=5), reduction="none"),
    case("absolute_error", X(4, 3), X(4, 3)),
    case("absolute_error", X(5), X(5, grad=False), reduction="sum"),
    case("absolute_error", X(2, 3), X(2, 3), reduction="none"),
    case("huber_error", X(4, 3), X(4, 3)),
    case("huber_error", X(4, 3), X(4, 3, grad=False), delta=0.3, reduction="sum"),
    case("huber_error", X(2, 3), X(2, 3), delta=0.5, reduction="none"),
    # recurrent networks
    case("rnn", X(2, 3, 2), P(2, 3), P(3, 3)),
    case("rnn", X(2, 3, 2), P(2, 3), P(3, 3), P(3), X(2, 3), B(2, 3), activation="relu", reverse=True),
    case("lstm", X(2, 3, 2), P(2, 8), P(2, 8)),
    case("lstm", X(2, 3, 2), P(2, 12), P(3, 12), P(12), X(2, 3), X(2, 3), B(2, 3), reverse=True),
    case("lstm", X(2, 3, 2), P(2, 12), P(3, 12), P(12), X(2, 3), X(2, 3), reverse=True),
    case("gru", X(2, 3, 2), P(2, 6), P(2, 6)),
    case("gru", X(2, 3, 2), P(2, 9), P(3, 9), P(9), P(9), X(2, 3), B(2, 3), reverse=True),
    # moving elements
    case("reshape", X(2, 3, 4), shape=lambda n: (n, 12)),
    case("reshape", X(2, 6, 2), shape=lambda n: (n, 3, 4)),
    case("reshape", P(2, 3), shape=(-1, 2)),
    case("transpose", X(2, 3, 4)),
    case("transpose", X(2, 3, 4), axes=(1, -1, 0)),
    case("concat", X(2, 3), X(2, 1), X(2, 2), axis=-1),
    case("concat", P(2, 3), P(1, 3)),
    case("stack", X(2, 3), X(2, 3), axis=1),
    case("stack", X(2, 3), X(2, 3), X(2, 3), axis=-1),
    case("broadcast_to", X(2, 1, 3), shape=lambda n: (n, 4, 3), oracle=oracles.broadcast_to),
    case("broadcast_to", P(3), shape=(2, 3), oracle=oracles.broadcast_to),
    case("pad", X(2, 3, 2), widths=((0, 0), (1, 2), (0, 1))),
    case("pad", P(2, 2), widths=((1, 0), (0, 3)), value=2.5),
    case("cast", X(2, 3), function=lambda x: ops.cast(x, dtype_name(x)), oracle=lambda x: x),  # others: tests/test_mixed.py
    case("flip", X(2, 3, 4), axis=1),
    case("flip", X(2, 3), axis=(0, -1)),
    case("flip", P(4)),
    case("getitem", P(4, 3), index=1, oracle=indexed),
    case("getitem", X(4, 3, 2), index=(slice(None), slice(0, 3, 2), 1), oracle=indexed),
    case("getitem", X(4, 3), index=(..., -1), oracle=indexed),
    case("getitem", X(2, 3), index=(slice(None), None, slice(None, None, 2)), oracle=indexed),
    case("getitem", P(4, 3), index=slice(1, 3), oracle=indexed),
    case("getitem", P(4, 3), index=(I(5, high=4, batched=False), I(5, high=3, batched=False)), oracle=indexed),
    case("getitem", P(3, 4), index=B(3, 4, batched=False), oracle=indexed),
]  # fmt: skip

ANY_SHAPE = {
    "step", "relu", "leaky_relu", "elu", "selu", "gelu", "sigmoid", "hard_sigmoid", "silu", "tanh", "softplus", "softsign",
    "negative", "abs", "exp", "log", "sqrt", "square", "clip", "where", "cast",
    "getitem",  # what an index means, and what is wrong with it, is the array library's to say: an IndexError
}  # fmt: skip
"""Operations for which no shape is wrong."""

WRONG = [
    *[
        wrong(name, X(2, 3), X(2, 4), says=("(2, 3)|(2,3)", "(2, 4)|(2,4)"))
        for name in ("add", "subtract", "multiply", "divide", "power", "maximum", "minimum")
    ],
    wrong("select", X(2, 3), X(2, 4), condition=B(2, 3), says=("(2, 3)|(2,3)", "(2, 4)|(2,4)")),
    *[wrong(name, X(2, 3), axis=2, says=("axis 2", "2 axes")) for name in ("sum", "mean", "max", "min", "var", "std", "flip")],
    *[wrong(name, X(2, 3), axis=2, says=("axis 2",)) for name in ("softmax", "log_softmax")],
    wrong("matmul", X(2, 3), P(4, 5), says=("(2, 3)", "(4, 5)", "inner")),
    wrong("matmul", P(), P(4, 5), says=("()", "(4, 5)")),
    wrong("dense", X(2, 3), P(4, 5), says=("(2, 3)", "(4, 5)", "expected")),
    wrong("dense", X(2, 3), P(3, 5), P(3), says=("bias", "(3,)", "(5,)")),
    wrong("im2col", X(2, 3, 3), window=2, says=("(2, 3, 3)", "N, H, W, C")),
    wrong("im2col", X(2, 3, 3, 1), window=4, says=("4", "padded input: 3")),
    wrong("col2im", X(2, 3, 3, 2, 2, 1), input_shape=(2, 5, 5, 1), window=2, says=("(2, 3, 3, 2, 2, 1)", "(2, 4, 4, 2, 2, 1)")),
    wrong("conv2d", X(2, 5, 5), P(3, 3, 1, 2), says=("(2, 5, 5)", "N, H, W, C")),
    wrong("conv2d", X(2, 5, 5, 3), P(3, 3, 4, 2), says=("(2, 5, 5, 3)", "(3, 3, 4, 2)", "groups=1")),
    wrong("conv2d", X(2, 5, 5, 3), P(3, 3, 3, 2), P(3), says=("bias", "(3,)", "(2,)")),
    wrong("conv2d", X(2, 5, 5, 4), P(3, 3, 2, 3), groups=2, says=("groups=2",)),
    wrong("conv2d", X(2, 2, 5, 3), P(3, 3, 3, 2), says=("height", "window of 3", "2 + 0 + 0")),
    wrong("conv2d_max_pool2d", X(2, 5, 5, 3), P(3, 3, 4, 2), window=2, says=("(2, 5, 5, 3)", "(3, 3, 4, 2)")),
    wrong("conv1d", X(2, 5), P(3, 1, 2), says=("(2, 5)", "N, L, C")),
    wrong("conv_transpose2d", X(2, 5, 5, 3), P(3, 3, 4, 2), says=("(2, 5, 5, 3)", "(3, 3, 4, 2)")),
    wrong("conv_transpose2d", X(2, 1, 1, 3), P(3, 3, 3, 2), padding=2, says=("(-1, -1)", "less padding")),
    wrong("conv_transpose2d", X(2, 3, 3, 3), P(3, 3, 3, 2), output_padding=1, says=("output_padding 1", "stride 1")),
    wrong("conv_transpose2d", X(2, 3, 3, 3), P(3, 3, 3, 2), P(3), says=("bias", "(3,)", "(2,)")),
    *[
        wrong(name, *inputs, **cast(dict[str, Any], settings))
        for name in ("max_pool2d", "max_pool2d_with_switches", "average_pool2d", "lp_pool2d")
        for inputs, settings in (
            ((X(2, 5, 5),), {"window": 2, "says": ("(2, 5, 5)", "N, H, W, C")}),
            ((X(2, 5, 1, 2),), {"window": 2, "says": ("width", "window of 2")}),
            ((X(2, 5, 5, 2),), {"window": 2, "padding": 2, "says": ("padding 2", "window 2")}),
        )
    ],
    wrong("global_average_pool2d", X(2, 3), says=("(2, 3)", "N, H, W, C")),
    wrong("batch_norm_with_statistics", X(3), says=("(3,)", "N, ..., C")),
    wrong("batch_norm_training", X(3, 4), None, None, X(3, 1), says=("residual", "(3, 1)", "(3, 4)")),
    wrong("batch_norm_training", X(3, 4), activation="gelu", says=("activation", "relu", "gelu")),
    wrong("batch_norm_training", X(3, 4), running_mean=P(4), says=("running_mean", "running_variance", "both")),
    wrong("batch_norm_training", X(3, 4), running_mean=P(4), running_variance=P(1), says=("running_variance", "(1,)", "(4,)")),
    wrong("batch_norm", X(3, 4), P(3), says=("scale", "(3,)", "(4,)")),
    wrong("batch_norm_inference", X(3, 4), mean=P(4), variance=P(3), says=("variance", "(3,)", "(4,)")),
    wrong("layer_norm", X(3, 4), P(3), says=("scale", "(3,)", "(4,)")),
    wrong("layer_norm", X(3, 4), axis=0, says=("axis 0", "(3, 4)", "last")),
    wrong("group_norm", X(3, 4), groups=3, says=("(3, 4)", "groups=3")),
    wrong("local_response_norm", X(3, 4), says=("(3, 4)", "N, H, W, C")),
    wrong("local_response_norm", X(3, 4, 4, 2), size=2, says=("odd", "2")),
    wrong("dropout", X(3, 4), shape=(2, 4), says=("(2, 4)", "(3, 4)")),
    wrong("dropout", X(3, 4), rate=1.5, says=("rate", "1.5")),
    wrong("embedding", I(3, high=2), P(3, 2, 2), says=("(3, 2, 2)", "(V, D)")),
    wrong("embedding", I(3, high=1), P(0, 2), says=("0..-1",)),
    wrong("scatter_rows", X(3, 4), I(2, high=3), size=3, says=("(3, 4)", "(2,)")),
    wrong("scatter_rows", X(3), I(3, high=3), size=3, says=("(3,)", "(M, D)")),
    wrong("softmax_cross_entropy", X(4, 3), I(3, high=3), says=("(3,)", "(4,)")),
    wrong("softmax_cross_entropy", X(4, 3), I(4, 3, high=2), says=("(4, 3)", "(4,)")),
    wrong("softmax_cross_entropy", X(4, 3), X(4, 2), says=("(4, 2)", "(4, 3)")),
    wrong("softmax_cross_entropy", X(4, 3), I(4, high=3), reduction="max", says=("reduction", "'max'")),
    wrong("sigmoid_cross_entropy", X(4, 3), I(4, high=2), says=("(4, 3)", "(4,)")),
    wrong("squared_error", X(4, 3), X(4), says=("(4, 3)", "(4,)")),
    wrong("squared_error", X(4, 3), X(4, 3), reduction="max", says=("reduction", "'max'")),
    wrong("absolute_error", X(4, 3), X(4, 1), says=("(4, 3)", "(4, 1)")),
    wrong("huber_error", X(4, 3), X(3), says=("(4, 3)", "(3,)")),
    *[
        wrong(name, *inputs, says=says)
        for name, gates in (("rnn", 1), ("lstm", 4), ("gru", 3))
        for inputs, says in (
            ((X(2, 3), P(2, 3 * gates), P(3, 3 * gates)), ("(2, 3)", "(N, T, C)")),
            ((X(2, 4, 2), P(3, 3 * gates), P(3, 3 * gates)), ("kernel", f"(3, {3 * gates})", f"(2, {3 * gates})")),
            ((X(2, 4, 2), P(2, 3 * gates), P(3, 3 * gates), P(2)), ("bias", "(2,)", f"({3 * gates},)")),
        )
    ],
    wrong("reshape", X(2, 3), shape=(4, 2), says=("(2, 3)", "(4, 2)", "6")),
    wrong("transpose", X(2, 3), axes=(0, 0), says=("(0, 0)", "(2, 3)")),
    wrong("concat", X(2, 3), X(3, 3), axis=1, says=("(2, 3)", "(3, 3)", "axis 1")),
    wrong("concat", X(2, 3), X(2, 3), axis=2, says=("axis 2", "2 axes")),
    wrong("stack", X(2, 3), X(3, 3), says=("(2, 3)", "(3, 3)")),
    wrong("broadcast_to", X(2, 3), shape=(3, 3), says=("(2, 3)", "(3, 3)")),
    wrong("pad", X(2, 3), widths=((1, 1),), says=("(2, 3)", "2 pairs")),
]  # fmt: skip
