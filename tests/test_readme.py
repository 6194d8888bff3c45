import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpnet as xn
import xpnet.cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def test_the_example_runs_as_printed(tmp_path):
    example, alone = blocks(README, "python")
    assert len(example.splitlines()) == 15
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "error"}
    script = f"{example}\n{alone}\nassert type(y) is np.ndarray and y.shape == (2, 14, 14, 8)\n"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    accuracy = re.search(r"epoch 5/5.*val_accuracy ([\d.]+)", done.stderr)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.9
    assert xn.load(tmp_path / "digits.xpnet").count_parameters() == 32 * 10 + 512 * 10 + 10


def test_the_loop_without_trainer_makes_the_same_weights(capsys):
    setup, loop = blocks((ROOT / "docs/training_loop.md").read_text(), "python")
    assert len(loop.splitlines()) == 10
    names: dict[str, Any] = {}
    exec(setup, names)
    loop = loop.replace("range(5)", "range(2)")
    exec(loop, names)
    assert capsys.readouterr().out.startswith("epoch 1  loss")
    x, y = names["x"], names["y"]
    model = xn.Sequential(
        [xn.Conv2D(32, 3, padding="same", activation="relu"), xn.MaxPool2D(2), xn.Flatten(), xn.Dense(10)],
        input_shape=(8, 8, 1),
    )
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.003))
    trainer.fit((x, y), epochs=2, batch_size=32, verbose=False)
    for name, array in model.state().items():
        np.testing.assert_array_equal(array, names["model"].state()[name])


def test_a_loop_that_adds_the_penalty_makes_the_weights_of_the_trainer():
    page = (ROOT / "docs/training_loop.md").read_text()
    _, loop = blocks(page, "python")
    found = re.search(r"write `(loss = loss \+ .*?)` before `loss.backward\(\)`", page)
    assert found is not None
    x, y = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32), np.arange(64) % 3

    def model() -> xn.Sequential:
        first = xn.Dense(8, "relu", kernel_regularizer=xn.regularizers.L2(1.0))
        return xn.Sequential([first, xn.Dense(3, bias_regularizer=xn.regularizers.L1(0.1))], input_shape=(6,))

    names: dict[str, Any] = {"xn": xn, "x": x, "y": y, "model": model()}
    exec(loop.replace("        loss.backward()", f"        {found[1]}\n        loss.backward()"), names)
    without: dict[str, Any] = {"xn": xn, "x": x, "y": y, "model": model()}
    exec(loop, without)
    trained = model()
    trainer = xn.Trainer(trained, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.003))
    trainer.fit((x, y), epochs=5, batch_size=32, verbose=False)
    for name, array in trained.state().items():
        np.testing.assert_array_equal(array, names["model"].state()[name])
    assert (trained[0].kernel.array != without["model"][0].kernel.array).any()


def test_there_are_exactly_two_commands_to_set_up():
    commands = [line for block in blocks(README, "sh") for line in block.splitlines()]
    assert len(commands) == 2
    assert all(line.startswith("python3 -m venv .venv && ") for line in commands)
    assert commands[0].endswith("xpnet train digits")
    assert commands[1].endswith("python -m pytest")
    # .ci/run takes the second one from the README.
    assert re.findall(r"^python3 -m venv .* pytest$", README, re.M) == [commands[1]]


def test_what_it_points_to_exists():
    for text, folder in ((README, ROOT), ((ROOT / "docs/training_loop.md").read_text(), ROOT / "docs")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (folder / target).exists(), target


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "predict", "report", "doctor", "profile", "summary", "examples", "bench", "info"]
)
def test_its_commands_are_those_that_there_are(command, capsys):
    assert f"`xpnet {command}" in README
    with pytest.raises(SystemExit) as exit_:
        xn.cli.main([command, "--help"])
    assert exit_.value.code == 0


def test_the_page_on_training_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/training.md").read_text()
    names: dict[str, Any] = {}
    with xn.deterministic(False):  # the page switches it on, and afterwards it is what it was
        for block in blocks(text, "python"):
            exec(block.replace("epochs=20", "epochs=2, verbose=False"), names)
        assert xn.get_deterministic()
    assert names["history"].epochs == 2
    longest = names["Longest"]()
    trainer = names["make"]()
    trainer.callbacks = [longest]
    trainer.fit(names["training"], epochs=1, verbose=False)
    assert longest.state()["length"] > 0
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"best.ckpt"}
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
    callbacks = re.findall(r"`([A-Z]\w+)`", text.split("## Callbacks")[1].split("\n\n")[1])
    for name in callbacks:
        assert hasattr(xn.training, name) or name == "RunReport", name
