import json
import math
import os
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xpnet as xn
from tests.layer_cases import LAYERS
from xpnet.data.preprocessing import Standardize
from xpnet.inspect.summary import summarize
from xpnet.io import archive, model_file


def every_kind():
    shared = xn.Dense(4, "tanh", kernel_constraint=xn.regularizers.MaxNorm(3.0))
    return xn.Sequential(
        [
            xn.Conv2D(4, (3, 3), padding=((1, 1), (0, 2)), activation="relu", kernel_regularizer=xn.regularizers.L2(1e-4)),
            xn.Residual([xn.Conv2D(4, 1), xn.ops.tanh], shortcut=xn.Conv2D(4, 1, use_bias=False)),
            xn.MaxPool2D(2),
            xn.AveragePool2D(2, 1, padding=1, count_include_pad=True),
            xn.LpPool2D(2, p=3),
            xn.Flatten(),
            xn.Dropout(0.5),
            xn.Dense(4, xn.ops.gelu, kernel_initializer=xn.initializers.Orthogonal(0.5), bias_initializer=0.01),
            shared,
            xn.LeakyReLU(0.2),
            shared,
            xn.Reshape((2, -1)),
            xn.Activation("selu"),
        ],
        input_shape=(8, 9, 2),
        seed=3,
    )


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((5, 8, 9, 2)).astype(np.float32)


def test_a_model_comes_back(tmp_path, images):
    model = every_kind()
    model(images)  # draws a dropout mask: the counter must come back too
    model.parameters()["0.bias"].requires_grad = False
    path = tmp_path / "m.xpnet"
    model.save(path)
    loaded: Any = xn.load(path)
    np.testing.assert_array_equal(loaded.predict(images), model.predict(images))
    assert repr(loaded) == repr(model)
    assert loaded.layers[8] is loaded.layers[10]
    assert loaded.input_shape == (8, 9, 2)
    assert loaded.rng_counters() == model.rng_counters() == {"6": 1}
    assert not loaded.training
    assert [n for n, p in loaded.parameters().items() if not p.requires_grad] == ["0.bias"]
    for name, parameter in model.parameters().items():
        other = loaded.parameters()[name]
        assert xn.to_numpy(other.array).flags.writeable
        assert (other.decay, other.regularizer, other.constraint) == (
            parameter.decay,
            parameter.regularizer,
            parameter.constraint,
        )
    np.testing.assert_array_equal(loaded.train()(images).array, model.train()(images).array)  # the next dropout mask


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.id)
def test_every_layer_comes_back(tmp_path, case):
    model = case.model("float32")
    x = case.batch(dtype="float32")
    model.train()(x)  # running statistics and recurrent states are something else than at first
    model.save(tmp_path / "m")
    loaded = xn.load(tmp_path / "m")
    assert repr(loaded) == repr(model)
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    for name, array in model.state().items():
        np.testing.assert_array_equal(loaded.state()[name], array)
        assert loaded.state()[name].dtype == array.dtype
    assert summarize(loaded, case.shape) == summarize(model, case.shape)
    assert summarize(loaded, case.shape).parameters == loaded.count_parameters()
    assert summarize(loaded, case.shape).rows[-1].output_shape == loaded.predict(x).shape[1:]


def test_training_goes_on_as_if_it_had_not_been_saved(tmp_path, images):
    y = np.arange(5) % 2
    head = [xn.Flatten(), xn.Dense(6, "relu"), xn.Dropout(0.4), xn.Dense(2)]
    model = xn.Sequential(head, input_shape=(8, 9, 2), seed=1)

    def run(m):
        trainer = xn.Trainer(m, loss="softmax_cross_entropy", optimizer=xn.optim.SGD(0.1))
        return [float(trainer.step(images, y)) for _ in range(3)]

    run(model)
    model.save(tmp_path / "m.xpnet")
    assert run(xn.load(tmp_path / "m.xpnet")) == run(model)


