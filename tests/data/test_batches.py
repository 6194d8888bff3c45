import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet
import xpnet.data as data
from xpnet import random
from xpnet.backend import DeviceError, device, to_numpy
from xpnet.data import Batches, DataError, SkipExample, WorkerError
from xpnet.data import augment as A

from ._helpers import Dies, Fails, Slow, Squares, negated


def arrays(n=23):
    return np.arange(n * 3, dtype=np.float32).reshape(n, 3), np.arange(n)


def same(a, b):
    a, b = list(a), list(b)
    assert len(a) == len(b)
    for (xa, ya), (xb, yb) in zip(a, b, strict=True):
        np.testing.assert_array_equal(xa, xb)
        np.testing.assert_array_equal(ya, yb)


# Epochs


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 60),
    size=st.integers(1, 70),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    seed=st.integers(),
)
def test_an_epoch_holds_every_example_once(n, size, drop_last, shuffle, seed):
    x, y = arrays(n)
    batches = Batches((x, y), size, shuffle=shuffle, drop_last=drop_last, seed=seed)
    found = list(batches)
    assert len(found) == len(batches) == (n // size if drop_last else -(-n // size))
    assert all(len(b) == size for _, b in found[:-1])
    order = np.concatenate([b for _, b in found]) if found else np.empty(0, int)
    expected = n // size * size if drop_last else n
    assert len(order) == len(set(order.tolist())) == expected
    for bx, by in found:
        np.testing.assert_array_equal(bx, x[by])
        assert bx.dtype == np.float32
    if not shuffle:
        np.testing.assert_array_equal(order, np.arange(expected))


def test_the_order_is_a_function_of_seed_and_epoch():
    first, other = Batches(arrays(), 4, seed=7), Batches(arrays(), 4, seed=7)
    epochs = [[y.tolist() for _, y in first] for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert [y.tolist() for _, y in other.epoch(2)] == epochs[2]
    assert [y.tolist() for _, y in other.epoch(0)] == epochs[0]
    assert [y.tolist() for _, y in Batches(arrays(), 4, seed=8)] != epochs[0]


def test_the_order_is_that_of_a_training_run():
    for epoch in (0, 5):
        order = np.concatenate([y for _, y in Batches(arrays(), 4, seed=7).epoch(epoch)])
        np.testing.assert_array_equal(order, random.permutation(7, epoch, 23))


def test_a_look_at_the_first_batch_changes_nothing():
    batches = Batches(arrays(), 4)
    look = next(iter(batches))
    assert look[1].tolist() == next(iter(batches))[1].tolist()
    assert len(list(batches)) == len(batches)


def test_forms_of_data_come_back_as_they_are():
    x, y = arrays()
    assert next(iter(Batches(x, 4))).shape == (4, 3)
    nested = next(iter(Batches({"image": x, "more": (y, x)}, 4)))
    np.testing.assert_array_equal(nested["image"], nested["more"][1])
    np.testing.assert_array_equal(nested["image"][:, 0] // 3, nested["more"][0])


@pytest.mark.parametrize("library", ["array_api_strict", pytest.param("torch", marks=pytest.mark.torch)])
def test_arrays_of_another_library_are_gathered_there(library):
    xp = array_api_strict if library == "array_api_strict" else pytest.importorskip("torch")
    x, y = arrays()
    theirs = Batches((xp.asarray(x), xp.asarray(y)), 4, seed=3)
    for (a, b), (c, d) in zip(theirs, Batches((x, y), 4, seed=3), strict=True):
        assert type(a).__module__.startswith(library)
        np.testing.assert_array_equal(to_numpy(a), c)
        np.testing.assert_array_equal(to_numpy(b), d)


class OnlyIncreasing:
    """An array in a file, such as h5py's: index lists have to increase."""

    def __init__(self, values):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, index):
        if isinstance(index, np.ndarray):
            assert (np.diff(index) > 0).all()
        return self.values[index]


def test_a_data_set_in_a_file_that_wants_increasing_indices():
    x, y = arrays()
    same(Batches((OnlyIncreasing(x), y), 4, seed=1), Batches((x, y), 4, seed=1))
    same(Batches((OnlyIncreasing(x), y), 4, shuffle=False), Batches((x, y), 4, shuffle=False))
    weights = np.ones(23)
    same(Batches((OnlyIncreasing(x), y), 9, weights=weights), Batches((x, y), 9, weights=weights))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Batches((np.zeros(3), np.zeros(4))),
            ValueError,
            r"same number of examples, got shapes \(3,\), \(4,\)",
        ),
        (lambda: Batches(()), ValueError, "same number of examples"),
        (lambda: Batches((np.zeros(3), [1, 2, 3])), TypeError, "one of its parts is list"),
        (lambda: Batches(np.float32(3)), TypeError, "examples along the first axis"),
        (lambda: Batches(3), TypeError, "data is int; expected arrays"),
        (lambda: Batches(data.load("iris")), TypeError, "give one of its parts: dataset.train"),
        (lambda: Batches(np.zeros(3), 0), ValueError, "batch_size must be an integer of at least 1, got 0"),
        (lambda: Batches(np.zeros(3), 2.5), ValueError, "batch_size must be an integer"),  # type: ignore[arg-type]
        (lambda: Batches(np.zeros(3), None), ValueError, "batch_size=None is for a stream"),
        (lambda: Batches(np.zeros(3), workers=-1), ValueError, "workers must be"),
        (lambda: Batches(np.zeros(3), samples_per_epoch=4), ValueError, "samples_per_epoch=4 of 3 examples"),
        (lambda: Batches(np.zeros(3), samples_per_epoch=0), ValueError, "samples_per_epoch must be"),
        (lambda: Batches(np.zeros(3), buffer=4), ValueError, "buffer is for streams"),
        (
            lambda: Batches(np.zeros(3), processes=True, workers=2),
            ValueError,
            "copied to every worker process",
        ),
        (lambda: Batches(np.zeros(3), weights=np.ones(4)), ValueError, r"weights have shape \(4,\)"),
        (lambda: Batches(np.zeros(3), weights=np.zeros(3)), ValueError, "not all zero"),
        (lambda: Batches(np.zeros(3), weights=np.array([1, -1, 1])), ValueError, "not negative"),
        (lambda: Batches(np.zeros(3), device="gpu"), ValueError, "unknown device 'gpu'"),
        (lambda: Batches(iter([1]), shuffle=True), ValueError, "buffer=1000 shuffles it within a buffer"),
        (lambda: Batches(iter([1]), processes=True), ValueError, "read in one thread"),
        (lambda: len(Batches(iter([1]))), TypeError, "number of batches of a stream is not known"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Weights and samples


def test_the_old_name_of_samples_per_epoch_warns():
    with pytest.warns(DeprecationWarning, match=r"use Batches\(samples_per_epoch=\)"):
        assert Batches(np.arange(6), samples=4).count == 4  # type: ignore[call-arg]


def test_weighted_sampling_draws_in_proportion():
    weights = np.array([0.0, 1.0, 3.0, 0.0, 6.0, 0.0])
    batches = Batches(np.arange(6), 100, weights=weights, samples_per_epoch=50_000)
    assert len(batches) == 500
    share = np.bincount(np.concatenate(list(batches)), minlength=6) / 50_000
    np.testing.assert_allclose(share, weights / 10, atol=0.01)
    assert (share[weights == 0] == 0).all()


def test_class_weights_balance_the_classes():
    y = np.array([0] * 90 + [1] * 9 + [3])
    table = data.class_weights(y, 5)
    np.testing.assert_allclose(table, [100 / (3 * 90), 100 / 27, 0, 100 / 3, 0], rtol=1e-6)
    assert abs(float(table[y].mean()) - 1) < 1e-6
    drawn = np.concatenate(list(Batches(y, 1000, weights=data.example_weights(y), samples_per_epoch=30_000)))
    np.testing.assert_allclose(np.bincount(drawn)[[0, 1, 3]] / 30_000, 1 / 3, atol=0.01)
    chosen = data.example_weights(y, np.array([0.0, 1.0, 0.0, 2.0]))
    assert set(np.concatenate(list(Batches(y, 10, weights=chosen))).tolist()) == {1, 3}
    with pytest.raises(ValueError, match="labels go up to 3"):
        data.class_weights(y, 3)
    with pytest.raises(ValueError, match="labels go up to 3, but weights have shape"):
        data.example_weights(y, np.ones(2))
    with pytest.raises(ValueError, match="expected integer labels"):
        data.class_weights(np.zeros(3))


def test_few_samples_out_of_very_many_cost_no_pass_over_the_data():
    class Huge:
        asked = 0

        def __len__(self):
            return 10**12

        def __getitem__(self, i):
            self.asked += 1
            return i

    huge = Huge()
    drawn = np.concatenate(list(Batches(huge, 10, samples_per_epoch=50)))
    assert huge.asked == 50 == len(set(drawn.tolist()))
    assert drawn.max() > 10**11
    assert np.concatenate(list(Batches(huge, 10, samples_per_epoch=50).epoch(1))).tolist() != drawn.tolist()


def test_split_is_stratified_and_repeatable():
    y = np.repeat([0, 1, 2], [50, 30, 20])
    x = np.arange(100)
    (xa, _), (xb, yb) = data.split(x, y, fraction=0.1, seed=4)
    assert np.bincount(yb).tolist() == [5, 3, 2]
    assert sorted([*xa.tolist(), *xb.tolist()]) == list(range(100))
    np.testing.assert_array_equal(y[xb], yb)
    np.testing.assert_array_equal(data.split(x, y, fraction=0.1, seed=4)[1][0], xb)
    assert data.split(x, y, fraction=0.1, seed=5)[1][0].tolist() != xb.tolist()
    assert len(data.split(x, np.linspace(0, 1, 100), stratify=False)[1][0]) == 20
    for arguments, message in [((x, y[:3]), "must be as many"), ((x, y * 1.0), "expected integer labels")]:
        with pytest.raises(ValueError, match=message):
            data.split(*arguments)
    with pytest.raises(ValueError, match="fraction must lie between"):
        data.split(x, y, fraction=1.0)


# The place in the data


SOURCES = {
    "arrays": lambda: arrays(),
    "sequence": lambda: Squares(),
    "stream": lambda: lambda: ((np.full(2, i), i) for i in range(23)),
}


@pytest.mark.parametrize("name", list(SOURCES))
@pytest.mark.parametrize("workers", [0, 2])
@settings(max_examples=8, deadline=None)
@given(steps=st.integers(0, 20))
def test_a_saved_place_is_gone_on_from(name, workers, steps):
    def make():
        buffer = 5 if name == "stream" else 0
        augment = A.Shift(1) if name == "sequence" else None
        return Batches(SOURCES[name](), 4, seed=2, workers=workers, buffer=buffer, augment=augment)

    whole = [batch for e in range(4) for batch in make().epoch(e)]
    batches, done, state = make(), 0, None
    state = batches.state()
    while done < steps:
        for _ in batches:
            done += 1
            state = batches.state()  # while the batch is in use, as a checkpoint after its update would
            if done == steps:
                break
    again = make()
    again.restore(dict(state))
    rest = [batch for _ in range(4) for batch in again]
    same(whole[steps:], rest[: len(whole) - steps])


def test_the_place_at_the_end_of_an_epoch():
    batches = Batches(arrays(), 4, seed=2)
    assert batches.state() == {"epoch": 0, "batch": 0, "seed": 2, "batch_size": 4, "count": 23}
    list(batches)
    assert (batches.state()["epoch"], batches.state()["batch"]) == (1, 0)


def test_a_place_in_other_batches_is_refused():
    state = Batches(arrays(), 4, seed=2).state()
    with pytest.raises(ValueError, match="seed was 2, is 3; batch_size was 4, is 5"):
        Batches(arrays(), 5, seed=3).restore(state)


# Sequences and streams


def test_a_list_is_a_sequence_of_examples():
    found = list(Batches([(0.5, 1), (1.5, 2), (2.5, 3)], 2, shuffle=False))
    np.testing.assert_array_equal(found[0][0], np.array([0.5, 1.5], np.float32))
    assert found[0][0].dtype == np.float32
    assert found[0][1].dtype == np.int64
    assert found[1][1].tolist() == [3]
    [strict] = Batches([array_api_strict.zeros(2), array_api_strict.ones(2)], 2)
    assert strict.shape == (2, 2)


def test_examples_that_do_not_fit_together():
    with pytest.raises(DataError, match=r"list: example 1 has shape \(2,\), example 0 has \(3,\)"):
        list(Batches([np.zeros(3), np.zeros(2)], 2, shuffle=False))
    with pytest.raises(DataError, match="stream: example 1 of its batch has another form than example 0 of its batch"):
        list(Batches(iter([(1, 2), 3]), 2))


def test_streams():
    examples = [(np.full(2, i), i) for i in range(5)]
    assert [y.tolist() for _, y in Batches(iter(examples), 2)] == [[0, 1], [2, 3], [4]]
    assert [y.tolist() for _, y in Batches(iter(examples), 2, drop_last=True)] == [[0, 1], [2, 3]]
    assert [x.tolist() for x in Batches({3, 4}, 2)] == [[3, 4]]  # any iterable, single values
    by_epoch = Batches(lambda epoch: iter(range(epoch, epoch + 3)), 2)
    assert [x.tolist() for x in by_epoch] == [[0, 1], [2]]
    assert [x.tolist() for x in by_epoch] == [[1, 2], [3]]
    ready = [(np.zeros((n, 3)), np.zeros(n)) for n in (4, 2)]
    assert [x.shape for x, _ in Batches(lambda: ready, None)] == [(4, 3), (2, 3)]


def test_a_used_up_iterator_says_so():
    batches = Batches(iter(range(4)), 2)
    list(batches)
    with pytest.raises(ValueError, match="used up by an earlier epoch: give a function"):
        list(batches)


def test_a_buffer_shuffles_a_stream():
    batches = Batches(lambda: iter(range(100)), 10, buffer=20, seed=1)
    first, second = (np.concatenate(list(batches)).tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second != list(range(100))
    assert max(first[:10]) < 30  # nothing comes before it was read
    assert np.concatenate(list(Batches(lambda: iter(range(100)), 10, buffer=20, seed=1))).tolist() == first


def test_a_generator_is_closed_when_the_loop_ends_early():
    closed = []

    def generator():
        try:
            yield from range(100)
        finally:
            closed.append(True)

    for workers in (0, 1):
        for _ in Batches(generator, 2, workers=workers):
            break
        assert closed.pop()


class Gaps(Squares):
    def __getitem__(self, i):
        if i % 3 == 0:
            raise SkipExample(f"example-{i}", "divisible by three")
        return super().__getitem__(i)


@pytest.mark.parametrize("workers", [0, 2])
def test_examples_can_be_left_out(workers):
    batches = Batches(Gaps(7), 2, shuffle=False, workers=workers)
    with pytest.warns(RuntimeWarning, match=r"left out example-\d: divisible by three"):
        found = [y.tolist() for _, y in batches]
    assert found == [[1], [4], [16, 25]]  # the last batch held example 6 only
    assert batches.skipped == {f"example-{i}": "divisible by three" for i in (0, 3, 6)}
    assert [y.tolist() for _, y in batches.epoch(0)] == found  # and no second warning


# Transform, augmentation, device


def test_transform_and_augmentation():
    x = np.random.default_rng(0).random((10, 6, 6, 1), dtype=np.float32)
    y = np.arange(10)
    change = A.Compose(A.Shift(2), A.Mixup(0.5, classes=10))
    batches = Batches((x, y), 4, seed=3, augment=change, transform=negated)
    for number, ((bx, by), (px, py)) in enumerate(zip(batches.epoch(1), Batches((x, y), 4, seed=3).epoch(1), strict=True)):
        ex, ey = change(-px, py, seed=3, step=(1 << 32) + number)
        np.testing.assert_array_equal(bx, ex)
        np.testing.assert_array_equal(by, ey)
    assert next(iter(Batches(x, 4, augment=A.Flip()))).shape == (4, 6, 6, 1)
    with pytest.raises(ValueError, match=r"augment works on batches \(x, y\) or x, this one is a dict of 1"):
        list(Batches({"x": x}, 4, augment=A.Flip()))


def test_device_cpu_takes_arrays_of_other_libraries_home():
    [batch] = Batches((array_api_strict.zeros((3, 2)),), 4, device="cpu")
    assert isinstance(batch[0], np.ndarray)


@pytest.mark.cuda
def test_batches_go_to_the_gpu_and_are_augmented_there():
    cupy = pytest.importorskip("cupy")
    try:
        device("cuda")
    except DeviceError as error:
        pytest.skip(str(error))
    x = np.random.default_rng(0).random((10, 6, 6, 1), dtype=np.float32)
    change = A.Compose(A.Shift(2), A.Flip(), A.Rotation(10.0), A.Cutout(2))
    for workers in (0, 2):
        gpu = Batches((x, np.arange(10)), 4, augment=change, device="cuda", workers=workers)
        resident = Batches((cupy.asarray(x), cupy.arange(10)), 4, augment=change)
        for ours, theirs, there in zip(Batches((x, np.arange(10)), 4, augment=change), gpu, resident, strict=True):
            for a, b, c in zip(ours, theirs, there, strict=True):
                assert isinstance(b, cupy.ndarray)
                assert isinstance(c, cupy.ndarray)
                np.testing.assert_allclose(a, b.get(), atol=1e-6)
                np.testing.assert_array_equal(b.get(), c.get())


# Workers


@pytest.mark.parametrize("name", list(SOURCES))
def test_threads_give_the_same_batches(name):
    same(Batches(SOURCES[name](), 4, seed=5, workers=3), Batches(SOURCES[name](), 4, seed=5))


def test_threads_work_ahead_and_end_with_the_loop():
    before = threading.active_count()
    slow = Slow(200)
    for number, _ in enumerate(Batches(slow, 4, shuffle=False, workers=2, prefetch=3)):
        if number == 2:
            break
    asked = len(slow.asked)
    assert 12 < asked <= 4 * (3 + 2 * 3 + 2)
    assert threading.active_count() == before
    assert len(slow.asked) == asked


@pytest.mark.parametrize("options", [{}, {"workers": 2}])
def test_an_error_in_a_worker_is_raised_in_its_turn(options):
    seen: Any = []
    batches = (seen.extend(y.tolist()) for _, y in Batches(Fails(), 3, shuffle=False, **options))
    with pytest.raises(ZeroDivisionError, match="example 7"):
        list(batches)
    assert seen == [0, 1, 4, 9, 16, 25]


def test_an_error_in_a_stream_is_raised_in_its_turn():
    def broken():
        yield from range(4)
        raise ZeroDivisionError("at 4")

    seen: Any = []
    batches = (seen.extend(x.tolist()) for x in Batches(broken, 2, workers=1))
    with pytest.raises(ZeroDivisionError, match="at 4"):
        list(batches)
    assert seen == [0, 1, 2, 3]


def test_worker_processes():
    """Same batches, errors in their turn: in one test, as starting processes takes time."""
    with Batches(Squares(), 4, seed=5, workers=2, processes=True, transform=negated, augment=A.Shift(1)) as batches:
        plain = Batches(Squares(), 4, seed=5, transform=negated, augment=A.Shift(1))
        same(batches, plain)
        same(batches, plain)  # the second epoch, by the same processes
        for _ in batches:
            break
        same(batches.epoch(1), plain.epoch(1))
    with (
        Batches(Fails(), 3, shuffle=False, workers=1, processes=True) as batches,
        pytest.raises(ZeroDivisionError, match="example 7"),
    ):
        list(batches)


def test_a_worker_process_that_dies_is_an_error_and_not_a_hang():
    with Batches(Dies(), 3, shuffle=False, workers=2, processes=True) as batches:
        with pytest.raises(WorkerError, match=r"a worker process died.*__main__"):
            list(batches)
        with pytest.raises(WorkerError):  # new processes, the same fate
            list(batches)


def test_what_cannot_be_sent_to_processes_says_so():
    batches = Batches(Squares(), 4, workers=1, processes=True, transform=lambda b: b)
    with pytest.raises(DataError, match=r"cannot be sent to worker processes.*top of a module, or threads"):
        list(batches)


def test_a_script_without_a_main_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import numpy as np
        from xpnet.data import Batches

        class Data:
            def __len__(self): return 4
            def __getitem__(self, i): return i

        print(list(Batches(Data(), 2, workers=1, processes=True)))
        """)
    )
    root = str(Path(xpnet.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert ended.returncode != 0
    assert 'if __name__ == "__main__"' in ended.stderr


# Larger than memory

MEMORY = """
import sys
import numpy as np
from xpnet.data import Batches

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024

n, width = {n}, 1 << 14
x = np.lib.format.open_memmap(sys.argv[1], "w+", np.float32, (n, width))
del x
x = np.load(sys.argv[1], mmap_mode="r")
base = top = resident()
for options in (dict(), dict(shuffle=False), dict(workers=2)):
    count = 0
    for bx, by in Batches((x, np.arange(n)), 32, **options):
        count += len(bx)
        top = max(top, resident())
    assert count == n
print(x.nbytes / 2**20, top - base)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and needs madvise")
def test_a_mapped_file_is_never_in_memory_as_a_whole(tmp_path):
    """Three passes over a (sparse) file of 512 MB; resident memory counts the pages of mapped files."""
    code = MEMORY.format(n=8192)
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.npy")],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    size, growth = map(float, ended.stdout.split())
    assert size == 512
    assert growth < 160


@pytest.mark.parametrize("long_row", [1, 1 << 20])
def test_batches_of_a_mapped_file_are_copies_and_equal(tmp_path, monkeypatch, long_row):
    monkeypatch.setattr("xpnet.data.arrays._RELEASE_AFTER", 1)  # give the pages back after each batch
    monkeypatch.setattr("xpnet.data.arrays._LONG_ROW", long_row)
    x, y = arrays(500)
    np.save(tmp_path / "x.npy", x)
    for mode in ("r", "r+", "c"):
        mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
        if mode == "c":
            mapped[3] = -1  # a change that is in this process's memory only
            x[3] = -1
        for shuffle in (True, False):
            ours = list(Batches((mapped, y), 7, shuffle=shuffle))
            same(ours, Batches((x, y), 7, shuffle=shuffle))
            if mode != "c":
                assert not any(np.shares_memory(batch, mapped) for batch, _ in ours)
        same(Batches((np.asarray(mapped)[::2], y[::2]), 7), Batches((x[::2], y[::2]), 7))
    assert (np.load(tmp_path / "x.npy")[3] >= 0).all()


def test_writes_to_a_mapped_file_survive_the_release(tmp_path, monkeypatch):
    monkeypatch.setattr("xpnet.data.arrays._RELEASE_AFTER", 1)
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (100, 1000))
    mapped[:] = np.arange(100)[:, None]
    for batch in Batches(mapped, 10):
        assert (batch.max(1) == batch.min(1)).all()
    assert np.load(tmp_path / "x.npy")[:, 5].tolist() == list(range(100))


def test_states_are_plain_numbers():
    state = Batches(arrays(), 4).state()
    assert all(type(v) is int for v in state.values())


_HANGS = """
import os, signal, sys, threading, time
import numpy as np
import xpnet as xn

class Data:
    def __len__(self):
        return 64

    def __getitem__(self, i):
        if i == 40:
            time.sleep(3600)
        return np.full((4,), i, np.float32), i % 3

if __name__ == "__main__":
    processes, presses = sys.argv[1] == "processes", int(sys.argv[2])
    batches = xn.data.Batches(Data(), 8, workers=2, processes=processes, shuffle=False)
    def press():
        for _ in range(presses):
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGINT)
    seen = 0
    for _ in batches:
        seen += 1
        if seen == 1:
            threading.Thread(target=press, daemon=True).start()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("how", ["processes", "threads"])
def test_an_interrupt_ends_workers_that_hang(tmp_path, how):
    (tmp_path / "hangs.py").write_text(_HANGS)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "hangs.py"), how, "1"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        _, err = process.communicate(timeout=60)  # which also waits for workers: they hold the pipe
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert "KeyboardInterrupt" in err
    assert process.returncode != 0


LIBRARIES = ["numpy", "array_api_strict", pytest.param("torch", marks=pytest.mark.torch)]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("size", [1, 7, 8, 40])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_batch_that_is_changed_in_place_leaves_the_data_alone(library, size, shuffle):
    xp = pytest.importorskip(library)
    x, y = xp.asarray(np.arange(80.0).reshape(40, 2)), xp.asarray(np.arange(40))
    before = to_numpy(x).copy(), to_numpy(y).copy()

    def transform(batch):
        batch[0][...] = batch[0] * 2 - 1
        batch[1][...] = 0
        return batch

    for batches in (Batches((x, y), size, shuffle=shuffle, transform=transform), Batches((x, y), size, shuffle=shuffle)):
        for epoch in range(2):
            for a, b in batches.epoch(epoch):
                a[...] = 100
                b[...] = 100
    np.testing.assert_array_equal(to_numpy(x), before[0])
    np.testing.assert_array_equal(to_numpy(y), before[1])


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_forward_pass_that_changes_its_input_in_place_leaves_the_data_alone(shuffle):
    class InPlace(xpnet.Module):
        def __init__(self):
            super().__init__()
            self.last = xpnet.Dense(2)

        def forward(self, x):
            x -= 0.5
            return self.last(x)

    x, y = np.random.default_rng(0).standard_normal((13, 3)).astype(np.float32), np.arange(13) % 2
    before = x.copy()
    run = xpnet.Trainer(InPlace(), loss="softmax_cross_entropy", optimizer=xpnet.optim.SGD(0.0))
    history = run.fit((x, y), validation=(x, y), epochs=3, batch_size=4, shuffle=shuffle, verbose=False)
    np.testing.assert_array_equal(x, before)
    assert len({round(value, 5) for name in ("loss", "val_loss") for value in history[name]}) == 1
