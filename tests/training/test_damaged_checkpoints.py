"""A checkpoint whose checksums are right and whose content is wrong is refused before anything is loaded."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.training import runs
from xpnet.io import archive
from xpnet.training import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict[str, Any], dict[str, Any]]:
    run = runs.trainer(None)
    runs.fit(run)
    path = tmp_path_factory.mktemp("whole") / "a.ckpt"
    save_checkpoint(run, path)
    return archive.read(path)


def state_of(run) -> Any:
    callbacks = [json.dumps(callback.state(), default=lambda a: a.tolist()) for callback in run.callbacks]
    return runs.fingerprint(run), run.epoch, run.batch, run.iteration, run.optimizer.iterations, dict(run.history), callbacks


WRONG: dict[str, Any] = {
    "a list": lambda d: d.update(trainer=[]),
    "no model": lambda d: d.pop("model"),
    "no seed": lambda d: d["trainer"].pop("seed"),
    "an epoch that is a word": lambda d: d["trainer"].update(epoch="two"),
    "a negative batch": lambda d: d["trainer"].update(batch=-1),
    "a huge iteration": lambda d: d["trainer"].update(iteration=10**30),
    "history of words": lambda d: d["history"].update(loss=["x"]),
    "an array that is missing": lambda d: d["model"].update({"0.kernel": {"array": "nothing"}}),
    "weights without arrays": lambda d: d["model"].update({"0.kernel": 1}),
    "a state that is a number": lambda d: d["callbacks"][0].update(state=1),
    "the best value is a word": lambda d: d["callbacks"][0]["state"].update(best="x"),
    "waited for a list": lambda d: d["callbacks"][1]["state"].update(waited=[]),
    "no average": lambda d: d["callbacks"][3]["state"].pop("average"),
    "a factor that is a word": lambda d: d["optimizer"].update(factor="x"),
    "no slots": lambda d: d["optimizer"].pop("slots"),
    "sums without a count": lambda d: d["trainer"]["sums"].pop("count"),
    "a counter that is negative": lambda d: d["counters"].update({"2": -1}),
    "a gradient of nothing": lambda d: d["gradients"].update({"9.kernel": {"array": "model.0.kernel"}}),
    "deep": lambda d: d.update(callbacks=json.loads("[" * 200 + "]" * 200)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_document_changes_nothing(tmp_path, whole, what):
    document, arrays = json.loads(json.dumps(whole[0])), whole[1]
    WRONG[what](document)
    archive.write(tmp_path / "a.ckpt", document, arrays)
    run = runs.trainer(None)
    before = state_of(run)
    with pytest.raises(archive.ArchiveError, match=r"a\.ckpt: a damaged checkpoint: ") as error:
        load_checkpoint(run, tmp_path / "a.ckpt")
    assert len(str(error.value)) < 2000
    assert state_of(run) == before


def test_auto_falls_back_to_the_checkpoint_before(tmp_path):
    undisturbed = runs.trainer(tmp_path / "whole")
    runs.fit(undisturbed)
    runs.fit(runs.trainer(tmp_path))
    newest = tmp_path / "step-0000000050.ckpt"
    document, arrays = archive.read(newest)
    document["trainer"]["epoch"] = "five"
    archive.write(newest, document, arrays)
    again = runs.trainer(tmp_path)
    with (
        pytest.warns(RuntimeWarning, match=r"renamed to \*\.old: step-0000000050\.ckpt"),
        pytest.warns(RuntimeWarning, match=r"step-0000000050\.ckpt: a damaged checkpoint"),
    ):
        runs.fit(again, resume="auto")
    assert runs.fingerprint(again) == runs.fingerprint(undisturbed)


def test_the_arrays_of_another_kind_are_refused(tmp_path, whole):
    document, arrays = whole
    kernel = document["model"]["0.kernel"]["array"]
    archive.write(tmp_path / "a.ckpt", document, {**arrays, kernel: arrays[kernel].astype(np.int32)})
    with pytest.raises(archive.ArchiveError, match=r"0\.kernel is int32"):
        load_checkpoint(runs.trainer(None), tmp_path / "a.ckpt")
    archive.write(tmp_path / "a.ckpt", document, {**arrays, kernel: arrays[kernel][:1]})
    run = runs.trainer(None)
    before = state_of(run)
    with pytest.raises(ValueError, match=r"a\.ckpt: these weights do not fit"):
        load_checkpoint(run, tmp_path / "a.ckpt")
    assert state_of(run) == before
