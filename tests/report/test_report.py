"""The report of a run is valid HTML, names no network address, and holds the numbers of the run."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from xpnet.io.archive import ArchiveError
from xpnet.report import RunReport, comparison_page, read_record, run_page, write_comparison
from xpnet.report.charts import Series, decades, line_chart, ticks
from xpnet.report.png import as_bytes, data_uri, png
from xpnet.report.text import duration, number, percent, size

VOID = {"meta", "img", "br", "link", "input", "hr", "path"}


class Page(HTMLParser):
    """Check that every element is closed in order; collect text, attributes and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words).replace("\N{NARROW NO-BREAK SPACE}", " "))


def check(text: str) -> Page:
    assert text.startswith("<!doctype html>")
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text), "names a network address"
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value is not None
            assert value.startswith("data:image/png;base64,")
            content = base64.b64decode(value.split(",", 1)[1])
            assert content.startswith(b"\x89PNG")
    assert "default-src 'none'" in text  # the browser fetches nothing either
    return page


def images(n=90):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = rng.normal(0.2, 0.4, size=(n, 8, 8, 1)).astype(np.float32)
    for i in range(n):
        x[i, 2 * y[i] : 2 * y[i] + 2] += 0.8
    return x, y


def trained(folder, *, epochs=4, rate=0.01, **settings):
    x, y = images()
    model = xn.Sequential(
        [xn.Conv2D(4, 3, activation="relu"), xn.MaxPool2D(2), xn.Flatten(), xn.Dropout(0.2), xn.Dense(3)], input_shape=(8, 8, 1)
    )
    report = RunReport(folder, class_names=("<cat>", "dog & co", "bird"), batch_size=16, **settings)
    trainer = xn.Trainer(
        model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(rate), metrics=["accuracy"], callbacks=[report], seed=7
    )
    trainer.fit((x[:60], y[:60]), validation=(x[60:], y[60:]), epochs=epochs, batch_size=10, verbose=False)
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first run"
    return trained(folder, configuration={"note": "a < b"}), folder


def test_the_report_holds_the_numbers_of_the_run(run):
    trainer, folder = run
    page = check((folder / "report.html").read_text())
    history = trainer.history
    for name in ("loss", "val_loss"):
        for value in history[name]:
            assert number(value, 5) in page.text, name
    best = max(history["val_accuracy"])
    assert percent(best).replace("\N{NARROW NO-BREAK SPACE}", " ") in page.text
    assert str(trainer.model.count_parameters()) in page.text
    assert "first run" in page.text
    assert "Adam" in page.text
    assert "0.01" in page.text
    assert "a < b" in page.text  # and not as a tag
    assert "<cat>" in page.text
    for heading in ("Curves", "What it gets wrong", "First layer", "Layer by layer", "Memory", "Configuration", "Every epoch"):
        assert heading in page.text


def test_the_confusion_matrix_is_the_models(run):
    trainer, folder = run
    x, y = images()
    record = read_record(folder)
    found: Any = xn.metrics.confusion_matrix(trainer.model.predict(x[60:]), y[60:])
    np.testing.assert_array_equal(record["predictions"]["confusion"], found)
    assert record["predictions"]["examples"] == 30
    wrong = int(found.sum() - np.trace(found))
    assert len(record["predictions"]["mistakes"]) == min(wrong, 24)


def test_every_layer_is_measured(run):
    trainer, folder = run
    record = read_record(folder)
    paths = [layer["path"] for layer in record["layers"]]
    assert paths == ["0", "1", "2", "3", "4", ""]
    for layer in record["layers"][:-1]:
        assert sum(layer["activations"]["counts"]) == record["batch"] * np.prod(layer["shape"])
        assert layer["forward"] > 0
    assert record["layers"][0]["activations"]["zeros"] > 0  # of the ReLU
    assert record["layers"][4]["gradients"]["rms"] > 0
    assert len(record["filters"]["images"]) == 4
    memory = record["memory"]
    assert memory["parameters"] == trainer.model.flat_parameters.values.nbytes >= 4 * trainer.model.count_parameters()
    assert memory["optimizer"] == 2 * memory["parameters"]
    assert memory["peak"] is None or memory["peak"] > 10**7


def test_the_loss_of_every_step_is_kept_and_thinned_out(run):
    _, folder = run
    assert [i for i, _ in read_record(folder)["steps"]] == list(range(1, 25))
    report = RunReport(folder)
    report._waiting = [(i, np.asarray(float(i))) for i in range(1, 5001)]
    report._collect()
    assert report.every == 4
    assert report.steps[:2] == [(4, 4.0), (8, 8.0)]
    assert len(report.steps) == 1250


def test_measuring_does_not_change_the_run(tmp_path):
    with_report, without = trained(tmp_path), trained(tmp_path / "b")
    x, y = images()
    plain = xn.Trainer(
        without.model, loss="softmax_cross_entropy", optimizer=without.optimizer, metrics=["accuracy"], callbacks=[], seed=7
    )
    plain.epoch = 4
    with_report.fit((x[:60], y[:60]), epochs=1, batch_size=10, verbose=False)
    plain.fit((x[:60], y[:60]), epochs=1, batch_size=10, verbose=False)
    np.testing.assert_array_equal(with_report.model.flat_parameters.values, plain.model.flat_parameters.values)


