"""xn.set_deterministic: bits that depend neither on the number of threads, nor on timing, nor on what else the process does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import xpnet as xn
from xpnet.cli import main
from xpnet.layers.execution import executor_of
from xpnet.report import read_record
from xpnet.runtime import determinism, threads
from xpnet.training import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]

# Large enough that every operation splits its work, and that BLAS would use its threads.
NETS = {
    "winograd and columns": (
        [
            lambda: xn.Conv2D(32, 3, padding="same", activation="relu"),
            lambda: xn.Conv2D(32, 3, padding="same"),
            lambda: xn.BatchNorm(),
            lambda: xn.MaxPool2D(2),
            lambda: xn.Conv2D(64, 5, stride=2, activation="tanh"),
            lambda: xn.Conv2D(64, 3, groups=64, padding="same"),
            lambda: xn.Conv2D(128, 1),
            lambda: xn.GroupNorm(8),
            lambda: xn.AveragePool2D(2),
            lambda: xn.Flatten(),
            lambda: xn.Dropout(0.2),
            lambda: xn.Dense(10),
        ],
        (24, 24, 3),
    ),
    "dense": (
        [lambda: xn.Dense(512, "relu"), lambda: xn.Dense(512, "tanh"), lambda: xn.LayerNorm(), lambda: xn.Dense(10)],
        (784,),
    ),
    "recurrent": ([lambda: xn.LSTM(192), lambda: xn.Dense(10)], (6, 128)),
    "transposed": (
        [
            lambda: xn.Conv2DTranspose(24, 3, stride=2),
            lambda: xn.MaxPool2D(3, stride=2),
            lambda: xn.Flatten(),
            lambda: xn.Dense(10),
        ],
        (12, 12, 8),
    ),
}


def trained(name: str, batches: int = 3) -> str:
    """Return a fingerprint of weights, losses and predictions after some steps."""
    layers, shape = NETS[name]
    rng = np.random.default_rng(1)
    x = rng.normal(size=(48 * batches, *shape)).astype(np.float32)
    y = rng.integers(0, 10, len(x))
    model = xn.Sequential([make() for make in layers], input_shape=shape, seed=3)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.001))
    history = trainer.fit((x, y), epochs=1, batch_size=48, verbose=False)
    content = model.flat_parameters.values.tobytes() + np.array(history["loss"]).tobytes() + model.predict(x).tobytes()
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def number_of_threads(monkeypatch):
    """Set the number of threads, even to more than there are cores, with a thread pool of the test's own."""
    before = threads.get_num_threads()
    monkeypatch.setattr(threads, "_pool", threads._Pool())

    def use(count: int) -> None:
        xn.set_num_threads(count)
        threads._threads = count

    yield use
    xn.set_num_threads(before)


@pytest.mark.parametrize("name", NETS)
def test_the_number_of_threads_changes_no_bit(name, number_of_threads):
    found = set()
    with xn.deterministic():
        for count in (1, 2, 5):
            number_of_threads(count)
            found.add(trained(name))
    assert len(found) == 1


def test_without_it_the_number_of_threads_counts(number_of_threads):
    """Otherwise the test above would show nothing."""
    found = set()
    with xn.deterministic(False):
        for count in (1, 2):
            number_of_threads(count)
            found.add(trained("winograd and columns"))
    assert len(found) == 2


def test_what_other_threads_do_changes_no_bit():
    """Convolutions in other threads limit BLAS to one thread for a while, maybe during a product here."""
    images = xn.Sequential([xn.Conv2D(16, 3), xn.GlobalAveragePool2D(), xn.Dense(3)], input_shape=(16, 16, 3))
    many = np.ones((64, 16, 16, 3), np.float32)
    with xn.deterministic():
        expected = trained("dense")
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                images.predict(many)

        other = threading.Thread(target=work)
        other.start()
        try:
            found = {trained("dense") for _ in range(4)}
        finally:
            stop.set()
            other.join()
    assert found == {expected}


