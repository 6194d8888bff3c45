"""What newcomers type on the command line: taken where it means something, else one line that says what does."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from tests.command_line import say
from tests.test_cli_messages import wrong
from xpnet.cli import train_settings
from xpnet.cli.argument_types import UsageError
from xpnet.cli.image_folders import read_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run on iris."""
    from xpnet.cli import main

    folder = tmp_path_factory.mktemp("runs") / "iris"
    assert main(["train", "iris", "--epochs", "1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("data") / "photos"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            image.fromarray(np.full((8, 9, 3), 9 * i + (name == "b"), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_a_setting_of_an_example_is_checked(capsys):
    assert "the example spiral: seed must be a whole number, got 'x'" in wrong(capsys, "examples", "spiral", "seed=x")


def test_arguments_may_come_behind_a_flag(capsys, tmp_path, run):
    assert say(capsys, "examples", "conv_sizes", "--out", tmp_path, "seed=1")[0] == 2  # it has none
    assert "no setting seed" in wrong(capsys, "examples", "conv_sizes", "--out", tmp_path, "seed=1")
    np.save(tmp_path / "a.npy", np.ones((1, 4), np.float32))
    np.save(tmp_path / "b.npy", np.ones((1, 4), np.float32))
    code, out, _ = say(capsys, "predict", run / "model.xpnet", tmp_path / "a.npy", "--device", "cpu", tmp_path / "b.npy")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert say(capsys, "report", run, "--out", tmp_path / "both.html", run)[0] == 0
    assert "unrecognized arguments: extra" in wrong(capsys, "train", "iris", "extra")


def test_a_run_is_replaced_in_words_and_only_on_the_same_data(capsys, tmp_path):
    folder = tmp_path / "run"
    assert "is replaced" not in say(capsys, "train", "iris", "--epochs", "1", "--out", folder)[1]
    before = (folder / "model.xpnet").read_bytes()
    said = wrong(capsys, "train", "digits", "--epochs", "1", "--out", folder)
    assert "'iris', which this one would replace" in said
    assert "--out" in said
    assert f"--resume {folder}" in said
    assert (folder / "model.xpnet").read_bytes() == before
    code, out, _ = say(capsys, "train", "iris", "--epochs", "1", "--out", folder)
    assert code == 0
    assert f"{folder} holds a finished run on the same data, which is replaced" in out


def test_sizes_beyond_the_memory_are_refused_at_once(photos):
    with pytest.raises(
        UsageError, match=r"--size 100000,100000: 24 images of this size need 2,880\.0 GB, and this machine has"
    ):
        read_folder(photos, (100_000, 100_000))


def test_images_of_another_size_are_resized_in_words(capsys, tmp_path, photos):
    image = pytest.importorskip("PIL.Image")
    assert say(capsys, "train", photos, "--epochs", "1", "--model", "mlp", "--out", tmp_path / "o")[0] == 0
    model = tmp_path / "o" / "model.xpnet"
    for name in ("a", "b"):
        (tmp_path / "other" / name).mkdir(parents=True)
        image.fromarray(np.full((20, 30, 3), 9, np.uint8)).save(tmp_path / "other" / name / "0.png")
    _, _, err = say(capsys, "predict", model, tmp_path / "other" / "a" / "0.png", photos / "a" / "0.png")
    assert err.count("resized") == 1
    assert f"20 x 30 pixels, resized to 8 x 9; the images of {model} had this size" in err
    _, out, _ = say(capsys, "evaluate", model, tmp_path / "other")
    assert f"2 of 2 images were resized to 8 x 9; those of {model} had this size" in out
    assert "resized to" not in say(capsys, "evaluate", model, photos)[1]


@pytest.mark.parametrize("command", ["summary", "profile", "doctor", "evaluate"])
def test_the_folder_of_a_run_stands_for_the_model_in_it(capsys, run, command):
    more = {"profile": ["--steps", "1"], "doctor": ["iris"]}.get(command, [])
    assert say(capsys, command, run, *more)[0] in ((0, 1) if command == "doctor" else (0,))


class Own(xn.Module):
    def __init__(self) -> None:
        self.dense = xn.Dense(3)

    def forward(self, x):
        return self.dense(x)


def test_a_model_of_the_users_own_class_names_the_flag(capsys, tmp_path):
    model = Own()
    model(np.ones((1, 4), np.float32))
    model.save(tmp_path / "own.xpnet")
    for command in (["summary"], ["predict", "x.npy"], ["evaluate", "iris"]):
        said = wrong(capsys, command[0], tmp_path / "own.xpnet", *command[1:])
        assert "it needs the class Own of your own: name the file that defines it with --code FILE.py" in said
    (tmp_path / "empty.py").write_text("")
    said = wrong(capsys, "summary", tmp_path / "own.xpnet", "--code", tmp_path / "empty.py")
    assert "empty.py does not define" in said


def test_folders_of_data_that_are_not_there(capsys, tmp_path, monkeypatch):
    assert "digits is part of xpnet: omit it" in wrong(capsys, "train", "digits", "--data", tmp_path)
    assert "--data FOLDER" in wrong(capsys, "train", "mnist", "--data", tmp_path)
    monkeypatch.setenv("XPNET_DATA", str(tmp_path / "none"))
    said = wrong(capsys, "train", "mnist")
    assert "the environment variable XPNET_DATA is" in said
    assert "no folder" in said


def test_the_target_may_be_a_number_where_no_title_is(capsys, tmp_path):
    rows = [f"{i},{i % 2},{i % 7}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["x,kind,z", *rows]))
    assert say(capsys, "train", tmp_path / "t.csv", "--target", "1", "--epochs", "1", "--out", tmp_path / "o")[0] == 0
    assert "the columns" in wrong(capsys, "train", tmp_path / "t.csv", "--target", "9")
    (tmp_path / "n.csv").write_text("\n".join(["0,1,2", *(f"{i % 2},{i},{i % 7}" for i in range(60))]))
    assert say(capsys, "train", tmp_path / "n.csv", "--target", "0", "--epochs", "1", "--out", tmp_path / "n")[0] == 0


def test_switches_and_flags_get_hints(capsys, tmp_path):
    assert "a switch takes no value: --NAME turns it on, --no-NAME off" in wrong(capsys, "train", "digits", "--augment", "yes")
    assert "did you mean --version instead of --versoin?" in wrong(capsys, "--versoin")
    (tmp_path / "c.toml").write_text("epochs = true\n")
    with pytest.raises(UsageError, match="epochs: expected a whole number of at least 1, got 'true'"):
        train_settings.read_file(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text("model = true\n")
    with pytest.raises(UsageError, match="model: expected text in quotes, got true"):
        train_settings.read_file(tmp_path / "c.toml")
