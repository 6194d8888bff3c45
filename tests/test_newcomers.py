"""What new users do with the public names, and the mistakes they make."""

import runpy
import threading
from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn


class TwoInputs(xn.Module):
    def __init__(self):
        self.left, self.right, self.out = xn.Dense(4, "relu"), xn.Dense(4, "relu"), xn.Dense(2)

    def forward(self, x, z):
        return self.out(xn.ops.concat([self.left(x), self.right(z)], axis=1))


class TwoOutputs(xn.Module):
    def __init__(self):
        self.body, self.kind, self.size = xn.Dense(4, "tanh"), xn.Dense(3), xn.Dense(1)

    def forward(self, x):
        h = self.body(x)
        return self.kind(h), self.size(h)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def small(**keywords):
    return xn.Sequential([xn.Dense(4, "relu"), xn.BatchNorm(), xn.Dropout(0.5), xn.Dense(3)], **keywords)


def trainer(model, **keywords):
    return xn.Trainer(model, **{"loss": "softmax_cross_entropy", "optimizer": xn.optim.SGD(0.1), **keywords})


def examples(rng, n=10):
    return rng.standard_normal((n, 5)).astype(np.float32), rng.integers(0, 3, n)


def test_a_model_of_two_inputs_is_trained_as_its_own_loop_trains_it(rng):
    x, z, y = rng.standard_normal((9, 3)), rng.standard_normal((9, 5)), rng.integers(0, 2, 9)
    model, other = TwoInputs(), TwoInputs()
    history = trainer(model, metrics=["accuracy"]).fit(
        ((x, z), y), validation=((x, z), y), epochs=3, batch_size=9, shuffle=False, verbose=False
    )
    optimizer = xn.optim.SGD(0.1)
    for loss in history["loss"]:
        mine = xn.losses.softmax_cross_entropy(other(x, z), y)
        mine.backward()
        optimizer.step(other)
        assert float(mine) == loss
    # BLAS may sum in another order for another number of rows: equal up to rounding in float32.
    np.testing.assert_allclose(model.predict((x, z), batch_size=4), model(x, z).array, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="9 examples and y 8"):
        trainer(model).fit(((x, z), y[:8]), verbose=False)


def test_a_model_of_two_outputs_is_trained_measured_and_predicts_a_tuple(rng):
    x, y = examples(rng)

    def loss(prediction, target):
        kind, size = prediction
        return xn.losses.softmax_cross_entropy(kind, target) + (size**2).mean()

    def largest(prediction, target):
        return np.abs(prediction[1]).max()

    model = TwoOutputs()
    run = trainer(model, loss=loss, metrics=[largest])
    history = run.fit((x, y), validation=(x, y), epochs=20, verbose=False)
    assert history["loss"][-1] < history["loss"][0]
    kind, size = model.predict(x, batch_size=3)
    assert isinstance(kind, np.ndarray)
    np.testing.assert_allclose(kind, model(x)[0].array, rtol=1e-5)
    assert run.evaluate((x, y))["largest"] == pytest.approx(np.abs(size).max())


def test_predictions_of_several_threads_do_not_disturb_each_other(rng):
    model = xn.Sequential([xn.Dense(64, "relu"), xn.BatchNorm(), xn.Dropout(0.5), xn.Dense(3)], input_shape=(5,))
    x = rng.standard_normal((400, 5)).astype(np.float32)
    expected = model.predict(x, batch_size=20)
    wrong = []

    def work():
        for _ in range(20):
            if not np.array_equal(model.predict(x, batch_size=20), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(module.training for module in model.modules())


def test_training_in_one_thread_and_predicting_in_another(rng):
    """Evaluation mode belongs to the thread: a prediction has no dropout, and the training keeps it."""
    x, y = examples(rng)

    def make():
        model = xn.Sequential([xn.Dense(64, "relu"), xn.Dropout(0.5), xn.Dense(3)], input_shape=(x.shape[1],), seed=1)
        return model, xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.0), seed=2)

    model, alone = make()
    expected = model.predict(x)
    masks = alone.fit((x, y), epochs=30, batch_size=4, verbose=False)
    model, run = make()
    wrong, done = [], threading.Event()

    def work():
        while not done.is_set():
            if not np.array_equal(model.predict(x), expected) or run.evaluate((x, y))["loss"] < 0:
                wrong.append(1)

    other = threading.Thread(target=work)
    other.start()
    try:
        history = run.fit((x, y), epochs=30, batch_size=4, verbose=False)
    finally:
        done.set()
        other.join()
    assert not wrong
    assert history["loss"] == masks["loss"]  # the same masks, in every step
    assert model.training


