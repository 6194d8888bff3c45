import gzip
import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xpnet.data import DataError, idx

ARRAYS = hnp.arrays(
    st.sampled_from(["u1", "i1", "i2", "i4", "f4", "f8"]),
    hnp.array_shapes(max_dims=4, max_side=5, min_side=0),
)


@pytest.mark.parametrize("ending", ["", ".gz"])
@settings(max_examples=30)
@given(array=ARRAYS)
def test_written_arrays_come_back(tmp_path_factory, ending, array):
    path = tmp_path_factory.mktemp("idx") / f"a{ending}"
    idx.write(path, array)
    back = idx.read(path)
    assert back.dtype == array.dtype
    assert back.dtype.isnative
    np.testing.assert_array_equal(back, array)


def test_the_header_is_the_documented_one(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes([0, 0, 0x0B, 2, 0, 0, 0, 1, 0, 0, 0, 2]) + struct.pack(">2h", -2, 258))
    np.testing.assert_array_equal(idx.read(path), np.array([[-2, 258]], np.int16))


def test_gzip_is_told_by_content_not_by_name(tmp_path):
    idx.write(tmp_path / "a.gz", np.arange(3, dtype=np.uint8))
    (tmp_path / "a.gz").rename(tmp_path / "plain-name")
    assert idx.read(tmp_path / "plain-name").tolist() == [0, 1, 2]


def test_mapped_file_is_not_read_and_is_equal(tmp_path):
    values = np.arange(24, dtype=np.int32).reshape(4, 3, 2)
    idx.write(tmp_path / "a", values)
    mapped = idx.read(tmp_path / "a", mmap=True)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, values)


def test_checksum_is_of_the_decompressed_bytes(tmp_path):
    values = np.arange(5, dtype=np.uint8)
    idx.write(tmp_path / "a", values)
    idx.write(tmp_path / "a.gz", values)
    md5 = hashlib.md5((tmp_path / "a").read_bytes()).hexdigest()
    for name in ("a", "a.gz"):
        idx.read(tmp_path / name, md5=md5)
        with pytest.raises(idx.ChecksumError, match=rf"{name}: not the published file.*{md5}.*expected 00ff") as caught:
            idx.read(tmp_path / name, md5="00ff")
        assert caught.value.found == md5


def _content(tmp_path):
    idx.write(tmp_path / "whole", np.arange(100, dtype=np.uint8).reshape(10, 10))
    return (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda c: c[:50],
            "wrong size: its header says 10 x 10 uint8 values, 100 bytes; the file holds only 38",
        ),
        (lambda c: c + b"x", "wrong size.*the file holds more"),
        (lambda c: c[:9], "truncated: it ends within its header"),
        (lambda c: c[:3], "not an IDX file: it starts with the bytes 00 00 08,"),
        (lambda c: b"", "not an IDX file"),
        (lambda c: b"\x89PNG\r\n\x1a\n" + c, "not an IDX file: it starts with the bytes 89 50 4e 47"),
        # A header that promises far more than any memory holds must not be believed.
        (lambda c: bytes([0, 0, 0x0E, 3]) + b"\xff" * 12 + b"1", "wrong size.*holds only 1"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path, packed, damage, message):
    content = damage(_content(tmp_path))
    path = tmp_path / "bad-file"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=f"bad-file: {message}"):
        idx.read(path)


def test_truncated_and_damaged_gzip(tmp_path):
    whole = gzip.compress(np.random.default_rng(0).bytes(1000))
    for content in (whole[:200], whole[:100] + b"\0\0\0\0" + whole[104:], whole[:-8] + b"\1" * 8):
        (tmp_path / "bad.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.gz"):
            idx.read(tmp_path / "bad.gz")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="no-such: no such file"):
        idx.read(tmp_path / "no-such")
    with pytest.raises(DataError, match="cannot be read"):
        idx.read(tmp_path)


def test_mapping_checks_the_size_and_refuses_gzip(tmp_path):
    content = _content(tmp_path)
    (tmp_path / "short").write_bytes(content[:-1])
    with pytest.raises(DataError, match="short: wrong size"):
        idx.read(tmp_path / "short", mmap=True)
    idx.write(tmp_path / "a.gz", np.zeros(3, np.uint8))
    with pytest.raises(DataError, match="cannot be memory-mapped"):
        idx.read(tmp_path / "a.gz", mmap=True)


def test_what_idx_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="int64"):
        idx.write(tmp_path / "a", np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="0 axes"):
        idx.write(tmp_path / "a", np.uint8(3))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
