"""The record of how inputs were read, and the same reading of other values."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from xpnet.data import DataError, load
from xpnet.data.inputs import InputRecord, default_record, record_from, record_of
from xpnet.data.splits import row_hashes

RNG = np.random.default_rng(0)
SHADES = RNG.random((6, 4, 4, 1)).astype(np.float32)
SHADES[:, 0, 0] = 1


def images(scale):
    """A model of images 4 x 4 that was trained on whole numbers up to `scale`."""
    x = np.rint(SHADES * scale) / scale
    return InputRecord("images", (4, 4, 1), scale, whole=True).with_training_part(x.astype(np.float32))


INTEGERS = ("uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@pytest.mark.parametrize("scale", [16.0, 255.0, 65535.0])
@pytest.mark.parametrize("dtype", [*INTEGERS, "float32", "float64", ">i4", ">f8"])
def test_pixels_mean_the_same_in_every_dtype(scale, dtype):
    values = np.rint(SHADES * scale)
    if np.dtype(dtype).kind in "iu" and scale > np.iinfo(dtype).max:
        pytest.skip("they do not fit")
    x, note = images(scale).to_units(values.astype(dtype), "f")
    assert note == ""
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, values / scale, rtol=1e-6)
    again, note = images(scale).to_units(x, "f")  # already in units
    assert note == ""
    np.testing.assert_array_equal(again, x)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_pixels_of_eight_bits_are_known_to_a_model_of_sixteen_shades(dtype):
    x, note = images(16.0).to_units(np.rint(SHADES * 255).astype(dtype), "f")
    assert "divided by 255" in note
    np.testing.assert_allclose(x, SHADES, atol=0.003)


@pytest.mark.parametrize(
    ("scale", "values", "says"),
    [
        (255.0, SHADES * 4095, "values up to 4095; the model was trained on pixels from 0 to 255"),
        (16.0, SHADES * 200.5, "values up to 200.5"),
        (255.0, SHADES * 2 - 1, "values from -.* without a preprocessing of your own"),
        (255.0, np.full_like(SHADES, np.nan), "example 1 holds a number that is not finite"),
        (255.0, SHADES.astype(np.float64) * 1e39, "not finite"),
    ],
)
def test_pixels_of_another_scale_are_refused(scale, values, says):
    with pytest.raises(DataError, match=says):
        images(scale).to_units(values, "f")


def test_pixels_of_eight_bits_have_their_white_in_a_model_of_sixteen_bits():
    x, note = images(65535.0).to_units(np.rint(SHADES[:1] * 255).astype(np.uint8), "f")
    assert "as pixels of 8 bits; the training data had 0 to 65535" in note
    np.testing.assert_allclose(x, SHADES[:1], atol=0.003)


def test_image_files_are_for_models_that_know_what_white_is():
    for record, why in (
        (images(16.0), ""),
        (InputRecord("images", (4, 4, 1)).with_training_part(SHADES), ""),
        (InputRecord("images", (4, 4, 1)).with_training_part(SHADES * 254.7), "up to 254.7, which do not say what white is"),
        (InputRecord("images", (4, 4, 1)).with_training_part(SHADES * 2 - 1), "negative values, not on pixels"),
        (default_record((4, 4, 1)), ""),
    ):
        assert why in record.without_white() if why else record.without_white() == ""


def test_values_that_are_all_dark_or_too_bright_are_told():
    for scale, count in itertools.product((255.0, 65535.0), (1, 6)):
        dark = np.rint(SHADES[:count] * scale / 16).astype(np.int64)
        x, note = images(scale).to_units(dark, "f")
        assert "the largest value is 0.0625, in training 1" in note.replace("0.0627", "0.0625")
        assert images(scale).far(x, "f", sure=True) == ""  # of an image file white is known: it is a dark photo
    dim = InputRecord("images", (4, 4, 1), 65535.0, whole=True).with_training_part(SHADES / 16)
    assert "another scale" in dim.far(SHADES, "f")
    assert dim.far(SHADES[:1] / 16, "f") == ""
    assert images(255.0).far(np.zeros((1, 4, 4, 1), np.float32), "f") == ""  # black is black


def test_floats_are_kept_where_the_training_data_were_floats():
    record = InputRecord("array", (3,)).with_training_part(np.array([[-1, 0, 2], [0.5, 1, -2]], np.float32))
    x, note = record.to_units(np.array([[1.5, -1.0, 0.25]]), "f")
    assert (x.tolist(), note) == ([[1.5, -1.0, 0.25]], "")
    with pytest.raises(DataError, match="whole numbers up to 255; the model was trained on numbers up to 2"):
        record.to_units(np.array([[0, 255, 1]], np.uint8), "f")


def test_columns_in_other_units_are_told_by_name():
    x = RNG.normal(size=(50, 2)).astype(np.float32)
    record = InputRecord("table", (2,), columns=("height", "age")).with_training_part(x)
    assert record.far(x, "f") == ""
    assert "f: column height: values around" in record.far(x * [1, 1] + [100, 0], "f")
    assert "column height and 1 more columns" in record.far(x - 1000, "f")


def test_the_record_of_every_shipped_data_set_takes_its_published_values():
    for name in ("iris", "digits"):
        dataset = load(name)
        record = record_of(dataset)
        x = dataset.test[0]
        kept, note = record.to_units(x, "f")
        assert note == ""
        np.testing.assert_array_equal(kept, x)
        published, _ = record.to_units(x * dataset.scale, "f")
        np.testing.assert_allclose(published, x, rtol=1e-6)


def test_without_a_record_values_are_read_as_before():
    record = default_record((4, 4, 1))
    bytes_ = np.rint(SHADES * 255).astype(np.uint8)
    np.testing.assert_allclose(record.to_units(bytes_, "f")[0], bytes_ / 255, rtol=1e-6)
    np.testing.assert_allclose(record.to_units(bytes_.astype(np.int64), "f")[0], bytes_ / 255, rtol=1e-6)
    np.testing.assert_allclose(record.to_units(bytes_.astype(np.uint16) * 257, "f")[0], bytes_ / 255, rtol=1e-6)
    np.testing.assert_array_equal(record.to_units(SHADES * 2 - 1, "f")[0], SHADES * 2 - 1)
    np.testing.assert_allclose(record.to_units(bytes_.astype(np.float32), "f", text=True)[0], bytes_ / 255, rtol=1e-6)
    with pytest.raises(DataError, match="whole numbers up to 65535"):
        record.to_units(bytes_.astype(np.int32) * 257, "f")
    assert default_record((3,)).to_units(np.array([[300, 2, 1]]), "f")[0].tolist() == [[300, 2, 1]]


@pytest.mark.parametrize(
    "record",
    [
        images(16.0),
        InputRecord("table", (2,), columns=("a", "b ü"), target="c", target_column=1, separator=";", decimal=",", spread=True),
        InputRecord("array", (3,), whole=True),
        InputRecord("images", (2, 2, 3), 255.0, resized=True, background=None),
    ],
)
def test_a_record_comes_back_from_json(record):
    x = RNG.random((20, *record.shape)).astype(np.float32)
    record = record.with_training_part(x, row_hashes(x))
    back = record_from(json.loads(json.dumps(record.settings())), record.arrays())
    assert back.settings() == record.settings()
    assert back.describe() == record.describe()
    assert back.trained_count == 20
    for name, array in record.arrays().items():
        np.testing.assert_array_equal(back.arrays()[name], array)
    seen, sure = back.seen(row_hashes(np.concatenate([x[:3], x[:3] + 1])))
    assert seen.tolist() == [True] * 3 + [False] * 3
    assert sure.all()


def test_a_part_of_many_hashes_is_kept_and_says_of_whom_it_knows(monkeypatch):
    monkeypatch.setattr("xpnet.data.inputs._MOST_TRAINED_ON", 50)
    x = RNG.random((200, 3)).astype(np.float32)
    found = row_hashes(x)
    record = InputRecord("array", (3,)).with_training_part(x, found)
    assert record.trained_on is not None
    assert len(record.trained_on) == 50
    seen, sure = record.seen(found)
    assert seen.sum() == sure.sum() == 50


DAMAGED: list[dict[str, object]] = [
    {"kind": "film"}, {"shape": [-1, 2]}, {"shape": ["a"]}, {"scale": 0}, {"scale": "1"}, {"scale": float("nan")},
    {"columns": "ab"}, {"columns": ["a"], "shape": [3]}, {"background": [1, 2]}, {"background": [1, 2, "x"]},
    {"trained_count": -1}, {"target_column": 1.5},
]  # fmt: skip


@pytest.mark.parametrize("wrong", DAMAGED, ids=str)
def test_a_damaged_record_is_one_error(wrong):
    settings = InputRecord("images", (2, 2, 3), 255.0).settings()
    with pytest.raises(ValueError, match="record of its inputs is damaged"):
        record_from({**settings, **wrong})


@pytest.mark.parametrize(
    "arrays", [{"low": np.zeros(5)}, {"trained_on": np.zeros(3)}, {"trained_on": np.zeros((1, 1), np.uint64)}]
)
def test_damaged_arrays_of_a_record_are_one_error(arrays):
    with pytest.raises(ValueError, match="record of its inputs is damaged"):
        record_from(InputRecord("images", (2, 2, 3), 255.0).settings(), arrays)
