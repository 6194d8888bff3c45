"""Which files are images, and what is read of those that are not plain."""

from __future__ import annotations

import os
import struct
import warnings
import zlib

import numpy as np
import pytest

from xpnet.data import DataError, ImageFolder, read_image
from xpnet.data.image_files import ENDINGS, describe_left_out, image_files
from xpnet.data.images import read_pixels

Image = pytest.importorskip("PIL.Image", reason="image files need pillow")


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_which_files_count(tmp_path):
    good = ["a.png", "b.JFIF", "c.jpe", "deep/er/d.webp"]
    bad = [
        "._a.png",
        ".ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/._b.png",
        "notes.txt",
        "Thumbs.db",
        "noending",
        ".DS_Store",
    ]
    touch(tmp_path, *good, *bad)
    found, left_out = image_files(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in found] == sorted(good)
    assert sum(left_out.values()) == len(bad)
    said = describe_left_out(left_out)
    assert said.startswith("left out 7 files: ")
    for word in ("hidden (._*)", "hidden (.ipynb_checkpoints)", "hidden (__MACOSX)", "no image (.txt)", "no image (no ending)"):
        assert f"1 {word}" in said


def test_links_are_followed_and_never_in_a_circle(tmp_path):
    touch(tmp_path, "real/a.png", "real/inner/b.png", "class/c.png")
    os.symlink(tmp_path / "real", tmp_path / "class" / "linked")
    os.symlink(tmp_path, tmp_path / "class" / "up")
    os.symlink(tmp_path / "nowhere", tmp_path / "class" / "broken.png")
    os.symlink(tmp_path / "real" / "inner", tmp_path / "real" / "again")
    os.symlink(tmp_path / "real", tmp_path / "real" / "inner" / "circle")
    found, left_out = image_files(tmp_path / "class")
    assert [p.relative_to(tmp_path / "class").as_posix() for p in found] == [
        "c.png", "linked/a.png", "linked/again/b.png", "linked/inner/b.png",
    ]  # fmt: skip
    assert left_out == {"a link to a folder above it": 3, "broken link": 1}


