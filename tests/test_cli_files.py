"""Files on the command line: outputs over inputs, runs among the data, row numbers, and tables as programs write them."""

from __future__ import annotations

import csv
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command_line import say
from xpnet import data
from xpnet.cli.predict import read
from xpnet.cli.readings import Known
from xpnet.cli.user_data import find_dataset, from_csv, from_folder, read_own
from xpnet.data import DataError, ImageFolder
from xpnet.data.dataset import check_regular
from xpnet.data.image_files import RUNS, image_files, is_run
from xpnet.data.splits import row_hashes
from xpnet.io import model_file
from xpnet.runtime.messages import counted


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


ROWS = [(round(7 * (i % 2) + (i * 37 % 100) / 100, 2), round((i * 53 % 97) / 10, 1), "uv"[i % 2]) for i in range(80)]


def write(name, rows=ROWS, titles=("a", "b", "y"), index=None, index_title=""):
    """Write a table, with a column of row numbers in front as pandas does where `index` is given."""
    with open(name, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(titles if index is None else [index_title, *titles])
        writer.writerows(rows if index is None else [[i, *row] for i, row in zip(index, rows)])


def train(capsys, *words):
    code, out, err = say(capsys, "train", *words, "--epochs", "1")
    assert code == 0, err
    return out


def refused(capsys, *words):
    code, out, err = say(capsys, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    return err


def pictures(folder, names=("cat", "dog"), count=12):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for k, name in enumerate(names):
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image.fromarray(rng.integers(120 * k, 120 * k + 99, (8, 8, 3)).astype(np.uint8)).save(f"{folder}/{name}/{i}.png")


# What is written must not be what is read


@pytest.mark.parametrize("link", ["same", "symbolic", "hard", "folder"])
def test_predictions_never_replace_the_table_that_they_are_of(link, capsys):
    write("t.csv")
    train(capsys, "t.csv", "--out", "run")
    before, out = Path("t.csv").read_bytes(), "t.csv"
    if link == "symbolic":
        os.symlink("t.csv", out := "link.csv")
    elif link == "hard":
        os.link("t.csv", out := "link.csv")
    elif link == "folder":
        os.symlink(".", "other")
        out = "other/t.csv"
    said = refused(capsys, "predict", "run", "t.csv", "--out", out)
    assert f"--out {out}: is a file that this command reads, which would be lost" in said
    assert Path("t.csv").read_bytes() == before
    Path("p.csv").write_text("older predictions")
    assert say(capsys, "predict", "run", "t.csv", "--out", "p.csv")[0] == 0
    assert Path("p.csv").read_text().startswith("example,class,probability,u,v\n")


def test_predictions_never_replace_a_model_or_what_a_run_needs(capsys):
    write("t.csv")
    train(capsys, "t.csv", "--out", "run")
    shutil.copy("run/model.xpnet", "model")
    for model, out in (("model", "model"), ("run", "link"), ("model", "run/history.csv")):
        if out == "link":
            os.symlink("run/model.xpnet", out)
        before = Path(out).read_bytes()
        assert f"--out {out}: is a file" in refused(capsys, "predict", model, "t.csv", "--out", out)
        assert Path(out).read_bytes() == before
    assert "--trace run/run.json: is a file of the run" in refused(capsys, "profile", "run", "--trace", "run/run.json")
    assert "--trace model: is a file" in refused(capsys, "profile", "model", "--trace", "model")


def test_a_report_never_replaces_the_record_that_it_is_of(capsys):
    write("t.csv")
    train(capsys, "t.csv", "--out", "run")
    shutil.copy("run/run.json", "record")
    assert "--out record: is a file that this command reads" in refused(capsys, "report", "run", "record", "--out", "record")
    os.symlink("run/run.json", "page.html")
    assert "--out page.html: is a file" in refused(capsys, "report", "run", "--out", "page.html")
    assert say(capsys, "report", "run", "--out", "run/report.html")[0] == 0


def test_an_image_in_a_folder_is_not_replaced(capsys):
    pictures("d")
    train(capsys, "d", "--out", "run")
    os.symlink("d/cat/3.png", "p.csv")
    assert "p.csv: is a file that this command reads" in refused(capsys, "predict", "run", "d", "--out", "p.csv")


def test_a_run_does_not_write_over_its_data(capsys):
    write("history.csv")
    assert "--out .: the run would write a file history.csv" in refused(capsys, "train", "history.csv", "--out", ".")
    write("t.csv")
    train(capsys, "t.csv", "--out", ".")  # beside it is the user's wish
    pictures("d")
    for out, says in (("d", "is the folder of the data"), ("d/cat", "holds images of the data")):
        assert f"--out {out}: {says}; choose another" in refused(capsys, "train", "d", "--out", out)
    for own in ("t.csv", "iris"):  # nor among other data
        assert "--out d: holds folders of images, cat and dog, as data do" in refused(capsys, "train", own, "--out", "d")
    assert sorted(p.name for p in Path("d").iterdir()) == ["cat", "dog"]
    Path("d/notes.txt").touch()  # a folder of many things, with pictures in it
    train(capsys, "iris", "--out", "d")
    train(capsys, "iris", "--out", "d")


# Runs among the data


@pytest.mark.parametrize("out", [None, "mine/run1", "run1", "cat/run1"])
def test_a_run_within_the_folder_of_its_data_is_no_data(out, capsys, monkeypatch):
    pictures("photos")
    monkeypatch.chdir("photos")
    first = train(capsys, ".", *(["--out", out] if out else []))
    folder = out or "runs/data-cnn"
    assert Path(folder, "confusion_matrix.png").is_file()
    dataset = from_folder(Path("."))
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.parts) == 24
    left_out = folder.split("/")[-1 if folder.startswith("cat") else 0]
    assert any(f"1 {RUNS} ({left_out})" in note for note in dataset.reading.notes)
    code, said, err = say(capsys, "evaluate", folder)
    assert code == 0, err
    assert "the data have changed" not in said
    code, said, err = say(capsys, "train", "--resume", folder, "--epochs", "2")
    assert code == 0, err
    assert "the data have changed" not in said
    again = train(capsys, ".")
    assert first.splitlines()[0] == again.splitlines()[0]


def test_runs_beside_parts_and_of_an_interrupted_training_are_passed_over(capsys):
    for part in ("train", "test"):
        pictures(f"d/{part}")
    train(capsys, "d", "--out", "d/out")
    Path("d/out/run.json").unlink()  # as after an interruption
    assert is_run("d/out")
    dataset = from_folder(Path("d"))
    assert dataset.class_names == ("cat", "dog")
    assert f"left out 1 file: 1 {RUNS} (out)" in dataset.reading.notes
    assert ImageFolder("d").class_names == ("test", "train")
    assert all("out" not in path.parts for path in image_files(Path("d"))[0])


def test_a_class_may_have_the_name_or_the_files_of_a_run():
    pictures("d", ("cat", "runs"))
    Path("d/cat/config.toml").write_text('title = "my camera"\n')
    Path("d/cat/run.json").write_text("{}")
    assert from_folder(Path("d")).class_names == ("cat", "runs")


def test_classes_below_two_folders_are_named(capsys):
    pictures("w/archive/data")
    assert "w: the classes lie deeper than CLASS/NAME.png: did you mean w/archive/data?" in refused(capsys, "train", "w")
    assert from_folder(Path("w/archive")).class_names == ("cat", "dog")
    pictures("one/cat", ("more",))  # nothing lies deeper
    assert "all examples are of one class, 'cat'" in refused(capsys, "train", "one")


# Row numbers


def shuffled(start=0):
    numbers = list(range(start, start + len(ROWS)))
    random.Random(1).shuffle(numbers)
    return numbers


DRAWN = [(i * i) % 61 for i in range(len(ROWS))]
INDICES: dict[str, Any] = {
    "counting": (range(80), "counts the rows, and was left out"),
    "shuffled": (shuffled(), "numbers the rows, and was left out"),
    "part of a larger table": ([3 * i + 500 for i in shuffled()], "numbers the rows, and was left out"),
    "drawn with replacement": (DRAWN, "some of them more than once (give it a title if it is a feature), and was left out"),
    "two tables in one": ([*range(40), *range(40)], "some of them more than once"),
}


@pytest.mark.parametrize(("titles", "index_title"), [("abcy", ""), ("abcy", "Unnamed: 0"), ("0123", "")])
@pytest.mark.parametrize("case", INDICES)
def test_an_index_of_pandas_is_no_feature(case, index_title, titles, capsys):
    index, says = INDICES[case]
    rows = [(a, b, round(a - b, 3), y) for a, b, y in ROWS]
    write("t.csv", rows, titles, index, index_title)
    dataset = from_csv(Path("t.csv"))
    assert dataset.inputs.columns == tuple(titles[:3])
    assert any(says in note for note in dataset.reading.notes)
    assert len(dataset.parts) == 80
    train(capsys, "t.csv", "--out", "run")
    write("plain.csv", rows, titles)
    for name in ("t.csv", "plain.csv"):
        code, _, err = say(capsys, "evaluate", "run", name)
        assert code == 0, err
        assert say(capsys, "predict", "run", name, "--out", f"p{name}")[0] == 0
    assert Path("pt.csv").read_text().replace("t.csv", "") == Path("pplain.csv").read_text().replace("plain.csv", "")


@pytest.mark.parametrize(
    ("title", "numbers", "said"),
    [
        ("id", [1001 + i for i in range(80)], True),
        ("PassengerId", shuffled(1), True),
        ("customer_id", shuffled(1001), True),
        ("index", shuffled(), True),
        ("index", [i % 9 for i in range(80)], False),
        ("id", [i // 2 for i in range(80)], False),
        ("price", [100_000 + 37 * i for i in shuffled()], False),
        ("year", [1900 + i for i in range(80)], False),
        ("rapid", shuffled(), False),
        ("humidity", shuffled(3), False),
        ("body_mass_index", shuffled(15), False),
    ],
)
def test_which_titled_columns_are_said_to_number_the_rows(title, numbers, said):
    write("t.csv", index=numbers, index_title=title)
    dataset = from_csv(Path("t.csv"))
    assert dataset.inputs.columns == (title, "a", "b")
    notes = [note for note in dataset.reading.notes if "the rows" in note]
    expected = f"t.csv: column '{title}' numbers the rows, and is a feature; if it is no measurement, remove it"
    assert notes == ([expected] if said else [])


def test_columns_without_a_title_that_are_measurements_are_features():
    write("t.csv", index=[i / 4 for i in range(80)])
    assert from_csv(Path("t.csv")).inputs.columns == ("column 0", "a", "b")
    write("t.csv", [(a, i % 5, y) for i, (a, _, y) in enumerate(ROWS)], ("a", "", "y"))  # an index stands in front
    assert from_csv(Path("t.csv")).inputs.columns == ("a", "column 1")


def test_a_row_with_a_gap_is_no_line_of_titles(capsys):
    Path("t.csv").write_text(",0,1\n" + "".join(f"{i % 7},{i % 3},{i % 2}\n" for i in range(60)))
    assert "line 1, column 0: expected numbers, the cell is empty" in refused(capsys, "train", "t.csv")


# Tables as programs write them


@pytest.mark.parametrize(
    ("head", "end"), [("a,b,y,\n", ","), ("a,b,y\n", ","), ("a,b,y,,\n", ",,"), ("a,b,y,Unnamed: 3\n", ","), ("", ",")]
)
def test_a_separator_at_the_end_of_every_line_makes_no_column(head, end, capsys):
    Path("t.csv").write_text(head + "".join(f"{a},{b},{y}{end}\n" for a, b, y in ROWS))
    dataset = from_csv(Path("t.csv"))
    assert (dataset.input_shape, dataset.class_names) == ((2,), ("u", "v"))
    train(capsys, "t.csv", "--out", "run")
    code, _, err = say(capsys, "evaluate", "run", "t.csv")
    assert code == 0, err
    assert say(capsys, "predict", "run", "t.csv")[0] == 0
    Path("new.csv").write_text((head and "a,b,\n") + "1,2,\n3,4,\n")
    assert len(say(capsys, "predict", "run", "new.csv")[1].splitlines()) == 2


def test_an_empty_column_between_others_is_left_out_and_what_it_holds_further_down_is_an_error(capsys):
    lines = [f"{a},,{b},{y}\n" for a, b, y in ROWS * 4]
    Path("t.csv").write_text("a,,b,y\n" + "".join(lines))
    assert from_csv(Path("t.csv")).inputs.columns == ("a", "b")
    lines[300] = lines[300].replace(",,", ",7,")
    Path("t.csv").write_text("a,,b,y\n" + "".join(lines))
    assert "line 302 has '7' in column 1, which has no title and is empty in the first lines" in refused(
        capsys, "train", "t.csv"
    )
    write("t.csv", [(a, "", y) for a, _, y in ROWS])  # with a title it is missing data
    assert "line 2, column 'b': expected numbers, the cell is empty" in refused(capsys, "train", "t.csv")


@pytest.mark.parametrize("rest", [";100", "", ";2 500;3"])
@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
def test_spaces_between_thousands_do_not_separate_columns(rest, separator, capsys):
    titles = separator.join([*"abcd"[: rest.count(";") + 1], "y"])
    rows = "".join(f"1 {100 + i}{rest};{'uv'[i % 2]}\n".replace(";", separator) for i in range(60))
    Path("t.csv").write_text(f"{titles}\n{rows}")
    said = refused(capsys, "train", "t.csv")
    assert "line 2, column 'a': expected numbers, got '1 100'; write thousands without spaces" in said
    Path("s.csv").write_text("".join(f"1 {100 + i} {i % 7} {'uv'[i % 2]}\n" for i in range(60)))
    assert from_csv(Path("s.csv")).input_shape == (3,)


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("TRUE", "FALSE"), ("true", "false"), ("True", "FALSE")])
def test_true_and_false_are_one_and_nought(yes, no, capsys):
    truths = [(a, no if i % 3 else yes, y) for i, (a, _, y) in enumerate(ROWS)]
    numbers = [(a, 0 if i % 3 else 1, y) for i, (a, _, y) in enumerate(ROWS)]
    write("t.csv", truths)
    write("n.csv", numbers)
    ours, theirs = from_csv(Path("t.csv")), from_csv(Path("n.csv"))
    np.testing.assert_array_equal(ours.train[0], theirs.train[0])
    np.testing.assert_array_equal(ours.test[0], theirs.test[0])
    train(capsys, "t.csv", "--out", "run")
    inputs = model_file.read("run/model.xpnet").inputs
    assert inputs is not None
    known = Known(inputs, ("u", "v"), "run")
    np.testing.assert_array_equal(read("t.csv", known)[0], read("n.csv", known)[0])
    assert "of these 80 examples were trained on" in say(capsys, "evaluate", "run", "n.csv")[1]


def test_columns_of_truths_hold_nothing_else(capsys):
    for wrong, says in (
        ("1", "got '1' in a column that begins with True or False"),
        ("maybe", "got 'maybe' in a column that begins with True or False"),
        ("", "the cell is empty"),
    ):
        write("t.csv", [*((a, a > 4, y) for a, _, y in ROWS), (1, wrong, "u")])
        assert f"line 82, column 'b': {'expected numbers, ' * (not wrong)}{says}" in refused(capsys, "train", "t.csv")
    write("t.csv", [*ROWS, (1, "True", "u")])
    assert "got 'True' in a column that begins with numbers" in refused(capsys, "train", "t.csv")
    write("t.csv", [(a, b, y == "u") for a, b, y in ROWS])  # classes are text
    assert from_csv(Path("t.csv")).class_names == ("False", "True")


def test_a_table_of_truths_alone(capsys):
    write("t.csv", [(i % 2 == 0, i % 3 == 0, i % 5 == 0, "uv"[i % 2]) for i in range(60)], ("p", "q", "r", "y"))
    dataset = from_csv(Path("t.csv"))
    assert dataset.inputs.columns == ("p", "q", "r")
    assert set(np.unique(dataset.train[0]).tolist()) == {0.0, 1.0}
    Path("t.csv").write_text("".join(f"{i % 2 == 0},{i % 7},{'uv'[i % 2]}\n" for i in range(60)))  # and without titles
    assert len(from_csv(Path("t.csv")).parts) == 60


def test_a_class_under_another_title_is_asked_for(capsys):
    write("t.csv", titles=("a", "b", "species"))
    train(capsys, "t.csv", "--out", "run")
    write("new.csv", [("x", *row) for row in ROWS], ("note", "a", "b", "specie_s2"))
    said = refused(capsys, "evaluate", "run", "new.csv")
    assert "new.csv: has no column of classes called 'species'; beside the features it has 'specie_s2', 'note'" in said
    assert "if one is the class, name it: --target specie_s2" in said
    assert say(capsys, "evaluate", "run", "new.csv", "--target", "specie_s2")[0] == 0
    write("new.csv", [row[:2] for row in ROWS], ("a", "b"))
    assert "has no column of classes called 'species'; its columns are the features of run" in refused(
        capsys, "evaluate", "run", "new.csv"
    )


# Sentences


def test_a_table_of_one_row_is_named_as_one_of_many(capsys):
    write("t.csv")
    train(capsys, "t.csv", "--out", "run")
    write("one.csv", ROWS[:1])
    assert say(capsys, "predict", "run", "one.csv")[1].startswith("one.csv[0]  ")
    assert say(capsys, "predict", "run", "one.csv", "--out", "p.csv")[1] == "1 prediction in p.csv\n"
    assert Path("p.csv").read_text().splitlines()[1].startswith("one.csv[0],")


def test_a_target_is_for_tables(capsys):
    pictures("d")
    train(capsys, "d", "--out", "run")
    for name in ("d/cat/0.png", "d"):
        assert f"--target is for tables, and {name} is none: omit it" in refused(
            capsys, "predict", "run", name, "--target", "x"
        )


def test_what_was_trained_on_is_said_in_sentences_that_agree(capsys):
    write("t.csv")
    train(capsys, "t.csv", "--out", "run")
    dataset: Any = find_dataset("t.csv")
    rows = [ROWS[k] for k in np.flatnonzero(dataset.parts == 0)]
    others = [(a + 100, b, y) for a, b, y in ROWS[:35]]
    for part, says in (
        (rows, f"measured on all {len(rows)} examples\n  {len(rows)} of these {len(rows)} examples were trained on\n"),
        ([*others, rows[0]], "measured on all 36 examples\n  1 of these 36 examples was trained on\n"),
        (others, "measured on all 35 examples: these are not the data that the model was trained on\n"),
        (others[:1], "measured on the only example: these are not the data"),
        (rows[:1], "measured on the only example\n  it was trained on\n"),
    ):
        write("part.csv", part)
        code, out, err = say(capsys, "evaluate", "run", "part.csv")
        assert code == 0, err
        assert says in out
        assert ("these are not the data" in out) is ("these are not the data" in says)


def test_a_colour_image_for_a_grey_model_is_said(capsys):
    image = pytest.importorskip("PIL.Image")
    for k, name in enumerate(("cat", "dog")):
        Path("d", name).mkdir(parents=True)
        for i in range(9):
            image.fromarray(np.full((8, 8), 100 * k + i, np.uint8)).save(f"d/{name}/{i}.png")
    train(capsys, "d", "--out", "run")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    Path("e/cat").mkdir(parents=True)
    image.fromarray(pixels).save("e/cat/c.png")
    said = say(capsys, "predict", "run", "e/cat/c.png", "d/cat/1.png")[2]
    assert said.count("a colour image, converted to grey, as run/model.xpnet takes it") == 1
    known = Known(model_file.read("run/model.xpnet").inputs, ("cat", "dog"), "run")  # type: ignore[arg-type]
    reading = read_own("e", known=known)  # as evaluate reads it
    assert reading is not None
    np.testing.assert_array_equal(read("e/cat/c.png", known)[0], reading.x)
    assert "1 colour image was converted to grey, as run takes it" in reading.notes


def test_one_is_singular(capsys):
    assert [counted(n, "class", "classes") for n in (0, 1, 1200)] == ["0 classes", "1 class", "1,200 classes"]
    Path("t.csv").write_text("a,b,y\n" + "1,2,u\n2,3,v\n" * 20 + "7\n")
    assert "line 42 has 1 column, expected 3" in refused(capsys, "train", "t.csv")
    write("t.csv", [*ROWS, (5, 5, "w")])
    assert "t.csv: the test part has no example of 1 class, such as 'w'" in "".join(
        f"t.csv: {note}" for note in from_csv(Path("t.csv")).reading.notes
    )


# Files that are none, and data that have moved


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(capsys):
    write("t.csv")
    train(capsys, "t.csv", "--out", "run")
    pictures("d")
    train(capsys, "d", "--out", "images")
    for name in ("f.csv", "f.npz", "f.npy", "f.png", "f.toml", "f.xpnet", "f.dat"):
        os.mkfifo(name)
    says = "a pipe or a device, expected a regular file"
    for words in (
        ("train", "f.csv"),
        ("train", "f.npz"),
        ("evaluate", "run", "f.csv"),
        ("predict", "run", "f.csv"),
        ("predict", "run", "f.npy"),
        ("predict", "images", "f.png"),
        ("predict", "f.xpnet", "t.csv"),
        ("train", "--config", "f.toml"),
    ):
        assert f"{words[-1] if 'f.xpnet' not in words else 'f.xpnet'}: {says}" in refused(capsys, *words)
    assert "f.dat: a file .dat, expected a folder of images" in refused(capsys, "train", "f.dat")
    with pytest.raises(DataError, match="a pipe or a device"):
        check_regular("f.csv")
    check_regular("none.csv")


@pytest.mark.parametrize("images", [True, False])
def test_data_that_have_moved_are_named_when_a_run_is_resumed(images, capsys):
    old, new = ("d", "moved") if images else ("t.csv", "moved.csv")
    pictures("d") if images else write("t.csv")
    train(capsys, old, "--out", "run")
    shutil.copytree(old, new) if images else shutil.copy(old, new)
    words = ("train", new, "--resume", "run", "--epochs", "2")
    assert "is not what the run in run began with" in refused(capsys, *words)  # they are both there
    shutil.rmtree(old) if images else Path(old).unlink()
    code, out, err = say(capsys, *words)
    assert code == 0, err
    assert f"the data have moved, from {old}, and are the same" in out
    code, out, err = say(capsys, "train", "--resume", "run", "--epochs", "3")  # from now on they are there
    assert code == 0, err
    assert "moved, from" not in out
    shutil.move(new, f"x{old}")
    if images:
        shutil.copy("xd/cat/0.png", "xd/cat/more.png")
    else:
        write("xt.csv", [*ROWS[1:], (9, 9, "u")])
    said = refused(capsys, "train", "--resume", "run", "--epochs", "4")
    assert "are no longer there; put them back, or name where they are now: xpnet train DATASET --resume run" in said
    said = refused(capsys, "train", f"x{old}", "--resume", "run", "--epochs", "4")
    assert f"x{old}: not the data of" in said
    assert "which the run began with and which are gone" in said


# Titles and values


@pytest.mark.parametrize("first", [(True, True), (True, False), ("TRUE", "false"), (False, 3)])
@pytest.mark.parametrize("kind", ["word", "truth"])
def test_a_first_row_of_truths_is_data(first, kind, capsys):
    second = [i % 3 == 0 if isinstance(first[1], (bool, str)) else i % 5 for i in range(1, 60)]
    rows = [(*first, "pos"), *((i % 2 == 0, b, "pos" if i % 3 else "neg") for i, b in enumerate(second))]
    if kind == "truth":
        rows = [(a, b, y == "pos") for a, b, y in rows]
    write("t.csv", rows[1:], rows[0])
    dataset = from_csv(Path("t.csv"))
    assert (dataset.inputs.columns, len(dataset.parts)) == ((), 60)
    train(capsys, "t.csv", "--out", "run")
    write("new.csv", [row[:2] for row in rows[1:4]], rows[0][:2])
    assert len(say(capsys, "predict", "run", "new.csv")[1].splitlines()) == 4


def test_words_that_are_also_truths_may_be_titles():
    rows = [(i % 2 == 0, i % 3 == 0, "uv"[i % 2]) for i in range(60)]
    write("t.csv", rows, ("pred", "true", "y"))
    assert from_csv(Path("t.csv")).inputs.columns == ("pred", "true")
    write("t.csv", ROWS, ("a", "True", "y"))
    assert from_csv(Path("t.csv")).inputs.columns == ("a", "True")


@pytest.mark.parametrize("titles", [("0", "Species"), ("1990", "label")])
def test_a_target_says_that_the_first_line_holds_titles(titles, capsys):
    write("t.csv", [(a, y) for a, _, y in ROWS], titles)
    dataset = from_csv(Path("t.csv"), titles[1])
    assert (dataset.inputs.columns, dataset.inputs.target, dataset.classes) == ((titles[0],), titles[1], 2)
    write("t.csv", ROWS[1:], ROWS[0])  # a class, and no title
    assert "--target u: t.csv has columns without titles" in refused(capsys, "train", "t.csv", "--target", "u")


DIFFERENT = [
    ("1.5", "15"), ("x 1.5", "x15"), ("dose .5", "dose 5"), ("age<30", "age>30"), ("age<30", "age 30"), ("lag-1", "lag+1"),
    ("lag-1", "lag 1"), ("t -1", "t 1"), ("x_1_5", "x_15"), ("m/s", "ms"), ("fat %", "fat"), ("a*b", "ab"),
]  # fmt: skip
SAME = [
    ("sepal length (cm)", "Sepal_Length_cm"), ("sepal length (cm)", "sepal.length..cm."), ("sepal length (cm)", "sepal length"),
    ("body-mass", "Body Mass"), ("x_1", "X 1"), ("x_1_5", "x 1 5"), ("x 1.5", "X_1.5"), ("lag-1", "Lag \u22121"),
    ("age<30", "Age < 30"),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs"), [*DIFFERENT, *((b, a) for a, b in DIFFERENT)])
def test_titles_that_mean_something_else_do_not_match(ours, theirs, capsys):
    write("t.csv", titles=("p", ours, "y"))
    train(capsys, "t.csv", "--out", "run")
    write("new.csv", titles=("p", theirs, "y"))
    said = refused(capsys, "predict", "run", "new.csv")
    assert f"has no column {ours!r}" in said
    assert repr(theirs) in said


@pytest.mark.parametrize(("ours", "theirs"), SAME)
def test_titles_that_are_written_in_another_way_match(ours, theirs, capsys):
    write("t.csv", titles=("p", ours, "y"))
    train(capsys, "t.csv", "--out", "run")
    write("new.csv", [row[::-1] for row in ROWS], ("y", theirs, "p"))
    for name in ("t.csv", "new.csv"):
        assert say(capsys, "predict", "run", name, "--out", f"p{name}")[0] == 0
    assert Path("pt.csv").read_text() == Path("pnew.csv").read_text().replace("new.csv", "t.csv")


def test_a_title_that_is_close_to_a_missing_one_is_named(capsys):
    write("t.csv", titles=("p", "age<30", "y"))
    train(capsys, "t.csv", "--out", "run")
    write("new.csv", titles=("p", "age>30", "y"))
    assert "; if 'age>30' is 'age<30', give it this title" in refused(capsys, "predict", "run", "new.csv")


# Row numbers and row names


THREE = [(a, b, i % 2, y) for i, (a, b, y) in enumerate(ROWS)]


@pytest.mark.parametrize("classes", ["words", "numbers"])
@pytest.mark.parametrize("index", [range(80), shuffled()])
@pytest.mark.parametrize("titles", ["abc", "012"])
def test_a_model_without_titles_leaves_out_row_numbers(classes, index, titles, capsys):
    rows = [(*row[:3], row[3] if classes == "words" else int(row[3] == "u")) for row in THREE]
    write("t.csv", rows[1:], rows[0])
    train(capsys, "t.csv", "--out", "run")
    write("plain.csv", [row[:3] for row in rows[2:]], rows[1][:3])
    write("new.csv", [row[:3] for row in rows[1:]], titles, index)
    expected = say(capsys, "predict", "run", "plain.csv")[1].replace("plain", "new")
    code, out, err = say(capsys, "predict", "run", "new.csv")
    assert (code, out) == (0, expected)
    assert "a column without a title" in err
    assert "is taken for the class" not in err
    write("all.csv", rows, (*titles, "y") if titles == "abc" else "0123", index)
    code, out, err = say(capsys, "evaluate", "run", "all.csv")
    assert code == 0, err
    assert f"column '{'y' if titles == 'abc' else '3'}' is taken for the class" in out
    assert "of these 80 examples were trained on" in out


def test_a_model_of_row_numbers_without_titles_takes_them(capsys):
    rows = [(i, *row) for i, row in enumerate(ROWS)]
    write("t.csv", rows[1:], rows[0])
    train(capsys, "t.csv", "--out", "run")
    write("new.csv", [row[:2] for row in ROWS], "ab", range(80))
    code, out, err = say(capsys, "predict", "run", "new.csv")
    assert (code, len(out.splitlines())) == (0, 80)
    assert "a column without a title" not in err
    write("all.csv", index=range(80))
    code, out, err = say(capsys, "evaluate", "run", "all.csv")
    assert code == 0, err
    assert "column 'y' is taken for the class" in out
    assert "of these 80 examples were trained on" in out


@pytest.mark.parametrize("form", ["R", "pandas", "names"])
def test_row_names_without_a_title_are_left_out(form, capsys):
    titles = '"a" "b" "y"\n' if form != "pandas" else " a b y\n"
    names = [f'"{i + 1}"' if form == "R" else str(i) if form == "pandas" else f'"Mazda RX{i}"' for i in range(80)]
    lines = [f"{name} {a} {b} {y}\n" for name, (a, b, y) in zip(names, ROWS)]
    Path("t.csv").write_text(titles + "".join(lines))
    write("plain.csv")
    ours, theirs = from_csv(Path("t.csv")), from_csv(Path("plain.csv"))
    assert ours.inputs.columns == ("a", "b")
    np.testing.assert_array_equal(ours.train[0], theirs.train[0])
    said = "the first cell of every row has no title: it was taken for the name of the row, and left out"
    assert f"t.csv: {said}" in ours.reading.notes
    train(capsys, "plain.csv", "--out", "run")
    Path("one.csv").write_text(titles + lines[0])
    for name, rows in (("t.csv", 80), ("one.csv", 1)):
        code, out, err = say(capsys, "predict", "run", name)
        assert (code, len(out.splitlines())) == (0, rows)
        assert said in err
    lines = lines * 4
    lines[300] = f"1 {lines[300]}"
    Path("t.csv").write_text(titles + "".join(lines))
    assert "line 302 has 5 columns, expected 4" in refused(capsys, "train", "t.csv")
    Path("t.csv").write_text("1,2,u\n" + "1,2,3,u\n2,3,4,v\n" * 30)  # no titles: a row that is cut
    assert "line 2 has 4 columns, expected 3" in refused(capsys, "train", "t.csv")


@pytest.mark.parametrize(("names", "left_out"), [("car", True), ("same", False)])
def test_a_first_column_of_words_without_a_title_names_the_rows(names, left_out, capsys):
    write("t.csv", index=[names if names == "same" else f"{names} {i}" for i in range(80)])
    if not left_out:
        assert "line 2, column 0: expected numbers, got 'same'" in refused(capsys, "train", "t.csv")
        return
    dataset = from_csv(Path("t.csv"))
    assert dataset.inputs.columns == ("a", "b")
    assert "t.csv: a column without a title names the rows, and was left out" in dataset.reading.notes


# Many classes


def test_many_words_are_classes_and_no_measurements(capsys):
    rows = [(a, b, f"species {i // 2}") for i, (a, b, _) in enumerate(ROWS[:60])]
    write("t.csv", rows)
    assert from_csv(Path("t.csv")).classes == 30
    write("t.csv", [(a, b, f"name {i if i < 57 else 0}") for i, (a, b, _) in enumerate(ROWS[:60])])
    said = refused(capsys, "train", "t.csv")
    assert "holds 57 texts in 60 rows; if another column is the class, name it with --target; if these are the" in said
    assert "regression" not in said
    assert from_csv(Path("t.csv"), "y").classes == 57
    write("t.csv", [(a, b, i // 2) for i, (a, b, _) in enumerate(ROWS[:60])])
    assert "(regression)" in refused(capsys, "train", "t.csv")


# Published data sets, and data of the same name or kind


def iris_in_cm(name, rows=slice(150)):
    """Write Fisher's flowers as they are published elsewhere: in cm."""
    x, y = (np.concatenate(both) for both in zip(*(data.load("iris").train, data.load("iris").test)))
    titles = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)", "species")
    species = data.load("iris").class_names
    write(name, [(*(round(10 * float(v), 1) for v in a), species[k]) for a, k in zip(x, y)][rows], titles)


def test_a_model_of_an_own_table_is_not_measured_in_other_units(capsys):
    iris_in_cm("flowers.csv")
    train(capsys, "flowers.csv", "--out", "run")
    for words in (("evaluate", "run", "iris"), ("doctor", "--quick", "run", "iris")):
        said = refused(capsys, *words)
        assert "was trained on data of your own, whose units may not be those of iris: give the examples as a file" in said
    assert say(capsys, "evaluate", "run", "flowers.csv")[0] == 0
    assert say(capsys, "doctor", "--quick", "run/model.xpnet", "flowers.csv")[0] in (0, 1)


def test_a_model_of_a_published_set_is_measured_on_it_as_before(capsys):
    train(capsys, "iris", "--out", "run", "--seed", "3")
    iris_in_cm("flowers.csv")
    code, out, err = say(capsys, "evaluate", "run", "iris")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert out == say(capsys, "evaluate", "run")[1]
    assert say(capsys, "doctor", "--quick", "run", "iris")[2] == ""
    assert "121 of these 150 examples were trained on" in say(capsys, "evaluate", "run", "flowers.csv")[1]  # two are alike
    iris_in_cm("test.csv", slice(120, 150))
    assert out.split("(")[1] in say(capsys, "evaluate", "run", "test.csv")[1]  # the same 30 flowers, and the loss
    saved = model_file.read("run/model.xpnet")  # saved again, without a word on where it comes from
    model_file.save(saved.model, "again", class_names=saved.class_names, preprocessing=saved.preprocessing, inputs=saved.inputs)
    assert say(capsys, "evaluate", "again", "iris")[1].endswith(out)


@pytest.mark.parametrize("factor", [1, 16, 100])
def test_own_pixels_are_those_of_a_published_set_where_white_is_known(factor, capsys):
    (x, y), tested = data.load("digits").train, data.load("digits").test
    x, y = np.concatenate((x, tested[0][:7])), np.concatenate((y, tested[1][:7]))
    np.savez("d.npz", x=(factor * x).astype(np.float32) + (0.5 if factor == 100 else 0), y=y)
    train(capsys, "d.npz", "--out", "run")
    if factor == 100:  # neither from 0 nor to a usual white
        assert "whose units may not be those of digits" in refused(capsys, "evaluate", "run", "digits")
        return
    code, out, err = say(capsys, "evaluate", "run", "digits")
    assert code == 0, err
    count = int(model_file.read("run/model.xpnet").inputs.seen(row_hashes(tested[0]))[0].sum())  # type: ignore[union-attr]
    assert 0 < count <= 7
    assert f"  {count} of these 359 examples {'was' if count == 1 else 'were'} trained on\n" in out


def test_a_folder_with_the_name_of_a_published_set_is_told(capsys, monkeypatch):
    says = "digits is the published data set; a folder digits/ is here, too: write ./digits for it"
    short = ("--epochs", "1", "--model", "mlp")
    commands = (("train", "digits", *short), ("evaluate", "run", "digits"), ("doctor", "--quick", "run", "digits"))
    train(capsys, "digits", "--out", "run", "--model", "mlp")
    for words in commands:
        assert "./digits" not in say(capsys, *words)[1]
    pictures("digits")
    for words in commands:
        code, out, err = say(capsys, *words)
        assert code in (0, words[0] == "doctor"), err
        assert out.count(says) == 1
    assert "./digits" not in say(capsys, "evaluate", "run")[1]  # nobody typed the name
    assert "2 classes" in train(capsys, "./digits")
    pictures("mnist")
    monkeypatch.setenv("XPNET_OFFLINE", "1")
    monkeypatch.setenv("XPNET_CACHE", "cache")
    assert "a folder mnist/ is here, too: write ./mnist for it; mnist: not found" in refused(capsys, "train", "mnist")
    Path("cifar10").mkdir()  # of the published files
    Path("cifar10/data_batch_1.bin").write_bytes(b"")
    assert "./cifar10" not in refused(capsys, "train", "cifar10")


# Parts and classes


def test_a_class_folder_without_images_is_allowed_where_a_model_is_measured(capsys):
    pictures("d")
    train(capsys, "d", "--out", "run")
    pictures("new", ("cat",))
    Path("new/dog").mkdir()
    code, out, err = say(capsys, "evaluate", "run", "new")
    assert code == 0, err
    assert "class folders without images: 'dog'" in out
    assert "measured on all 12 examples" in out
    assert "hold no images: 'dog'" in refused(capsys, "train", "new")


def test_a_test_folder_without_classes_is_left_to_the_training_part(capsys):
    pictures("C/train")
    pictures("C/test", ("unknown",))
    said = refused(capsys, "train", "C")
    assert (
        "the class folders 'unknown' are not in the training part: 'cat', 'dog'; for the training part alone, give C/train"
        in said
    )
    assert "to train on" in train(capsys, "C/train")


@pytest.mark.parametrize(
    "names", [("x_test", "y_test"), ("test_images", "test_labels"), ("X_val", "y_val"), ("x_train", "y_train")]
)
def test_one_part_of_arrays_is_enough_for_a_model(names, capsys):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)).astype(np.float32), np.arange(60) % 2
    np.savez("all.npz", x=x, y=y)
    train(capsys, "all.npz", "--out", "run")
    np.savez("part.npz", **dict(zip(names, (x[:10], y[:10]))))
    code, out, err = say(capsys, "evaluate", "run", "part.npz")
    assert code == 0, err
    assert ("on all 10 examples" if "x_train" in names else "on the 10 examples of the test part") in out
    assert len(say(capsys, "predict", "run", "part.npz")[1].splitlines()) == 10
    assert "part.npz: holds the arrays" in refused(capsys, "train", "part.npz")
    np.savez("parts.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert "expected one array, or one named x" in refused(capsys, "predict", "run", "parts.npz")


def test_classes_that_differ_in_case_alone_are_told_of_images_and_arrays(capsys):
    says = "the classes 'Cat' and 'cat' differ in upper and lower case alone"
    pictures("d", ("cat", "Cat"))
    assert says in from_folder(Path("d")).reading.notes
    np.savez("d.npz", x=np.random.default_rng(0).normal(size=(60, 3)), y=np.array(["cat", "Cat"] * 30))
    assert says in train(capsys, "d.npz")
    write("d.csv", [(a, b, "cat" if y == "u" else "Cat") for a, b, y in ROWS])
    assert f"d.csv: {says}" in from_csv(Path("d.csv")).reading.notes


def test_gaps_in_training_arrays_are_not_compared_with_training_data(capsys):
    x = np.random.default_rng(0).normal(size=(60, 3))
    np.savez("good.npz", x=x, y=np.arange(60) % 2)
    train(capsys, "good.npz", "--out", "run")
    x[4, 1] = np.nan
    np.savez("d.npz", x=x, y=np.arange(60) % 2)
    says = "d.npz: example 5 holds a number that is not finite; fill"
    assert f"{says} such gaps, or remove the example" in refused(capsys, "train", "d.npz")
    assert f"{says} the gaps as in the training data" in refused(capsys, "evaluate", "run", "d.npz")
