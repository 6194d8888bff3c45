"""Files that are written in place of others: links stay, and what is no regular file is left alone."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest

import xpnet as xn
from tests.command_line import say
from xpnet.data import idx
from xpnet.inspect.images import save_image
from xpnet.inspect.timeline import write_trace
from xpnet.io import archive
from xpnet.report.compare import write_comparison
from xpnet.report.page import write_page
from xpnet.report.record import write_record
from xpnet.runtime.files import place_to_write


def model():
    return xn.Sequential([xn.Dense(2)], input_shape=(2,))


def checkpoint(path):
    trainer = xn.Trainer(model(), loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01))
    xn.training.save_checkpoint(trainer, path)


WRITERS = {
    "write_atomically": lambda path: archive.write_atomically(path, lambda file: file.write(b"new")),
    "archive": lambda path: archive.write(path, {}, {}),
    "model": lambda path: model().save(path),
    "weights": lambda path: model().save_weights(path),
    "checkpoint": checkpoint,
    "record": lambda path: write_record({}, path),
    "page": lambda path: write_page({}, path),
    "comparison": lambda path: write_comparison([{}], path),
    "trace": lambda path: write_trace(path, []),
    "image": lambda path: save_image(path, np.zeros((2, 2, 1))),
    "idx": lambda path: idx.write(path, np.zeros(2, np.uint8)),
}


@pytest.fixture(params=WRITERS)
def write(request):
    if request.param == "image":
        pytest.importorskip("PIL", reason="images need pillow")
    return WRITERS[request.param]


def test_a_link_stays_and_its_target_is_replaced(write, tmp_path):
    there, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    there.parent.mkdir()
    there.write_bytes(b"old")
    other = tmp_path / "other"
    other.symlink_to("elsewhere/real")
    link.symlink_to("other")
    write(link)
    assert link.is_symlink()
    assert other.is_symlink()
    written = there.read_bytes()
    assert written not in (b"", b"old")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["elsewhere", "link", "other", "real"]
    there.unlink()
    write(link)  # a link to nothing yet
    assert link.is_symlink()
    assert there.is_file()


def test_what_is_no_regular_file_is_left_alone(write, tmp_path):
    pipe, link, folder = (tmp_path / name for name in ("pipe", "link", "folder"))
    os.mkfifo(pipe)
    link.symlink_to("pipe")
    folder.mkdir()
    for path in (pipe, link):
        with pytest.raises(OSError, match="is a pipe; expected a regular file or a new name"):
            write(path)
    with pytest.raises(IsADirectoryError):
        write(folder)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()
    assert not any(folder.iterdir())


def test_links_in_a_circle_are_one_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        place_to_write(tmp_path / "a")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "iris"
    assert xn.cli.main(["train", "iris", "--epochs", "1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def examples(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 4), np.float32))
    return tmp_path / "x.npy"


@pytest.mark.parametrize("command", ["report", "profile"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(command, run, tmp_path, capsys, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = {"report": ["report", run, "--out"], "profile": ["profile", run, "--trace"]}[command]
    monkeypatch.setattr(archive, "read", lambda path: pytest.fail("it has begun"))
    for out, says in ((pipe, "is a pipe"), (tmp_path, "is a folder"), (tmp_path / "no" / "where", "there is no folder")):
        code, printed, err = say(capsys, *words, out)
        assert (code, printed) == (2, "")
        assert says in err
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_predictions_are_written_through_a_link(run, examples, tmp_path, capsys):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    assert say(capsys, "predict", run, examples, "--out", tmp_path / "link.csv")[0] == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text().startswith("example,class,probability")


def test_predictions_are_written_to_a_pipe(run, examples, tmp_path, capsys):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    code, out, err = say(capsys, "predict", run, examples, "--out", pipe)
    reader.join()
    assert (code, out) == (0, "")  # it may be standard output under another name
    assert "3 predictions in" in err
    assert len(read[0].splitlines()) == 4
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("name", ["model.xpnet", "history.csv", "report.html", "run.json"])
def test_a_run_begins_only_where_its_files_can_be_written(name, tmp_path, capsys):
    os.mkfifo(tmp_path / name)
    code, out, err = say(capsys, "train", "iris", "--epochs", "1", "--out", tmp_path)
    assert (code, out) == (2, "")
    assert f"{tmp_path / name}: is a pipe" in err
    assert not (tmp_path / "config.toml").exists()
    Path(tmp_path / name).unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name).symlink_to(f"elsewhere/{name}")
    assert say(capsys, "train", "iris", "--epochs", "1", "--out", tmp_path)[0] == 0
    assert (tmp_path / name).is_symlink()
    assert (tmp_path / "elsewhere" / name).is_file()
