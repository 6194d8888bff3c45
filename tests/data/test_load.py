"""Data sets by name: what is in the package, what is read from published files, and what goes wrong."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import sys
import tarfile
import threading
from typing import Any

import numpy as np
import pytest

import xpnet.data as data
from xpnet.data import DataError, catalogue, cifar, files, idx, published


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch, tmp_path):
    """No folder, mirror or cache of whoever runs the tests, and no network."""
    for name in ("XPNET_DATA", "XPNET_DATA_MIRROR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XPNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XPNET_OFFLINE", "1")


# What is in the package


@pytest.mark.parametrize(
    ("name", "train", "test", "shape", "classes"),
    [("iris", 120, 30, (4,), 3), ("digits", 1438, 359, (8, 8, 1), 10)],
)
def test_shipped_sets(name, train, test, shape, classes):
    found = data.load(name)
    for (x, y), count in ((found.train, train), (found.test, test)):
        assert x.shape == (count, *shape)
        assert x.dtype == np.float32
        assert y.shape == (count,)
        assert y.dtype == np.int64
        assert x.min() >= 0
        assert x.max() <= 1
        assert sorted(set(y.tolist())) == list(range(classes))
    assert found.classes == classes == len(found.class_names)
    assert found.input_shape == shape
    assert "CC BY" in found.licence
    assert "UCI" in found.source
    axes = tuple(range(len(shape)))
    np.testing.assert_allclose(found.mean, found.train[0].mean(axes, dtype=np.float64))
    np.testing.assert_allclose(found.std, found.train[0].std(axes, dtype=np.float64))
    assert repr(found).startswith(f"Dataset('{name}': {train} training and {test} test examples")


@pytest.mark.parametrize("name", ["iris", "digits"])
def test_shipped_split_is_stratified_and_fixed(name):
    found = data.load(name)
    counts = np.bincount(found.train[1]) + np.bincount(found.test[1])
    assert np.bincount(found.test[1]).tolist() == [round(count / 5) for count in counts.tolist()]
    again = data.load(name)
    np.testing.assert_array_equal(found.train[0], again.train[0])
    np.testing.assert_array_equal(found.test[1], again.test[1])


def test_iris_holds_fishers_values():
    found = data.load("iris")
    x = np.concatenate([found.train[0], found.test[0]])
    y = np.concatenate([found.train[1], found.test[1]])
    # Table I of Fisher's paper: the means in cm of each species.
    expected = [[5.006, 3.428, 1.462, 0.246], [5.936, 2.770, 4.260, 1.326], [6.588, 2.974, 5.552, 2.026]]
    means = [x[y == c].mean(0, dtype=np.float64) * found.scale for c in range(3)]
    np.testing.assert_allclose(means, expected, atol=1e-6)


def test_shipped_sets_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    for name, loader in (("iris", datasets.load_iris), ("digits", datasets.load_digits)):
        found, theirs = data.load(name), loader()
        x = np.concatenate([found.train[0], found.test[0]]).reshape(-1, theirs.data.shape[1]) * found.scale
        y = np.concatenate([found.train[1], found.test[1]])
        ours = sorted(map(tuple, np.column_stack([x.round(4), y]).tolist()))
        assert ours == sorted(map(tuple, np.column_stack([theirs.data.astype("f4").round(4), theirs.target]).tolist()))


def test_unknown_name_says_what_there_is():
    with pytest.raises(DataError, match=r'unknown data set .*expected one of iris, digits.*did you mean "fashion-mnist"'):
        data.load("Fashion_MNIST")


# IDX files in a folder


@pytest.fixture
def tiny(monkeypatch):
    """A little MNIST under a name of its own, with the checksums of its own files; the four contents."""
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        rng.integers(0, 10, 20, dtype=np.uint8),
        rng.integers(0, 256, (5, 28, 28), dtype=np.uint8),
        rng.integers(0, 10, 5, dtype=np.uint8),
    ]
    contents = []
    for a in arrays:
        header = bytes([0, 0, 8, a.ndim]) + b"".join(n.to_bytes(4, "big") for n in a.shape)
        contents.append(header + a.tobytes())
    mnist = next(s for s in published.MNIST_LIKE if s.name == "mnist")
    spec = dataclasses.replace(mnist, md5=tuple(hashlib.md5(c).hexdigest() for c in contents))
    monkeypatch.setitem(catalogue._PUBLISHED, "mnist", spec)
    return arrays, dict(zip(published.MNIST_FILES, contents, strict=True))


def _put(folder, contents, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", [".", "mnist"])
def test_mnist_from_a_folder(tmp_path, tiny, packed, place):
    arrays, contents = tiny
    _put(tmp_path / "d" / place, contents, packed)
    found = data.load("mnist", path=tmp_path / "d")
    x, y = found.train
    assert (x.shape, x.dtype, y.dtype) == ((20, 28, 28, 1), np.float32, np.int64)
    np.testing.assert_array_equal(x[..., 0], arrays[0].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(found.test[1], arrays[3])
    assert (found.mean, found.std) == ((0.1307,), (0.3081,))


def test_mnist_from_the_environment_then_the_cache(tmp_path, tiny, monkeypatch):
    _put(tmp_path / "cache" / "mnist", tiny[1], packed=True)
    assert len(data.load("mnist").train[0]) == 20
    _put(tmp_path / "mine", {**tiny[1], "train-labels-idx1-ubyte": b"x"})
    monkeypatch.setenv("XPNET_DATA", str(tmp_path / "mine"))
    with pytest.raises(DataError, match=r"mine/train-labels-idx1-ubyte: not an IDX file"):
        data.load("mnist")
    (tmp_path / "mine" / "train-labels-idx1-ubyte").unlink()
    assert len(data.load("mnist").train[0]) == 20  # not all there: passed over


def test_names_with_a_dot_are_found(tmp_path, tiny):
    _put(tmp_path / "d", {name.replace("-idx", ".idx"): content for name, content in tiny[1].items()})
    assert len(data.load("mnist", path=tmp_path / "d").test[0]) == 5


def test_a_changed_file_is_refused(tmp_path, tiny):
    name = "t10k-images-idx3-ubyte"
    content = bytearray(tiny[1][name])
    content[-1] ^= 1
    _put(tmp_path / "d", {**tiny[1], name: bytes(content)})
    with pytest.raises(DataError, match=rf"{name}: not the published file: the md5 sum.*xpnet.data.idx.read"):
        data.load("mnist", path=tmp_path / "d")


def test_a_file_of_the_other_set_is_recognised(tmp_path, tiny, monkeypatch):
    theirs = np.zeros(20, np.uint8)
    idx.write(tmp_path / "theirs", theirs)
    content = (tmp_path / "theirs").read_bytes()
    fashion = dataclasses.replace(published.MNIST_LIKE[1], md5=("", hashlib.md5(content).hexdigest(), "", ""))
    monkeypatch.setattr(published, "MNIST_LIKE", (catalogue._PUBLISHED["mnist"], fashion))
    _put(tmp_path / "d", {**tiny[1], "train-labels-idx1-ubyte": content})
    with pytest.raises(DataError, match="It is fashion-mnist's train-labels-idx1-ubyte"):
        data.load("mnist", path=tmp_path / "d")


def test_files_that_do_not_belong_together(tmp_path, tiny, monkeypatch):
    content = tiny[1]["t10k-labels-idx1-ubyte"]
    spec: Any = catalogue._PUBLISHED["mnist"]
    monkeypatch.setitem(
        catalogue._PUBLISHED,
        "mnist",
        dataclasses.replace(spec, md5=(spec.md5[0], spec.md5[3], *spec.md5[2:])),
    )
    _put(tmp_path / "d", {**tiny[1], "train-labels-idx1-ubyte": content})
    with pytest.raises(DataError, match=r"do not belong together: images of shape \(20, 28, 28\), labels of shape \(5,\)"):
        data.load("mnist", path=tmp_path / "d")


def test_a_missing_folder_or_file_says_what_to_put_where(tmp_path, tiny):
    with pytest.raises(DataError, match=r'is not a folder.*train-images-idx3-ubyte.*path="FOLDER".*XPNET_DATA'):
        data.load("mnist", path=tmp_path / "nowhere")
    _put(tmp_path / "d", dict(list(tiny[1].items())[:3]))
    with pytest.raises(DataError, match=r"the files are not in .*t10k-labels-idx1-ubyte"):
        data.load("mnist", path=tmp_path / "d")
    with pytest.raises(
        DataError, match=r"not found in .*cache, and XPNET_OFFLINE forbids the download.*t10k-labels-idx1-ubyte"
    ):
        data.load("mnist")


# Download


@pytest.fixture
def server(tmp_path):
    """A web server on this machine: its address and the folder that it serves."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