def test_a_mode_set_in_a_block_of_evaluation_ends_with_it():
    from xpnet.layers.modes import eval_mode

    model = small()
    with eval_mode(model):
        assert not model.training
        model[0].training = True
        assert model[0].training
        seen: list[Any] = []
        other = threading.Thread(target=lambda: seen.extend(module.training for module in model.modules()))
        other.start()
        other.join()
        assert all(seen)
    model.eval()
    with eval_mode(model):
        model[0].train()
    assert not any(module.training for module in model.modules())


def test_overlapping_blocks_of_evaluation_end_with_the_last():
    from xpnet.layers.modes import eval_mode

    model = small()
    model[2].eval()
    first, second = eval_mode(model), eval_mode(model)
    first.__enter__()
    second.__enter__()
    first.__exit__()
    assert not any(module.training for module in model.modules())
    second.__exit__()
    assert [module.training for module in model] == [True, True, False, True]


def test_an_exhausted_generator_is_an_error(rng):
    x, y = examples(rng)
    run = trainer(small())
    with pytest.raises(ValueError, match=r"no batch in epoch 2.*function"):
        run.fit(((x, y) for _ in range(2)), epochs=2, verbose=False)
    assert len(run.history["loss"]) == 1
    with pytest.raises(ValueError, match="no batch in the evaluation"):
        run.evaluate(iter([]))


def test_batches_come_from_functions_lists_and_loaders(rng):
    x, y = examples(rng)

    def stream():
        yield x[:5], y[:5]
        yield x[5:], y[5:]

    losses = [
        trainer(small()).fit(data, epochs=2, verbose=False)["loss"]
        for data in (stream, list(stream()), [list(batch) for batch in stream()])
    ]
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(ValueError, match=r"each batch of the data must be a pair \(x, y\), got ndarray \(10, 5\)"):
        trainer(small()).fit(iter([x]), verbose=False)


@pytest.mark.torch
def test_a_data_loader_of_pytorch_feeds_a_trainer(rng):
    torch = pytest.importorskip("torch")
    x, y = examples(rng)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.asarray(x), torch.asarray(y)), batch_size=4)
    ours = trainer(small()).fit((x, y), epochs=2, batch_size=4, shuffle=False, verbose=False)
    assert trainer(small()).fit(loader, epochs=2, verbose=False)["loss"] == ours["loss"]


def test_layers_that_would_not_be_trained_are_an_error(rng):
    class Appended(xn.Module):
        def __init__(self):
            self.layers = []
            self.layers.append(xn.Dense(3))

        def forward(self, x):
            return self.layers[0](x)

    class Table(xn.Module):
        def __init__(self):
            self.heads = {"a": xn.Dense(3)}

        def forward(self, x):
            return self.heads["a"](x)

    class Mixed(xn.Module):
        def __init__(self):
            self.steps: list[Any] = [xn.Dense(3), xn.ops.relu, xn.Dense(2)]

        def forward(self, x):
            for step in self.steps:
                x = step(x)
            return x

    x, _ = examples(rng)
    with pytest.raises(TypeError, match=r"Appended: the list in self\.layers holds layers"):
        Appended()(x)
    with pytest.raises(TypeError, match=r"layer '0' \(Table\): the dict in self\.heads"):
        xn.Sequential([Table()])(x)
    model = Mixed()
    model(x)
    assert list(model.parameters()) == ["steps.0.kernel", "steps.0.bias", "steps.2.kernel", "steps.2.bias"]