def test_predictions_of_several_threads_at_once_change_no_bit():
    """A small prediction runs on buffers of the model, which one thread can use at a time."""
    model = xn.Sequential(
        [xn.Conv2D(16, 3, activation="relu"), xn.MaxPool2D(2), xn.Conv2D(32, 3), xn.Flatten(), xn.Dense(10)],
        input_shape=(28, 28, 1),
    )
    x = np.random.default_rng(0).random((1, 28, 28, 1), np.float32)
    wrong = []
    with xn.deterministic():
        expected = model.predict(x)

        def work() -> None:
            for _ in range(100):
                if not np.array_equal(model.predict(x), expected):
                    wrong.append(1)

        users = [threading.Thread(target=work) for _ in range(3)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        plan = next(iter(cast(Any, executor_of(model)).plans.values()))
        with plan.lock:  # in use: the next prediction waits for it, instead of running layer by layer
            answers = []
            waiting = threading.Thread(target=lambda: answers.append(model.predict(x)))
            waiting.start()
            waiting.join(0.2)
            assert not answers
        waiting.join()
    assert not wrong
    np.testing.assert_array_equal(answers[0], expected)


def test_what_ran_before_in_this_thread_changes_no_bit():
    """Outside a model, an operation runs on the thread pool of the last model, except in deterministic mode."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(96, 700)).astype(np.float32), rng.normal(size=(700, 300)).astype(np.float32)
    with xn.deterministic():
        found = set()
        for model, shape in (
            (xn.Sequential([xn.Dense(3)], input_shape=(4,)), (2, 4)),
            (xn.Sequential([xn.Conv2D(4, 3)], input_shape=(6, 6, 1)), (2, 6, 6, 1)),
        ):
            model(np.ones(shape, np.float32))
            assert threads.own_threads_preferred()
            found.add(xn.ops.dense(x, kernel).tobytes())
    assert len(found) == 1


def test_where_the_data_lie_in_memory_changes_no_bit():
    """The alignment of an array must not change the order in which a vector loop sums."""
    base = np.random.default_rng(0).standard_normal((24, 15, 15, 3)).astype(np.float32)
    y = np.arange(24) % 10
    found = set()
    with xn.deterministic():
        for offset in (0, 4, 16, 36, 60):
            raw = np.empty(base.nbytes + 128, np.uint8)
            start = -raw.ctypes.data % 64 + offset
            x = raw[start : start + base.nbytes].view(np.float32).reshape(base.shape)
            x[...] = base
            layers = [
                xn.Conv2D(8, 3),
                xn.BatchNorm(),
                xn.MaxPool2D(2),
                xn.Flatten(),
                xn.Dense(40),
                xn.LayerNorm(),
                xn.Dense(10),
            ]
            model = xn.Sequential(layers, input_shape=(15, 15, 3))
            trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
            loss = [float(trainer.step(x, y)) for _ in range(2)]
            found.add((str(loss), model.flat_parameters.values.tobytes(), model.predict(x).tobytes()))
    assert len(found) == 1


def test_workers_change_no_bit():
    x = np.random.default_rng(0).normal(size=(96, 12, 12, 1)).astype(np.float32)
    y = np.arange(96) % 3
    change = xn.data.augment.Compose(xn.data.augment.Shift(2), xn.data.augment.Flip())
    found = set()
    with xn.deterministic():
        for workers in (0, 1, 3):
            model = xn.Sequential([xn.Conv2D(8, 3), xn.Flatten(), xn.Dense(3)], input_shape=(12, 12, 1))
            trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
            trainer.fit(xn.data.Batches((x, y), 16, seed=1, augment=change, workers=workers), epochs=2, verbose=False)
            found.add(model.flat_parameters.values.tobytes())
    assert len(found) == 1


def test_blas_is_limited_to_one_thread_and_restored(number_of_threads):
    from threadpoolctl import threadpool_info

    def blas() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    number_of_threads(threads._cores())
    before = blas()
    with xn.deterministic():
        assert set(blas()) == {1}
        threads.parallel(lambda part: None, 4)
        assert set(blas()) == {1}
        xn.set_num_threads(threads._cores())
        assert set(blas()) == {1}
    assert blas() == before


def test_the_setting():
    before = xn.get_deterministic()
    try:
        xn.set_deterministic(True)
        xn.set_deterministic(True)  # idempotent
        assert xn.get_deterministic()
        assert threads.chunk_count() == threads.FIXED_CHUNKS
        with xn.deterministic(False):
            assert not xn.get_deterministic()
            assert threads.chunk_count() == threads.get_num_threads()
        assert xn.get_deterministic()
        with pytest.raises(ZeroDivisionError), xn.deterministic(False):
            raise ZeroDivisionError
        assert xn.get_deterministic()
        xn.set_deterministic(False)
        assert not xn.get_deterministic()
        for wrong in (1, "yes", None):
            with pytest.raises(ValueError, match="takes True or False"):
                xn.set_deterministic(wrong)  # type: ignore[arg-type]
    finally:
        xn.set_deterministic(before)


def test_the_workspace_of_cublas_is_fixed_unless_it_is_already(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with xn.deterministic():
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with xn.deterministic():
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def python(code: str, **variables: str) -> str:
    """Return what a new process prints."""
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "XPNET_NUM_THREADS")}
    paths = [str(ROOT), str(Path(__file__).parent)]
    code = f"import sys; sys.path[:0] = {paths!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**clean, **variables})
    return done.stdout.strip()


def test_the_environment_variable_in_processes_with_other_threads():
    code = "import test_deterministic_mode as t; print(t.xn.get_deterministic(), t.trained('dense'), t.trained('transposed'))"
    found = {
        python(code, XPNET_DETERMINISTIC="1", PYTHONHASHSEED=seed, **more)
        for seed, more in (("1", {}), ("2", {"XPNET_NUM_THREADS": "1"}), ("3", {"OPENBLAS_NUM_THREADS": "1"}))
    }
    assert len(found) == 1
    assert found.pop().startswith("True ")
    assert python("import xpnet; print(xpnet.get_deterministic())", XPNET_DETERMINISTIC="0") == "False"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_it_holds_in_a_forked_process():
    code = """
import os, warnings
warnings.simplefilter("ignore")
import numpy, xpnet as xn
from threadpoolctl import threadpool_info
xn.set_deterministic(True)
child = os.fork()
numbers = {l["num_threads"] for l in threadpool_info() if l["user_api"] == "blas"}
if child == 0:
    os._exit(0 if xn.get_deterministic() and numbers == {1} else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert python(code) == "0"


def test_checkpoints_remember_it(tmp_path):
    def make() -> xn.Trainer:
        model = xn.Sequential([xn.Dense(2)], input_shape=(3,))
        return xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))

    with xn.deterministic():
        save_checkpoint(make(), tmp_path / "a.ckpt")
        load_checkpoint(make(), tmp_path / "a.ckpt")
    with xn.deterministic(False):
        with pytest.warns(RuntimeWarning, match=r"a\.ckpt: the run was deterministic until here"):
            load_checkpoint(make(), tmp_path / "a.ckpt")
        save_checkpoint(make(), tmp_path / "b.ckpt")
    with warnings.catch_warnings(), xn.deterministic():
        warnings.simplefilter("error")
        load_checkpoint(make(), tmp_path / "b.ckpt")


