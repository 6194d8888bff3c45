"""Runs that are resumed on data that have changed: parts, moments and what was trained on stay as they were."""

from __future__ import annotations

import csv
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command_line import say
from xpnet.cli.kept_data import NAME, kept
from xpnet.cli.readings import Known
from xpnet.cli.user_data import find_dataset
from xpnet.data.splits import TEST, TRAIN, VALIDATION, hashes
from xpnet.io import archive, model_file


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


# Images that were renamed, or saved again


def rename(name_of):
    """Give every picture in d another name, by its place among those of its class."""
    for k in (0, 1):
        paths = sorted(Path(f"d/{k}").iterdir())
        for path in paths:
            path.rename(path.with_suffix(".old"))
        for i, path in enumerate(paths):
            path.with_suffix(".old").rename(path.with_name(name_of(i, [p.name for p in paths])))


RENAMED = {
    "shifted": lambda i, names: [*names, "later.png"][i + 1],
    "shuffled": lambda i, names: names[(7 * i + 3) % len(names)],
    "new names": lambda i, names: f"photo {i}.png",
}


@pytest.mark.parametrize("patience", [True, False])
@pytest.mark.parametrize("how", RENAMED)
def test_renamed_pictures_stay_in_their_parts_and_are_said(how, patience, capsys):
    x, y = points(82, 0, 1)
    y[:] = np.arange(82) % 2
    place = pictures(x, y)  # 41 of each class: no multiple of 7
    train(capsys, place, "--epochs", "1", *(["--patience", "9"] if patience else []))
    before: Any = find_dataset(place, validation=patience)
    rename(RENAMED[how])
    after: Any = read_again(place, patience)
    for part in ("train", "test", "validation") if patience else ("train", "test"):
        assert rows(after, part) == rows(before, part)
    assert after.trained_before == 0
    out = resumed(capsys, 2)
    assert "the data have changed: the examples of when the run began (82), but some under other names" in out
    assert "; no test example was trained on" in out
    assert "have changed" not in resumed(capsys, 3)
    after = read_again(place, patience)  # as they are kept from now on
    assert rows(after, "test") == rows(before, "test")


def test_copies_of_a_picture_stay_where_they_were(capsys):
    """A name tells them apart, and a new copy of a training picture is no test picture."""
    x, y = points(80, 0, 1)
    place = pictures(np.concatenate([x, x]), np.concatenate([y, y]))
    train(capsys, place, "--epochs", "1")
    before: Any = find_dataset(place)
    assert rows(before, "train") & rows(before, "test")
    after: Any = read_again(place)
    np.testing.assert_array_equal(after.parts, before.parts)
    trained = rows(before, "train")
    for k in (0, 1):
        for path in sorted(Path(f"d/{k}").iterdir()):
            shutil.copy(path, path.with_name(f"again {path.name}"))
    after = read_again(place)
    assert len(after.parts) == 2 * len(before.parts)
    copies = [sum(row.tobytes() in trained for row in data.test[0]) for data in (before, after)]
    assert copies[0] == copies[1]


def save_again(**options):
    Image = pytest.importorskip("PIL.Image", reason="image files need pillow")
    for path in Path("d").rglob("*.png"):
        with Image.open(path) as image:
            image.load()
        image.save(path, **options)


AGAIN: dict[str, dict[str, Any]] = {
    "compressed": {"format": "PNG", "compress_level": 0}, "BMP": {"format": "BMP"}, "TIFF": {"format": "TIFF"},
}  # fmt: skip


@pytest.mark.parametrize("how", AGAIN)
def test_pictures_are_known_by_their_pixels(how, capsys):
    place = pictures(*points(80, 0, 1))
    out = train(capsys, place, "--epochs", "1")
    measured = next(line for line in out.splitlines() if line.startswith("test accuracy")).partition(",")[0]
    shutil.copytree("d", "other")
    save_again(**AGAIN[how])
    out = say(capsys, "evaluate", "run/model.xpnet")[1]
    assert "which were not trained on" in out
    assert "have changed" not in out
    assert measured in out
    shutil.rmtree("d")
    Path("other").rename("e")
    out = say(capsys, "evaluate", "run/model.xpnet", "e")[1]  # elsewhere
    assert "were trained on" in out
    shutil.copytree("e", "d")
    save_again(**AGAIN[how])
    assert "have changed" not in resumed(capsys, 2)


def test_the_same_pixels_in_files_and_arrays_are_the_same_examples(capsys):
    Image = pytest.importorskip("PIL.Image", reason="image files need pillow")
    place = pictures(*points(80, 0, 1))
    train(capsys, place, "--epochs", "1")
    paths = sorted(Path("d").rglob("*.png"))
    np.savez("t.npz", x=np.stack([np.asarray(Image.open(p)) for p in paths]), y=[int(p.parent.name) for p in paths])
    first, second = read_again("d").reading, read_again("t.npz").reading
    assert set(first.identities.tolist()) == set(second.identities.tolist())


def as_earlier_versions_wrote_it():
    """Make the run one whose images are known by the bytes of their files, and whose names were not kept."""
    dataset: Any = read_again("d")
    names = sorted(Path("d").rglob("*.png"))
    by_name = dict(zip(hashes(f"{p.parent.name}/{p.name}".encode() for p in names).tolist(), names))
    trained = dataset.reading.places[dataset.parts == TRAIN].tolist()
    known = np.unique(hashes(by_name[place].read_bytes() for place in trained))
    document, arrays = archive.read("run/model.xpnet")
    del document["inputs"]["by_pixels"]
    archive.write("run/model.xpnet", document, {**arrays, "inputs/trained_on": known})
    document, arrays = archive.read(Path("run", NAME))
    del arrays["identities"]
    archive.write(Path("run", NAME), document, {**arrays, "trained_on": known})
    lines = Path("run/config.toml").read_text().splitlines()
    files = hashes(path.read_bytes() for path in names)
    y, given = np.array([int(path.parent.name) for path in names]), np.zeros(len(names), np.int64)
    order = np.lexsort((given, y, files))
    each = np.stack([column[order].astype("<u8") for column in (files, y, given)])
    mark = hashlib.blake2b(each.tobytes(), digest_size=16).hexdigest()
    kept_lines = [line for line in lines if not line.startswith(("by_pixels", "names", "fingerprint"))]
    Path("run/config.toml").write_text("\n".join([*kept_lines, f'fingerprint = "{mark}"']) + "\n")


def test_runs_of_earlier_versions_know_images_by_their_files(capsys):
    place = pictures(*points(80, 0, 1))
    train(capsys, place, "--epochs", "1")
    as_earlier_versions_wrote_it()
    assert "which were not trained on" in say(capsys, "evaluate", "run/model.xpnet")[1]
    assert "have changed" not in resumed(capsys, 2)
    assert "which were not trained on" in say(capsys, "evaluate", "run/model.xpnet")[1]
    as_earlier_versions_wrote_it()
    rename(RENAMED["shuffled"])
    out = resumed(capsys, 3)
    assert "test examples were trained on, or are copies" in out
    save_again(format="BMP")
    out = say(capsys, "evaluate", "run/model.xpnet")[1]
    assert "whether it was trained on the same pictures in other files is not known" in out