def test_predictions_are_the_same_bits_in_a_new_process(tmp_path, images):
    model = xn.models.cnn((8, 9, 2), 3, seed=5)
    model.save(tmp_path / "m.xpnet")
    np.save(tmp_path / "x.npy", images)
    code = (
        "import numpy, sys, xpnet\n"
        "m = xpnet.load(sys.argv[1] + '/m.xpnet')\n"
        "numpy.save(sys.argv[1] + '/y.npy', m.predict(numpy.load(sys.argv[1] + '/x.npy')))\n"
    )
    root = str(Path(xn.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env={**os.environ, "PYTHONPATH": root})
    assert np.load(tmp_path / "y.npy").tobytes() == model.predict(images).tobytes()


def test_a_model_built_by_its_first_batch_and_another_dtype(tmp_path, images):
    model = xn.Sequential([xn.Conv2D(2, 3), xn.Flatten(), xn.Dense(2)], dtype="float64", seed=9)
    with pytest.raises(ValueError, match="input_shape"):
        model.save(tmp_path / "m.xpnet")
    assert list(tmp_path.iterdir()) == []
    x = images.astype(np.float64)
    before = model.predict(x)
    model.save(tmp_path / "m.xpnet")
    after = xn.load(tmp_path / "m.xpnet").predict(x)
    assert after.dtype == np.float64
    np.testing.assert_array_equal(after, before)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        xn.models.mlp((4,), 3).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with zipfile.ZipFile(tmp_path / "a") as z:
        assert {info.date_time for info in z.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_what_belongs_to_a_model_is_kept(tmp_path):
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    transform = Standardize().fit(x)
    model = xn.models.mlp((4,), 3)
    model.save(tmp_path / "m", class_names=["a", "b", "c"], preprocessing=transform, metadata={"dataset": "iris", "n": [1, 2]})
    saved = model_file.read(tmp_path / "m")
    assert saved.class_names == ("a", "b", "c")
    assert saved.metadata == {"dataset": "iris", "n": [1, 2]}
    assert saved.preprocessing is not None
    np.testing.assert_array_equal(saved.preprocessing(x), transform(x))


def test_metadata(tmp_path):
    model = xn.models.mlp((4,), 3)
    model.save(tmp_path / "m", metadata={"best": np.float32(0.5), "n": [np.int64(3), True], "of": {"ok": np.bool_(True)}})
    assert model_file.read(tmp_path / "m").metadata == {"best": 0.5, "n": [3, True], "of": {"ok": True}}
    for value in (open, np.ones(3), {1, 2}, math.nan, np.float32(math.inf), b"a"):
        with pytest.raises(ValueError, match=r"metadata\['f'\]: only what JSON can hold can be saved, got"):
            model.save(tmp_path / "m", metadata={"a": 1, "f": value})
    assert model_file.read(tmp_path / "m").metadata["best"] == 0.5


class Twin(xn.Module):
    """Two branches of one layer, a buffer, a function and a width."""

    def __init__(self, units, activation, start=None):
        self.body = xn.Dense(units)
        self.activation = activation
        self.scale = xn.Parameter(np.ones(1, np.float32) if start is None else start)
        self.add_buffer("seen", np.zeros((), np.int64))

    def forward(self, x):
        return self.activation(self.body(x)) + self.body(x * 0.5) * self.scale


def swish2(x):
    return x * xn.ops.sigmoid(x + x)


def test_classes_and_functions_of_ones_own(tmp_path):
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    model = Twin(2, swish2, start=np.array([0.25], np.float32))
    before = model.predict(x)
    model.seen = np.array(7, np.int64)
    model.save(tmp_path / "m")
    loaded: Any = xn.load(tmp_path / "m", classes=[Twin, swish2])
    np.testing.assert_array_equal(loaded.predict(x), before)
    assert loaded.seen.shape == ()
    assert loaded.seen == 7
    for classes, missing in (([], "Twin"), ([Twin], "swish2"), ([swish2], "Twin")):
        with pytest.raises(xn.ModelFileError, match=rf"{missing}.*classes=\[{missing}"):
            xn.load(tmp_path / "m", classes=classes)


def test_what_cannot_be_written_says_so_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"old")

    class Local(xn.Module):
        def forward(self, x):
            return x

    changed = xn.Residual([xn.Dense(4)])
    changed(np.zeros((1, 4), np.float32))
    changed.shortcut = xn.Dense(4)
    changed(np.zeros((1, 4), np.float32))
    for model, message in [
        (xn.Sequential([lambda x: x], input_shape=(2,)), "a lambda cannot be written"),
        (Local(), "inside a function"),
        (
            xn.Sequential([xn.Dense(2, kernel_initializer=partial(np.full, fill_value=0.0))], seed=0),
            "cannot be written|input_shape",
        ),
        (xn.Sequential([xn.Reshape(range(2, 3))], input_shape=(2,)), "range cannot be written"),
        (changed, "would not come back"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.save(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.xpnet"
    xn.Sequential([xn.Dense(2, "relu")], input_shape=(3,)).save(path, class_names=["a", "b"])
    return path.read_bytes()


def test_truncated_at_every_place(tmp_path, small):
    path = tmp_path / "cut.xpnet"
    for length in range(len(small)):
        path.write_bytes(small[:length])
        with pytest.raises(xn.ModelFileError, match=r"cut\.xpnet"):
            xn.load(path)


def test_every_byte_flipped_is_an_error_or_does_not_matter(tmp_path, small):
    path = tmp_path / "flipped.xpnet"
    x = np.eye(3, dtype=np.float32)
    path.write_bytes(small)
    expected = xn.load(path).predict(x)
    found = 0
    for i in range(len(small)):
        for bit in (0x01, 0x80):
            path.write_bytes(small[:i] + bytes([small[i] ^ bit]) + small[i + 1 :])
            try:
                loaded = xn.load(path)
            except xn.ModelFileError:
                found += 1
            else:  # time stamps, versions and attributes in the zip's headers
                np.testing.assert_array_equal(loaded.predict(x), expected)
    assert found > len(small)


def test_foreign_files(tmp_path):
    path = tmp_path / "f"
    for content in (b"", b"GIF89a", b"\x80\x04\x95pickle", os.urandom(1000)):
        path.write_bytes(content)
        with pytest.raises(xn.ModelFileError, match="not a file of xpnet"):
            xn.load(path)
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("../../evil.txt", "x")
    with pytest.raises(xn.ModelFileError, match="evil"):
        xn.load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(archive.DOCUMENT, " " * 10_000_000 + "{}")
        z.writestr(archive.ARRAYS, "")
    with pytest.raises(xn.ModelFileError, match="compressed"):
        xn.load(path)
    with pytest.raises(FileNotFoundError):
        xn.load(tmp_path / "nothing")
    archive.write(path, {"format": "xpnet-checkpoint-1"}, {})
    with pytest.raises(xn.ModelFileError, match="checkpoint"):
        xn.load(path)


def _doubling(depth):
    node = {"layer": "Residual", "args": [{"layer": "Flatten", "args": [], "keywords": {}}], "keywords": {}}
    for i in range(depth):
        node = {
            "layer": "Sequential",
            "args": [{"tuple": [node, {"shared": 1 + i}]}],
            "keywords": {},
        }
    return node


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "update xpnet"),
        ({"model": {"layer": "os.system", "args": ["true"], "keywords": {}}}, "unknown to this version"),
        ({"model": {"layer": "Dense", "args": [], "keywords": {}}}, "Dense cannot be made"),
        ({"model": {"layer": "Dense", "args": [2], "keywords": {"activation": "nonsense"}}}, "nonsense"),
        ({"model": {"layer": "Dense", "args": 3, "keywords": {}}}, "malformed"),
        ({"model": [1, 2]}, "does not describe a model"),
        ({"model": {"function": "system"}}, "needs the function system"),
        ({"model": {"surprise": 1}}, "unknown kind"),
        ({"model": {"op": "relu"}}, "does not describe a model"),
        ({"built_for": {"0": [10**12]}}, "not the shape of an example"),
        ({"built_for": {"0": [10**7]}}, "instead of"),
        ({"built_for": {"0": [-3]}}, "not the shape of an example"),
        ({"built_for": {"5": [3]}}, "does not have"),
        ({"built_for": {}}, "too many"),
        ({"dtype": "object"}, "dtype"),
        ({"seed": None}, "damaged"),
        ({"input_shape": ["a"]}, "not the shape"),
        ({"class_names": None}, "damaged"),
        ({"counters": {"0": []}}, "damaged"),
        ({"preprocessing": {"kind": "os", "settings": {"shape": None}}}, "unknown transform"),
        ({"model": _doubling(60)}, "more than 100000 layers"),
    ],
)
def test_documents_that_make_no_sense(tmp_path, small, change, message):
    path = tmp_path / "m.xpnet"
    path.write_bytes(small)
    document, arrays = archive.read(path)
    archive.write(path, {**document, **change}, arrays)
    with pytest.raises(xn.ModelFileError, match=rf"m\.xpnet: .*{message}"):
        xn.load(path)


def test_deep_nesting_is_an_error_not_a_crash(tmp_path, small):
    path = tmp_path / "m.xpnet"
    path.write_bytes(small)
    with zipfile.ZipFile(path) as z:
        document, arrays = z.read(archive.DOCUMENT), z.read(archive.ARRAYS)
    deep = json.dumps({**json.loads(document), "model": 0}).replace('"model": 0', '"model": ' + "[" * 100_000 + "]" * 100_000)
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(archive.DOCUMENT, deep)
        z.writestr(archive.ARRAYS, arrays)
    with pytest.raises(xn.ModelFileError):
        xn.load(path)


def test_reading_needs_no_second_copy_and_runs_no_layer(tmp_path, monkeypatch):
    path = tmp_path / "m"
    xn.Sequential([xn.Dense(2)], input_shape=(3,)).save(path)
    monkeypatch.setattr(xn.Dense, "forward", None)
    monkeypatch.setattr(xn.initializers.Glorot, "__call__", None)
    assert xn.load(path).count_parameters() == 8


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    model = xn.models.mlp((4,), 3)
    path = tmp_path / "m"
    model.save(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        xn.models.mlp((4,), 2).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_gpu_that_is_not_there_is_said_before_the_file_is_read(tmp_path):
    try:
        xn.backend.device("cuda")
    except xn.DeviceError:
        with pytest.raises(xn.DeviceError):
            xn.load(tmp_path / "nothing", device="cuda")
    else:
        pytest.skip("there is a GPU")


def test_how_the_inputs_were_read_comes_back(tmp_path):
    from xpnet.data.inputs import InputRecord

    x = np.random.default_rng(0).random((9, 4)).astype(np.float32)
    record = InputRecord("table", (4,), columns=("a", "b", "c", "d"), target="y", target_column=2)
    record = record.with_training_part(x, np.arange(9, dtype=np.uint64))
    model = xn.Sequential([xn.Dense(3)], input_shape=(4,))
    path = tmp_path / "m.xpnet"
    model.save(path, inputs=record)
    found = model_file.read(path).inputs
    assert found is not None
    assert found.settings() == record.settings()
    for name, array in record.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array)
    np.testing.assert_array_equal(xn.load(path).predict(x), model.predict(x))
    model.save(path)
    assert model_file.read(path).inputs is None


@pytest.mark.parametrize("wrong", [{}, [], "table", {"kind": "film"}, {"kind": "table", "shape": 3}])
def test_a_damaged_record_of_the_inputs_is_one_error(wrong, tmp_path):
    model = xn.Sequential([xn.Dense(3)], input_shape=(4,))
    document, arrays = model_file.describe(model)
    archive.write(tmp_path / "m.xpnet", {**document, "inputs": wrong}, arrays)
    with pytest.raises(model_file.ModelFileError, match=r"m\.xpnet"):
        model_file.read(tmp_path / "m.xpnet")


def test_files_that_are_no_model_files_say_how_they_are_read(tmp_path):
    model = xn.Sequential([xn.Dense(3)], input_shape=(2,))
    model.save(tmp_path / "m.xpnet")
    model.save_weights(tmp_path / "m.safetensors")
    with pytest.raises(xn.ModelFileError, match=r"holds weights alone.*model\.load_weights"):
        xn.load(tmp_path / "m.safetensors")
    with pytest.raises(archive.ArchiveError, match=r"an archive such as a whole model.*xn\.load"):
        model.load_weights(tmp_path / "m.xpnet")


@pytest.mark.parametrize("classes", [xn.Dense, "Dense", ["Dense"]])
def test_classes_that_are_no_list_of_classes_are_refused(tmp_path, classes):
    xn.Sequential([xn.Dense(3)], input_shape=(2,)).save(tmp_path / "m.xpnet")
    with pytest.raises(TypeError, match="classes: expected"):
        xn.load(tmp_path / "m.xpnet", classes=classes)
