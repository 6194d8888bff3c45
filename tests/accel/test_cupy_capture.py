"""Nothing within a step reads the host or calls CuPy's cuBLAS: all of it is captured as CUDA graphs and replayed.

The registry, all layers, losses, regularizers, optimizers and metrics run under capture, from lists that fail a test when
something new is missing. No fallback may happen, and a replay has the bits of the run launch by launch, on new data too.
What cannot be captured by nature is in the lists of this file with its reason, and docs/gpu.md names the same.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from tests import op_cases, test_losses
from tests.cases import Case, Input
from tests.layer_cases import LAYERS, LayerCase
from tests.op_contract import differentiable, evaluate, weights_for
from xpnet import losses, metrics, optim, regularizers
from xpnet.autograd.tensor import Tensor
from xpnet.backend import dtype_named, to_numpy
from xpnet.layers.context import Spec
from xpnet.layers.execution import executor_of
from xpnet.layers.modes import eval_mode
from xpnet.ops.registry import reference_only

pytestmark = pytest.mark.cuda

DTYPES = [pytest.param("float32"), pytest.param("float16"), pytest.param("bfloat16", marks=pytest.mark.bfloat16)]

OPS_NOT_CAPTURED = {
    "getitem(3x4,index=3x4)": "a boolean mask: how many elements it selects is known on the device only",
}
OPTIMIZERS_NOT_CAPTURED = {
    "LBFGS": "a line search decides on the host, and has no steps: FullBatch.minimize",
    "TruncatedNewton": "the inner iteration stops on the host, and has no steps: FullBatch.minimize",
}
UPDATED_OUTSIDE = {"Nadam": "takes the learning rate, the step and its momentum from the host"}
"""Optimizers whose update runs launch by launch behind the captured forward and backward pass."""


class Recordings:
    """How many graphs were recorded and replayed."""

    recorded = replayed = 0


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recordings]:
    """Count recordings and replays; what cannot be recorded is an error instead of a warning."""
    from xpnet.compiled.cuda_graph import CudaGraphs

    counts, record = Recordings(), CudaGraphs.record

    def counting(self: Any, function: Callable[[], Any]) -> Any:
        replay, result = record(self, function)
        counts.recorded += 1

        def counted() -> None:
            counts.replayed += 1
            replay()

        return counted, result

    monkeypatch.setattr(CudaGraphs, "record", counting)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield counts


def on_device(array: Any, dtype: str | None = None) -> Any:
    """Move an array to the GPU; floats are rounded to `dtype`."""
    import cupy

    if not isinstance(array, np.ndarray):
        return array
    if dtype is not None and array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(dtype_named(np, dtype))
    return cupy.asarray(array)


def bits(value: Any) -> Any:
    """Return the bits, dtype and shape of arrays nested in tuples, lists and dicts."""
    if isinstance(value, (tuple, list)):
        return [bits(v) for v in value]
    if isinstance(value, dict):
        return {name: bits(v) for name, v in value.items()}
    array = to_numpy(value.array if isinstance(value, Tensor) else value)
    return str(array.dtype), array.shape, array.tobytes()


def captured(function: Callable[..., Any], batches: list[list[Any]], graphs: Recordings) -> None:
    """Assert that a function of arrays is captured, and gives the bits of the plain call for every batch."""
    expected = [bits(function(*batch)) for batch in batches]
    repeated = xn.cuda.capture(function)
    found = [bits(repeated(*batch)) for batch in (batches[0], *batches)]
    assert not repeated.failed
    assert (graphs.recorded, graphs.replayed) == (1, len(batches))
    assert found == [expected[0], *expected]


# -- operations --


def op_function(case: Case, dtype: str) -> tuple[Callable[..., Any], list[list[Any]]]:
    """Return a case, forward and backward, as a function of its arrays, and two batches of them."""
    options = case.options(dtype="float32", asarray=on_device)
    places = [n for n, given in enumerate(case.inputs) if isinstance(given, Input)]
    batches = [[on_device(a, dtype) for a in case.arrays(seed=seed)] for seed in (0, 1)]
    plain = case.call(batches[0], options)
    outputs = plain if isinstance(plain, tuple) else (plain,)
    weights = [on_device(w, str(y.dtype)) for w, y in zip(weights_for(tuple(map(_wide, outputs))), filter(_floating, outputs))]

    def function(*arrays: Any) -> Any:
        inputs = list(batches[0])
        for place, array in zip(places, arrays):
            inputs[place] = array
        found, gradients = evaluate(case, inputs, options, weights)
        return (*found, *(g for g in gradients if g is not None))

    return function, [[batch[n] for n in places] for batch in batches]


def _floating(array: Any) -> bool:
    return "float" in str(array.dtype)


def _wide(array: Any) -> np.ndarray:
    found = to_numpy(array)
    return found.astype(np.float32) if _floating(array) else found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in op_cases.CASES if c.id not in OPS_NOT_CAPTURED], ids=lambda c: c.id)
def test_every_operation(case: Case, dtype: str, graphs: Recordings) -> None:
    function, batches = op_function(case, dtype)
    captured(function, batches, graphs)
    if differentiable(case):
        assert len(function(*batches[0])) > 1


@pytest.mark.parametrize("name", OPS_NOT_CAPTURED)
def test_what_cannot_be_captured_says_so(name: str) -> None:
    (case,) = [c for c in op_cases.CASES if c.id == name]
    function, batches = op_function(case, "float32")
    repeated = xn.cuda.capture(function)
    repeated(*batches[0])
    with pytest.warns(RuntimeWarning, match="cannot be recorded as a CUDA graph"):
        found = bits(repeated(*batches[0]))
    assert repeated.failed
    assert found == bits(function(*batches[0]))


# -- layers --


class Scaled(xn.Module):
    """A trained factor in front of a layer, so that a gradient passes through the layer whatever it trains itself."""

    factor: xn.Parameter

    def parameter_specs(self, input_shape: Any) -> Any:
        return {"factor": Spec((), "ones", decay=False)}

    def output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def forward(self, x: Any) -> Any:
        return xn.ops.multiply(self.as_float(x), self.factor)


def layer_model(case: LayerCase, dtype: str) -> Any:
    """Return a model around a layer: a trained factor in front, unless it takes integers, and a dense layer behind."""
    front = [] if case.integers is not None or not case.differentiable else [Scaled()]
    return xn.Sequential(
        [*front, case.make(), xn.Flatten(), xn.Dense(3)], input_shape=case.shape, seed=3, dtype=dtype, device="cuda"
    )


def layer_id(case: LayerCase) -> str:
    return case.id


def trained(make: Callable[[], Any], batches: list[Any], capture: bool, **keywords: Any) -> Any:
    """Return the weights and the history of a model after two epochs over the batches, with or without graphs."""
    model = make()
    options = {"loss": "mse", "optimizer": optim.Adam(0.01), **keywords}
    trainer = xn.Trainer(model, capture=capture, **options)
    x, y = batches
    history = trainer.fit((x, y), epochs=2, batch_size=4, shuffle=False, verbose=False)
    return bits(model.state()), {name: [value.hex() for value in values] for name, values in history.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LAYERS, ids=layer_id)
def test_every_layer_trains(case: LayerCase, dtype: str, graphs: Recordings) -> None:
    x = on_device(case.batch(12, "float32"))
    y = on_device(np.random.default_rng(5).standard_normal((12, 3)).astype(np.float32))
    expected = trained(lambda: layer_model(case, dtype), [x, y], False)
    assert graphs.recorded == 0
    assert trained(lambda: layer_model(case, dtype), [x, y], True) == expected
    assert (graphs.recorded, graphs.replayed) == (1, 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LAYERS, ids=layer_id)
def test_every_layer_predicts(case: LayerCase, dtype: str, graphs: Recordings) -> None:
    model = layer_model(case, dtype)
    batches = [on_device(case.batch(4, "float32", seed)) for seed in (0, 1)]
    with xn.no_grad(), eval_mode(model):
        expected = [bits(model(x)) for x in batches]
    found = [bits(model.predict(x)) for x in (batches[0], *batches)]
    assert found == [expected[0], *expected]
    assert (graphs.recorded, graphs.replayed) == (1, 2)
    assert getattr(executor_of(model), "_predictions") is not None  # noqa: B009


class Sequences(xn.Module):
    """Recurrent layers with all that they may be given: lengths, a mask, and initial states that are trained."""

    start: xn.Parameter

    def __init__(self, make: Callable[..., Any], states: int) -> None:
        self.first = make(return_sequences=True)
        self.second = make(return_sequences=True, reverse=True, mask_value=0.0)
        self.both = xn.Bidirectional(make())
        self.states = states

    def parameter_specs(self, input_shape: Any) -> Any:
        return {"start": Spec((1, self.first.units), "normal")}

    def output_shape(self, input_shape: Any) -> Any:
        return (2 * self.first.units,)

    def materialize(self, input_shape: Any) -> Any:
        super().materialize(input_shape)
        shape = self.first.materialize(input_shape)
        return self.both.materialize(self.second.materialize(shape))

    def forward(self, x: Any) -> Any:
        start = self.start + (x[:, 0, :1] * 0)  # (N, H)
        array = x.array if isinstance(x, Tensor) else x
        xp = xn.backend.namespace(array)
        mask = array[:, :, 0] < 1.5
        lengths = xp.sum(xp.astype(array[:, :, 1] > -1.0, xp.int64), axis=1)
        y = self.first(x, lengths, state=start if self.states == 1 else (start, start), mask=mask)
        return self.both(self.second(y), mask=mask)


STEPS = 11
"""More than the eight arrays that CuPy joins without copying their addresses."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "states"), [(xn.RNN, 1), (xn.GRU, 1), (xn.LSTM, 2)])
def test_recurrent_layers_of_many_steps(kind: Any, states: int, dtype: str, graphs: Recordings) -> None:
    def make() -> Any:
        layers = [Sequences(lambda **keywords: kind(3, **keywords), states), xn.Dense(3)]
        return xn.Sequential(layers, input_shape=(STEPS, 2), seed=3, dtype=dtype, device="cuda")

    random = np.random.default_rng(2)
    x = on_device(random.standard_normal((12, STEPS, 2)).astype(np.float32))
    y = on_device(random.integers(0, 3, 12))
    expected = trained(make, [x, y], False, loss="softmax_cross_entropy")
    assert trained(make, [x, y], True, loss="softmax_cross_entropy") == expected
    assert (graphs.recorded, graphs.replayed) == (1, 5)
    model = make()
    with xn.no_grad(), eval_mode(model):
        plain = bits(model(x))
    assert [bits(model.predict(x)) for _ in range(3)] == [plain] * 3
    assert graphs.recorded == 2