def named(name):
    def metric(prediction, target):
        return 0.0

    metric.__name__ = name
    return metric


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: xn.ops.add(x, x[:, :3]), ValueError, r"add: shapes \(10, 5\) and \(10, 3\)"),
        (lambda x: xn.Tensor(x) * np.ones(4), ValueError, r"multiply: shapes \(10, 5\) and \(4,\)"),
        (lambda x: xn.ops.softmax(x, axis=7), ValueError, r"softmax: axis 7 .* \(10, 5\)"),
        (lambda x: xn.ops.sum(x, axis=7), ValueError, "sum: axis 7"),
        (lambda x: xn.ops.gelu(np.arange(3)), TypeError, "gelu: x has dtype int64"),
        (lambda x: xn.ops.pad(x, 1), ValueError, "pad: widths 1"),
        (lambda x: xn.ops.max_pool2d(np.ones((1, 4, 4, 1)), 9), ValueError, "max_pool2d: along the height"),
        (lambda x: xn.Dense("relu"), TypeError, "Dense: units .* got 'relu'"),  # type: ignore[arg-type]
        (lambda x: xn.Dense(2.5), ValueError, "Dense: units"),  # type: ignore[arg-type]
        (lambda x: xn.LSTM(2.5), ValueError, "LSTM: units"),  # type: ignore[arg-type]
        (lambda x: xn.Conv2D("relu", 3), TypeError, "Conv2D: filters .* got 'relu'"),  # type: ignore[arg-type]
        (lambda x: xn.Sequential([xn.Dense]), TypeError, r"write Dense\("),
        (lambda x: small(input_shape=5), TypeError, r"such as \(5,\)"),
        (lambda x: small(dtype="flot32"), ValueError, "dtype must be one of .*'flot32'"),
        (lambda x: small(dtype="int32"), ValueError, "dtype must be one of"),
        (lambda x: small(input_shape=(5,)).predict(x[0]), ValueError, r"expected \(N, 5\).*x\[None\]"),
        (lambda x: small(input_shape=(5,)).save("no/such/folder/m.xpnet"), FileNotFoundError, "no such folder: .*folder"),
        (lambda x: xn.Sequential([xn.GRU(3)], input_shape=(None, 2)), ValueError, r"must hold sizes, got \(None, 2\)"),  # type: ignore[arg-type]
        (lambda x: trainer(small()).fit(xn.data.load("iris")), ValueError, r"dataset\.train"),
        (lambda x: trainer(small(), metrics=[lambda p, y: 1.0] * 2), ValueError, "one name, got <lambda>, <lambda>"),
        (lambda x: trainer(small(), metrics=[lambda p, y: p]).evaluate((x, np.zeros(10, int))), ValueError, "metric <lambda>"),
        (lambda x: trainer(small(), optimizer="adam"), TypeError, "optimizer must be .* got 'adam'"),
        (lambda x: trainer(small(), optimizer=xn.optim.Adam), TypeError, "optimizer must be"),
        (lambda x: trainer([xn.Dense(3)]), TypeError, "model must be a Module"),
        (lambda x: trainer(small(), callbacks=[print]), TypeError, "callbacks must be"),
        (lambda x: trainer(small()).fit((x, np.zeros(10, int)), epochs=-1), ValueError, "epochs .* -1"),
        (lambda x: trainer(small()).fit((x, np.zeros(10, int)), batch_size="8"), TypeError, "batch_size .* '8'"),
        (lambda x: trainer(small()).fit((x, [0] * 10)), ValueError, r"ndarray \(10, 5\), list"),
        (lambda x: trainer(small(), loss=lambda p, y: p - 1).step(x, x), ValueError, r"<lambda> returned shape \(10, 3\)"),
        (lambda x: trainer(small(), loss=lambda p, y: 1.0).step(x, x), TypeError, "<lambda> returned float"),
        (lambda x: trainer(small(), loss=lambda p, y: 1.0).evaluate((x, x)), TypeError, "<lambda> returned float"),
        (lambda x: trainer(small(), metrics=[named("loss")]), ValueError, "a metric is called 'loss'"),
        (lambda x: trainer(small(), metrics=[named("val_a")]), ValueError, "a metric is called 'val_a'"),
        (lambda x: trainer(small(), metrics=[named("a"), named("a")]), ValueError, "two metrics have one name"),
        (
            lambda x: xn.Sequential(cast("Any", (xn.Dense(2) for _ in range(2)))),
            TypeError,
            "Sequential: layers must be a list of layers",
        ),
        (lambda x: setattr(xn.Module(), "path", "run1"), AttributeError, "self.path is where a layer is in its model; choose"),
        (lambda x: setattr(xn.Module(), "context", 5), AttributeError, "self.context is the device and the dtype"),
        (
            lambda x: setattr(xn.Module(), "modules", [xn.Dense(2)]),
            AttributeError,
            "self.modules is a method of Module; choose",
        ),
        (lambda x: setattr(xn.Module(), "state", None), AttributeError, "self.state is a method of Module; choose"),
        (lambda x: xn.data.Batches(x, x), ValueError, r"got ndarray .*; give arrays as one argument: Batches\(\(x, y\)"),
        (lambda x: xn.training.ClipGradients(norm=float("nan")), ValueError, "above 0"),
        (lambda x: np.clip(xn.Tensor(x, requires_grad=True), 0, 1), TypeError, r"numpy.clip got a Tensor.*xn\.ops\.clip"),
        (lambda x: xn.ops.mean(x, axis="0"), TypeError, "mean: axis must be an int, several of them or None, got '0'"),
        (lambda x: xn.ops.mean(x, axis=(0.5,)), TypeError, r"axis must be .* got \(0.5,\)"),
        (lambda x: xn.ops.reshape(x, "55"), TypeError, "reshape: shape must hold whole numbers, got '55'"),
        (lambda x: xn.ops.max_pool2d(np.ones((1, 4, 4, 1)), "22"), ValueError, "window must be .* got '22'"),
        (lambda x: xn.ops.max_pool2d(np.ones((1, 4, 4, 1)), (2.5, 2)), ValueError, "window must be .* got"),
        (lambda x: small(input_shape="12"), TypeError, "Sequential: input_shape must be a tuple of whole .* got '12'"),
        (lambda x: small(input_shape=(4.7,)), TypeError, r"input_shape must be .* got \(4.7,\)"),
        (lambda x: xn.Reshape((2.5, 2)), TypeError, r"Reshape: shape must be .* got \(2.5, 2\)"),  # type: ignore[arg-type]
        (lambda x: small(seed=1.5), TypeError, "Sequential: seed must be a whole number, got 1.5"),
        (lambda x: trainer(small(), seed="1"), TypeError, "Trainer: seed must be a whole number, got '1'"),
        (lambda x: xn.data.Batches(x, seed=1.5), ValueError, "Batches: seed must be a whole number, got 1.5"),  # type: ignore[arg-type]
        (lambda x: xn.random.key(1.5), TypeError, "seed must be a whole number, got 1.5"),  # type: ignore[arg-type]
        (lambda x: trainer(small(), accumulate=1.5), ValueError, "accumulate must be a whole number, got 1.5"),
    ],
)
def test_a_mistake_is_one_clear_line(rng, call, error, words):
    with pytest.raises(error, match=words) as caught:
        call(examples(rng)[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "0.5", 1j, {"a": 1.0}, [0.5]])
