"""The CIFAR-10 example on small generated files."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from xpnet.data import DataError
from xpnet.examples import cifar10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write files whose images have the colour of their class, with noise."""
    made = tmp_path_factory.mktemp("cifar")
    rng = np.random.default_rng(0)
    colours = rng.integers(60, 196, (10, 3))
    for name, n in (("data_batch_1.bin", 200), ("data_batch_2.bin", 200), ("test_batch.bin", 100)):
        y = np.arange(n) % 10
        x = np.clip(colours[y][:, :, None] + rng.normal(0, 25, (n, 3, 1024)), 0, 255)
        rows = np.concatenate([y[:, None], x.reshape(n, -1)], axis=1).astype(np.uint8)
        (made / name).write_bytes(rows.tobytes())
    return made


def test_trains_on_any_files_of_the_format(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    report = cifar10.run(tmp_path, path=str(folder), epochs=3)
    assert report.rows
    assert report.differing == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cifar10_filters.png", "cifar10_templates.png"]


def test_reads_all_training_files(folder):
    (x, y), (xt, yt) = cifar10.read_folder(folder)
    assert x.shape == (400, 32, 32, 3)
    assert xt.shape == (100, 32, 32, 3)
    assert x.dtype == np.float32
    assert 0 <= x.min() <= x.max() <= 1
    assert np.array_equal(np.bincount(y), np.full(10, 40))
    assert np.array_equal(yt[:10], np.arange(10))


def test_a_folder_without_files_says_what_is_expected(tmp_path, capsys):
    with pytest.raises(DataError, match=r"expected data_batch_1.bin, \.\.\. and test_batch.bin, found \[\]"):
        cifar10.read_folder(tmp_path)
    assert cifar10.run(path=str(tmp_path)).rows == []
    assert "no data" in capsys.readouterr().out


def test_templates_have_the_colours_of_the_classes(folder):
    (x, y), test = cifar10.read_folder(folder)
    model = cifar10.linear()
    cifar10.learn(model, (x, y), test, rate=0.002, epochs=5, seed=0)
    templates = xn.inspect.templates(model)
    assert templates.shape == (10, 32, 32, 3)
    centred = np.stack([x[y == k].mean(axis=(0, 1, 2)) for k in range(10)]) - x.mean(axis=(0, 1, 2))
    means = templates.mean(axis=(1, 2))
    # The template of a class responds to the colour of the class.
    scores = means @ centred.T
    assert np.all(np.diagonal(scores) > np.median(scores, axis=1))