def sixteen_bits(path, values, transparent):
    """Write a grey PNG file of 16 bits with a transparent value, which pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    clear = chunk(b"tRNS", struct.pack(">H", transparent))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("size", [None, (8, 8), (9, 12)])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_sixteen_bits_may_be_transparent_too(size, fit, tmp_path):
    values = np.full((4, 4), 25700, np.uint16)
    values[:2] = 1234
    path = tmp_path / "a.png"
    sixteen_bits(path, values, 1234)
    for channels in (1, 3):
        read = read_pixels(path, channels=channels, size=size, fit=fit, background=(255, 255, 255))
        assert read.transparent
        assert (read.values[0, 0].tolist(), read.values[-1, 0, 0]) == ([255.0] * channels, pytest.approx(100))
        plain = read_pixels(path, channels=channels, size=size, fit=fit, background=None)
        assert (plain.transparent, plain.values[0, 0, 0]) == (False, pytest.approx(1234 / 257))
    alpha = read_pixels(path, channels=4, size=size, fit=fit).values[..., 3]
    assert (alpha[0, 0], alpha[-1, 0]) == (0, 255)


def test_an_image_folder_passes_over_what_is_hidden(tmp_path):
    for name in ("cat", "dog"):
        touch(tmp_path, f"{name}/.ipynb_checkpoints/x.png", f"__MACOSX/{name}/._1.png")
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / name / "1.jfif", "JPEG")
    images = ImageFolder(tmp_path)
    assert images.class_names == ("cat", "dog")
    assert len(images) == 2
    assert sum(images.left_out.values()) == 3


def test_every_ending_is_lower_case_and_has_a_point():
    assert all(e == e.lower() and e.startswith(".") for e in ENDINGS)


GREY = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("a.png", (GREY * 65535).astype(np.uint16)),
        ("a.tiff", (GREY * 65535).astype(np.uint16)),
        ("a.tiff", GREY.astype(np.float32)),
        ("a.tiff", (GREY * 255).astype(np.int32)),
        ("a.pgm", (GREY * 65535).astype(np.uint16)),
    ],
)
def test_more_than_eight_bits_keep_their_levels(name, array, tmp_path):
    Image.fromarray(array).save(tmp_path / name)
    expected = GREY * 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(tmp_path / name, channels=1)
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image[..., 0], expected, atol=1)
    values = read_pixels(tmp_path / name).values
    assert values.dtype == np.float32
    assert values.shape == (8, 8, 3)
    np.testing.assert_allclose(values[..., 1], expected, atol=0.01 if array.dtype != np.int32 else 1)
    smaller = read_pixels(tmp_path / name, channels=4, size=(4, 4)).values
    np.testing.assert_allclose(smaller[..., 0].mean(), expected.mean(), rtol=0.01)
    assert (smaller[..., 3] == 255).all()


def test_dark_images_of_sixteen_bits_keep_their_levels_in_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray((GREY * 4095).astype(np.uint16)).save(tmp_path / "a" / "a.tiff")
    with pytest.warns(RuntimeWarning, match=r"up to 6\.2% of white"):
        read_image(tmp_path / "a" / "a.tiff", channels=1)
    x, _ = ImageFolder(tmp_path, channels=1)[0]
    np.testing.assert_allclose(x[..., 0], GREY * 4095 / 65535, atol=2e-5)
    assert ImageFolder(tmp_path, scale=None)[0][0].dtype == np.uint8


@pytest.mark.parametrize(
    ("array", "says"),
    [
        ((GREY * 65535).astype(np.int32), "integers from 0 to 65535, and does not say what white is"),
        ((GREY * 300).astype(np.float32), "floats from 0 to 300"),
        ((GREY - 0.5).astype(np.float32), "floats from -0.5 to 0.5"),
        (np.full((2, 2), np.nan, np.float32), "floats from nan"),
    ],
)
def test_values_that_do_not_tell_what_white_is(array, says, tmp_path):
    Image.fromarray(array).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=says):
        read_image(tmp_path / "a.tiff")


def test_white_may_be_zero_in_a_tiff(tmp_path):
    Image.fromarray((GREY * 65535).astype(np.uint16)).save(tmp_path / "a.tiff", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tiff") as image:
        if image.tag_v2.get(262) != 0:
            pytest.skip("this pillow does not write the tag")
    np.testing.assert_allclose(read_pixels(tmp_path / "a.tiff", channels=1).values[..., 0], 255 * (1 - GREY), atol=0.01)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_show_the_background(mode, tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, :] = (10, 10, 10, 255)
    pixels[1, :] = (90, 90, 90, 0)  # a colour that is hidden
    image = Image.fromarray(pixels)
    if mode == "RGB":
        image.convert("RGB").save(tmp_path / "a.png", transparency=(90, 90, 90))
    else:
        image.convert(mode).save(tmp_path / "a.png")
    for background in ((255, 255, 255), (0, 200, 40)):
        read = read_pixels(tmp_path / "a.png", background=background)
        assert read.transparent
        assert read.values[0, 0].tolist() == [10, 10, 10]
        assert read.values[1, 0].tolist() == list(background)
    assert read_image(tmp_path / "a.png", channels=1)[1, 0, 0] == 255
    assert read_image(tmp_path / "a.png", channels=4)[1, 0, 3] == 0
    hidden = read_pixels(tmp_path / "a.png", background=None)
    assert (hidden.transparent, hidden.values[1, 0].tolist()) == (False, [90, 90, 90])


def test_an_opaque_image_with_an_alpha_channel_is_not_transparent(tmp_path):
    Image.fromarray(np.full((2, 2, 4), 255, np.uint8)).save(tmp_path / "a.png")
    assert not read_pixels(tmp_path / "a.png").transparent


def test_several_images_in_a_file_are_told(tmp_path):
    one, two = (Image.fromarray(np.full((2, 2), v, np.uint8)) for v in (10, 20))
    one.save(tmp_path / "a.tiff", save_all=True, append_images=[two])
    one.save(tmp_path / "b.tiff")
    read = read_pixels(tmp_path / "a.tiff")
    assert read.frames
    assert read.values.max() == 10
    assert not read_pixels(tmp_path / "b.tiff").frames
