"""Runs from the command line: configuration files, resuming, user data, reports, doctor, profile."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.command_line import say
from xpnet.cli import main, train_settings, user_data
from xpnet.data import DataError
from xpnet.report import read_record
from xpnet.training import Checkpoint

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMAND = [sys.executable, "-c", "import sys, xpnet.cli; sys.exit(xpnet.cli.main())"]


def found_in(pattern: str, text: str) -> re.Match[str]:
    """Return the first match, which there must be."""
    match = re.search(pattern, text)
    assert match is not None, text
    return match


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "iris"
    assert main(["train", "iris", "--epochs", "4", "--out", str(folder)]) == 0
    return folder


def weights(folder):
    return {name: xn.to_numpy(a).tobytes() for name, a in xn.load(folder / "model.xpnet").state().items()}


# Configuration


def test_the_effective_configuration_makes_the_same_run_again(trained, tmp_path, capsys):
    saved = tomllib.loads((trained / "config.toml").read_text())
    assert saved["dataset"] == "iris"
    assert saved["model"] == "mlp"
    assert saved["epochs"] == 4
    assert {"batch_size", "learning_rate", "schedule", "weight_decay", "augment", "seed", "device"} <= set(saved)
    assert say(capsys, "train", "--config", trained / "config.toml", "--out", tmp_path / "again")[0] == 0
    assert weights(tmp_path / "again") == weights(trained)
    assert (tmp_path / "again" / "config.toml").read_text() == (trained / "config.toml").read_text()


def test_flags_override_the_file(tmp_path, capsys):
    (tmp_path / "run.toml").write_text('dataset = "iris"\nepochs = 9\nlearning-rate = 0.01\nseed = 5\nclip = 1\n')
    code, out, _ = say(capsys, "train", "--config", tmp_path / "run.toml", "--epochs", "2", "--out", tmp_path / "o")
    assert code == 0
    assert "2 epochs" in out
    saved = tomllib.loads((tmp_path / "o" / "config.toml").read_text())
    assert (saved["epochs"], saved["learning_rate"], saved["seed"], saved["clip"]) == (2, 0.01, 5, 1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epochs = ", "not TOML"),
        ("epoch = 3", "unknown setting 'epoch'; did you mean 'epochs'?"),
        ("epochs = 0", "epochs: expected a whole number of at least 1, got '0'"),
        ("augment = 1", "augment: expected true or false, got 1"),
        ("epochs = true", "epochs: expected a whole number of at least 1, got 'true'"),
        ('schedule = "linear"', "schedule: expected cosine or constant, got 'linear'"),
        ("average = 1.5", "average: expected a number from 0 to below 1"),
        ("dataset = 3", "dataset: expected text, got 3"),
        ("weight_decay = -1.0", "weight_decay: expected a number of at least 0"),
        ("[train]\nepochs = 3", "unknown setting 'train'"),
    ],
)
def test_files_that_cannot_be_used(text, says, tmp_path, capsys):
    (tmp_path / "run.toml").write_text(text)
    code, out, err = say(capsys, "train", "iris", "--config", tmp_path / "run.toml", "--out", tmp_path / "o")
    assert code == 2
    assert says in err
    assert "run.toml" in err
    assert err.count("\n") == 1
    assert out == ""


def test_toml_is_written_as_it_is_read():
    values = {"dataset": 'a "b" \\ \u00fc\n', "epochs": 3, "learning_rate": 1e-05, "augment": True, "size": (4, 5)}
    assert tomllib.loads(train_settings.to_toml({**values, "clip": None})) == {**values, "size": [4, 5]}


def test_every_setting_is_a_flag_and_is_used():
    source = "".join((ROOT / "xpnet" / "cli" / name).read_text() for name in ("train.py",))
    for setting in train_settings.SETTINGS:
        assert f'"{setting.name}"' in source, f"nobody reads the setting {setting.name}"


# Resuming


def test_a_finished_run_is_resumed_with_more_epochs(tmp_path, capsys):
    folder = tmp_path / "o"
    say(capsys, "train", "iris", "--epochs", "2", "--schedule", "constant", "--out", folder)
    code, _, err = say(capsys, "train", "--resume", folder, "--epochs", "4")
    assert code == 0
    assert [line.split()[1] for line in err.splitlines()] == ["3/4", "4/4"]
    say(capsys, "train", "iris", "--epochs", "4", "--schedule", "constant", "--out", tmp_path / "whole")
    assert weights(folder) == weights(tmp_path / "whole")
    assert (folder / "history.csv").read_text() == (tmp_path / "whole" / "history.csv").read_text()
    assert len(read_record(folder)["learning_rate"]) == 4


def test_a_killed_run_is_resumed_to_the_same_bits(tmp_path, capsys):
    """SIGKILL between two checkpoints; then --resume with nothing else."""
    folder = tmp_path / "o"
    words = ["train", "digits", "--model", "mlp", "--epochs", "6", "--average", "0.9", "--out", str(folder)]
    process = subprocess.Popen(COMMAND + words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
    try:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("epoch 3/6"):
            assert process.poll() is None
        time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    assert not (folder / "model.xpnet").exists()
    code, out, err = say(capsys, "train", *words[1:])
    assert code == 2  # it is not overwritten by mistake
    assert f"xpnet train --resume {folder}" in err
    code, out, _ = say(capsys, "train", "--resume", folder)
    assert code == 0
    assert "test accuracy" in out
    say(capsys, "train", *words[1:-1], tmp_path / "whole")
    assert weights(folder) == weights(tmp_path / "whole")
    assert (folder / "history.csv").read_text() == (tmp_path / "whole" / "history.csv").read_text()


def test_ctrl_c_says_how_to_resume(tmp_path, capsys):
    folder = tmp_path / "my runs" / "o"
    words = ["train", "digits", "--model", "mlp", "--epochs", "100000", "--schedule", "constant", "--out", str(folder)]
    process = subprocess.Popen(COMMAND + words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert "Traceback" not in stderr
    line = next(line for line in stdout.splitlines() if line.startswith("to resume: "))
    assert line == f"to resume: xpnet train --resume '{folder}'"
    assert read_record(folder)["state"] == "interrupted"
    done = int(found_in(r"in epoch (\d+)", stdout)[1])
    code, _, err = say(capsys, "train", "--resume", folder, "--epochs", done + 1)
    assert code == 0
    assert err.splitlines()[0].startswith(f"epoch {done}/{done + 1}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--resume", "{folder}/nothing"], "no run there; expected a folder with config.toml"),
        (["--resume", "{run}", "--seed", "7"], "--seed 7 is not what the run"),
        (["digits", "--resume", "{run}"], "the data set digits is not what the run"),
        (["--resume", "{run}", "--out", "{folder}"], "a run is resumed in its own folder"),
        (["--resume", "{run}", "--clip", "1"], "--clip 1.0 is not what the run"),
    ],
)
def test_runs_that_cannot_be_resumed(words, says, trained, tmp_path, capsys):
    code, _, err = say(capsys, "train", *[w.format(folder=tmp_path, run=trained) for w in words])
    assert code == 2
    assert says in err


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


@pytest.fixture
def stopped(tmp_path):
    """A run that was stopped after its fourth epoch of 300."""
    folder = tmp_path / "stopped"
    assert main(["train", "iris", "--epochs", "4", "--out", str(folder)]) == 0
    config, record = folder / "config.toml", folder / "run.json"
    config.write_text(config.read_text().replace("epochs = 4", "epochs = 300"))
    record.write_text(record.read_text().replace('"state": "finished"', '"state": "interrupted"'))
    return folder


@pytest.mark.parametrize("way", ["flag", "file"])
def test_a_run_is_not_resumed_to_an_epoch_that_lies_behind_it(way, stopped, tmp_path, capsys):
    before = contents(stopped)
    (tmp_path / "c.toml").write_text("epochs = 3")
    words = ["--epochs", "3"] if way == "flag" else ["--config", tmp_path / "c.toml"]
    code, out, err = say(capsys, "train", "--resume", stopped, *words)
    assert (code, out) == (2, "")
    assert f"the run in {stopped} is already at epoch 4 of 300; give more, or leave --epochs out" in err
    assert contents(stopped) == before
    code, out, err = say(capsys, "train", "--resume", stopped, "--epochs", "5")
    assert (code, err.splitlines()[0][:9]) == (0, "epoch 5/5")


def test_the_model_of_a_killed_run_is_written_as_it_was_at_its_end(stopped, capsys):
    """The epoch that was reached may be given: nothing is trained, and the model is that of the checkpoint."""
    model = (stopped / "model.xpnet").read_bytes()
    (stopped / "model.xpnet").unlink()
    assert say(capsys, "train", "--resume", stopped, "--epochs", "4")[0] == 0
    assert (stopped / "model.xpnet").read_bytes() == model


def test_a_run_without_its_checkpoints(stopped, trained, tmp_path, capsys):
    """One that has finished is refused and left as it is; another one says that it begins anew."""
    shutil.copytree(trained, tmp_path / "finished")
    for folder in (stopped, tmp_path / "finished"):
        for path in (folder / "checkpoints").iterdir():
            path.unlink()
    before = contents(tmp_path / "finished")
    code, out, err = say(capsys, "train", "--resume", tmp_path / "finished", "--epochs", "9")
    assert (code, out) == (2, "")
    assert "the run has finished, and there are no checkpoints in" in err
    assert contents(tmp_path / "finished") == before
    shutil.rmtree(stopped / "checkpoints")
    code, out, _ = say(capsys, "train", "--resume", stopped, "--epochs", "2")
    assert code == 0
    assert f"the run begins anew, and replaces {stopped / 'model.xpnet'}" in out


def test_a_finished_run_may_be_replaced(tmp_path, capsys):
    say(capsys, "train", "iris", "--epochs", "3", "--out", tmp_path)
    assert say(capsys, "train", "iris", "--epochs", "1", "--seed", "4", "--out", tmp_path)[0] == 0
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_early_stopping_holds_out_validation_data(tmp_path, capsys):
    code, out, err = say(
        capsys, "train", "iris", "--epochs", "60", "--patience", "1", "--learning-rate", "0.2", "--out", tmp_path / "o"
    )
    assert code == 0
    assert "108 examples to train on" in out
    assert "12 of the training part are held out for validation" in out
    assert len(err.splitlines()) < 60
    assert read_record(tmp_path / "o")["predictions"]["examples"] == 12


def test_settings_reach_the_training(tmp_path, capsys, monkeypatch):
    seen: dict[Any, Any] = {}
    real = xn.Trainer.fit

    def fit(self, data, **keywords):
        seen.update(trainer=self, batches=data)
        return real(self, data, **keywords)

    monkeypatch.setattr(xn.Trainer, "fit", fit)
    flags = (
        "--epochs 1 --clip 2 --average 0.5 --accumulate 3 --batch-size 7 --keep 5 --checkpoint-minutes 3 --balance --workers 1"
    )
    assert say(capsys, "train", "digits", "--model", "mlp", "--no-augment", *flags.split(), "--out", tmp_path / "o")[0] == 0
    trainer, batches = seen["trainer"], seen["batches"]
    found = {type(c).__name__: c for c in trainer.callbacks}
    assert found["ClipGradients"].norm == 2
    assert found["ExponentialMovingAverage"].decay == 0.5
    assert isinstance(found["Checkpoint"], Checkpoint)
    assert (found["Checkpoint"].keep, found["Checkpoint"].every_minutes) == (5, 3.0)
    assert trainer.accumulate == 3
    assert (batches.batch_size, batches.workers) == (7, 1)
    assert batches._weights is not None
    assert list(found)[-1] == "RunReport"


# The user's own data


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for k, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 100, size=(10, 12, 3), dtype=np.uint8)
            pixels[..., 2 - k] += 120
            image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    return folder


def test_a_folder_of_images(photos, tmp_path, capsys):
    code, out, _ = say(capsys, "train", photos, "--epochs", "8", "--size", "8,8", "--out", tmp_path / "o")
    assert code == 0
    count, test = map(int, found_in(r"(\d+) images to train on, (\d+) to test, 3 classes", out).groups())
    assert count + test == 60
    assert 6 <= test <= 20  # a fifth, by the hash of each name
    assert re.search(r"test accuracy 100\.00 %", out)
    model = tmp_path / "o" / "model.xpnet"
    assert f"test accuracy 100.00 % ({test} of {test})" in say(capsys, "evaluate", model)[1]
    # Predictions for the whole folder, as a table.
    code, out, _ = say(capsys, "predict", model, photos, "--out", tmp_path / "predictions.csv")
    assert code == 0
    assert "60 predictions in" in out
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert list(rows[0]) == ["example", "class", "probability", "blue", "green", "red"]
    assert len(rows) == 60
    for row in rows:
        assert Path(row["example"]).parent.name == row["class"]
        shares = [float(row[name]) for name in ("blue", "green", "red")]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert float(row["probability"]) == max(shares)
    printed = say(capsys, "predict", model, photos / "red" / "00.png", "--out", "-")[1]
    assert printed.splitlines()[1].startswith(f"{photos / 'red' / '00.png'},red,")


def test_images_that_cannot_be_read_end_the_run_or_are_left_out(photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    whole = (folder / "blue" / "00.png").read_bytes()
    (folder / "blue" / "00.png").write_bytes(whole[:60])  # the first one, which determines the size of all
    (folder / "red" / "19.png").write_text("no image")
    (folder / "red" / "notes.txt").write_text("is passed over")
    code, _, err = say(capsys, "train", folder, "--epochs", "1", "--out", tmp_path / "a")
    assert code == 2
    assert f"{folder / 'blue' / '00.png'}: not a readable image" in err
    with pytest.warns(RuntimeWarning, match="left out") as seen:
        code, out, _ = say(capsys, "train", folder, "--epochs", "1", "--skip-bad", "--out", tmp_path / "b")
    assert code == 0
    assert [str(w.message).split(": ")[0] for w in seen] == [
        f"left out {folder / name}" for name in ("blue/00.png", "red/19.png")
    ]
    count, test = map(int, found_in(r"(\d+) images to train on, (\d+) to test", out).groups())
    assert count + test == 58
    assert "left out 1 file: 1 no image (.txt)" in out
    model = tmp_path / "b" / "model.xpnet"
    assert say(capsys, "evaluate", model)[0] == 2
    assert say(capsys, "predict", model, folder)[0] == 2
    with pytest.warns(RuntimeWarning, match="left out"):
        assert f"of {test})" in say(capsys, "evaluate", model, "--skip-bad")[1]
    with pytest.warns(RuntimeWarning, match="left out"):
        assert "58 predictions" in say(capsys, "predict", model, folder, "--skip-bad", "--out", tmp_path / "p.csv")[1]
    with pytest.warns(RuntimeWarning, match="left out"):
        assert say(capsys, "predict", model, folder / "red" / "19.png", "--skip-bad")[0] == 2


def test_a_class_without_images_is_an_error(photos, tmp_path, capsys):
    """Otherwise the network would have an output for it."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "drafts").mkdir()
    code, _, err = say(capsys, "train", folder, "--epochs", "1", "--out", tmp_path / "a")
    assert code == 2
    assert "drafts" in err
    assert "hold no images" in err


