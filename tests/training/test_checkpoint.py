"""A run that was stopped anywhere goes on bit for bit, and nothing that was saved is ever lost."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

import xpnet as xn
from tests.training import kill, runs
from xpnet.io import archive
from xpnet.training import Checkpoint, load_checkpoint, save_checkpoint


class Crash(xn.Callback):
    """Leaves the run at a certain batch, as an exception in a user's code would."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_step_end(self, trainer):
        if trainer.iteration == self.iteration:
            raise RuntimeError("crash")


@pytest.fixture(scope="module")
def whole():
    """The run that nothing interrupts."""
    run = runs.trainer(None)
    runs.fit(run)
    return runs.fingerprint(run)


# 150 examples in batches of 16 are 10 batches an epoch: within, at the end of and just after an epoch; odd ones lie between
# the two batches of an accumulated update.
@pytest.mark.parametrize("crash", [5, 8, 9, 10, 11, 20, 37, 50])
def test_a_crashed_run_goes_on_bit_for_bit(tmp_path, whole, crash):
    run = runs.trainer(tmp_path, Crash(crash), every_steps=3)
    with pytest.raises(RuntimeError, match="crash"):
        runs.fit(run)
    again = runs.trainer(tmp_path, Crash(-1), every_steps=3)
    runs.fit(again, resume="auto")
    found = runs.fingerprint(again)
    assert found == whole


def test_without_a_checkpoint_auto_begins_at_the_start(tmp_path, whole):
    run = runs.trainer(tmp_path)
    runs.fit(run, resume="auto")
    assert runs.fingerprint(run) == whole


def test_a_finished_run_is_not_continued(tmp_path, whole):
    runs.fit(runs.trainer(tmp_path))
    again = runs.trainer(tmp_path)
    runs.fit(again, resume="auto")
    assert again.iteration == 50
    assert runs.fingerprint(again) == whole


def test_a_killed_process_goes_on_bit_for_bit(tmp_path):
    assert kill.check(tmp_path, kills=4, seed=1) == 4