def test_on_the_command_line(tmp_path, capsys, number_of_threads):
    found = []
    for count in (1, 2):
        number_of_threads(count)
        folder = tmp_path / str(count)
        assert main(["train", "digits", "--epochs", "1", "--deterministic", "--out", str(folder)]) == 0
        assert tomllib.loads((folder / "config.toml").read_text())["deterministic"] is True
        record = read_record(folder)
        assert record["environment"]["deterministic"] == "yes"
        assert record["configuration"]["deterministic"] is True
        found.append({name: xn.to_numpy(a).tobytes() for name, a in xn.load(folder / "model.xpnet").state().items()})
    assert found[0] == found[1]
    assert not xn.get_deterministic()  # the setting was that of the run, not of the process
    # A resumed run keeps its setting.
    number_of_threads(1)
    assert main(["train", "--resume", str(tmp_path / "2"), "--epochs", "2"]) == 0
    assert read_record(tmp_path / "2")["environment"]["deterministic"] == "yes"
    assert main(["train", "--resume", str(tmp_path / "2"), "--no-deterministic"]) == 2
    assert "--deterministic False is not what the run" in capsys.readouterr().err


def test_the_environment_is_written_into_the_runs_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(determinism, "_on", False)
    folder = tmp_path / "run"
    assert main(["train", "iris", "--epochs", "1", "--out", str(folder)]) == 0
    assert tomllib.loads((folder / "config.toml").read_text())["deterministic"] is False