def test_download_from_a_mirror_then_from_the_cache(tmp_path, tiny, server, monkeypatch):
    pytest.importorskip("pooch")
    address, folder = server
    monkeypatch.setenv("XPNET_DATA_MIRROR", address)
    monkeypatch.setenv("XPNET_OFFLINE", "0")
    _put(folder / "mnist", tiny[1], packed=True)
    assert len(data.load("mnist").train[0]) == 20
    assert len(list((tmp_path / "cache" / "mnist").iterdir())) == 4
    monkeypatch.setenv("XPNET_OFFLINE", "1")
    assert len(data.load("mnist").train[0]) == 20


def test_a_mirror_with_wrong_content_leaves_nothing_in_the_cache(tmp_path, tiny, server, monkeypatch):
    pytest.importorskip("pooch")
    address, folder = server
    monkeypatch.setenv("XPNET_DATA_MIRROR", address)
    monkeypatch.setenv("XPNET_OFFLINE", "0")
    _put(folder / "mnist", {**tiny[1], "t10k-labels-idx1-ubyte": b"<html>"}, packed=True)
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: not an IDX file"):
        data.load("mnist")
    assert list((tmp_path / "cache" / "mnist").iterdir()) == []


def test_a_download_that_fails_says_what_to_put_where(tiny, server, monkeypatch):
    pytest.importorskip("pooch")
    monkeypatch.setenv("XPNET_DATA_MIRROR", server[0])
    monkeypatch.setenv("XPNET_OFFLINE", "0")
    with pytest.raises(DataError, match=r"could not be downloaded \(404.*Put them in a folder"):
        data.load("mnist")


