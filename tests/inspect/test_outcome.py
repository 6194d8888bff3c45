"""What a trained classifier did not learn is said: by `outcome`, the report and the doctor."""

from __future__ import annotations

import math

import numpy as np
import pytest

import xpnet as xn
from tests.command_line import say
from xpnet.report import RunReport, read_record


def kinds(*arguments, **named) -> list[str]:
    return [finding.kind for finding in xn.inspect.outcome(*arguments, **named)]


def test_a_class_that_is_never_found_is_named():
    matrix = [[9, 1, 0], [4, 6, 0], [5, 5, 0]]
    (finding,) = xn.inspect.outcome(matrix, class_names=["cat", "dog", "owl"])
    assert finding.kind == "never found"
    assert "the class 'owl' is never found: none of 10 examples" in str(finding)
    assert kinds([[9, 1], [1, 9]]) == []
    assert kinds([[9, 0, 0], [0, 9, 0], [0, 0, 0]]) == []  # there is nothing to find


def test_classes_of_very_different_sizes_are_named():
    (finding,) = xn.inspect.outcome(counts=[300, 40, 250], class_names=["cat", "dog", "owl"])
    assert finding.kind == "unequal"
    assert "from 40 ('dog') to 300 examples ('cat')" in str(finding)
    assert "--balance" in str(finding)
    assert kinds(counts=[300, 100, 250]) == []
    assert kinds([[300, 0], [10, 30]]) == ["unequal"]  # the rows of the confusion matrix


@pytest.mark.parametrize(("loss", "found"), [(math.log(3), ["underfit"]), (0.7, ["underfit"]), (0.3, [])])
def test_a_network_that_knows_little_more_than_frequencies_underfits(loss, found):
    assert kinds(counts=[50, 50, 50], loss=loss) == found


def test_the_report_says_what_was_not_learnt(tmp_path):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), (300, 40, 300))
    x = rng.normal(size=(640, 4)).astype(np.float32)
    model = xn.Sequential([xn.Dense(3)], input_shape=(4,), seed=0)
    report = RunReport(tmp_path, class_names=["cat", "dog", "owl"])
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), callbacks=[report])
    trainer.fit((x, y), validation=(x, y), epochs=5, verbose=False)
    findings = " ".join(read_record(tmp_path)["findings"])
    for words in ("'dog' is never found", "from 40 ('dog') to 300 examples", "network underfits"):
        assert words in findings
        assert words.replace("'", "&#x27;") in (tmp_path / "report.html").read_text()


def test_the_doctor_says_what_was_not_learnt(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [(*(f"{v:.3f}" for v in rng.normal(size=3)), ("cat", "dog", "owl")[k]) for k in np.repeat([0, 1, 2], (300, 40, 300))]
    (tmp_path / "t.csv").write_text("a,b,c,kind\n" + "\n".join(",".join(row) for row in rows))
    out = " ".join(say(capsys, "doctor", "mlp", tmp_path / "t.csv", "--quick")[1].split())
    assert "('dog') to" in out
    assert say(capsys, "train", tmp_path / "t.csv", "--epochs", "2", "--out", tmp_path / "o")[0] == 0
    out = " ".join(say(capsys, "doctor", tmp_path / "o" / "model.xpnet", tmp_path / "t.csv")[1].split())
    assert "'dog' is never found" in out
    assert "underfits" in out
