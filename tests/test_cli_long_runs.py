"""Runs that are stopped by signals, locked, short of room on the disk, or resumed from somewhere else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.command_line import say
from tests.test_cli_runs import COMMAND, ENVIRONMENT, weights
from xpnet.cli import main, run_folder
from xpnet.io import archive, lock, model_file
from xpnet.report import read_record

LONG = ["--model", "mlp", "--schedule", "constant"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def started(folder: Path, *more: str, **settings: Any) -> subprocess.Popen[str]:
    """Start a run that would take hours; return when it is in its second epoch."""
    words = ["train", "digits", *LONG, "--epochs", "100000", "--out", str(folder), *more]
    process: subprocess.Popen[str] = subprocess.Popen(
        COMMAND + words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, **settings
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("epoch 1/")
    return process


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    try:
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_ends_a_run_with_a_checkpoint_and_its_code(tmp_path, capsys, name, code):
    folder = tmp_path / "o"
    found, out, err = ended(started(folder), getattr(signal, name))
    assert found == code
    assert "Traceback" not in err
    assert f"xpnet train --resume {folder}" in out
    assert read_record(folder)["state"] == "interrupted"
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    done = int(out.split(" in epoch ")[1].split(";")[0])
    assert say(capsys, "train", "--resume", folder, "--epochs", done + 1)[0] == 0
    say(capsys, "train", "digits", *LONG, "--epochs", done + 1, "--out", tmp_path / "whole")
    assert weights(folder) == weights(tmp_path / "whole")


@posix
def test_an_interrupt_that_the_caller_ignores_stays_ignored(tmp_path):
    """As in a script that runs it in the background."""
    process = started(tmp_path / "o", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    for _ in range(3):
        assert process.stderr.readline().startswith("epoch ")
    assert ended(process, signal.SIGTERM)[0] == 143


@posix
def test_a_handler_of_the_callers_is_left_alone():
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    try:
        trainer = small(lambda t: signal.raise_signal(signal.SIGTERM) if t.iteration == 2 else None)
        history = trainer.fit(DATA, epochs=3, verbose=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]
    assert history.epochs == 3
    assert not history.interrupted


DATA = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32), np.arange(64) % 3


def small(step_end, *callbacks: xn.Callback) -> xn.Trainer:
    return xn.Trainer(
        xn.Sequential([xn.Dense(3)], input_shape=(4,), seed=1),
        loss="softmax_cross_entropy",
        optimizer=xn.optim.Adam(0.01),
        callbacks=[*callbacks, xn.training.LambdaCallback(step_end=step_end)],
    )


@posix
@pytest.mark.parametrize("times", [1, 2])  # to the process, and to its group
def test_sigterm_in_a_script_is_a_systemexit_after_the_checkpoint(times, tmp_path):
    def send(trainer):
        for _ in range(times * (trainer.iteration == 3)):
            signal.raise_signal(signal.SIGTERM)

    trainer = small(send, xn.training.Checkpoint(tmp_path))
    with pytest.raises(SystemExit) as end:
        trainer.fit(DATA, epochs=9, verbose=False)
    assert end.value.code == 143
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000000002.ckpt", "step-0000000003.ckpt"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@posix
def test_a_run_within_a_callback_stops_with_the_one_around_it():
    inner = small(lambda t: signal.raise_signal(signal.SIGTERM) if t.iteration == 1 else None)
    outer = small(lambda t: inner.fit(DATA, epochs=9, verbose=False) if t.iteration == 2 else None)
    with pytest.raises(SystemExit) as end:
        outer.fit(DATA, epochs=9, verbose=False)
    assert end.value.code == 143
    assert (inner.iteration, outer.iteration) == (1, 2)


@posix
def test_a_second_process_on_a_live_run_is_refused(tmp_path, capsys):
    folder = tmp_path / "o"
    process = started(folder)
    before = (folder / "config.toml").read_bytes()
    for words in (["train", "--resume", str(folder)], ["train", "iris", "--out", str(folder)]):
        code, _, err = say(capsys, *words)
        assert code == 2
        assert f"{folder}: another process ({process.pid} on" in err
    assert (folder / "config.toml").read_bytes() == before
    process.kill()
    process.communicate()
    assert (folder / ".lock").exists()  # left over, and harmless
    lock.acquire(folder)
    lock.release(folder)
    assert not (folder / ".lock").exists()


@posix
def test_checkpoints_of_two_processes_do_not_meet(tmp_path):
    code = (
        f"from xpnet.io import lock; import sys; lock.acquire({str(tmp_path)!r}); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    trainer = small(None, xn.training.Checkpoint(tmp_path))
    with pytest.raises(lock.LockedError, match=str(other.pid)):
        trainer.fit(DATA, verbose=False)
    other.communicate("")
    trainer.fit(DATA, verbose=False)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000000002.ckpt"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve room")
def test_room_for_the_model_is_tried_before_training(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.os, "posix_fallocate", full)  # type: ignore[attr-defined]
    code, _, err = say(capsys, "train", "iris", "--out", tmp_path / "o")
    assert code == 2
    assert f"{tmp_path / 'o' / 'model.xpnet'}: the model needs" in err
    assert "--out" in err
    assert list((tmp_path / "o").iterdir()) == []


def test_a_model_that_cannot_be_written_at_the_end_is_not_lost(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "o"
    real = archive.write_atomically

    def full(path, write):
        if Path(path).name == "model.xpnet":
            raise OSError(28, "No space left on device", str(path))
        real(path, write)

    monkeypatch.setattr(archive, "write_atomically", full)
    code, _, err = say(capsys, "train", "iris", "--epochs", "2", "--out", folder)
    assert code == 2
    assert str(folder / "model.xpnet") in err.splitlines()[-1]
    assert f"xpnet train --resume {folder}" in err.splitlines()[-1]
    monkeypatch.undo()
    code, _, err = say(capsys, "train", "--resume", folder)
    assert code == 0
    assert "epoch" not in err  # nothing is trained again
    say(capsys, "train", "iris", "--epochs", "2", "--out", tmp_path / "whole")
    assert weights(folder) == weights(tmp_path / "whole")
    monkeypatch.setattr(archive, "write_atomically", full)
    assert say(capsys, "train", "--resume", folder, "--epochs", "3")[0] == 2
    monkeypatch.undo()
    assert say(capsys, "train", "--resume", folder)[0] == 0  # the model there is an older one
    assert model_file.read(folder / "model.xpnet").metadata["epochs"] == 3


def table(path: Path) -> None:
    x, y = xn.data.load("iris").train
    path.write_text("a,b,c,d,kind\n" + "".join(f"{','.join(f'{v:.2f}' for v in row)},k{k}\n" for row, k in zip(x, y)))


NETWORK = """import xpnet as xn
def make(input_shape, classes, seed):
    return xn.Sequential([xn.Dense(classes)], input_shape=input_shape, seed=seed)