def test_a_stateful_layer_runs_launch_by_launch(graphs: Recordings) -> None:
    """The one layer that cannot be captured: its state is another array after every call, and begins anew on the host."""
    layers = [xn.LSTM(3, stateful=True), xn.Dense(2)]
    model = xn.Sequential(layers, input_shape=(STEPS, 2), seed=3, device="cuda")
    assert [m.path for m in model.modules() if not m.capturable] == ["0"]
    x = on_device(np.random.default_rng(2).standard_normal((4, STEPS, 2)).astype(np.float32))
    assert len({str(bits(model.predict(x))) for _ in range(3)}) == 3
    assert graphs.recorded == 0


def test_no_other_layer_says_that_it_cannot_be_captured() -> None:
    for case in LAYERS:
        assert all(module.capturable for module in layer_model(case, "float32").modules()), case.id


# -- losses, regularizers, constraints, metrics --

CLASS_LOSSES = ["hinge", "negative_log_likelihood", "softmax_cross_entropy", "squared_hinge"]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_a_class_index_out_of_range_makes_the_loss_nan(name: str, reference: bool) -> None:
    """On a GPU; on the CPU it is an error."""
    scores, labels = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32), np.array([2, -1, 3, 0])
    with reference_only(reference):
        found = to_numpy(losses.get(name)(on_device(scores), on_device(labels), reduction="none"))
        valid = to_numpy(losses.get(name)(on_device(scores[::3]), on_device(labels[::3]), reduction="none"))
    np.testing.assert_array_equal(found, [valid[0], np.nan, np.nan, valid[1]])
    with pytest.raises(ValueError, match="labels run from -1 to 3"):
        losses.get(name)(scores, labels)


