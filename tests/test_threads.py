"""The thread pool: all parts run, errors are raised, and settings are restored."""

import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import xpnet as xn
from xpnet.accel.numpy.chunks import balanced_chunk_size
from xpnet.runtime import threads


@pytest.fixture
def count():
    before = threads.get_num_threads()
    yield before
    threads.set_num_threads(before)


def blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_every_part_runs_once():
    for parts in (0, 1, 2, 7, 100):
        seen: list[Any] = []
        threads.parallel(seen.append, parts)
        assert sorted(seen) == list(range(parts))


@pytest.mark.skipif(threads.get_num_threads() < 2, reason="one core")
def test_parts_run_at_the_same_time():
    meeting = threading.Barrier(2, timeout=10)
    threads.parallel(lambda part: meeting.wait(), 2)  # type: ignore[arg-type]


def test_little_work_stays_in_the_calling_thread():
    where = []

    def body(part):
        where.append(threading.get_ident())
        time.sleep(0.002)  # long enough for other threads to claim a part

    threads.parallel(body, 6, 1e-4, 2)
    assert where == [threading.get_ident()] * 6
    if threads.get_num_threads() > 1:
        where.clear()
        threads.parallel(body, 6, 1.0, 2)
        assert len(set(where)) > 1


@pytest.mark.skipif(threads.get_num_threads() < 2, reason="one core")
def test_many_short_calls_stay_in_one_thread_with_the_gil():
    ms = 1e-3
    assert threads._worth_sharing(2, 2, 2 * ms, 1)
    assert not threads._worth_sharing(2, 2, 0.3 * ms, 1)
    free = not getattr(sys, "_is_gil_enabled", lambda: True)()
    assert threads._worth_sharing(2, 2, 2 * ms, 100) is free
    # Four threads gain at least what two threads gain on one millisecond.
    assert threads._worth_sharing(4, 4, 1 * ms, 10) or not threads._worth_sharing(2, 4, 1 * ms, 10)