def test_a_resumed_run_keeps_its_curves(tmp_path):
    from xpnet.training import Checkpoint

    class Crash(xn.Callback):
        def on_step_end(self, trainer):
            if trainer.iteration == 15:
                raise RuntimeError("crash")

    def make(*more):
        x, y = images()
        model = xn.Sequential([xn.Flatten(), xn.Dense(3)], input_shape=(8, 8, 1))
        callbacks = [Checkpoint(tmp_path, every_steps=4), *more, RunReport(tmp_path)]
        trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), callbacks=callbacks)
        return trainer.fit((x, y), epochs=3, batch_size=10, verbose=False, resume="auto")

    with pytest.raises(RuntimeError, match="crash"):
        make(Crash())

    class Nothing(xn.Callback):
        pass

    Nothing.__name__ = "Crash"  # the same list of callbacks
    make(Nothing())
    record = read_record(tmp_path)
    assert [i for i, _ in record["steps"]] == list(range(1, 28))
    assert len(record["learning_rate"]) == 3
    assert record["state"] == "finished"


def test_a_running_run_has_a_report(tmp_path):
    report = RunReport(tmp_path)
    x, y = images()
    model = xn.Sequential([xn.Flatten(), xn.Dense(3)], input_shape=(8, 8, 1))
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1), callbacks=[report])
    states = []

    class Look(xn.Callback):
        def on_epoch_begin(self, trainer):
            report._written = -1e9  # as if a long time had passed

        def on_checkpoint(self, trainer, epoch_ended):
            if (tmp_path / "run.json").exists():
                states.append(read_record(tmp_path)["state"])
                check((tmp_path / "report.html").read_text())

    trainer.callbacks = [report, Look()]
    trainer.fit((x, y), epochs=2, batch_size=45, verbose=False)
    assert states[-1] == "running"


def test_numbers_instead_of_classes(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)).astype(np.float32)
    y = x[:, :1] * 3
    model = xn.Sequential([xn.Dense(1)], input_shape=(4,))
    trainer = xn.Trainer(model, loss="mse", optimizer=xn.optim.SGD(0.1), callbacks=[RunReport(tmp_path, data=(x, y))])
    trainer.fit((x, y), epochs=3, verbose=False)
    predictions = read_record(tmp_path)["predictions"]
    error = model.predict(x) - y
    assert predictions["root_mean_squared_error"] == pytest.approx(np.sqrt(np.mean(error.astype(np.float64) ** 2)), rel=1e-5)
    assert predictions["explained"] == pytest.approx(1 - np.mean(error**2) / np.var(y), rel=1e-4)
    page = check((tmp_path / "report.html").read_text())
    assert "Predictions" in page.text
    assert predictions["mistakes"][0]["index"] == int(np.abs(error[:, 0]).argmax())


def test_one_unit_for_two_classes(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    y = (x[:, :1] > 0).astype(np.float32)
    model = xn.Sequential([xn.Dense(1)], input_shape=(4,))
    loss = xn.losses.sigmoid_cross_entropy
    xn.Trainer(model, loss=loss, optimizer=xn.optim.SGD(1.0), callbacks=[RunReport(tmp_path)]).fit(
        (x, y), epochs=3, verbose=False
    )
    confusion = np.array(read_record(tmp_path)["predictions"]["confusion"])
    predicted = model.predict(x) > 0
    assert confusion.tolist() == [[int(((y == i) & (predicted == j)).sum()) for j in (0, 1)] for i in (0, 1)]
    check((tmp_path / "report.html").read_text())


def test_many_classes_are_drawn_as_an_image(run):
    record = read_record(run[1])
    K = 100
    record["predictions"] = {
        "kind": "classes",
        "examples": 2 * K,
        "confusion": (2 * np.eye(K, dtype=int)).tolist(),
        "mistakes": [],
    }
    page = check(run_page(record))
    assert ("alt", "confusion matrix of 100 classes") in page.attributes


def test_a_nearly_empty_record_still_gives_a_page():
    page = check(run_page({"name": "nothing", "history": {"loss": [float("nan"), 0.5]}}))
    assert "nothing" in page.text


def test_several_runs_on_the_same_axes(run, tmp_path):
    other = trained(tmp_path / "second", rate=0.002, epochs=2)
    records = [read_record(run[1]), read_record(tmp_path / "second")]
    write_comparison(records, tmp_path / "both.html")
    page = check((tmp_path / "both.html").read_text())
    charts = [json.loads(str(value)) for name, value in page.attributes if name == "data-chart"]
    by_run = next(c for c in charts if len(c["series"]) == 2 and c["x"][1] == 4.0)
    assert [s["name"] for s in by_run["series"]] == ["first run", "second"]
    assert [len(s["points"]) for s in by_run["series"]] == [4, 2]
    assert number(min(other.history["val_loss"])) in page.text
    assert "optimizer.learning_rate" in page.text
    assert "batch_size" not in page.text  # the same in both
    with pytest.raises(ValueError, match="no runs"):
        comparison_page([])


def test_files_that_are_no_records(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        read_record(tmp_path)
    for text in ("{", '{"format": "else"}', "[1]"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ArchiveError, match="not a record"):
            read_record(tmp_path)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (4, 2, 3), (2, 2, 4)])
