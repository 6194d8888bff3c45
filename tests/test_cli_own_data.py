"""The user's own folders, tables and arrays: what was learnt is what is predicted on."""

from __future__ import annotations

import csv
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.command_line import say
from xpnet.cli import main
from xpnet.cli.array_files import read_arrays
from xpnet.cli.image_folders import role
from xpnet.cli.readings import Known
from xpnet.cli.user_data import find_dataset, from_csv, from_folder, read_own
from xpnet.data import DataError
from xpnet.data.splits import TEST, TRAIN, VALIDATION
from xpnet.io import model_file

NAMES = ("cat", "dog", "eel")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(capsys, *words, out="run", epochs=15):
    code, said, err = say(capsys, "train", *words, "--epochs", epochs, "--out", out)
    assert code == 0, err
    return said


def accuracy(text):
    """The last accuracy in a text, and its number of examples."""
    found = re.findall(r"accuracy [\d.]+ % \(([\d,]+) of ([\d,]+)\)", text)
    right, total = (int(n.replace(",", "")) for n in found[-1])
    return right / total, total


def points(count=150, seed=1):
    """Three classes that lie apart: features (N, 3) and labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    return np.stack([rng.normal(size=count) + 7 * (y == k) for k in (1, 2, 5)], axis=1).round(3), y


def table(path, x, y, titles="a,b,c,label", names=NAMES, first=False):
    lines = [titles] if titles else []
    for row, k in zip(x, y):
        cells = [f"{v:.3f}" for v in row]
        lines.append(",".join([names[k], *cells] if first else [*cells, names[k]]))
    Path(path).write_text("\n".join(lines) + "\n")


def predicted(capsys, model, file, *more):
    code, _, err = say(capsys, "predict", model, file, *more, "--out", "p.csv")
    assert code == 0, err
    return [row["class"] for row in csv.DictReader(Path("p.csv").read_text().splitlines())], err


# Tables


@pytest.mark.parametrize("titles", ["label,a,b,c", None])
def test_predicting_the_file_that_was_trained_on(titles, capsys):
    x, y = points()
    table("t.csv", x, y, titles, first=True)
    train(capsys, "t.csv", "--target", "label" if titles else "0")
    found, _ = predicted(capsys, "run/model.xpnet", "t.csv")
    assert np.mean([a == NAMES[k] for a, k in zip(found, y)]) > 0.95


@pytest.fixture
def trained(tmp_path, capsys):
    x, y = points()
    table("t.csv", x, y)
    train(capsys, "t.csv")
    return "run/model.xpnet"


NEW, LABELS = points(60, seed=9)
HEADS = {
    "same": ((0, 1, 2), "a,b,c,label", False),
    "other order": ((2, 0, 1), "c,a,b,label", False),
    "class first": ((1, 2, 0), "label,b,c,a", True),
    "upper case": ((0, 1, 2), "A,B,C,Label", False),
    "no titles": ((0, 1, 2), None, False),
    "no titles, class first": ((0, 1, 2), None, True),
}


@pytest.mark.parametrize("case", HEADS)
def test_columns_are_matched_by_name(case, trained, capsys):
    order, titles, first = HEADS[case]
    table("new.csv", NEW[:, order], LABELS, titles, first=first)
    found, said = predicted(capsys, trained, "new.csv")
    assert np.mean([a == NAMES[k] for a, k in zip(found, LABELS)]) > 0.95
    assert ("has no titles" in said) is (titles is None)
    code, out, err = say(capsys, "evaluate", trained, "new.csv")
    assert code == 0, err
    assert accuracy(out) == (pytest.approx(1, abs=0.05), 60)
    assert "all 60 examples: these are not the data that the model was trained on" in out


def test_columns_too_many_and_none_of_the_class(trained, capsys):
    Path("new.csv").write_text("extra,c,b,a\n" + "".join(f"9,{r[2]},{r[1]},{r[0]}\n" for r in NEW))
    found, said = predicted(capsys, trained, "new.csv")
    assert np.mean([a == NAMES[k] for a, k in zip(found, LABELS)]) > 0.95
    assert "passed over: 'extra'" in said
    code, _, err = say(capsys, "evaluate", trained, "new.csv")
    assert code == 2
    assert "has no column of classes" in err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,b,label\n1,2,cat\n", "has no column 'c'; run/model.xpnet takes the columns 'a', 'b', 'c'"),
        ("1,2,3,4\n5,6,7,8\n", "neither the first nor the last column holds classes"),
        ("1,2\n3,4\n", "has 2 columns, the model takes 3 numbers"),
        ("a,b,c,a\n1,2,3,4\n", "two columns have the title 'a'"),
        ("a,b,c,label\n1,2,x,cat\n", "line 2, column 'c': expected numbers, got 'x'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(content, says, trained, capsys):
    Path("new.csv").write_text(content)
    for command in ("predict", "evaluate"):
        code, out, err = say(capsys, command, trained, "new.csv")
        assert (code, out) == (2, "")
        assert says in err
        assert err.count("\n") == 1


def test_classes_are_matched_by_name(trained, capsys):
    table("new.csv", NEW, LABELS, names=("cat", "cow", "eel"))
    code, _, err = say(capsys, "evaluate", trained, "new.csv")
    assert code == 2
    assert "does not know the class 'cow'; it knows 'cat', 'dog', 'eel'" in err
    keep = LABELS > 0  # two of three classes: their indices would be others
    table("new.csv", NEW[keep], LABELS[keep])
    assert accuracy(say(capsys, "evaluate", trained, "new.csv")[1]) == (pytest.approx(1, abs=0.05), 40)


def test_values_in_other_units_are_told(trained, capsys):
    table("new.csv", NEW * 1000, LABELS)
    assert "are they in other units?" in say(capsys, "predict", trained, "new.csv")[2]


def test_evaluate_says_which_rows_were_trained_on(trained, capsys):
    run = model_file.read(trained).inputs
    assert run is not None
    code, out, _ = say(capsys, "evaluate", trained)
    assert code == 0
    assert accuracy(out)[1] == 150 - run.trained_count
    shutil.copy("t.csv", "copy.csv")
    with open("copy.csv", "a") as file:
        file.writelines(f"{r[0]},{r[1]},{r[2]},{NAMES[k]}\n" for r, k in zip(NEW, LABELS))
    out = say(capsys, "evaluate", trained, "copy.csv")[1]
    assert f"{run.trained_count} of these 210 examples were trained on" in out
    assert re.search(r"accuracy [\d.]+ % \(\d+ of 210\)", out)
    assert accuracy(out)[1] == 210 - run.trained_count


def test_other_data_under_the_same_name_are_measured_whole(trained, capsys):
    table("t.csv", NEW, LABELS)
    out = say(capsys, "evaluate", trained)[1]
    assert "none of them is one that the model was trained on" in out
    assert accuracy(out)[1] == 60


def test_a_model_file_says_how_its_inputs_were_read(trained, capsys):
    inputs = model_file.read(trained).inputs
    assert inputs is not None
    assert (inputs.kind, inputs.columns, inputs.target, inputs.target_column) == ("table", ("a", "b", "c"), "label", 3)
    out = say(capsys, "summary", trained)[1]
    assert "inputs: 3 columns by name: a, b, c; the class: label" in out
    assert "classes: 'cat', 'dog', 'eel'" in out


def test_the_doctor_reads_a_table_as_the_model_does(trained, capsys):
    table("new.csv", NEW[:, (2, 0, 1)], LABELS, "c,a,b,label")
    code, out, err = say(capsys, "doctor", trained, "new.csv")
    assert (code, err) == (0, "")
    assert "nothing looks wrong" in out


@pytest.mark.parametrize("cell", ["", "NaN", "nan", " ", "NA", "null"])
def test_a_missing_class_names_its_line(cell, tmp_path):
    x, y = points(30)
    table("t.csv", x, y)
    lines = Path("t.csv").read_text().splitlines()
    for k in (4, 9):
        lines[k] = lines[k].rpartition(",")[0] + "," + cell
    Path("t.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"line 5: the class, column 'label', .*: 2 \(lines 5, 10\)"):
        from_csv(Path("t.csv"))


def test_titles_that_are_whole_numbers():
    x, y = points(60)
    table("t.csv", x, y, "0,1,2,label")
    dataset = from_csv(Path("t.csv"))
    assert dataset.inputs.columns == ("0", "1", "2")
    assert len(dataset.train[1]) + len(dataset.test[1]) == 60
    assert dataset.class_names == NAMES


def test_row_numbers_are_no_feature():
    x, y = points(60)
    table("t.csv", x, y)
    head, *rows = Path("t.csv").read_text().splitlines()
    Path("t.csv").write_text("\n".join(["," + head, *(f"{i},{row}" for i, row in enumerate(rows))]))
    dataset = from_csv(Path("t.csv"))
    assert dataset.inputs.columns == ("a", "b", "c")
    assert any("counts the rows" in note for note in dataset.reading.notes)


def test_a_titled_column_that_counts_the_rows_is_said():
    x, y = points(60)
    table("t.csv", np.column_stack([np.arange(60), x]), y, "id,a,b,c,label")
    assert "t.csv: column 'id' counts the rows, and is a feature; if it is no measurement, remove it" in (
        from_csv(Path("t.csv")).reading.notes
    )


def test_a_folder_with_the_name_of_a_published_set_has_its_own_settings(capsys):
    pictures("iris", count=10)
    train(capsys, "./iris", epochs=1)
    pictures("photos", count=10)
    train(capsys, "photos", epochs=1, out="other")
    first, second = (tomllib.loads(Path(run, "config.toml").read_text()) for run in ("run", "other"))
    for key in ("batch_size", "learning_rate", "weight_decay", "augment"):
        assert first[key] == second[key]


def test_labels_of_bytes_and_of_objects(capsys):
    x, y = points(60)
    np.savez("x.npz", x=x, y=np.array(NAMES)[y].astype("S"))
    reading: Any = read_own("x.npz")
    assert reading.class_names == NAMES
    np.savez("x.npz", x=x, y=np.array(NAMES, object)[y])
    code, _, err = say(capsys, "train", "x.npz")
    assert code == 2
    assert "holds object, expected numbers or text; save labels as text, such as y.astype(str)" in err


def test_a_file_that_cannot_be_read_among_others_names_skip_bad(capsys):
    pictures("d")
    train(capsys, "d", epochs=1)
    Path("d/cat/bad.png").write_bytes(b"x")
    code, out, err = say(capsys, "predict", "run/model.xpnet", "d")
    assert (code, out) == (2, "")
    assert "bad.png" in err
    assert "--skip-bad leaves such files out" in err


def test_one_and_one_point_nought_are_one_class():
    x, y = points(60)
    table("t.csv", x, y, names=("1", "1.0", "2"))
    dataset = from_csv(Path("t.csv"))
    assert dataset.class_names == ("1", "2")
    assert "t.csv: the classes '1', '1.0' are one: they are the same number" in dataset.reading.notes
    table("t.csv", x, y, names=("007", "1E2", "7"))
    dataset = from_csv(Path("t.csv"))
    assert dataset.class_names == ("7", "1E2")
    assert any("'007', '7' are one" in note for note in dataset.reading.notes)
    table("t.csv", x, y, names=("007", "07", "7"))
    with pytest.raises(DataError, match="holds '007', '07', '7' only, which are one number; if"):
        from_csv(Path("t.csv"))


IRIS = xn.data.load("iris")
IRIS_TITLES = {
    "scikit-learn": ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)", "target"),
    "seaborn": ("sepal_length", "sepal_width", "petal_length", "petal_width", "species"),
    "R": ("Sepal.Length", "Sepal.Width", "Petal.Length", "Petal.Width", "Species"),
    "Kaggle": ("SepalLengthCm", "SepalWidthCm", "PetalLengthCm", "PetalWidthCm", "Species"),
}


@pytest.mark.parametrize("source", IRIS_TITLES)
def test_iris_of_others_is_matched_by_its_titles(source, capsys):
    train(capsys, "iris", epochs=1)
    measured = accuracy(say(capsys, "evaluate", "run/model.xpnet")[1])
    titles = np.array(IRIS_TITLES[source])
    x, y = np.concatenate([IRIS.train[0], IRIS.test[0]]), np.concatenate([IRIS.train[1], IRIS.test[1]])
    found = []
    for order in ([0, 1, 2, 3, 4], [3, 2, 1, 0, 4], [4, 2, 0, 3, 1]):
        rows = [[*(f"{10 * v:.1f}" for v in row), IRIS.class_names[k]] for row, k in zip(x, y)]
        with open("i.csv", "w") as file:
            csv.writer(file).writerows([titles[order], *(np.array(row)[order] for row in rows)])
        more = ["--target", "target"] if source == "scikit-learn" else []
        code, out, err = say(capsys, "evaluate", "run/model.xpnet", "i.csv", *more)
        assert code == 0, err
        assert "of these 150 examples were trained on" in out
        found.append(re.findall(r"accuracy .*", out))
    assert found[0] == found[1] == found[2]
    Path("i.csv").write_text("sepal length (mm),sepal width,petal length,petal width\n51,35,14,2\n")
    assert "has no column 'sepal length (cm)'" in say(capsys, "predict", "run/model.xpnet", "i.csv")[2]
    assert measured[1] == 30


def test_a_model_of_columns_without_titles_says_that_it_takes_them_in_their_order(capsys):
    x, y = points(90)
    table("t.csv", x, y, None)
    train(capsys, "t.csv", epochs=1)
    table("new.csv", NEW, LABELS, "c,b,a,label")
    assert "columns are taken in their order, whatever their titles" in say(capsys, "predict", "run/model.xpnet", "new.csv")[2]


@pytest.mark.parametrize(
    ("target", "says"),
    [("lable", "did you mean 'label'?"), ("7", "has the columns 'a', 'b', 'c', 'label'")],
)
def test_a_wrong_target(target, says, capsys):
    table("t.csv", *points(30))
    code, _, err = say(capsys, "train", "t.csv", "--target", target)
    assert code == 2
    assert says in err


def test_a_target_by_number_in_a_file_without_titles(capsys):
    x, y = points(30)
    table("t.csv", x, y, None)
    code, _, err = say(capsys, "train", "t.csv", "--target", "4")
    assert code == 2
    assert "has 4 columns, numbered from 0 to 3" in err
    assert "expected a number from 0 to 3" in say(capsys, "train", "t.csv", "--target", "label")[2]


def test_a_column_of_measurements_is_no_class(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(30_000, 2))
    np.savetxt("t.csv", x, delimiter=",", fmt="%.5f")
    code, _, err = say(capsys, "train", "t.csv")
    assert code == 2
    assert "are these classes?" in err
    np.savetxt("t.csv", np.round(x, 2), delimiter=",", fmt="%.2f")  # few values, none of them whole
    assert "are these classes?" in say(capsys, "train", "t.csv")[2]


def test_a_column_called_label_that_is_not_the_last_is_pointed_out(capsys):
    x, y = points(60)
    Path("t.csv").write_text("label,a,b\n" + "".join(f"{k},{r[0]},{k}\n" for r, k in zip(x, y)))
    assert "the last column, 'b', is the class; if it is 'label', give --target label" in train(capsys, "t.csv", epochs=1)


def test_digits_that_float32_loses_are_told(capsys):
    x, y = points(60)
    Path("t.csv").write_text("time,a,label\n" + "".join(f"{1.7e12 + i},{r[0]},{k}\n" for i, (r, k) in enumerate(zip(x, y))))
    assert "column 'time': its values, around 1.7e+12, differ in digits" in train(capsys, "t.csv", epochs=1)


# Pixels


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    assert main(["train", "digits", "--model", "mlp", "--no-augment", "--epochs", "5", "--out", str(folder)]) == 0
    return folder / "model.xpnet"


RAW = np.rint(xn.data.load("digits").test[0] * 16)
TRUTH = xn.data.load("digits").test[1]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int64", "float32", "float64"])
@pytest.mark.parametrize("top", [16, 255])
@pytest.mark.parametrize("form", ["npy", "csv", "npz"])
def test_pixels_of_every_scale_and_type(dtype, top, form, digits, capsys):
    values = np.rint(RAW[:100] * top / 16).astype(dtype)
    file = f"x.{form}"
    if form == "npy":
        np.save(file, values[..., 0])
    elif form == "npz":
        np.savez(file, x=values)
    else:
        np.savetxt(file, values.reshape(100, -1), fmt="%d", delimiter=",")
    found, _ = predicted(capsys, digits, file)
    assert np.mean([int(a) == k for a, k in zip(found, TRUTH)]) > 0.9


def test_the_class_of_pixels_in_a_table(digits, capsys):
    flat = RAW.reshape(len(RAW), -1).astype(int)
    for columns in ([TRUTH, flat], [flat, TRUTH]):
        np.savetxt("x.csv", np.column_stack(columns), fmt="%d", delimiter=",")
        code, out, err = say(capsys, "evaluate", digits, "x.csv")
        assert code == 0, err
        assert accuracy(out) == (pytest.approx(0.95, abs=0.05), len(RAW))
    Path("x.csv").write_text("".join(",".join(["1"] * 65) + "\n" for _ in range(3)))
    assert "the first and the last column hold classes" in say(capsys, "predict", digits, "x.csv")[2]
    assert say(capsys, "predict", digits, "x.csv", "--target", "0")[0] == 0


def test_arrays_with_another_number_of_classes_are_refused(digits, capsys):
    np.savez("x.npz", x=RAW, y=TRUTH + 1)
    code, _, err = say(capsys, "evaluate", digits, "x.npz")
    assert code == 2
    assert "does not know the class '10'" in err


def test_arrays_are_trained_on_and_evaluated(capsys):
    names = np.array([f"digit {k}" for k in range(10)])
    x = RAW[..., 0].astype(np.uint8)
    np.savez("x.npz", images=x, labels=TRUTH, class_names=names)
    train(capsys, "x.npz", "--model", "mlp", "--no-augment", epochs=30)
    inputs = model_file.read("run/model.xpnet").inputs
    assert inputs is not None
    assert (inputs.kind, inputs.shape, inputs.scale) == ("images", (8, 8, 1), 16.0)
    out = say(capsys, "evaluate", "run/model.xpnet")[1]
    assert accuracy(out)[0] > 0.7
    np.save("x.npy", x.astype(np.int64))
    found, _ = predicted(capsys, "run/model.xpnet", "x.npy")
    assert np.mean([a == names[k] for a, k in zip(found, TRUTH)]) > 0.8


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((3, 2))}, "holds the arrays 'x'; expected arrays x and y"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2)}, "expected (N, F), (N, H, W)"),
        ({"x": np.zeros((3, 2)), "y": np.array([0, 1, np.nan])}, "fractions or not finite"),
        ({"x": np.zeros((3, 2)), "y": np.array(["a", "", "b"])}, "example 2 has the label ''"),
        ({"x": np.zeros((9, 3, 8, 8)), "y": np.arange(9) % 2}, "channels first; expected (H, W, C)"),
        ({"x": np.full((9, 2), np.nan), "y": np.arange(9) % 2}, "example 1 holds a number that is not finite"),
        ({"x": np.zeros((9, 2)), "y": np.arange(9) % 2, "class_names": np.array(["a"])}, "the label '1' and 1 names"),
        ({"x": np.zeros((3, 2)), "y": np.array([None, 1, 2], object)}, "x.npz"),
    ],
)
def test_arrays_that_cannot_be_used(arrays, says, capsys):
    np.savez("x.npz", **arrays)
    code, _, err = say(capsys, "train", "x.npz")
    assert code == 2
    assert says in err
    assert err.count("\n") == 1


STORED = [
    (top, dtype, axes)
    for top in (1, 16, 255, 4095, 65535, 100_000)
    for dtype in ("uint8", "uint16", "int16", "int32", "int64", "float16", "float32", "float64", ">u2", ">f4")
    for axes in (2, 3, 4)
    if top <= (np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else float(np.finfo(dtype).max))
]


@pytest.mark.parametrize(("top", "dtype", "axes"), STORED)
@pytest.mark.parametrize("whole", [True, False])
def test_the_training_data_are_read_in_one_way(top, dtype, axes, whole):
    """At first, by a resumed run (without the range of the training part), and by the model."""
    rng = np.random.default_rng(0)
    values = rng.random((40, *(6, 5, 3)[: axes - 1])) * top
    values[:20, 0] = top
    np.savez("x.npz", x=(np.rint(values) if whole else values).astype(dtype), y=np.arange(40) % 2)
    first: Any = read_own("x.npz")
    for record in (first.inputs, first.inputs.with_training_part(first.x)):
        again: Any = read_own("x.npz", known=Known(record, first.class_names, "m"))
        assert again.inputs is record
        np.testing.assert_array_equal(again.x, first.x)
        np.testing.assert_array_equal(again.contents, first.contents)
        one, _ = read_arrays(Path("x.npz"), Known(record, first.class_names, "m"))
        np.testing.assert_array_equal(one, first.x)
    if axes > 2 and first.inputs.scale > 1:
        assert first.x.max() <= 1


def test_image_files_are_refused_where_the_arrays_did_not_say_what_white_is(capsys):
    rng = np.random.default_rng(0)
    np.savez("x.npz", x=rng.random((60, 8, 8)) * 254.5, y=np.arange(60) % 2)
    train(capsys, "x.npz", epochs=1)
    pictures("d", grey=True, count=2)
    for words in (("predict", "run/model.xpnet", "d/cat/000.png"), ("evaluate", "run/model.xpnet", "d")):
        code, out, err = say(capsys, *words)
        assert (code, out) == (2, "")
        assert "was trained on arrays with values up to 254" in err


def test_arrays_that_are_divided_already(capsys):
    x, y = points(120)
    np.savez("x.npz", x_train=x[:60], y_train=y[:60], x_val=x[60:90], y_val=y[60:90], x_test=x[90:], y_test=y[90:])
    assert "60 examples to train on, 30 to test, 3 classes; 30 for validation" in train(capsys, "x.npz", epochs=1)


# Folders


Image = pytest.importorskip("PIL.Image", reason="image files need pillow")


def pictures(folder, names=("cat", "dog"), count=16, start=0, seed=0, side=8, grey=False, form=np.asarray, ending=".png"):
    """Bright above or below, by the place of the name in cat, dog, ..."""
    rng = np.random.default_rng(seed)
    for name in names:
        place = Path(folder) / name
        place.mkdir(parents=True, exist_ok=True)
        for i in range(start, start + count):
            pixels = rng.integers(0, 60, (side, side, 3)).astype(np.uint8)
            if grey:
                pixels = pixels[..., :1].repeat(3, axis=2)
            half = slice(None, side // 2) if name == "cat" else slice(side // 2, None)
            pixels[half] += 150
            Image.fromarray(form(pixels)).save(place / f"{i:03}{ending}")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", TRAIN), ("Training", TRAIN), ("train_set", TRAIN), ("trainset", TRAIN), ("seg_train", TRAIN),
        ("val", VALIDATION), ("valid", VALIDATION), ("Validation-Set", VALIDATION), ("dev", VALIDATION),
        ("test", TEST), ("test1", TEST), ("Testing", TEST), ("test_images", TEST),
        ("cat", None), ("train_station", None), ("contest", None), ("train_test", None), ("12", None),
    ],
)  # fmt: skip
def test_which_folders_are_parts(name, part):
    assert role(name) == part


@pytest.mark.parametrize(
    ("parts", "train_on", "test_on", "watched"),
    [
        (("train", "test"), 32, 32, 0),
        (("train", "val"), 32, 32, 0),
        (("train", "val", "test"), 32, 32, 32),
        (("Training", "test1"), 32, 32, 0),
        (("train_set", "valid_set", "test_set"), 32, 32, 32),
        (("seg_train/seg_train", "seg_test/seg_test"), 32, 32, 0),
        (("alphabet_train", "alphabet_test"), 32, 32, 0),
        (("MyPhotos_train", "MyPhotos_test"), 32, 32, 0),
        (("photosTrain", "photosVal", "photosTest"), 32, 32, 32),
        (("x_train", "x_test"), 32, 32, 0),
        (("train_small", "test_small"), 32, 32, 0),
        (("train", "test_small"), 32, 32, 0),
    ],
)
def test_folders_that_are_divided(parts, train_on, test_on, watched):
    for seed, part in enumerate(parts):
        pictures(Path("d") / part, seed=seed)
    dataset: Any = find_dataset("d")
    assert (len(dataset.train[1]), len(dataset.test[1])) == (train_on, test_on)
    assert len(dataset.validation[1] if dataset.validation else ()) == watched
    assert dataset.class_names == ("cat", "dog")


def test_the_folder_within_the_folder(capsys):
    pictures("d/photos")
    (Path("d") / "__MACOSX" / "photos" / "cat").mkdir(parents=True)
    (Path("d") / "__MACOSX" / "photos" / "cat" / "._000.png").write_bytes(b"x")
    dataset = from_folder(Path("d"))
    assert dataset.class_names == ("cat", "dog")
    assert "the images are those in photos/" in dataset.reading.notes


def test_train_and_test_are_no_classes(capsys):
    pictures("d/train")
    (Path("d") / "test1").mkdir()
    shutil.copy("d/train/cat/000.png", "d/test1/1.png")
    dataset = from_folder(Path("d"))
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.train[1]) + len(dataset.test[1]) == 32
    assert "left out 1 folder beside train/ without classes in them: 'test1'" in dataset.reading.notes
    pictures("vehicles", ("bus", "train"))  # here it is one
    assert from_folder(Path("vehicles")).class_names == ("bus", "train")


def test_folders_within_classes_are_said(capsys):
    for name in ("set_1", "set_2"):
        pictures(f"d/{name}", count=8)
    assert "the classes are 'set_1', 'set_2', each with its images in 'cat', 'dog'; if these" in train(capsys, "d", epochs=1)
    pictures("trains", ("steam_train", "test_car"))
    assert from_folder(Path("trains")).class_names == ("steam_train", "test_car")


def test_a_model_is_evaluated_on_a_test_folder_alone(capsys):
    pictures("d")
    train(capsys, "d", epochs=2)
    pictures("e/test", seed=4)
    out = say(capsys, "evaluate", "run/model.xpnet", "e")[1]
    assert accuracy(out)[1] == 32
    assert "measured on the 32 examples of the test part" in out


def flat(*places):
    pictures("source")
    for place in places:
        Path("d", place).mkdir(parents=True, exist_ok=True)
        shutil.copy("source/cat/000.png", f"d/{place}/1.png")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: flat("train", "test"), "hold images without class folders"),
        (lambda: flat("train"), "train hold images without class folders"),
        (lambda: flat("."), "holds 1 image and no folders of classes; expected CLASS/NAME.png"),
        (lambda: pictures("d", ("cat",)), "all examples are of one class, 'cat'"),
        (lambda: [pictures("d/val"), pictures("d/test")], "and no folder train"),
        (lambda: [pictures("d/train"), pictures("d/training")], "are the same part of the data"),
        (
            lambda: [pictures("d/train"), pictures("d/test", ("cat", "cow"))],
            "the class folders 'cow' are not in the training part",
        ),
        (lambda: Path("d").mkdir(), "holds no images"),
        (
            lambda: [pictures(f"d/{name}", ("train", "test")) for name in NAMES],
            "the classes hold parts of the data, such as cat/train/ and cat/test/; expected train/CLASS/NAME.png",
        ),
        (lambda: [pictures(f"d/{name}") for name in ("train", "test", "train_small")], "are the same part of the data"),
    ],
)
def test_folders_that_cannot_be_used(make, says, capsys):
    make()
    code, out, err = say(capsys, "train", "d")
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_what_was_left_out_is_said(capsys):
    pictures("d")
    pictures("d", ending=".jfif", start=50, count=2)
    for name in ("cat/.ipynb_checkpoints", "__MACOSX/cat"):
        Path("d", name).mkdir(parents=True)
        shutil.copy("d/cat/000.png", f"d/{name}/000-checkpoint.png")
    shutil.copy("d/cat/000.png", "d/dog/._000.png")
    shutil.copy("d/cat/000.png", "d/loose.png")
    Path("d/dog/notes.txt").write_text("x")
    Path("d/README").write_text("x")
    Path("d/fox").symlink_to("nowhere")
    out = train(capsys, "d", epochs=1)
    count, test = map(int, re.findall(r"(\d+) images to train on, (\d+) to test, 2 classes", out)[0])
    assert count + test == 36
    assert "left out 6 files: " in out
    for words in (
        "1 hidden (.ipynb_checkpoints)",
        "1 hidden (__MACOSX)",
        "1 hidden (._*)",
        "1 no image (.txt)",
        "1 no image (no ending)",
        "1 broken link",
    ):
        assert words in out
    assert "left out 1 image beside the folders, such as 'loose.png'" in out
    code, _, err = say(capsys, "predict", "run/model.xpnet", "d", "--out", "p.csv")
    assert code == 0
    assert "37 predictions" not in err
    assert len(Path("p.csv").read_text().splitlines()) == 1 + 37  # also the loose one
    assert "left out 6 files" in err


@pytest.mark.parametrize("divided", [True, False])
def test_train_and_predict_leave_out_the_same_files(divided, capsys):
    parts = ("d/train", "d/test") if divided else ("d",)
    for part in parts:
        pictures(part)
    for place in {"d", *parts}:
        Path(place, "notes.md").touch()
        Path(place, "._x.png").touch()
        Path(place, "link").symlink_to("nowhere")
    if divided:
        shutil.copy("d/train/cat/000.png", "d/test/loose.png")
    out = train(capsys, "d", epochs=1)
    _, _, err = say(capsys, "predict", "run/model.xpnet", "d", "--out", "p.csv")
    (said,) = re.findall("left out .* files: .*", out)
    (again,) = re.findall("left out .* files: .*", err)
    assert said.split(": ")[0] == again.split(": ")[0] == f"left out {9 if divided else 3} files"
    assert sorted(said.split(": ")[1].split(", ")) == sorted(again.split(": ")[1].split(", "))
    assert ("left out 1 image beside the folders, such as 'test/loose.png'" in out) == divided


def test_linked_folders_are_followed():
    pictures("real")
    for name in ("cat", "dog"):
        Path("d", name).mkdir(parents=True)
        Path("d", name, "linked").symlink_to(Path("real", name).resolve())
    dataset = from_folder(Path("d"))
    assert len(dataset.train[1]) + len(dataset.test[1]) == 32


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system composes names itself")
def test_names_with_accents_are_one_name_however_they_are_composed(capsys):
    pictures("d", ("cat", "caf\u00e9"))
    pictures("e", ("cat", "cafe\u0301"), seed=4)
    first, second = read_own("d"), read_own("e")
    assert first is not None
    assert second is not None
    assert sorted(first.places.tolist()) == sorted(second.places.tolist())  # so parts are the same on every system
    train(capsys, "d", epochs=2)
    assert accuracy(say(capsys, "evaluate", "run/model.xpnet", "e")[1])[1] == 32


def test_colour_is_kept_though_most_images_are_grey():
    pictures("d", grey=True, count=40)
    assert from_folder(Path("d")).input_shape == (8, 8, 1)
    pictures("d", ("dog",), start=80, count=1)
    dataset = from_folder(Path("d"))
    assert dataset.input_shape == (8, 8, 3)
    assert "1 of 81 images is in colour, so all are read in colour" in dataset.reading.notes


def test_evaluate_on_another_folder_measures_all_of_it_by_name(capsys):
    pictures("d")
    train(capsys, "d", epochs=6)
    pictures("e", seed=3)
    out = say(capsys, "evaluate", "run/model.xpnet", "e")[1]
    assert accuracy(out) == (1.0, 32)
    pictures("only", ("dog",), seed=3)  # whose index would be 0
    assert accuracy(say(capsys, "evaluate", "run/model.xpnet", "only")[1]) == (1.0, 16)
    pictures("big", seed=4, side=20)
    assert accuracy(say(capsys, "evaluate", "run/model.xpnet", "big")[1])[1] == 32
    pictures("renamed", ("cat", "hound"))
    code, _, err = say(capsys, "evaluate", "run/model.xpnet", "renamed")
    assert code == 2
    assert "does not know the class 'hound'" in err
    shutil.copytree("d", "copied")
    assert "without the examples that were trained on" in say(capsys, "evaluate", "run/model.xpnet", "copied")[1]
    assert "takes 8,8" in say(capsys, "evaluate", "run/model.xpnet", "e", "--size", "9,9")[2]


def test_transparent_images_are_read_as_in_training(capsys):
    def clear(pixels):
        return np.concatenate([pixels, np.where(pixels[..., :1] > 120, 0, 255).astype(np.uint8)], axis=2)

    pictures("d", form=clear)
    out = train(capsys, "d", epochs=4)
    assert "32 images with transparent pixels were composited on (255, 255, 255) (R, G, B)" in out
    inputs = model_file.read("run/model.xpnet").inputs
    assert inputs is not None
    assert inputs.background == (255, 255, 255)
    pictures("e", form=clear, seed=5)
    found, said = predicted(capsys, "run/model.xpnet", "e")
    assert found == ["cat"] * 16 + ["dog"] * 16
    assert "composited" in said
    assert "transparency on (255, 255, 255)" in say(capsys, "summary", "run/model.xpnet")[1]


def test_deep_images_are_not_clipped(capsys):
    def deep(pixels):
        return pixels[..., 0].astype(np.uint16) * 16  # 12 bits

    pictures("d", form=deep, ending=".tiff")
    out = train(capsys, "d", epochs=6)
    assert "32 images have more than 8 bits a pixel" in out
    pictures("e", form=deep, ending=".tiff", seed=5)
    found, _ = predicted(capsys, "run/model.xpnet", "e")
    assert found == ["cat"] * 16 + ["dog"] * 16
    pictures("plain", seed=6, count=1)
    assert "another scale" in say(capsys, "predict", "run/model.xpnet", "plain")[2]


# Data that grow


def grown(kind):
    """Own data that grew: (path, the examples before, and after)."""
    if kind == "folder":
        pictures("d")
        before: Any = find_dataset("d")
        pictures("d", start=50, count=12, seed=8)
        pictures("d", start=0, count=1, seed=8)  # in front
        return "d", before, find_dataset("d")
    x, y = points(200)
    table("t.csv", x[::2], y[::2])
    before = find_dataset("t.csv")
    order = np.random.default_rng(0).permutation(200)
    table("t.csv", x[order], y[order])
    return "t.csv", before, find_dataset("t.csv")


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_no_example_moves_from_the_training_to_the_test_part(kind):
    _, before, after = grown(kind)
    trained = {row.tobytes() for row in before.train[0]}
    assert len(trained) > 20
    assert not trained & {row.tobytes() for row in after.test[0]}
    tested = {row.tobytes() for row in before.test[0]}
    # One image was written anew; all others stay in the test part.
    assert len(tested - {row.tobytes() for row in after.test[0]}) <= 2


def test_a_resumed_run_says_what_changed(capsys):
    x, y = points(150)
    table("t.csv", x[:120], y[:120])
    train(capsys, "t.csv", epochs=3)
    recorded = tomllib.loads(Path("run/config.toml").read_text())["inputs"]
    assert (recorded["examples"], recorded["classes"], recorded["counts"]) == (120, list(NAMES), [40, 40, 40])
    code, out, _ = say(capsys, "train", "--resume", "run", "--epochs", "4")
    assert code == 0
    assert "have changed" not in out
    table("t.csv", x[:, [2, 0, 1]], y, "c,a,b,label")
    code, out, _ = say(capsys, "train", "--resume", "run", "--epochs", "5")
    assert code == 0
    assert "the data have changed: 150 examples, 120 when the run began (cat 40 -> 50, dog 40 -> 50, eel 40 -> 50)" in out
    assert model_file.read("run/model.xpnet").inputs.columns == ("a", "b", "c")  # type: ignore[union-attr]
    table("t.csv", x + 1, y)
    assert "some have other contents" in say(capsys, "train", "--resume", "run", "--epochs", "6")[1]
    table("t.csv", x, y, names=("cat", "dog", "fox"))
    code, _, err = say(capsys, "train", "--resume", "run", "--epochs", "7")
    assert code == 2
    assert "the run in run does not know the class 'fox'" in err


def test_colour_that_comes_later_does_not_change_the_shape_of_a_run(capsys):
    pictures("d", grey=True)
    train(capsys, "d", epochs=1)
    pictures("d", start=50, count=1)
    code, out, err = say(capsys, "train", "--resume", "run", "--epochs", "2")
    assert code == 0, err
    assert "2 colour images were converted to grey" in out


def test_evaluating_grown_data_leaves_out_what_was_trained_on(capsys):
    x, y = points(300)
    table("t.csv", x[:120], y[:120])
    train(capsys, "t.csv", epochs=3)
    inputs = model_file.read("run/model.xpnet").inputs
    assert inputs is not None
    table("t.csv", x, y)
    out = say(capsys, "evaluate", "run/model.xpnet")[1]
    assert "which were not trained on" in out
    new = int(re.findall(r"(\d+) examples of the training part are new", out)[0])
    assert inputs.trained_count + new + accuracy(out)[1] == 300


def test_a_run_says_what_its_validation_is(capsys):
    x, y = points(150)
    table("t.csv", x, y)
    out = train(capsys, "t.csv", epochs=1, out="a")
    assert "the validation curves are measured on the test part, which decides nothing in this run" in out
    out = train(capsys, "t.csv", "--patience", "3", epochs=2, out="b")
    assert "measured on the test part" not in out
    count, test, held = map(int, re.findall(r"(\d+) examples to train on, (\d+) to test, 3 classes; (\d+) of", out)[0])
    assert count + test + held == 150
    assert held > 3
    page = Path("a/report.html").read_text()
    assert "the test part" in page


def test_a_damaged_record_of_the_data_is_one_error(capsys):
    table("t.csv", *points(60))
    train(capsys, "t.csv", epochs=1)
    text = Path("run/config.toml").read_text()
    for wrong in (
        text.replace("shape = [3]", "shape = 3"),
        text.replace('kind = "table"', 'kind = "film"'),
        text + "\na.b.c = 1\n",
        text + "x",
    ):
        Path("run/config.toml").write_text(wrong)
        code, _, err = say(capsys, "train", "--resume", "run", "--epochs", "2")
        assert code == 2
        assert "its table [inputs] is damaged" in err
        assert err.count("\n") == 1


def test_many_columns_and_classes_in_the_record(capsys):
    x, y = points(90)
    wide = np.tile(x, (1, 100))
    table("t.csv", wide, y, ",".join(f"x.{i}.1" for i in range(300)) + ",label", names=("a.b", 'c"d', "e\\f"))
    train(capsys, "t.csv", epochs=1)
    code, _, err = say(capsys, "train", "--resume", "run", "--epochs", "2")
    assert code == 0, err
    assert say(capsys, "train", "--config", "run/config.toml", "--out", "again")[0] == 0


def test_a_class_called_inf_is_a_name():
    x, y = points(60)
    table("t.csv", x, y, names=("1", "inf", "2"))
    assert from_csv(Path("t.csv")).class_names == ("1", "2", "inf")


def test_damaged_arrays_are_one_error(capsys):
    np.savez("x.npz", x=np.zeros((9, 2)), y=np.arange(9) % 2)
    whole = Path("x.npz").read_bytes()
    rng = np.random.default_rng(0)
    said: list[str] = []
    for _ in range(200):
        damaged = bytearray(whole[: int(rng.integers(1, len(whole) + 1))])
        damaged[int(rng.integers(len(damaged)))] ^= int(rng.integers(1, 256))
        Path("y.npz").write_bytes(damaged)
        try:
            find_dataset("y.npz")
        except DataError as error:
            said.append(str(error))
    assert len(said) > 150
    assert all("y.npz" in text and len(text) < 2000 for text in said)


@pytest.mark.parametrize("mixed", [False, True])
def test_grey_images_are_told_where_all_were_in_colour(mixed, capsys):
    """As colour images are to a model of grey ones."""
    pictures("d")
    pictures("grey", grey=True, count=5)
    if mixed:
        pictures("d", grey=True, start=50, count=2)
    train(capsys, "d", epochs=1)
    said = say(capsys, "predict", "run/model.xpnet", "grey/cat/000.png")[2]
    assert ("a grey image; those of run/model.xpnet were all in colour" in said) is not mixed
    said = say(capsys, "evaluate", "run/model.xpnet", "grey")[1]
    assert ("10 images are grey; those of run/model.xpnet were all in colour" in said) is not mixed
    assert "grey" not in say(capsys, "predict", "run/model.xpnet", "d/dog/000.png")[2]
    assert "are grey" not in say(capsys, "evaluate", "run/model.xpnet")[1]
