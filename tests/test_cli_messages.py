"""Ten wrong things typed in a row end in ten messages; a traceback is for a bug, and says that it is one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xpnet as xn
from tests.command_line import say
from tests.test_cli_runs import COMMAND, ENVIRONMENT
from xpnet.cli import info, main, train_settings, user_data
from xpnet.cli.argument_types import UsageError
from xpnet.io import archive
from xpnet.training import Trainer


def wrong(capsys, *words) -> str:
    """Run a command that must fail; return its one line."""
    try:
        code, _, err = say(capsys, *words)
    except SystemExit as end:  # of the parser
        code, err = end.code, capsys.readouterr().err
    assert code == 2, err
    assert len(err.splitlines()) == 1
    assert len(err) < 2000
    return err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lr", "0.1"], "did you mean --learning-rate instead of --lr?"),
        (["--epoch", "3"], "did you mean --epochs instead of --epoch?"),
        (["--epochss=3"], "did you mean --epochs instead of --epochss?"),
        (["--batch_size", "3"], "did you mean --batch-size instead of --batch_size?"),
        (["--batch", "3"], "did you mean --batch-size instead of --batch?"),
        (["--early-stopping", "3"], "did you mean --patience instead of --early-stopping?"),
        (["--gpu"], "did you mean --device instead of --gpu?"),
        (["--qqq"], "unrecognized arguments: --qqq (see"),
        (["--dropout", "0.2"], "unrecognized arguments: --dropout 0.2 (see"),
        (["--see", "3"], "did you mean --seed instead of --see?"),
        (["--deviec", "cpu"], "did you mean --device instead of --deviec?"),
        (["-epochs", "3"], "did you mean --epochs instead of -epochs?"),
    ],
)
def test_a_mistyped_flag_gets_a_hint(capsys, words, says):
    assert says in wrong(capsys, "train", "iris", *words)


def test_a_mistyped_command_gets_a_hint(capsys):
    assert "did you mean train?" in wrong(capsys, "tarin", "iris")


def test_a_mistyped_folder_names_what_is_there(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "runs", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "flowers.csv").write_text("a,b\n1,2\n")
    said = wrong(capsys, "train", "photso")
    assert 'did you mean "photos"?' in said
    assert "here are photos/, runs/, flowers.csv" in said
    assert "a folder of images" in said
    assert "CSV file" in said
    assert 'did you mean "digits"?' in wrong(capsys, "doctor", "mlp", "digts")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["iris", "--size", "8,8"], "--size is for folders of images, and iris is a published data set: omit it"),
        (["{csv}", "--size", "8,8"], "--size is for folders of images"),
        (["digits", "--target", "a"], "--target is for tables"),
        (["{csv}", "--data", "{folder}"], "--data is for published data sets"),
        (["iris", "--skip-bad"], "--skip-bad is for folders of images"),
        (["{folder}", "--target", "a"], "is a folder of images: omit it"),
    ],
)
def test_settings_that_mean_nothing_are_refused(capsys, tmp_path, words, says):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    filled = [w.format(csv=tmp_path / "t.csv", folder=tmp_path) for w in words]
    assert says in wrong(capsys, "train", *filled)
    assert says in wrong(capsys, "doctor", "mlp", *filled)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["predict", "m.xpnet", "x.png", "--out", "p.json"], "a .csv or .txt file, which is what will be written"),
        (["report", "run", "--out", "page.PDF"], "a .html or .htm file"),
        (["profile", "cnn", "--input", "8,8,1", "--trace", "trace.csv"], "a .json file"),
    ],
)
def test_a_file_gets_no_name_of_another_format(capsys, words, says):
    assert says in wrong(capsys, *words)


@pytest.mark.parametrize("name", ["-", "table", "table.v2", "Table.CSV", "a.json/table.txt"])
def test_other_names_of_files_are_taken(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("a.json").mkdir()
    assert "m.xpnet: No such file" in wrong(capsys, "predict", "m.xpnet", "x.png", "--out", name)


def fail(error):
    def run(*_, **__):
        raise error

    return run


def test_a_bug_says_that_it_is_one(capsys, monkeypatch):
    def bug(args):
        return np.zeros(3) + np.zeros(4)

    monkeypatch.setattr(info, "info", bug)
    code, _, err = say(capsys, "info")
    assert code == 70
    assert "Traceback" in err
    assert "this is a bug in xpnet" in err.splitlines()[-1]
    assert "ValueError" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("Unable to allocate 447. GiB"), "out of memory (Unable to allocate 447. GiB)"),
        (ImportError("this needs pillow: pip install pillow"), "pip install pillow"),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
        (UsageError("y" * 10_000), "characters ..."),
    ],
)
def test_errors_of_the_machine_are_one_line(capsys, monkeypatch, error, says):
    monkeypatch.setattr(user_data, "find_dataset", fail(error))
    assert says in wrong(capsys, "train", "iris", "--out", os.devnull)


def test_an_error_that_xpnet_raises_for_wrong_input_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(Trainer, "fit", lambda self, *_, **__: xn.optim.Adam(-1.0))
    assert "-1" in wrong(capsys, "train", "iris", "--out", tmp_path / "o")


def test_an_error_in_the_users_network_names_their_file(capsys, tmp_path):
    (tmp_path / "nets.py").write_text(
        "import xpnet as xn\n"
        "class Net(xn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.last = xn.Dense(classes)\n"
        "    def forward(self, x):\n"
        "        return self.last(x) + undefined\n"
        "def make(classes):\n"
        "    return Net(classes)\n"
    )
    said = wrong(capsys, "train", "iris", "--model", f"{tmp_path / 'nets.py'}:make", "--out", tmp_path / "o")
    assert "nets.py: line 7: NameError" in said
    assert "bug" not in said


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are text here")
def test_names_that_the_terminal_cannot_show_do_not_end_a_command(tmp_path):
    model = xn.Sequential([xn.Dense(2)], input_shape=(3,), seed=1)
    model.save(tmp_path / "m.xpnet", class_names=["k\N{LATIN SMALL LETTER A WITH DIAERESIS}tze", "dog"])
    rows = os.fsencode(tmp_path) + b"/r\xfcben.csv"
    with open(rows, "w") as file:
        file.write("a,b,c\n1,2,3\n")
    words: list[str | bytes] = [*COMMAND, "predict", str(tmp_path / "m.xpnet"), rows]
    done = subprocess.run(words, capture_output=True, env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert b"ben.csv" in done.stdout
    done = subprocess.run([*words, "--out", str(tmp_path / "o.csv")], capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert rows in (tmp_path / "o.csv").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "seed = " + "[" * 100_000,
        "seed = " + "9" * 5000,
        "seed = " + "9" * 30,
        ".".join("a" * 100_000) + " = 1",
        'a = "' + "x" * 100_000 + '"',
        "x" * 3000 + " = 1",
        "seed = 1" * 2,
        "\udcff = 1",
        "seed = inf",
        "size = [[1]]",
        "dataset = 3",
    ],
)
def test_configurations_that_are_damaged_or_hostile_are_one_short_error(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=r"c\.toml") as error:
        train_settings.read_file(path)
    assert len(str(error.value)) < 2000


def test_a_resumed_run_whose_configuration_is_empty_says_so(tmp_path, capsys):
    (tmp_path / "config.toml").write_text("")
    assert "it holds no dataset" in wrong(capsys, "train", "--resume", tmp_path)


def test_a_run_whose_checkpoints_are_all_damaged_says_so(tmp_path, capsys):
    assert say(capsys, "train", "iris", "--epochs", "2", "--out", tmp_path)[0] == 0
    for file in (tmp_path / "checkpoints").iterdir():
        os.truncate(file, 500)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = wrong(capsys, "train", "--resume", tmp_path, "--epochs", "3")
    assert "no usable checkpoint" in said
    assert said.count("step-") == 2  # each is named once
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_not_predicted(tmp_path, capsys, value):
    xn.Sequential([xn.Dense(2)], input_shape=(3,), seed=1).save(tmp_path / "m.xpnet")
    x = np.ones((4, 3))
    x[2, 1] = value
    np.save(tmp_path / "x.npy", x)
    said = wrong(capsys, "predict", tmp_path / "m.xpnet", tmp_path / "x.npy")
    assert "x.npy: example 3 holds a number that is not finite" in said


def spoiled(path, name, value):
    """Write the model in a file again, with a value in one of its arrays, or in all whose names end so."""
    document, arrays = archive.read(path)
    names = [n for n in arrays if n.endswith(name)]
    assert names
    for n in names:
        arrays[n] = arrays[n].copy()
        arrays[n].reshape(-1)[-1] = value
    archive.write(path, document, arrays)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("kernel", np.nan, "holds NaN or infinity, so that it cannot predict anything; train the model again"),
        ("bias", np.nan, "holds NaN or infinity"),
        ("preprocessing/mean", np.nan, "mean of the inputs holds NaN or infinity"),
        ("preprocessing/std", np.inf, "std of the inputs holds NaN or infinity"),
        ("0.kernel", np.inf, "gives outputs that are not finite: the parameter"),
        ("bias", np.inf, "gives outputs that are not finite: the parameter"),
        ("kernel", 3e38, "gives outputs that are not finite: the first layer whose output is not finite is"),
        ("bias", -np.inf, ""),
        ("bias", 3e38, ""),
    ],
)
def test_models_that_are_not_finite_predict_nothing(command, name, value, says, tmp_path, capsys):
    assert say(capsys, "train", "iris", "--epochs", "1", "--out", tmp_path / "run")[0] == 0
    spoiled(tmp_path / "run" / "model.xpnet", name, value)
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    words = [tmp_path / "x.npy"] if command == "predict" else []
    if says:
        assert says in wrong(capsys, command, tmp_path / "run", *words)
    elif command == "predict":  # a class that cannot be
        assert "nan" not in "".join(map(str, say(capsys, command, tmp_path / "run", *words)))


def test_output_that_is_no_text_stream_is_left_alone(monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    assert main(["info"]) == 0
    assert "xpnet" in output.getvalue()


def test_a_model_that_is_no_file_says_what_was_expected(capsys, tmp_path):
    assert "expected a model file" in wrong(capsys, "predict", tmp_path / "m.xpnet", "x.npy")
    assert "is a folder; expected a model file, as" in wrong(capsys, "evaluate", tmp_path, "iris")
    xn.Sequential([xn.Dense(2)], input_shape=(3,), seed=1).save(tmp_path / "m.xpnet")
    assert f"such as the one in it, {tmp_path / 'm.xpnet'}" in wrong(capsys, "evaluate", tmp_path, "iris")
    assert "did you mean cnn?" in wrong(capsys, "train", "iris", "--model", "cnnn")