def test_no_operation_asks_for_the_number_of_threads():
    """Results would depend on the machine: operations ask for threads.chunk_count() instead."""
    for path in (ROOT / "xpnet").glob("accel/**/*.py"):
        assert not re.search(r"\bget_num_threads\b|\bcpu_count\b|\bsched_getaffinity\b", path.read_text()), path.name


def test_autotune_is_off(monkeypatch):
    """On a GPU the convolution algorithm is fixed, whatever the autotune cache says and whichever is faster."""
    from xpnet.accel.cupy import autotune

    asked: Any = []
    candidates = {"im2col": lambda: None, "implicit": lambda: None}
    monkeypatch.delenv("XPNET_CONVOLUTION", raising=False)
    with xn.deterministic():
        assert autotune.choose(candidates, lambda: asked.append("key")) == "im2col"
        assert asked == []
        monkeypatch.setenv("XPNET_CONVOLUTION", "implicit")  # fixed, too
        assert autotune.choose(candidates, lambda: asked.append("key")) == "implicit"


ATOMICS = {
    # The last block to arrive adds what all have written, in a fixed order.
    "last_block.cuh": ["atomicInc(counter, blocks - 1)"],
    # The last block to finish counts the step; no value depends on which block that is.
    "optimizer.cu": ["atomicAdd(ticket, 1u)"],
}


def test_kernels_add_nothing_with_atomics():
    """Every atomic operation in the kernels is listed here, with the reason why it changes no bit."""
    pattern = re.compile(r"\batomic\w+\([^;]*?\)(?= ==|;|\s*[<>=])|\b(?:red|atom)\.\w|\bcuda::atomic\w*")
    found = {}
    for path in sorted((ROOT / "kernels" / "cuda").iterdir()):
        if path.suffix in (".cu", ".cuh"):
            code = re.sub(r"//[^\n]*", "", path.read_text())
            if uses := [match.group() for match in pattern.finditer(code)]:
                found[path.name] = uses
            assert code.count("atomic") == len(uses), f"{path.name}: an atomic that this test does not read"
    assert found == ATOMICS


def test_the_record_can_be_read_as_json(tmp_path):
    """A page that compares runs shows which of them were deterministic."""
    with xn.deterministic():
        assert main(["train", "iris", "--epochs", "1", "--out", str(tmp_path / "a")]) == 0
    assert main(["train", "iris", "--epochs", "1", "--out", str(tmp_path / "b")]) == 0
    values = [json.loads((tmp_path / n / "run.json").read_text())["environment"]["deterministic"] for n in "ab"]
    assert values == ["yes", "no"]
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c.html")]) == 0
    assert "deterministic" in (tmp_path / "c.html").read_text()


@pytest.mark.cuda
@pytest.mark.parametrize("name", NETS)
def test_on_a_gpu_runs_and_recorded_graphs_and_what_was_measured_change_no_bit(name, tmp_path, monkeypatch):
    from xpnet.accel.cupy import autotune

    def run(capture: bool) -> bytes:
        layers, shape = NETS[name]
        rng = np.random.default_rng(1)
        x = xn.to_device(rng.normal(size=(96, *shape)).astype(np.float32), "cuda")
        y = xn.to_device(rng.integers(0, 10, 96), "cuda")
        model = xn.Sequential([make() for make in layers], input_shape=shape, seed=3, device="cuda")
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), capture=capture)
        trainer.fit((x, y), epochs=2, batch_size=24, verbose=False)
        return xn.to_numpy(model.flat_parameters.values).tobytes()

    with xn.deterministic():
        found = {run(capture) for capture in (True, False, True)}
        for cache in ("a", "b"):  # an empty autotune cache
            monkeypatch.setenv("XPNET_CACHE", str(tmp_path / cache))
            autotune._cache.reload()
            found.add(run(True))
    assert len(found) == 1
