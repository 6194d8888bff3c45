"""Every worked example: its numbers, to the digits that the text prints."""

from __future__ import annotations

import argparse
import builtins
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xpnet import examples
from xpnet.examples import Report, gates, sequences, stairs
from xpnet.examples._report import picture

# Settings that make examples fast enough for every test run; the numbers of the text are still reached.
SETTINGS: dict[str, dict[str, Any]] = {
    "spiral": {"steps": 4000},
    "regression": {"steps": 1500, "epochs": 30},
    "sequences": {"steps": 20, "updates": 400},
    "siamese": {"epochs": 8},
    "residual": {"epochs": 5},
    "digits": {"epochs": 30},
}
NO_DATA_NEEDED = [name for name in examples.NAMES if name not in ("mnist", "cifar10")]


@pytest.mark.parametrize("name", NO_DATA_NEEDED)
def test_numbers_of_the_text(name, capsys):
    report = examples.run(name, **SETTINGS.get(name, {}))
    assert report.rows
    assert report.differing == []
    printed = capsys.readouterr().out
    assert all(row.name in printed and row.got in printed for row in report.rows)


def test_rows_compare_to_the_digits_printed(capsys):
    report = Report("digits")
    report.row("same", ".35891648 3.51019e-5", [0.358916480000001, 3.510187e-5])
    report.row("off by one in the last digit", ".35891648", 0.35891649)
    report.row("off in the exponent form", "3.51019e-5", 3.51011e-5)
    report.row("within", "95.42", 95.0, within=1)
    report.at_least("at least", 95, 94.99)
    report.at_least("at least, nearly", 95, 94.99, less=0.5)
    report.at_most("at most", 0.1, 0.2)
    report.same("same", 3, 4)
    assert [row.agrees for row in report.rows] == [True, False, False, True, False, True, False, False]
    assert len(report.differing) == 5
    assert capsys.readouterr().out.count("differs") == 5


def test_a_row_needs_as_many_numbers_as_are_printed():
    with pytest.raises(ValueError, match="2 numbers are printed, 1 were computed"):
        Report("count").row("two", "1 2", [1.0])


def test_text_instead_of_a_number_is_an_error():
    with pytest.raises(ValueError, match="not a printed number"):
        Report("text").row("words", "abc", [1.0])


def test_every_name_has_one_line():
    for name in examples.NAMES:
        line = examples.about(name)
        assert line.endswith((".", ":")) or len(line) > 20
        assert "\n" not in line


def test_unknown_names_and_settings():
    with pytest.raises(ValueError, match="unknown example 'spirals': expected one of perceptrons"):
        examples.run("spirals")
    with pytest.raises(ValueError, match="has no setting colour; it takes seed, steps"):
        examples.run("spiral", colour="red")


def test_hyphens_are_underscores(capsys):
    assert examples.run("conv-sizes").differing == []


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    examples.add_examples_command(parser.add_subparsers())
    return parser


def test_command_lists(parser, capsys):
    arguments = parser.parse_args(["examples"])
    assert arguments.run(arguments) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == list(examples.NAMES)


def test_command_runs_one_and_leaves_its_picture(parser, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = parser.parse_args(["examples", "perceptrons", "seed=3", "--out", str(tmp_path)])
    assert arguments.run(arguments) == 0
    content = (tmp_path / "perceptrons.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 500
    assert height > 300
    assert [p.name for p in tmp_path.iterdir()] == ["perceptrons.png"]


def test_command_fails_where_the_numbers_differ(parser, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # the folder of its pictures
    monkeypatch.setattr(gates, "three_input_gate", lambda steps: gates.learn_gate("OR", 0, steps=1) and _untrained())
    arguments = parser.parse_args(["examples", "gates"])
    assert arguments.run(arguments) == 1
    assert "differs" in capsys.readouterr().out


def _untrained():
    import xpnet as xn

    return xn.Sequential([xn.Dense(1, "sigmoid")], input_shape=(3,), dtype="float64")


def test_command_wants_settings_with_a_value(parser):
    arguments = parser.parse_args(["examples", "spiral", "seed"])
    with pytest.raises(ValueError, match="expected SETTING=VALUE, got 'seed'"):
        arguments.run(arguments)


def test_without_matplotlib_one_line_says_so(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *rest, **keywords):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    picture(tmp_path, "a.png", lambda figure: None)
    assert (
        'no picture a.png: drawing needs matplotlib, which is not installed: pip install "xpnet[plot]"'
        in capsys.readouterr().out
    )
    assert list(tmp_path.iterdir()) == []


def test_xor_restarts_from_a_local_minimum():
    model, starts = gates.learn_xor(seed=3)  # from this start the output is one half for two of the rows
    assert starts > 1
    assert np.allclose(model.predict(gates.BITS)[:, 0], [0, 1, 1, 0], atol=0.1)


def test_stairs_by_rule():
    x, y = stairs.make_images(500, 1)
    assert x.min() >= 0
    assert x.max() <= 255
    assert 0.4 < y.mean() < 0.6
    dark = x[y == 1] <= 64
    assert np.all(dark[:, :2].sum(axis=1) == 1)  # one dark pixel in the upper row
    assert not dark[:, 2:].any()
    again, _ = stairs.make_images(500, 1)
    assert np.array_equal(x, again)


def test_sums_are_of_the_marked_numbers():
    x, y = sequences.make_sums(50, 12, 0)
    assert np.all(x[..., 1].sum(axis=1) == 2)
    assert np.all(x[:, :6, 1].sum(axis=1) == 1)
    assert np.allclose((x[..., 0] * x[..., 1]).sum(axis=1, keepdims=True), y)


def test_no_example_is_longer_than_a_page_or_four():
    folder = Path(examples.__file__).parent
    lengths = {path.name: len(path.read_text().splitlines()) for path in folder.glob("*.py")}
    assert max(lengths.values()) < 320, lengths
