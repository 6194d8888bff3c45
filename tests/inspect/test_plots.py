import sys
from typing import cast

import numpy as np
import pytest

import xpnet as xn
from tests.optional import optional
from xpnet.inspect import figures
from xpnet.inspect.figures import save_figure

HISTORY = {"loss": [2.0, 1.0, 0.05], "accuracy": [0.2, 0.5, 0.9], "val_loss": [1.5, 0.9, 0.1], "val_accuracy": [0.3, 0.6, 0.8]}


@pytest.fixture
def plots():
    optional("matplotlib")
    from xpnet.inspect import plots

    return plots


def _size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


def test_the_worst_mistakes_come_first():
    from xpnet.inspect.plots import worst_mistakes

    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.05, 0.95]])
    found = worst_mistakes(np.arange(4.0)[:, None], np.array([0, 0, 0, 0]), probabilities, count=2)
    assert [(m.index, m.truth, m.predicted, m.probability) for m in found] == [(3, 0, 1, 0.95), (1, 0, 1, 0.8)]
    np.testing.assert_array_equal(found[0].example, [3.0])


def test_learning_curves_show_every_value(plots, tmp_path):
    figure = plots.learning_curves(HISTORY, "digits")
    left, right = figure.axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("loss", "accuracy")
    for ax, name in ((left, "loss"), (right, "accuracy")):
        np.testing.assert_array_equal([line.get_ydata() for line in ax.lines], [HISTORY[name], HISTORY[f"val_{name}"]])
    assert [t.get_text() for t in right.texts] == ["training  90.0 %", "test  80.0 %"]
    assert left.get_yscale() == "log"  # the losses lie a factor of 40 apart
    save_figure(figure, tmp_path / "c.png")
    assert _size(tmp_path / "c.png")[0] > 1000
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]


def test_one_epoch_and_no_validation(plots, tmp_path):
    for history in cast(list[dict[str, list[float]]], [{"loss": [1.0]}, {"loss": []}, {}]):
        save_figure(plots.learning_curves(history), tmp_path / "c.png")


def test_the_confusion_matrix_shows_its_counts(plots, tmp_path):
    matrix = np.array([[8, 2], [0, 1234]])
    mistakes = [plots.Mistake(3, np.zeros((8, 8, 1)), 0, 1, 0.93)]
    figure = plots.confusion(matrix, ["cat", "dog"], mistakes, "pets")
    texts = [t.get_text() for ax in figure.subfigs[0].axes for t in ax.texts]
    assert texts == ["8", "2", "1,234"]
    assert figure.subfigs[0].axes[0].get_title(loc="left") == "1,242 of 1,244 right"
    assert figure.subfigs[1].axes[0].get_title(loc="center") == "cat, taken for dog\n93 % sure"
    save_figure(figure, tmp_path / "m.png")
    for others in ([], [plots.Mistake(3, np.ones(4), 0, 1, 0.5)], [plots.Mistake(0, np.ones((4, 4, 3)), 1, 0, 1.0)] * 12):
        save_figure(plots.confusion(matrix, ["cat", "dog"], others), tmp_path / "m.png")
    hundred = np.eye(100, dtype=np.int64)
    save_figure(plots.confusion(hundred, [f"class{i}" for i in range(100)]), tmp_path / "m.png")


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    from xpnet.inspect import plots

    with pytest.raises(ImportError, match=r'pip install "xpnet\[plot\]"'):
        plots.learning_curves(HISTORY)


def test_settings_of_the_user_are_left_alone(plots):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.learning_curves(HISTORY)
    assert dict(matplotlib.rcParams) == before
    assert xn.inspect is not None


LONG = [f"Category {k}: a sensible description of some twenty or more characters" for k in range(5)]


@pytest.mark.parametrize(
    "names",
    [
        LONG,
        [f"a sensible description of some twenty or more characters, number {k}" for k in range(30)],
        [f"a description of some twenty characters {k} and as many that are the same" for k in range(30)],
        ["x" * 100 + str(k) + "y" * 100 for k in range(3)],
        ["short", "also short"],
    ],
)
def test_long_names_can_be_told_apart(names):
    short = figures.short_names(names)
    assert len(set(short)) == len(names)
    assert max(map(len, short)) <= figures.LONGEST_NAME


def test_a_name_keeps_its_beginning_and_its_end():
    assert figures.short_names(["/data/photos/of/the/summer/cat-tabby", "/data/photos/of/the/summer/cat-black"])[0].endswith(
        "cat-tabby"
    )
    assert figures.short_names(["k\udce4tze\n"]) == ["k\N{REPLACEMENT CHARACTER}tze\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("shape", [(4,), (8, 8, 1)])
@pytest.mark.parametrize(
    "names", [LONG, ["$a^", "$", "k\udce4tze", "\\frac{", "e"], [f"{'long name ' * 20}{k}" for k in range(5)]]
)
def test_any_names_fit_into_the_picture(tmp_path, recwarn, plots, shape, names):
    rng = np.random.default_rng(0)
    found = plots.worst_mistakes(rng.random((60, *shape)), rng.integers(0, 5, 60), rng.random((60, 5)))
    figure = plots.confusion(rng.integers(0, 9, (5, 5)), names, found, f"{names[0]} {names[0]}, cnn")
    figures.save_figure(figure, tmp_path / "c.png")
    assert [str(w.message) for w in recwarn] == []
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    parts = figure.subfigs
    for part in parts:
        boxes = [ax.title.get_window_extent(renderer) for ax in part.axes if ax.title.get_text()]
        assert all(not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
