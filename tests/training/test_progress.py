"""What a person sees of a run: a bar on a terminal, a line an epoch elsewhere, nothing if asked."""

from __future__ import annotations

import io
import sys

import numpy as np

import xpnet as xn
from xpnet.training.progress import Progress

X = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fit(data=(X, Y), epochs=2, verbose=None):
    model = xn.Sequential([xn.Dense(2)], input_shape=(5,))
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), metrics=["accuracy"])
    trainer.fit(data, epochs=epochs, batch_size=8, verbose=verbose)
    return trainer


def test_a_terminal_shows_epoch_batch_loss_accuracy_rate_and_time_left(monkeypatch):
    monkeypatch.setattr(Progress, "REFRESH", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    fit()
    text = terminal.getvalue()
    for part in ("epoch 1/2", "epoch 2/2", "5/5", "loss 0.", "accuracy 0.", "examples/s", "0:00:00"):
        assert part in text, part


def test_a_log_gets_a_line_an_epoch(capsys):
    history = fit().history
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"epoch 2/2  loss {history['loss'][1]:.4g}  accuracy {history['accuracy'][1]:.4g}  ")


def test_silence(capsys):
    fit(verbose=False)
    assert capsys.readouterr() == ("", "")


def test_a_stream_of_unknown_length(capsys):
    class Pairs:
        def __iter__(self):
            return iter([(X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)])

    assert fit(Pairs(), epochs=1).iteration == 3
    assert "epoch 1/1" in capsys.readouterr().err
