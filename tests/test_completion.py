"""Completion scripts hold every command and flag, and shells accept them."""

import argparse
import re
import shutil
import subprocess
from typing import Any

import pytest

from xpnet.cli import main
from xpnet.cli.completion import SHELLS, commands_of
from xpnet.cli.parser import make_parser, resolve


def script(shell, capsys):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_flag_is_there(shell, capsys):
    text = script(shell, capsys)
    for name, (_, flags, _) in commands_of(make_parser()).items():
        assert name in text
        for flag in (n for f in flags for n in f.names if n.startswith("--")):
            assert (f"-l {flag[2:]}" if shell == "fish" else flag) in text


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_accepts_it(shell, capsys, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(script(shell, capsys))
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("xpnet tr", ["train"]),
        ("xpnet train --sched", ["--schedule"]),
        ("xpnet train fash", ["fashion-mnist"]),
        ("xpnet evaluate m --device c", ["cpu", "cuda"]),
        ("xpnet completion f", ["fish"]),
        ("xpnet examples spi", ["spiral"]),
    ],
)
def test_bash_completes(words, wanted, capsys, tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    path = tmp_path / "script"
    path.write_text(script("bash", capsys))
    parts = words.split(" ")
    code = f'source {path}; COMP_WORDS=({" ".join(parts)}); COMP_CWORD={len(parts) - 1}; _xpnet; echo "${{COMPREPLY[@]}}"'
    out = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert out.split() == wanted


def test_every_help_shows_an_example_that_parses(capsys):
    """The parser accepts the examples in its help."""
    parser = make_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert {"train", "evaluate", "predict", "report", "doctor", "profile", "examples", "bench", "info", "summary"} <= set(
        commands
    )
    for name, sub in commands.items():
        lines = re.findall(r"^  xpnet (.+)$", sub.format_help(), re.M)
        assert lines, f"xpnet {name} --help shows no example"
        for line in lines:
            words = re.split(r" >>? ", line)[0].split()
            assert words[0] == name
            parser.parse_args(words)
    assert "xpnet train digits" in parser.format_help()


def test_every_command_names_a_function_that_exists(monkeypatch):
    """The parser names functions by strings, and imports them when they run."""
    named: list[Any] = []
    monkeypatch.setattr("xpnet.cli.parser._lazy", named.append)
    make_parser()
    assert len(named) >= 10
    for function in named:
        assert callable(resolve(function)), function