@pytest.mark.parametrize("reference", [False, True])
def test_an_index_outside_a_table_gives_nan(reference: bool) -> None:
    table, indices = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([2, -1, 3])
    with reference_only(reference):
        y = to_numpy(xn.ops.embedding(on_device(indices), on_device(table)))
    np.testing.assert_array_equal(y, [[4, 5], [np.nan, np.nan], [np.nan, np.nan]])
    with pytest.raises(ValueError, match="indices run from -1 to 3"):
        xn.ops.embedding(indices, table)


@pytest.mark.bfloat16
def test_where_keeps_bfloat16() -> None:
    x = on_device(np.arange(4.0), "bfloat16")
    for y in (xn.ops.where(x > 1, 0.0, x), xn.ops.where(x > 1, x, 0.0), xn.ops.where(x > 1, x, -x)):
        assert xn.backend.dtype_name(y) == "bfloat16"


def value_and_gradient(function: Callable[[Any], Any], x: Any) -> tuple[Any, ...]:
    tensor = Tensor(x, requires_grad=True)
    value = function(tensor)
    xn.ops.sum(value).backward()
    return value.array, tensor.grad


def test_every_loss_is_here() -> None:
    public = {name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))} - {"get", "reduce", "same_shape"}
    assert public == {f.__name__ for f in losses.NAMES.values()} == set(test_losses.NAMES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", test_losses.NAMES)
def test_every_loss(name: str, reduction: str, dtype: str, graphs: Recordings) -> None:
    loss = losses.get(name)
    batches = [[on_device(a, dtype) for a in test_losses.example(name, N=9, K=4, seed=seed)] for seed in (0, 1)]
    captured(lambda p, y: value_and_gradient(lambda t: loss(t, y, reduction=reduction), p), batches, graphs)


PENALTIES = {"L1": regularizers.L1(0.1), "L2": regularizers.L2(0.1), "ElasticNet": regularizers.ElasticNet(0.1, 0.2)}
CONSTRAINTS = {"MaxNorm": regularizers.MaxNorm(0.7)}


def test_every_regularizer_is_here() -> None:
    public = {n for n, c in vars(regularizers).items() if inspect.isclass(c) and c.__module__ == regularizers.__name__}
    assert public == {*PENALTIES, *CONSTRAINTS}


@pytest.mark.parametrize("name", PENALTIES)
def test_every_penalty(name: str, graphs: Recordings) -> None:
    weights = [[on_device(np.random.default_rng(seed).standard_normal((5, 3)).astype(np.float32))] for seed in (0, 1)]
    captured(lambda w: value_and_gradient(cast(Any, PENALTIES[name]), w), weights, graphs)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_every_constraint(name: str, graphs: Recordings) -> None:
    def projected(w: Any) -> Any:
        copy = w.copy()
        CONSTRAINTS[name].project(copy)
        return copy

    captured(
        projected,
        [[on_device(np.random.default_rng(seed).standard_normal((5, 3)).astype(np.float32))] for seed in (0, 1)],
        graphs,
    )


METRICS: dict[str, Callable[..., Any]] = {
    "accuracy": metrics.accuracy,
    "binary_accuracy": lambda p, y: metrics.binary_accuracy(p[:, 0], y),
    "mean_absolute_error": lambda p, y: metrics.mean_absolute_error(p[:, 0], y),
    "confusion_matrix": metrics.confusion_matrix,
}


def test_every_metric_is_here() -> None:
    own = {n for n, f in vars(metrics).items() if inspect.isfunction(f) and f.__module__ == metrics.__name__}
    public = {name for name in own if not name.startswith("_")} - {"get", "better", "mode_of"}
    assert public == set(METRICS)
    assert {f.__name__ for f in metrics.NAMES.values()} <= public


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METRICS)
def test_every_metric(name: str, dtype: str, graphs: Recordings) -> None:
    batches = []
    for seed in (0, 1):
        random = np.random.default_rng(seed)
        batches.append([on_device(random.standard_normal((40, 3)), dtype), on_device(random.integers(0, 3, 40))])
    captured(METRICS[name], batches, graphs)


