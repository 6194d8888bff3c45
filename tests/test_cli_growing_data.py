"""Runs that are resumed on data that have changed: parts, moments and what was trained on stay as they were."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command_line import say
from xpnet.cli.kept_data import NAME, kept
from xpnet.cli.readings import Known
from xpnet.cli.user_data import find_dataset
from xpnet.data.splits import TEST, TRAIN, VALIDATION
from xpnet.io import model_file


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def survey(count, answers, seed):
    """Rows of which few differ: answers to two questions."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, answers, (count, 2)).astype(float)
    return x, (x.sum(axis=1) + rng.normal(size=count) > answers - 1).astype(int)


def points(count, answers, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    return rng.normal(size=(count, 2)).round(3) + 3 * y[:, None] + answers, y


def rare(count, answers, seed):
    x, y = points(count, answers, seed)
    y[:] = 0
    y[: 2 + seed % 5] = 1  # a class of few examples
    return x, y


def table(x, y):
    with open("t.csv", "w") as file:
        file.write("a,b,label\n")
        csv.writer(file).writerows([*row, "no" if k == 0 else "yes"] for row, k in zip(x.tolist(), y.tolist()))
    return "t.csv"


def arrays(x, y):
    np.savez("t.npz", x=x, y=y)
    return "t.npz"


def pictures(x, y):
    Image = pytest.importorskip("PIL.Image", reason="image files need pillow")
    shutil.rmtree("d", ignore_errors=True)
    for k in (0, 1):
        Path(f"d/{k}").mkdir(parents=True)
    for i, (row, k) in enumerate(zip(x, y)):
        pixels = np.full((4, 4), 40, np.uint8)
        pixels.reshape(-1)[:8] = np.frombuffer(row.astype("<f4").tobytes(), np.uint8)
        Image.fromarray(pixels).save(f"d/{k}/{i:04}.png")
    return "d"


def train(capsys, *words):
    code, out, err = say(capsys, "train", *words, "--out", "run")
    assert code == 0, err
    return out


def resumed(capsys, epochs):
    code, out, err = say(capsys, "train", "--resume", "run", "--epochs", epochs)
    assert code == 0, err
    return out


def read_again(place, validation=False):
    """The data as a resumed run has them."""
    saved = model_file.read("run/model.xpnet")
    assert saved.inputs is not None
    return find_dataset(place, known=Known(saved.inputs, saved.class_names, "run", kept(Path("run"))), validation=validation)


def rows(dataset, part):
    return {row.tobytes() for row in getattr(dataset, part)[0]}


@pytest.mark.parametrize("patience", [True, False])
@pytest.mark.parametrize("write", [table, arrays, pictures])
@pytest.mark.parametrize("make", [survey, points, rare])
def test_what_was_trained_on_is_never_tested_on(make, write, patience, capsys):
    """Whatever is added: more rows, other values, and new rows of a small class."""
    x, y = make(60, 2, 1)
    place = write(x, y)
    options = ["--patience", "9"] if patience else []
    train(capsys, place, "--epochs", "1", *options)
    run, saved = kept(Path("run")), model_file.read("run/model.xpnet")
    before: Any = find_dataset(place, validation=patience)
    more, labels = make(200, 4, 2)
    place = write(np.concatenate([x, more]), np.concatenate([y, labels]))
    after: Any = read_again(place, patience)
    assert run is not None
    known = np.isin(after.reading.places, run.places)
    assert known.sum() >= len(run.places)
    copied = make is survey and write is pictures  # files of the test part were copies of others from the beginning
    assert copied or after.trained_before == 0
    for part in (TRAIN, VALIDATION, TEST):
        assert set(after.reading.places[known & (after.parts == part)]) == set(run.places[run.parts == part])
    if make is points:
        assert not rows(before, "train") & rows(after, "test")
    if patience:
        np.testing.assert_array_equal(after.validation[0], before.validation[0])
    said = "test examples were trained on, or are copies" if copied else "no test example was trained on"
    assert said in resumed(capsys, 2)
    later = model_file.read("run/model.xpnet")
    assert saved.preprocessing is not None
    assert later.preprocessing is not None
    example = after.train[0][:3]
    np.testing.assert_array_equal(later.preprocessing(example), saved.preprocessing(example))  # as the weights know them
    assert set(saved.inputs.trained_on.tolist()) < set(later.inputs.trained_on.tolist())  # type: ignore[union-attr]
    code, out, err = say(capsys, "evaluate", "run/model.xpnet")
    assert code == 0, err
    assert copied or "which were not trained on" in out


def divided(x, y, tested):
    np.savez("t.npz", x_train=x[~tested], y_train=y[~tested], x_test=x[tested], y_test=y[tested])


@pytest.mark.parametrize("patience", [True, False])
def test_parts_that_are_given_are_as_they_are_given(patience, capsys):
    """A row that was moved from the training to the test part is said; what is held out for early stopping stays."""
    x, y = points(120, 0, 1)
    tested = np.arange(120) % 4 == 0
    divided(x, y, tested)
    options = ["--patience", "9"] if patience else []
    train(capsys, "t.npz", "--epochs", "1", *options)
    before: Any = find_dataset("t.npz", validation=patience)
    more, labels = points(60, 0, 2)
    divided(np.append(x, more, axis=0), np.append(y, labels), np.append(tested, np.arange(60) % 4 == 0))
    after: Any = read_again("t.npz", patience)
    assert len(after.test[1]) == 45
    assert after.trained_before == 0
    if patience:
        np.testing.assert_array_equal(after.validation[0], before.validation[0])
    moved = int(np.flatnonzero((before.train[0][0] == x.astype(np.float32)).all(axis=1))[0])
    tested[moved] = True
    divided(x, y, tested)
    assert read_again("t.npz", patience).trained_before == 1
    out = resumed(capsys, 2)
    assert "examples, 120 when the run began" in out or "another class or part" in out
    assert "1 test example was trained on, or is a copy" in out


def test_a_file_with_another_name_is_known_by_its_content(capsys):
    place = pictures(*points(80, 0, 1))
    train(capsys, place, "--epochs", "1")
    for path in list(Path("d").rglob("*.png")):
        path.rename(path.with_name(f"photo {path.name}"))
    assert read_again("d").trained_before == 0


def test_a_finished_run_writes_nothing(capsys):
    table(*points(80, 0, 1))
    train(capsys, "t.csv", "--epochs", "2")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    table(*points(160, 1, 1))
    code, out, _ = say(capsys, "train", "--resume", "run")
    assert (code, out) == (0, "run: the run has finished, with --epochs 2: nothing was trained or written\n")
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    Path("run/model.xpnet").unlink()
    code, out, err = say(capsys, "train", "--resume", "run")
    assert code == 0, err
    assert Path("run/model.xpnet").exists()


def test_a_run_that_stopped_early_keeps_its_model(capsys):
    table(*points(200, 0, 1))
    train(capsys, "t.csv", "--epochs", "40", "--patience", "0")
    before = Path("run/model.xpnet").read_bytes()
    table(*points(240, 0, 2))
    if "nothing was trained" in resumed(capsys, 41):
        assert Path("run/model.xpnet").read_bytes() == before


@pytest.mark.parametrize("write", [table, arrays, pictures])
@pytest.mark.parametrize("make", [survey, points])
def test_evaluate_measures_what_train_measured(make, write, capsys):
    place = write(*make(90, 2, 3))
    out = train(capsys, place, "--epochs", "1")
    measured = next(line for line in out.splitlines() if line.startswith("test accuracy")).partition(",")[0]
    code, out, err = say(capsys, "evaluate", "run/model.xpnet")
    assert code == 0, err
    if write is not pictures or make is points:  # of files, copies of training examples are left out
        assert measured in out


def test_every_change_of_the_data_is_said(capsys):
    """Also pairs of rows whose hashes cancel, and labels alone."""
    x, y = points(80, 0, 1)
    x[1] = x[0]
    y[:4] = [0, 0, 1, 1]
    table(x, y)
    train(capsys, "t.csv", "--epochs", "1")
    for epochs, change in enumerate((lambda: x.__setitem__(slice(0, 2), x[0] + 9), lambda: y.__setitem__([0, 2], [1, 0])), 2):
        change()
        table(x, y)
        out = resumed(capsys, epochs)
        assert "80), but some have other contents, or another class or part" in out
    assert "have changed" not in resumed(capsys, 9)


def test_a_new_run_in_the_folder_keeps_nothing_of_the_one_before(capsys):
    table(*points(80, 0, 1))
    train(capsys, "t.csv", "--epochs", "1")
    first = kept(Path("run"))
    table(*points(80, 50, 2))
    train(capsys, "t.csv", "--epochs", "1")
    second = kept(Path("run"))
    assert first is not None
    assert second is not None
    assert not set(first.places.tolist()) & set(second.places.tolist())


def test_too_few_rows_for_early_stopping_make_no_folder(capsys):
    table(*points(4, 0, 1))
    table(np.arange(8.0).reshape(4, 2), np.array([0, 0, 1, 1]))
    code, out, err = say(capsys, "train", "t.csv", "--patience", "3", "--out", "run")
    assert (code, out) == (2, "")
    assert "omit --patience" in err
    assert not Path("run").exists()


def test_a_damaged_file_of_what_was_kept_is_one_error(capsys):
    table(*points(80, 0, 1))
    train(capsys, "t.csv", "--epochs", "1")
    Path("run", NAME).write_bytes(Path("run", NAME).read_bytes()[:-40])
    code, out, err = say(capsys, "train", "--resume", "run", "--epochs", "2")
    assert (code, out) == (2, "")
    assert f"{Path('run', NAME)}: damaged" in err
    assert err.count("\n") == 1