def test_warnings_are_lines_without_code(tmp_path):
    """A truncated newest checkpoint is passed over, and one line says so."""
    folder = tmp_path / "run"
    words = ["train", "iris", "--epochs", "2", "--out", str(folder)]
    subprocess.run([*COMMAND, *words], check=True, capture_output=True, env=ENVIRONMENT)
    newest = max((folder / "checkpoints").glob("step-*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:500])
    done = subprocess.run(
        [*COMMAND, "train", "--resume", str(folder), "--epochs", "3"],
        check=True,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert f"xpnet train: passed over a checkpoint: {newest}: truncated" in done.stderr
    assert "RuntimeWarning" not in done.stderr
    assert "history = " not in done.stderr


def test_a_folder_with_train_and_test(photos, tmp_path):
    for part, numbers in (("train", range(15)), ("test", range(15, 20))):
        for name in ("blue", "red"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in numbers:
                (tmp_path / part / name / f"{i}.png").write_bytes((photos / name / f"{i:02d}.png").read_bytes())
    dataset = user_data.find_dataset(str(tmp_path))
    assert (len(dataset.train[1]), len(dataset.test[1])) == (30, 10)
    assert dataset.class_names == ("blue", "red")
    assert dataset.input_shape == (10, 12, 3)
    np.testing.assert_allclose(dataset.mean, dataset.train[0].mean(axis=(0, 1, 2), dtype=np.float64), rtol=1e-6)


def test_images_of_several_sizes_need_a_size(photos, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, side in (("a", 8), ("b", 9)):
        (tmp_path / name).mkdir()
        for i in range(5):
            image.fromarray(np.full((side, side), 30 * i, np.uint8)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(DataError, match=r"b/0\.png is 9 x 9 pixels.*give --size"):
        user_data.find_dataset(str(tmp_path))
    assert user_data.find_dataset(str(tmp_path), size=(8, 8)).input_shape == (8, 8, 1)  # grey


def flowers(path, *, titles=True):
    dataset = xn.data.load("iris")
    x, y = (np.concatenate([a, b]) for a, b in zip(dataset.train, dataset.test))
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        if titles:
            table.writerow(["a", "species", "b", "c", "d"])
        for row, label in zip(x, y):
            table.writerow([row[0], dataset.class_names[label], *row[1:]])
    return path


def test_a_csv_file(tmp_path, capsys):
    path = flowers(tmp_path / "flowers.csv")
    code, out, _ = say(capsys, "train", path, "--target", "species", "--out", tmp_path / "o")
    assert code == 0
    right, total = map(int, found_in(r"\((\d+) of (\d+)\)", out).groups())
    assert 20 <= total <= 40  # a fifth of 150, by the hash of each row
    assert right >= 0.86 * total
    assert f"({right} of {total})" in say(capsys, "evaluate", tmp_path / "o" / "model.xpnet")[1]
    rows = tmp_path / "new.csv"
    rows.write_text("a,b,c,d\n0.51,0.35,0.14,0.02\n0.65,0.30,0.58,0.22\n")
    said = say(capsys, "predict", tmp_path / "o" / "model.xpnet", rows)[1].splitlines()
    assert [line.split("  ")[1] for line in said] == ["setosa", "virginica"]
    assert said[1].startswith(f"{rows}[1]")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no rows"),
        ("a,b\n", "holds titles and no rows"),
        ("1,2,x\n3,y\n", "line 2 has 2 columns, expected 3"),
        ("1,2,x\n3,oops,y\n", "expected numbers, got 'oops'"),
        ("1,2,x\n3,inf,y\n", "line 2, column 1 holds a number that is not finite"),
        ("1,x\n2,x\n", "holds 'x' only"),
        ("".join(f"1,{i}.5\n" for i in range(50)), "holds 50 values in 50 rows; are these classes?"),
    ],
)
def test_csv_files_that_cannot_be_used(text, says, tmp_path, capsys):
    (tmp_path / "f.csv").write_text(text)
    code, _, err = say(capsys, "train", tmp_path / "f.csv", "--out", tmp_path / "o")
    assert code == 2
    assert says in err
    assert "f.csv" in err


def test_predictions_of_files_that_do_not_fit(trained, tmp_path, capsys):
    (tmp_path / "f.csv").write_text("1,2\n")
    (tmp_path / "empty").mkdir()
    assert "has 2 columns, the model takes 4 numbers" in say(capsys, "predict", trained / "model.xpnet", tmp_path / "f.csv")[2]
    assert "a folder without images" in say(capsys, "predict", trained / "model.xpnet", tmp_path / "empty")[2]


# Inspection


def test_report_of_one_and_of_several(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (trained / "report.html").read_text()
    (trained / "report.html").unlink()
    code, out, _ = say(capsys, "report", trained)
    assert code == 0
    assert out.strip() == str(trained / "report.html")
    assert (trained / "report.html").read_text() == page
    say(capsys, "train", "iris", "--epochs", "2", "--seed", "9", "--out", "other")
    code, out, _ = say(capsys, "report", trained, "other")
    assert code == 0
    text = Path("comparison.html").read_text()
    assert "2 runs side by side" in text
    assert say(capsys, "report", "nowhere")[0] == 2


def test_the_record_of_a_run_holds_its_settings(trained):
    record = read_record(trained)
    assert record["configuration"]["dataset"] == "iris"
    assert record["configuration"]["learning_rate"] == 0.02
    assert record["environment"]["device"] == "cpu"
    assert record["classes"] == ["setosa", "versicolor", "virginica"]
    assert record["state"] == "finished"


def test_the_doctor_of_a_sound_network(capsys):
    code, out, _ = say(capsys, "doctor", "mlp", "iris")
    assert code == 0
    assert "nothing looks wrong" in out
    assert re.search(r"suggested initial learning rate for AdamW: [\d.e-]+", out)
    assert "overfitting one batch" in out


def test_the_doctor_of_a_trained_network(trained, capsys):
    code, out, _ = say(capsys, "doctor", trained / "model.xpnet", "iris")
    assert code == 0
    assert "overfitting one batch" not in out


def test_the_doctor_finds_what_is_wrong(tmp_path, capsys):
    (tmp_path / "nets.py").write_text(
        "import xpnet as xn\n"
        "def deep(input_shape, classes):\n"
        "    return xn.Sequential([xn.Flatten(), *[xn.Dense(20, 'sigmoid') for _ in range(12)], xn.Dense(classes)],\n"
        "                         input_shape=input_shape)\n"
    )
    code, out, _ = say(capsys, "doctor", f"{tmp_path}/nets.py:deep", "digits")
    assert code == 1
    assert "vanishing" in out
    assert "could not overfit one batch" in " ".join(out.split())
    assert "batch normalisation" in " ".join(out.split())  # what to do


def test_the_doctor_finds_layers_that_the_model_does_not_know(tmp_path, capsys):
    (tmp_path / "nets.py").write_text(
        "import xpnet as xn\n"
        "class Lost(xn.Module):\n"
        "    def __init__(self, classes):\n"
        "        layer = xn.Dense(classes)\n"
        "        self.run = lambda x: layer(x)\n"
        "    def forward(self, x):\n"
        "        return self.run(x)\n"
        "def net(classes):\n"
        "    return Lost(classes)\n"
    )
    code, out, _ = say(capsys, "doctor", f"{tmp_path}/nets.py:net", "iris")
    assert code == 1
    said = " ".join(out.split())
    assert said.count("*") == 1
    assert "Lost: forward uses Parameters that are not the model's" in said


def test_profile(trained, tmp_path, capsys):
    code, out, _ = say(capsys, "profile", trained / "model.xpnet", "--steps", "2", "--trace", tmp_path / "t.json")
    assert code == 0
    assert "one forward and backward pass on cpu" in out
    assert len(re.findall(r"\(Dense\)", out)) == 3
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert say(capsys, "profile", "cnn", "--input", "12,12,1", "--steps", "1", "--batch-size", "2")[0] == 0
    assert "add --input" in say(capsys, "profile", "cnn")[2]


def test_bench(capsys, monkeypatch):
    from xpnet.cli import bench

    monkeypatch.setattr(bench, "CASES", bench.CASES[:1])
    monkeypatch.setattr(bench, "_products", lambda device, seconds: 1e9)
    code, out, _ = say(capsys, "bench", "--seconds", "1")
    assert code == 0
    batch, step, train = found_in(r"mlp on .*?  +(\d+) +([\d.]+) +([\d,]+) +[\d,]+", out).groups()
    assert float(train.replace(",", "")) == pytest.approx(int(batch) / float(step) * 1e3, rel=0.02)


def test_products_are_computed():
    from xpnet.backend import CPU
    from xpnet.cli import bench

    assert bench._products(CPU, 0, n=64) > 1e6
