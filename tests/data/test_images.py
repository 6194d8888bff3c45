import shutil

import numpy as np
import pytest

from xpnet.data import Batches, DataError, ImageFolder, read_image

Image = pytest.importorskip("PIL.Image", reason="image files need pillow")


@pytest.fixture
def folder(tmp_path):
    """Two classes of four images 6 x 5, whose red value tells which one it is; and other files."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name / "deeper").mkdir(parents=True)
        for i in range(4):
            pixels = np.full((6, 5, 3), (10 * label + i, 100, 200), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / ("deeper" if i == 3 else ".") / f"{i}.png")
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_a_folder_of_classes(folder):
    images = ImageFolder(folder)
    assert len(images) == 8
    assert images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0] * 4 + [1] * 4
    x, y = images[5]
    assert (x.shape, x.dtype, y) == ((6, 5, 3), np.float32, 1)
    np.testing.assert_allclose(x[0, 0] * 255, [11, 100, 200], rtol=1e-6)
    found = list(Batches(images, 3, seed=1))
    assert found[0][0].shape == (3, 6, 5, 3)
    assert found[0][1].dtype == np.int64
    red = np.concatenate([(x[:, 0, 0, 0] * 255).round() for x, _ in found])
    assert sorted(red.tolist()) == [0, 1, 2, 3, 10, 11, 12, 13]
    np.testing.assert_array_equal(np.concatenate([y for _, y in found]), red >= 10)


@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 2, "processes": True}])
def test_workers_decode(folder, options):
    with Batches(ImageFolder(folder, size=(3, 3)), 3, seed=1, **options) as batches:
        for (a, b), (c, d) in zip(batches, Batches(ImageFolder(folder, size=(3, 3)), 3, seed=1), strict=True):
            np.testing.assert_array_equal(a, c)
            np.testing.assert_array_equal(b, d)


def test_nothing_is_decoded_before_it_is_asked_for(folder):
    images = ImageFolder(folder)
    images.paths[0].write_bytes(b"")
    assert images[1][1] == 0


def _bad(folder, content):
    path = folder / "cat" / "bad.png"
    path.write_bytes(content)
    return path


BAD = {
    "empty": lambda good: b"",
    "text": lambda good: b"hello",
    "truncated": lambda good: good[: len(good) // 2],
    "cut in a header": lambda good: good[:20],
    "damaged": lambda good: good[:45] + b"\xff" * 20 + good[65:],
}


@pytest.mark.parametrize("kind", list(BAD))
@pytest.mark.parametrize("options", [{}, {"workers": 2}])
def test_a_bad_image_names_its_file_and_is_fatal_or_left_out(folder, kind, options):
    good = (folder / "cat" / "0.png").read_bytes()
    path = _bad(folder, BAD[kind](good))
    with pytest.raises(DataError, match=r"cat/bad\.png: not a readable image"):
        list(Batches(ImageFolder(folder), 3, **options))
    batches = Batches(ImageFolder(folder, on_bad="skip"), 3, **options)
    with pytest.warns(RuntimeWarning, match=r"left out .*cat/bad\.png: not a readable image"):
        found = list(batches)
    assert sum(len(y) for _, y in found) == 8
    assert list(batches.skipped) == [str(path)]


def test_a_bad_image_in_a_worker_process(folder):
    path = _bad(folder, b"hello")
    with (
        Batches(ImageFolder(folder), 3, workers=1, processes=True) as batches,
        pytest.raises(DataError, match=r"bad\.png: not a readable image"),
    ):
        list(batches)
    with Batches(ImageFolder(folder, on_bad="skip"), 3, workers=1, processes=True) as batches:
        with pytest.warns(RuntimeWarning, match="left out"):
            assert sum(len(y) for _, y in batches) == 8
        assert list(batches.skipped) == [str(path)]


def test_sizes(folder):
    Image.fromarray(np.zeros((8, 4, 3), np.uint8)).save(folder / "cat" / "z.png")
    with pytest.raises(DataError, match=r"ImageFolder: .*\(8, 4, 3\).*one shape") as caught:
        list(Batches(ImageFolder(folder), 9, shuffle=False))
    assert "z.png" in str(caught.value)
    assert "size=(H, W)" in str(caught.value)
    for fit in ("stretch", "crop"):
        [(x, _)] = Batches(ImageFolder(folder, size=(4, 8), fit=fit), 9)
        assert x.shape == (9, 4, 8, 3)
        assert x.max() <= 1


def test_crop_cuts_the_sides_alike(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", size=(4, 4), fit="crop") == 255).all()
    assert (read_image(tmp_path / "a.png", size=(4, 4)) < 255).any()


def test_channels_bytes_and_classes(folder):
    grey = ImageFolder(folder, channels=1, scale=None)
    assert grey[0][0].shape == (6, 5, 1)
    assert grey[0][0].dtype == np.uint8
    assert ImageFolder(folder, channels=4)[0][0].shape == (6, 5, 4)
    turned = ImageFolder(folder, classes=["dog", "cat"])
    assert turned[0][1] == 0
    assert "dog" in str(turned.paths[0])
    assert repr(turned) == "ImageFolder(8 images in 2 classes)"


def test_images_are_turned_upright(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").shape == (3, 2, 3)


def test_errors(folder, tmp_path):
    for act, message in [
        (lambda: ImageFolder(tmp_path / "no"), "no is not a folder"),
        (lambda: ImageFolder(folder, classes=["cat", "cow"]), "has no subfolders cow; it has cat, dog"),
        (lambda: ImageFolder(folder, on_bad="ignore"), "on_bad must be"),  # type: ignore[arg-type]
        (lambda: ImageFolder(folder, channels=2)[0], "channels must be 1, 3 or 4"),
        (lambda: ImageFolder(folder, size=(2, 2), fit="pad")[0], "fit must be"),  # type: ignore[arg-type]
        (lambda: read_image(folder / "none.png"), r"none\.png: no such file"),
    ]:
        with pytest.raises(ValueError, match=message):
            act()
    for name in ("cat", "dog"):
        shutil.rmtree(folder / name)
    with pytest.raises(DataError, match="holds no images: expected CLASS/NAME"):
        ImageFolder(folder)
