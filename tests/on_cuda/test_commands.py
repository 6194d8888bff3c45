"""The command line on a device: train, resume, evaluate, predict and the rest, as on the CPU."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import xpnet as xn
from xpnet import examples
from xpnet.cli import main
from xpnet.data import load
from xpnet.report import read_record

pytestmark = pytest.mark.cuda

NETWORK = '''
import xpnet as xn

def small(input_shape, classes, seed, device):
    """A convolutional network that is small enough for a device in software."""
    layers = [
        xn.Conv2D(6, 3, padding="same", activation="relu"), xn.MaxPool2D(2), xn.BatchNorm(), xn.Flatten(), xn.Dropout(0.1),
        xn.Dense(classes),
    ]
    return xn.Sequential(layers, input_shape=input_shape, device=device, seed=seed)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the network's code, and a run of two epochs on each device."""
    place = tmp_path_factory.mktemp("commands")
    (place / "net.py").write_text(NETWORK)
    for device in ("cpu", "cuda"):
        assert train(place, place / device, device) == 0
    return place


def train(place, out, device, *more):
    fixed = ["--epochs", "2", "--batch-size", "128", "--no-augment", "--seed", "3"]
    return main(
        ["train", "digits", "--model", f"{place / 'net.py'}:small", "--device", device, "--out", str(out), *fixed, *more]
    )


def losses(run):
    return [float(line.split(",")[1]) for line in (run / "history.csv").read_text().splitlines()[1:]]


def test_train_digits_ends_as_on_the_cpu(folder):
    assert sorted(path.name for path in (folder / "cuda").iterdir()) == sorted(p.name for p in (folder / "cpu").iterdir())
    np.testing.assert_allclose(losses(folder / "cuda"), losses(folder / "cpu"), rtol=1e-3)
    record = read_record(folder / "cuda")
    assert record["state"] == "finished"
    assert "cuda" in (folder / "cuda" / "report.html").read_text()


def test_saved_models_are_evaluated_on_either_device(folder, capsys):
    said = set()
    for trained in ("cpu", "cuda"):
        for device in ("cpu", "cuda"):
            model = str(folder / trained / "model.xpnet")
            assert main(["evaluate", model, "--code", str(folder / "net.py"), "--device", device]) == 0
            said.add((trained, re.sub(r"loss [\d.]+", "", capsys.readouterr().out)))
    assert len(said) == 2  # one text for each model


def test_predictions_are_those_of_the_cpu(folder, capsys, tmp_path):
    data = load("digits")
    np.save(tmp_path / "x.npy", data.test[0][:9] * data.scale)
    said = []
    for device in ("cpu", "cuda"):
        command = ["predict", str(folder / "cuda" / "model.xpnet"), str(tmp_path / "x.npy"), "--device", device, "--out", "-"]
        assert main(command) == 0
        rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
        said.append(([row[1] for row in rows], [[float(x) for x in row[3:]] for row in rows[1:]]))
    assert said[0][0] == said[1][0]
    np.testing.assert_allclose(said[0][1], said[1][1], atol=1e-4)


def test_a_run_with_every_setting_is_resumed_on_the_device(folder, tmp_path):
    more = ["--accumulate", "2", "--clip", "1", "--average", "0.9", "--balance", "--workers", "2", "--deterministic"]
    more += ["--schedule", "constant"]
    assert train(folder, tmp_path / "whole", "cuda", *more) == 0
    assert train(folder, tmp_path / "parts", "cuda", *more, "--epochs", "1") == 0
    assert main(["train", "--resume", str(tmp_path / "parts"), "--epochs", "2"]) == 0
    whole, parts = (xn.load(tmp_path / name / "model.xpnet").state() for name in ("whole", "parts"))
    for name, values in whole.items():
        np.testing.assert_array_equal(parts[name], values, err_msg=name)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_profile_doctor_and_info(folder, capsys, tmp_path):
    model = str(folder / "cuda" / "model.xpnet")
    assert main(["profile", model, "--device", "cuda", "--steps", "1", "--trace", str(tmp_path / "step.json")]) == 0
    said = capsys.readouterr().out
    assert "0 (Conv2D)" in said
    assert "one forward and backward pass on cuda" in said
    assert {"0", "1"} < {event["name"].split()[0] for event in json.loads((tmp_path / "step.json").read_text())["traceEvents"]}
    assert main(["doctor", model, "digits", "--device", "cuda"]) == 1
    assert "the network underfits" in " ".join(capsys.readouterr().out.lower().split())  # after two epochs
    assert main(["doctor", "cnn", "digits", "--device", "cuda", "--quick"]) == 0
    assert "nothing looks wrong" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert re.search(r"cuda +cuda:0 .*compute capability \d+\.\d", capsys.readouterr().out)


def test_a_device_that_is_not_there_is_one_line(folder, capsys):
    assert main(["evaluate", str(folder / "cuda" / "model.xpnet"), "--device", "cuda:9"]) == 2
    said = capsys.readouterr()
    assert 'device "cuda:9" does not exist; the GPUs of this machine are: cuda:0' in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("digits", {"epochs": 2}),
        ("mnist", {"epochs": 2, "recipes": "no_hidden_layer,cross_entropy_l2"}),
    ],
)
def test_examples_reach_what_they_reach_on_the_cpu(name, settings, monkeypatch):
    monkeypatch.delenv("XPNET_DATA", raising=False)  # mnist: of the digits that are shipped
    found, expected = (examples.run(name, device=device, **settings) for device in ("cuda", "cpu"))
    assert [row.name for row in found.rows] == [row.name for row in expected.rows]
    for one, other in zip(found.rows, expected.rows):
        assert float(one.got) == pytest.approx(float(other.got), abs=1)


@pytest.mark.parametrize("name", sorted(set(examples.NAMES) - {"digits", "mnist"}))
def test_other_examples_say_that_they_take_no_device(name):
    with pytest.raises(ValueError, match=f"the example {name} has no setting device; it takes "):
        examples.run(name, device="cuda")