"""


def test_a_run_is_resumed_and_evaluated_from_another_folder(tmp_path, capsys, monkeypatch):
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir(), away.mkdir()
    table(home / "t.csv")
    (home / "nets.py").write_text(NETWORK)
    monkeypatch.chdir(home)
    assert say(capsys, "train", "t.csv", "--model", "nets.py:make", "--epochs", "2", "--out", "o")[0] == 0
    monkeypatch.chdir(away)
    assert say(capsys, "train", "--resume", "../home/o", "--epochs", "3")[0] == 0
    assert say(capsys, "train", "../home/t.csv", "--resume", "../home/o", "--epochs", "4")[0] == 0
    assert say(capsys, "evaluate", "../home/o/model.xpnet")[0] == 0
    # Another table of that name here is other data.
    (away / "t.csv").write_text("a,kind\n1,x\n2,y\n")
    code, _, err = say(capsys, "train", "t.csv", "--resume", "../home/o")
    assert code == 2
    assert "is not what the run" in err
    assert say(capsys, "train", "--config", "../home/o/config.toml", "--epochs", "1", "--out", "p")[0] == 0
    (away / "t.csv").unlink()
    (home / "t.csv").rename(home / "moved.csv")
    for words in (["train", "--resume", "../home/o", "--epochs", "5"], ["evaluate", "../home/o/model.xpnet"]):
        code, _, err = say(capsys, *words)
        assert code == 2
        assert f"t.csv, which was used in {home}" in err
    (home / "moved.csv").rename(away / "t.csv")
    assert say(capsys, "train", "--resume", "../home/o", "--epochs", "5")[0] == 0


def test_a_path_that_is_not_utf_8_is_refused_before_training(tmp_path, capsys, monkeypatch):
    if sys.platform in ("win32", "darwin"):
        pytest.skip("names of files are text here")
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "t\udcfc.csv")
    assert main(["train", "t\udcfc.csv", "--out", "o"]) == 2
    assert "a path that is not UTF-8" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_lock_is_held_once_for_all_of_a_process(tmp_path):
    lock.acquire(tmp_path)
    lock.acquire(tmp_path)
    lock.release(tmp_path)
    assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")
    lock.release(tmp_path)
    lock.release(tmp_path)
    assert list(tmp_path.iterdir()) == []