def test_only_long_work_is_split_for_the_threads(count):
    threads.set_num_threads(count)
    assert balanced_chunk_size(100, 1000, 1e-5) == 100
    assert balanced_chunk_size(100, 1000, 1.0) == -(-100 // threads.chunk_count())
    assert balanced_chunk_size(100, 10, 1e-5) == 10


def test_the_first_error_is_raised_and_the_rest_is_skipped():
    ran = []

    def body(part):
        ran.append(part)
        if part == 3:
            raise KeyError("part 3")
        time.sleep(0.001)

    with pytest.raises(KeyError, match="part 3"):
        threads.parallel(body, 1000)
    assert len(ran) < 1000
    test_every_part_runs_once()


def test_blas_has_one_thread_inside_and_its_own_number_after(count):
    threads.set_num_threads(count)
    before = blas_threads()
    inside = []

    def body(part):
        inside.extend(blas_threads())

    threads.parallel(body, 4)
    if count > 1:
        assert set(inside) == {1}
    assert blas_threads() == before
    with pytest.raises(ZeroDivisionError):
        threads.parallel(lambda part: 1 // 0, 4)  # type: ignore[arg-type]
    assert blas_threads() == before


def test_nested_calls_run_in_the_same_thread():
    def outer(part):
        here = threading.get_ident()
        inner = []
        threads.parallel(lambda _: inner.append(threading.get_ident()), 5)
        assert inner == [here] * 5

    threads.parallel(outer, 4)


def test_calls_from_several_threads():
    results = {}

    def user(name):
        out = np.zeros(50)

        def body(part):
            out[part] = np.square(np.full(1000, part)).sum()

        for _ in range(20):
            threads.parallel(body, 50)
        results[name] = out

    users = [threading.Thread(target=user, args=(i,)) for i in range(4)]
    before = blas_threads()
    for u in users:
        u.start()
    for u in users:
        u.join(30)
    for i in range(4):
        np.testing.assert_array_equal(results[i], 1000.0 * np.arange(50) ** 2)
    assert blas_threads() == before


def test_numpy_error_state_holds_in_all_threads():
    zeros = np.zeros(4)
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        threads.parallel(lambda part: time.sleep(0.001) or np.divide(1.0, zeros), 8)  # type: ignore[arg-type, func-returns-value]
    with np.errstate(divide="ignore"):
        threads.parallel(lambda part: time.sleep(0.001) or np.divide(1.0, zeros), 8)  # type: ignore[arg-type, func-returns-value]


def test_set_num_threads(count):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads.set_num_threads(1)
    assert threads.get_num_threads() == 1
    assert set(blas_threads()) == {1}
    here = []
    threads.parallel(lambda part: here.append(threading.get_ident()), 3)
    assert here == [threading.get_ident()] * 3
    threads.set_num_threads(10_000)
    assert threads.get_num_threads() == cores
    for wrong in (0, -1, 1.5, "2", True):
        with pytest.raises(ValueError, match="positive integer"):
            threads.set_num_threads(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XPNET_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1,2"}, 1),
        ({"OPENBLAS_NUM_THREADS": "1"}, 1),
        ({"XPNET_NUM_THREADS": "10000"}, None),
        ({"XPNET_NUM_THREADS": "10000", "OMP_NUM_THREADS": "1"}, None),
        ({"OMP_NUM_THREADS": "nonsense"}, None),
    ],
)
def test_environment(variables, expected, monkeypatch):
    for name in ("XPNET_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert threads._from_environment() == (expected or threads._cores())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_fork():
    """Fork while other threads run, in a new process: the child must be able to compute."""
    program = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")  # newer Pythons warn about any fork with threads
import numpy as np
from threadpoolctl import threadpool_info
import xpnet as xn
from xpnet.runtime import threads
from xpnet.accel.numpy.chunks import balanced_chunk_size
def blas():
    return [l["num_threads"] for l in threadpool_info() if l["user_api"] == "blas"]
def total():
    out = np.zeros(40)
    def body(part):
        out[part] = np.matmul(np.full((64, 64), part), np.ones((64, 64)))[0, 0]
    threads.parallel(body, 40)
    return out.sum()
before = blas()
expected = total()
stop = threading.Event()
def busy():
    while not stop.is_set():
        total()
helper = threading.Thread(target=busy)
helper.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        os._exit(0 if total() == expected and blas() == before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
helper.join()
assert blas() == before
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_model_decides_which_thread_pool_its_products_use():
    dense = xn.Sequential([xn.Dense(300)], input_shape=(400,))
    images = xn.Sequential([xn.Conv2D(4, 3), xn.Flatten(), xn.Dense(3)], input_shape=(6, 6, 1))
    for model, shape, own in ((dense, (2, 400), False), (images, (2, 6, 6, 1), True), (dense, (2, 400), False)):
        model(np.ones(shape, np.float32))
        assert threads.own_threads_preferred() is own


def test_what_ran_before_changes_no_bit():
    """The two thread pools may round differently, so which one runs a product must not depend on timing."""
    x = np.random.default_rng(0).normal(size=(128, 400)).astype(np.float32)
    y = np.arange(128) % 10

    def trained():
        model = xn.Sequential([xn.Dense(300, "relu"), xn.Dense(10)], input_shape=(400,))
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1, 0.9))
        for _ in range(3):
            trainer.step(x, y)
        return model.flat_parameters.values.copy()

    before = trained()
    xn.Sequential([xn.Conv2D(4, 3)])(np.ones((8, 20, 20, 3), np.float32))
    np.testing.assert_array_equal(trained(), before)


def test_a_blas_that_is_loaded_later_is_found(count):
    """SciPy loads its own BLAS."""
    threads.parallel(lambda part: None, 4)
    pytest.importorskip("scipy.linalg")
    threads.set_num_threads(1)
    assert set(blas_threads()) == {1}


@pytest.mark.skipif(threads._cores() < 2, reason="one core")
def test_the_environment_holds_for_blas_too():
    """XPNET_NUM_THREADS=1 and set_num_threads(1) are the same setting."""
    code = "import numpy, xpnet; from threadpoolctl import threadpool_info as i; print([l['num_threads'] for l in i()])"
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**clean, "XPNET_NUM_THREADS": "1"}
    )
    assert set(found.stdout.strip()[1:-1].split(", ")) == {"1"}


@pytest.mark.skipif(threads._cores() < 2, reason="one core")
def test_a_single_part_of_a_model_with_convolutions_leaves_the_threads_of_blas_asleep(count):
    """Once awake they keep the cores busy afterwards: a training step took up to 1.7 times as long."""
    threads.set_num_threads(2)
    for model, shape, expected in (
        (xn.Sequential([xn.Conv2D(4, 3)], input_shape=(6, 6, 1)), (2, 6, 6, 1), 1),
        (xn.Sequential([xn.Dense(3)], input_shape=(4,)), (2, 4), 2),
    ):
        model(np.ones(shape, np.float32))
        seen: list[Any] = []

        def note(part: int, seen: list[Any] = seen) -> None:
            seen.extend(blas_threads())

        threads.parallel(note, 1)
        assert set(seen) == {expected}