# -- optimizers --

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: optim.SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda: optim.Adam(0.01, weight_decay=0.01),
    "AdamW": lambda: optim.AdamW(0.01, weight_decay=0.01),
    "Adamax": lambda: optim.Adamax(0.01),
    "Nadam": lambda: optim.Nadam(0.01),
    "Adagrad": lambda: optim.Adagrad(0.01, weight_decay=0.01),
    "RMSprop": lambda: optim.RMSprop(0.01, centered=True, momentum=0.9),
    "Rprop": lambda: optim.Rprop(0.01),
    "Quickprop": lambda: optim.Quickprop(0.01),
}


def test_every_optimizer_is_here() -> None:
    public = {
        n for n in optim.__all__ if isinstance(getattr(optim, n), type) and issubclass(getattr(optim, n), optim.Optimizer)
    }
    assert public - {"Optimizer", "FullBatch"} == {*OPTIMIZERS, *OPTIMIZERS_NOT_CAPTURED}
    assert {n for n in OPTIMIZERS if not OPTIMIZERS[n]().capturable} == set(UPDATED_OUTSIDE)


def penalised(dtype: str) -> Any:
    """Return a model with every kind of penalty and constraint."""
    first = xn.Dense(6, "tanh", kernel_regularizer=regularizers.ElasticNet(1e-3, 1e-3))
    last = xn.Dense(3, kernel_regularizer=regularizers.L1(1e-3))
    return xn.Sequential([first, xn.Dropout(0.3), last], input_shape=(5,), seed=3, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name: str, dtype: str, graphs: Recordings) -> None:
    random = np.random.default_rng(4)
    x, y = on_device(random.standard_normal((12, 5)).astype(np.float32)), on_device(random.integers(0, 3, 12))
    settings = {"loss": "softmax_cross_entropy", "metrics": ["accuracy"]}
    expected = trained(lambda: penalised(dtype), [x, y], False, optimizer=OPTIMIZERS[name](), **settings)
    assert trained(lambda: penalised(dtype), [x, y], True, optimizer=OPTIMIZERS[name](), **settings) == expected
    assert (graphs.recorded, graphs.replayed) == (1, 5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_update_reads_the_host(name: str, graphs: Recordings) -> None:
    """With a fixed learning rate every update can be captured, also of the optimizers that run behind the graph."""
    from xpnet.backend import device
    from xpnet.compiled.cuda_graph import CudaGraphs

    model = penalised("float32")
    x = on_device(np.random.default_rng(4).standard_normal((12, 5)).astype(np.float32))
    optimizer = OPTIMIZERS[name]()
    for _ in range(2):
        xn.ops.sum(model(x)).backward()
        optimizer.step(model)
    xn.ops.sum(model(x)).backward()
    recorder = CudaGraphs(device("cuda"))
    before = bits(model.state())
    with recorder.stream():
        replay, _ = recorder.record(lambda: optimizer.step(model))
        replay()
    assert bits(model.state()) != before


def test_the_documentation_names_what_cannot_be_captured() -> None:
    text = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(encoding="utf-8")
    section = text.partition("## What is captured")[2].partition("\n## ")[0]
    for name in (*OPTIMIZERS_NOT_CAPTURED, *UPDATED_OUTSIDE, "stateful=True", "boolean mask"):
        assert f"`{name}`" in section or name in section, name
