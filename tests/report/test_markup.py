"""No text becomes a part of a page's markup, wherever it enters, and a malformed record is one error."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpnet as xn
import xpnet.report
from xpnet.io.archive import ArchiveError
from xpnet.report import RunReport, comparison_page, read_record, run_page
from xpnet.report.text import Markup, html, join, number

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{0}"


def record(folder: Path, regression: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6, 6, 1)).astype(np.float32)
    y: Any = x.mean(axis=(1, 2, 3))[:, None] if regression else rng.integers(0, 3, 64)
    model = xn.Sequential(
        [xn.Conv2D(2, 3, activation="relu"), xn.Flatten(), xn.Dense(1 if regression else 3)], input_shape=(6, 6, 1)
    )
    report = RunReport(folder, configuration={"list": ["a", 1], "dict": {"a": "b"}}, class_names=["cat", "dog", "owl"])
    loss = "mean_squared_error" if regression else "softmax_cross_entropy"
    trainer = xn.Trainer(
        model, loss=loss, optimizer=xn.optim.SGD(0.01), metrics=[] if regression else ["accuracy"], callbacks=[report]
    )
    trainer.fit((x, y), validation=(x, y), epochs=2, verbose=False)
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


@pytest.fixture(scope="module", params=["classes", "numbers"])
def whole(request, tmp_path_factory) -> dict[str, Any]:
    found = record(tmp_path_factory.mktemp("run"), request.param == "numbers")
    found["findings"] = ["a finding", "another"]
    return found


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every part of a document with the way to it."""
    yield at, value
    for key, part in value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ():
        yield from places(part, (*at, key))


def changed(document: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(document)
    home: Any = made
    for key in at[:-1]:
        home = home[key]
    home[at[-1]] = value
    return made


class Tags(HTMLParser):
    """Every tag of a page with the names of its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {f"{tag} {name}" for name, _ in attrs} | {tag}
        sources = [value or "" for name, value in attrs if name in ("src", "href")]
        assert all(value == "" or value.startswith("data:image/png;base64,") for value in sources)


def test_markup_in_any_text_of_a_record_stays_text(tmp_path, whole):
    usual = Tags(run_page(whole)).found
    tried = 0
    for at, value in places(whole):
        if not isinstance(value, str):
            continue
        (tmp_path / "run.json").write_text(json.dumps(changed(whole, at, EVIL)))
        try:
            found = read_record(tmp_path)
        except ArchiveError:  # such as the format
            continue
        tried += 1
        page = run_page(found)
        assert "<script>alert" not in page, at
        assert Tags(page).found <= usual, at
        assert "<script>alert" not in comparison_page([whole, found]), at
    assert tried > 20


def test_markup_in_any_name_of_a_record_stays_text(whole):
    for at, value in list(places(whole)):
        if isinstance(value, dict) and at and at[0] in ("history", "configuration", "environment", "memory"):
            page = run_page(changed(whole, at, {**value, EVIL: next(iter(value.values()))}))
            assert "<script>alert" not in page, at


@pytest.mark.parametrize("value", ["x", 1, -1, 1.5, None, True, [], {}, [None], [{}], {"a": 1}, 10**400, 1e308, float("nan")])
def test_a_record_of_which_any_part_is_something_else_is_drawn_or_refused(tmp_path, whole, value):
    drawn, messages = 0, []
    for at, _ in places(whole):
        if not at:
            continue
        (tmp_path / "run.json").write_text(json.dumps(changed(whole, at, value)))
        try:
            found = read_record(tmp_path)
        except ArchiveError as error:
            messages.append(str(error))
        else:
            drawn += 1
            run_page(found)
            comparison_page([found, whole])
    assert drawn
    assert messages
    assert all("run.json" in message and len(message) < 2000 for message in messages)


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "null", '{"format": "xpnet-run-1"', "\xff", "9" * 5000, ""])
def test_what_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArchiveError, match=r"run\.json"):
        read_record(tmp_path)


def test_values_are_escaped_unless_they_are_markup():
    assert html("<b>{}</b>", "<i>") == "<b>&lt;i&gt;</b>"
    assert html("<b>{x}</b>", x=html("<i>{}</i>", '"')) == "<b><i>&quot;</i></b>"
    assert html("{!r}", html("<i>")) == "&#x27;&lt;i&gt;&#x27;"
    assert html("{:.1f}", 2.25) == "2.2"
    assert join(["<", html("<br>")], " & ") == "&lt; &amp; <br>"
    assert html("<br>") + "<" == "<br>&lt;"
    assert number("<b>") == "&lt;b&gt;"


def test_markup_is_made_in_one_module_from_literal_templates():
    """Escaping cannot be forgotten: what is not made by `html` from a literal is escaped when it is filled in."""
    folder = Path(xpnet.report.__file__).parent
    templates = 0
    for file in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id == "Markup":
                assert file.name == "text.py", f"{file.name}:{node.lineno} makes Markup itself"
            if node.func.id == "html":
                template = node.args[0]
                literal = isinstance(template, ast.Constant) or (isinstance(template, ast.Name) and template.id.isupper())
                assert literal, f"{file.name}:{node.lineno}: the template is not a literal"
                templates += 1
    assert templates > 60
    assert issubclass(Markup, str)