def test_the_last_ones_and_the_best_one_are_kept(tmp_path):
    run = runs.trainer(tmp_path, keep=2)
    history = runs.fit(run)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["best.ckpt", "step-0000000048.ckpt", "step-0000000050.ckpt"]
    best = runs.trainer(tmp_path)
    load_checkpoint(best, tmp_path / "best.ckpt")
    assert best.epoch == int(np.argmin(history["val_loss"])) + 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, whole, damage):
    run = runs.trainer(tmp_path, Crash(23))
    with pytest.raises(RuntimeError, match="crash"):
        runs.fit(run)
    newest = tmp_path / "step-0000000020.ckpt"
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 4
    newest.write_bytes(
        {"truncated": content[: len(content) // 2], "flipped": content, "empty": b"", "foreign": b"PK no zip"}[damage]
    )
    again = runs.trainer(tmp_path, Crash(-1))
    with pytest.warns(RuntimeWarning, match=r"step-0000000020\.ckpt"):
        runs.fit(again, resume="auto")
    assert runs.fingerprint(again) == whole


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    """No single damaged byte gives other arrays without an error."""
    path = tmp_path / "a"
    arrays = {"w": np.arange(5, dtype=np.float32)}
    archive.write(path, {"format": "x"}, arrays)
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            document, found = archive.read(path)
        except archive.ArchiveError as error:
            assert str(path) in str(error)  # noqa: PT017 - most bytes raise, some may not
        else:  # a byte that nothing depends on, such as a date
            assert document == {"format": "x"}
            np.testing.assert_array_equal(found["w"], arrays["w"])


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    (tmp_path / "step-0000000020.ckpt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no usable checkpoint"):
        runs.fit(runs.trainer(tmp_path), resume="auto")


def test_another_run_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    save_checkpoint(runs.trainer(None), path)
    with pytest.raises(ValueError, match="callbacks"):
        load_checkpoint(runs.trainer(tmp_path), path)
    other = runs.trainer(None)
    other.seed = 6
    with pytest.raises(ValueError, match="seed 5"):
        load_checkpoint(other, path)
    with pytest.raises(ValueError, match="Checkpoint"):
        runs.fit(runs.trainer(None), resume="auto")
    archive.write(path, {"format": "other"}, {})
    with pytest.raises(archive.ArchiveError, match="not a checkpoint"):
        load_checkpoint(runs.trainer(None), path)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, whole):
    """Writing fails from the third checkpoint on, half-way through the file."""
    written = []
    real = archive.os.fsync  # type: ignore[attr-defined]

    def full(descriptor):
        written.append(descriptor)
        if len(written) > 6:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(archive.os, "fsync", full)  # type: ignore[attr-defined]
    run = runs.trainer(tmp_path)
    with pytest.warns(RuntimeWarning, match="No space left"):
        runs.fit(run)
    assert runs.fingerprint(run) == whole  # the run itself went on
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*tmp"))
    again = runs.trainer(tmp_path)
    runs.fit(again, resume="auto")
    assert runs.fingerprint(again) == whole


@pytest.fixture
def read_only():
    """(folder, who): a folder that may be read and not written within `who`, where root, who may write anywhere, is nobody."""
    if not hasattr(os, "geteuid"):
        pytest.skip("folders have no modes here")
    folder = Path(tempfile.mkdtemp())  # and not tmp_path, which nobody else may enter
    user = os.geteuid()
    if user == 0:
        os.chown(folder, 65534, 65534)
    folder.chmod(0o500)

    @contextlib.contextmanager
    def somebody():
        if user == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            if user == 0:
                os.seteuid(0)

    yield folder, somebody()
    folder.chmod(0o700)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_an_error_at_the_start(read_only, tmp_path):
    runs.fit(runs.trainer(tmp_path))  # imports everything: nobody may not be allowed to read the modules
    folder, somebody = read_only
    run = runs.trainer(folder)
    with pytest.raises(PermissionError, match=re.escape(str(folder))), somebody:
        runs.fit(run)
    assert run.iteration == 0


def test_a_file_in_the_folders_place_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        runs.fit(runs.trainer(tmp_path / "file"))


def test_arguments():
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoint("x", keep=0)


def test_checkpoints_of_another_run_do_not_push_out_the_new_ones(tmp_path, whole):
    runs.fit(runs.trainer(tmp_path))
    fresh = runs.trainer(tmp_path, Crash(9))
    with (
        pytest.warns(RuntimeWarning, match=r"ahead of this run.*step-0000000050\.ckpt"),
        pytest.raises(RuntimeError, match="crash"),
    ):
        runs.fit(fresh)
    names = {p.name for p in tmp_path.iterdir()}
    assert {"step-0000000008.ckpt", "step-0000000050.ckpt.old", "best.ckpt.old"} <= names
    assert "step-0000000050.ckpt" not in names
    again = runs.trainer(tmp_path, Crash(-1))
    runs.fit(again, resume="auto")
    assert runs.fingerprint(again) == whole


def test_a_callback_may_have_been_saved_under_its_old_name(tmp_path):
    old = type("Call", (xn.training.LambdaCallback,), {})
    save_checkpoint(runs.trainer(None, old()), tmp_path / "file")
    load_checkpoint(runs.trainer(None, xn.training.LambdaCallback()), tmp_path / "file")
    load_checkpoint(runs.trainer(None, old()), tmp_path / "file")


def test_a_run_that_does_not_begin_leaves_its_folder_unlocked(tmp_path, monkeypatch):
    """Other processes may use it: nobody tells a callback of an end that raised at its beginning."""
    from xpnet.io import lock

    def full(path, write):
        raise OSError(28, "No space left on device", str(path))

    run = runs.trainer(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("xpnet.io.archive.write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            runs.fit(run)
    assert not lock._held
    runs.fit(run)
    assert not lock._held


# -- another loss, other settings --


def described(tmp_path, activation: object = "relu", loss: object = "softmax_cross_entropy", **keywords):
    model = xn.Sequential([xn.Dense(4, activation, **keywords), xn.Dropout(0.25), xn.Dense(3)], input_shape=(5,))  # type: ignore[arg-type]
    return xn.Trainer(model, loss=loss, optimizer=xn.optim.SGD(0.1), callbacks=[Checkpoint(tmp_path)])  # type: ignore[arg-type]


def test_going_on_with_another_loss_or_layer_is_a_warning(tmp_path):
    data = np.ones((8, 5), np.float32), np.arange(8) % 3
    described(tmp_path).fit(data, verbose=False)
    described(tmp_path).fit(data, epochs=2, verbose=False, resume="auto")
    with pytest.warns(RuntimeWarning, match=r"the loss was softmax_cross_entropy, is hinge") as said:
        described(tmp_path, loss="hinge").fit(data, epochs=3, verbose=False, resume="auto")
    assert len(said) == 1
    with pytest.warns(RuntimeWarning, match=r"activation of layer '0' \(Dense\) was 'relu', is 'tanh'"):
        described(tmp_path, "tanh", "hinge").fit(data, epochs=4, verbose=False, resume="auto")
    other = described(tmp_path, "tanh", "hinge", kernel_regularizer=xn.regularizers.L2(0.5))
    with pytest.warns(RuntimeWarning, match=r"kernel_regularizer of layer '0' \(Dense\) was None, is L2\(strength=0\.5\)"):
        other.fit(data, epochs=5, verbose=False, resume="auto")


def test_what_has_no_description_is_not_compared(tmp_path):
    data = np.ones((8, 5), np.float32), np.arange(8) % 3
    ways = [lambda x: x * 2.0, lambda x: x * 3.0]
    losses = [lambda p, t: xn.losses.hinge(p, t), lambda p, t: xn.losses.softmax_cross_entropy(p, t)]
    for i, (way, loss) in enumerate(zip(ways, losses)):
        described(tmp_path, way, loss).fit(data, epochs=i + 1, verbose=False, resume="auto")


def test_a_checkpoint_without_a_description_is_read(tmp_path):
    trainer = described(tmp_path)
    trainer.fit((np.ones((8, 5), np.float32), np.arange(8) % 3), verbose=False)
    save_checkpoint(trainer, tmp_path / "a")
    document, arrays = archive.read(tmp_path / "a")
    del document["description"]
    archive.write(tmp_path / "b", document, arrays)
    load_checkpoint(described(tmp_path, "tanh", "hinge"), tmp_path / "b")