def test_the_published_address_is_checked_by_checksum(tmp_path, server, monkeypatch):
    pytest.importorskip("pooch")
    address, folder = server
    (folder / "file.gz").write_bytes(b"something else")
    monkeypatch.setenv("XPNET_OFFLINE", "0")
    remote = files.Remote("file.gz", f"{address}/file.gz", "0" * 32)
    with pytest.raises(DataError, match=r"file\.gz could not be downloaded \(.*hash"):
        files.download("some", ("some",), (("file",),), [remote])
    assert not (tmp_path / "cache" / "some" / "file.gz").exists()


def test_without_pooch_the_error_says_so(tiny, monkeypatch):
    monkeypatch.setenv("XPNET_OFFLINE", "0")
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"a download needs pooch \(pip install pooch\)\. Expected these files"):
        data.load("mnist")


def test_the_progress_bar_counts_to_the_end(capsys):
    bar = files._Bar("train-images")
    bar.total = 300
    for _ in range(3):
        bar.update(100)
    bar.reset()
    bar.update(300)
    bar.close()
    assert bar._progress.tasks[0].finished
    assert bar.total == 300


# CIFAR


def _records(count, classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (count, 1), dtype=np.uint8)
    if classes == 100:
        labels = np.hstack([labels // 5, labels])
    return np.hstack([labels, rng.integers(0, 256, (count, 3072), dtype=np.uint8)])


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_records(tmp_path, classes):
    records = _records(7, classes)
    (tmp_path / "a.bin").write_bytes(records.tobytes())
    x, y = cifar.read(tmp_path / "a.bin", classes=classes)
    labels = 1 if classes == 10 else 2
    assert (x.shape, x.dtype, y.dtype) == ((7, 32, 32, 3), np.uint8, np.int64)
    np.testing.assert_array_equal(y, records[:, labels - 1])
    for image, row, column, channel in [(0, 0, 0, 0), (3, 5, 31, 1), (6, 31, 2, 2)]:
        assert x[image, row, column, channel] == records[image, labels + channel * 1024 + row * 32 + column]


def test_cifar_files_that_are_something_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(_records(3, 10).tobytes()[:-1])
    with pytest.raises(DataError, match=r"a\.bin: wrong size for CIFAR-10: 9218 bytes, expected a multiple of 3073"):
        cifar.read(path)
    path.write_bytes(_records(3, 10).tobytes())
    with pytest.raises(DataError, match=r"expected 30730 \(10 records\)"):
        cifar.read(path, records=10)
    bad = _records(3, 10)
    bad[1, 0] = 10
    path.write_bytes(bad.tobytes())
    with pytest.raises(DataError, match="record 1 has the label 10, expected 0 to 9"):
        cifar.read(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="wrong size"):
        cifar.read(path)
    with pytest.raises(DataError, match="no such file"):
        cifar.read(tmp_path / "none.bin")
    with pytest.raises(ValueError, match="classes must be 10 or 100"):
        cifar.read(path, classes=20)


@pytest.fixture(params=["cifar10", "cifar100"])
def small_cifar(request, monkeypatch):
    """A CIFAR of 4 records a file: its specification and its files' contents."""
    name = request.param
    published: Any = catalogue._PUBLISHED[name]
    spec = dataclasses.replace(published, records=4, test_records=4)
    names = spec.train_files + spec.test_files
    contents = {f: _records(4, spec.class_names and len(spec.class_names), i).tobytes() for i, f in enumerate(names)}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for file, content in contents.items():
            member = tarfile.TarInfo(f"folder/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    remote = dataclasses.replace(spec.archive, md5=hashlib.md5(packed.getvalue()).hexdigest())
    spec = dataclasses.replace(spec, archive=remote)
    monkeypatch.setitem(catalogue._PUBLISHED, name, spec)
    return spec, contents, packed.getvalue()


def test_cifar_from_loose_files_from_the_archive_and_from_a_download(tmp_path, small_cifar, server, monkeypatch):
    pytest.importorskip("pooch")
    spec, contents, packed = small_cifar
    _put(tmp_path / "loose" / spec.name, contents)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / spec.archive.name).write_bytes(packed)
    loose = data.load(spec.name, path=tmp_path / "loose")
    archive = data.load(spec.name, path=tmp_path / "packed")
    monkeypatch.setenv("XPNET_OFFLINE", "0")
    monkeypatch.setenv("XPNET_DATA_MIRROR", server[0])
    (server[1] / spec.name).mkdir()
    (server[1] / spec.name / spec.archive.name).write_bytes(packed)
    fetched = data.load(spec.name)
    monkeypatch.setenv("XPNET_OFFLINE", "1")
    kept = data.load(spec.name)
    assert loose.train[0].shape == (4 * len(spec.train_files), 32, 32, 3)
    assert loose.train[0].dtype == np.float32
    assert loose.train[0].max() <= 1
    assert len(loose.mean) == len(loose.std) == 3
    for other in (archive, fetched, kept):
        for ours, theirs in zip(loose.train + loose.test, other.train + other.test, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_damaged_cifar_archive(tmp_path, small_cifar):
    spec, _, packed = small_cifar
    path = tmp_path / spec.archive.name
    path.write_bytes(packed[:-100])
    with pytest.raises(DataError, match="not the published archive: its md5 sum"):
        data.load(spec.name, path=tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        cifar.read_archive(path, spec.train_files, None)
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(DataError, match="the archive lacks"):
        cifar.read_archive(path, spec.train_files, None)


def test_class_names_are_complete():
    for spec in published.CIFARS:
        assert len(set(spec.class_names)) == int(spec.name.removeprefix("cifar"))


# The real files, where they are


@pytest.mark.mnist
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_files_have_the_published_moments(name, mnist_folder):
    found = data.load(name, path=mnist_folder)
    x, y = found.train
    assert x.shape == (60_000, 28, 28, 1)
    assert found.test[0].shape == (10_000, 28, 28, 1)
    assert sorted(set(y.tolist())) == list(range(10))
    assert round(float(x.mean(dtype=np.float64)), 4) == found.mean[0]
    assert abs(float(x.std(dtype=np.float64)) - found.std[0]) < 1e-4