@pytest.mark.parametrize("act", ["fit", "evaluate"])
def test_what_a_metric_returns_is_a_number(rng, value, act):
    def own(prediction, target):
        return value

    run = trainer(small(), metrics=[own])
    with pytest.raises(TypeError, match=r"the metric own returned .* expected a number"):
        getattr(run, act)(examples(rng))


def test_a_metric_may_give_a_python_number_or_a_tensor(rng):
    def right(prediction, target):
        return float((prediction.argmax(1) == target).mean())

    def wrong(prediction, target):
        return 1 - xn.Tensor(np.asarray(right(prediction, target)))

    x, y = examples(rng)
    history = trainer(small(), metrics=["accuracy", right, wrong]).fit((x, y), validation=(x, y), batch_size=4, verbose=False)
    assert history["right"] == pytest.approx(history["accuracy"])
    assert history["val_right"] == pytest.approx(history["val_accuracy"])
    assert history["wrong"][0] == pytest.approx(1 - history["right"][0])


def test_single_examples_are_collated_into_batches(rng):
    x, y = examples(rng)

    class Examples:
        def __len__(self):
            return len(x)

        def __getitem__(self, i):
            return x[i], y[i]

    ours = trainer(small()).fit((x, y), epochs=2, batch_size=4, verbose=False)
    assert trainer(small()).fit(Examples(), epochs=2, batch_size=4, verbose=False)["loss"] == ours["loss"]


def test_the_module_runs_as_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["xpnet", "train", "mnits"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("xpnet", run_name="__main__")
    assert ended.value.code == 2
    assert 'did you mean "mnist"' in capsys.readouterr().err


def test_a_dtype_of_numpy_is_one(rng):
    assert small(dtype=np.float64).predict(examples(rng)[0]).dtype == np.float64
    half = small(dtype=np.dtype("float16"))
    assert half.context.dtype == "float16"
    assert half.predict(examples(rng)[0]).dtype == np.float32  # the output of a model that computes in 16 bits