def test_png_files_hold_the_image(shape):
    image_module = pytest.importorskip("PIL.Image")
    import io

    image = np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)
    found = np.asarray(image_module.open(io.BytesIO(png(image))))
    np.testing.assert_array_equal(found.reshape(image.shape), image)


def test_arrays_that_are_no_images():
    for wrong in (np.zeros((2, 2)), np.zeros((2, 2, 2), np.uint8), np.zeros((0, 2), np.uint8)):
        with pytest.raises(ValueError, match="png: expected"):
            data_uri(wrong)
    np.testing.assert_array_equal(as_bytes(np.array([-1.0, 0.0, 1.0, np.nan]), -1, 1), [0, 128, 255, 128])


def test_marks_of_axes_are_round_and_inside():
    for low, high in ((0, 1), (0.013, 0.97), (-3.2, 8.1), (1, 1000), (0, 7)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 7
        assert low - 1e-9 <= found[0]
        assert found[-1] <= high + 1e-9
        np.testing.assert_allclose(np.diff(found), found[1] - found[0])
    assert ticks(2, 2) == [2]
    assert decades(-3.2, 0.1) == [-3, -2, -1, 0]
    assert len(decades(-0.2, 0.5)) >= 2


def test_a_chart_leaves_out_what_is_not_finite():
    text = line_chart("t", [Series("a", [1, 2, 3], [0.5, None, 0.25])])
    data = json.loads(str(dict(Page(text).attributes)["data-chart"]))
    assert data["series"][0]["points"] == [[1, 0.5], [3, 0.25]]
    assert line_chart("t", [Series("a", [1], [None])]) == ""


def test_numbers_are_formatted_for_people():
    thin = "\N{NARROW NO-BREAK SPACE}"
    assert number(1234567) == f"1{thin}234{thin}567"
    assert number(0.00001234) == "1.23\N{MULTIPLICATION SIGN}10<sup>\N{MINUS SIGN}5</sup>"
    assert number(-0.5) == "\N{MINUS SIGN}0.5"
    assert [number(v) for v in (None, float("inf"), 0.0)] == ["\N{EN DASH}", "not finite", "0"]
    assert percent(0.98765) == f"98.77{thin}%"
    assert [size(v) for v in (12, 3400, 5.6e6, 7e9)] == [f"12{thin}B", f"3.4{thin}kB", f"5.6{thin}MB", f"7{thin}GB"]
    assert duration(3700) == f"61{thin}min 40{thin}s"
    assert duration(0.0005) == f"500{thin}\N{MICRO SIGN}s"


def test_sequences_of_numbers_of_words(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 12, size=(40, 7))
    y = (x[:, 0] > 5).astype(np.int64)
    model = xn.Sequential([xn.Embedding(12, 5), xn.LSTM(6), xn.Dense(2)], input_shape=(7,))
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=xn.optim.Adam(0.01), callbacks=[RunReport(tmp_path)])
    trainer.fit((x, y), validation=(x, y), epochs=2, verbose=False)
    record = read_record(tmp_path)
    assert [layer["kind"] for layer in record["layers"]][:3] == ["Embedding", "LSTM", "Dense"]
    check((tmp_path / "report.html").read_text())


def test_neither_a_full_disk_nor_an_unmeasurable_model_ends_a_run(tmp_path, monkeypatch):
    from xpnet.io import archive
    from xpnet.report import measure

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archive.os, "fsync", full)  # type: ignore[attr-defined]
        with pytest.warns(RuntimeWarning, match="report could not be written"):
            assert trained(tmp_path / "a").history.epochs == 4

    def strange(*arguments):
        raise TypeError("no such layer")

    monkeypatch.setattr(measure, "layers", strange)
    with pytest.warns(RuntimeWarning, match="could not be measured .TypeError: no such layer"):
        trained(tmp_path / "b")
    assert read_record(tmp_path / "b")["state"] == "finished"
    assert "Curves" in check((tmp_path / "b" / "report.html").read_text()).text


def test_records_of_earlier_versions_are_read(run, tmp_path):
    record = read_record(run[1])
    mistake = {"index": 3, "truth": 1, "probability": 0.75, "of_truth": 0.25, "example": [0.0]}
    old = {**record, "answers": {**record["predictions"], "mistakes": [{**mistake, "called": 2}]}}
    del old["predictions"]
    (tmp_path / "run.json").write_text(json.dumps(old))
    record["predictions"]["mistakes"] = [{**mistake, "predicted": 2}]
    assert read_record(tmp_path) == record
    assert "75.0" in check(run_page(record)).text
