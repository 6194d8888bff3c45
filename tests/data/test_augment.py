from typing import Any, cast

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpnet.backend import to_numpy
from xpnet.data import augment as A

# Each takes images of 9 x 7 with 3 channels.
EACH = [
    A.Shift(3),
    A.Flip(),
    A.Flip(vertical=True),
    A.Crop(2),
    A.Crop(1, size=(4, 5)),
    A.Cutout(3, fill=0.5),
    A.Rotation(40.0),
    A.Elastic(6.0, 2.0, fill=0.25),
    A.Mixup(0.4, classes=5),
    A.Rescale(2.0),
    A.Normalise((0.1, 0.2, 0.3), (1.0, 2.0, 3.0)),
    A.Compose(A.Shift(2), A.Flip(), A.Rotation(10.0), A.Cutout(2), A.Mixup(0.2, classes=5)),
]


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.random((16, 9, 7, 3), dtype=np.float32), rng.integers(0, 5, 16)


@pytest.mark.parametrize("change", EACH, ids=repr)
def test_same_seed_and_step_same_result_and_the_batch_is_left_alone(change, batch):
    x, y = batch
    before = x.copy()
    x.flags.writeable = False
    first, again, other_step, other_seed = (change(x, y, seed=s, step=t) for s, t in ((1, 2), (1, 2), (1, 3), (2, 2)))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    if not isinstance(change, (A.Rescale, A.Normalise)):
        assert (first[0] != other_step[0]).any()
        assert (first[0] != other_seed[0]).any()
    np.testing.assert_array_equal(x, before)
    assert first[0].dtype == np.float32
    assert len(first[0]) == len(first[1]) == 16
    np.testing.assert_array_equal(change(x, seed=1, step=2), first[0])  # without labels: the images alone


@pytest.mark.parametrize("change", EACH, ids=repr)
@pytest.mark.parametrize("library", ["array_api_strict", pytest.param("torch", marks=pytest.mark.torch)])
def test_every_backend_gives_the_same_images(change, batch, library):
    xp = array_api_strict if library == "array_api_strict" else pytest.importorskip("torch")
    x, y = batch
    ours = change(x, y, seed=5, step=1)
    theirs = change(xp.asarray(x), xp.asarray(y), seed=5, step=1)
    assert type(theirs[0]).__module__.startswith(library)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, to_numpy(b), atol=1e-6)


@pytest.mark.parametrize("change", EACH, ids=repr)
def test_an_empty_batch_and_a_batch_of_one(change, batch):
    x, y = batch
    assert len(change(x[:0], y[:0])[0]) == 0
    assert len(change(x[:1], y[:1])[0]) == 1


def test_shift_moves_whole_pixels_within_its_range():
    x = np.zeros((500, 9, 9, 1), np.float32)
    x[:, 4, 4] = 1
    moved = A.Shift(2)(x, seed=3)
    assert (moved.sum((1, 2, 3)) == 1).all()
    places = np.argwhere(moved)[:, 1:3] - 4
    assert {tuple(p) for p in places.tolist()} == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


@settings(max_examples=25, deadline=None)
@given(pixels=st.integers(0, 12), fill=st.floats(-1, 1, width=32))
def test_shift_is_a_piece_of_the_padded_image(pixels, fill):
    x = np.arange(2 * 5 * 4, dtype=np.float32).reshape(2, 5, 4, 1) + 10
    padded = np.pad(x, ((0, 0), (pixels,) * 2, (pixels,) * 2, (0, 0)), constant_values=np.float32(fill))
    for image, room in zip(A.Shift(pixels, fill)(x), padded, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(room, (5, 4, 1)).reshape(-1, 5, 4, 1)
        assert (windows == image).all((1, 2, 3)).any()


def test_crop_with_padding_reaches_every_place_and_no_other():
    x = np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4, 1).repeat(400, 0)
    out = A.Crop(1, size=(3, 3), fill=-1)(x)
    padded = np.pad(x[0, ..., 0], 1, constant_values=-1)
    windows = {w.tobytes() for row in np.lib.stride_tricks.sliding_window_view(padded, (3, 3)) for w in row}
    assert {image.tobytes() for image in out[..., 0]} == windows


def test_flip_mirrors_about_half_of_the_images(batch):
    x = batch[0].repeat(40, 0)
    out = A.Flip()(x)
    turned = (out == x[:, :, ::-1]).all((1, 2, 3))
    kept = (out == x).all((1, 2, 3))
    assert (turned ^ kept).all()
    assert 0.4 < turned.mean() < 0.6
    np.testing.assert_array_equal(A.Flip(1.0, vertical=True)(x), x[:, ::-1])
    np.testing.assert_array_equal(A.Flip(0.0)(x), x)


def test_cutout_paints_one_square_clipped_at_the_edge():
    x = np.ones((300, 8, 8, 2), np.float32)
    out = A.Cutout(3, fill=7)(x)
    np.testing.assert_array_equal(out[..., 0], out[..., 1])
    areas = (out[..., 0] == 7).sum((1, 2))
    assert set(areas.tolist()) == {4, 6, 9}  # in a corner, at an edge, inside
    for image in out[:20, ..., 0]:
        rows, columns = np.nonzero(image == 7)
        assert (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1) == len(rows)


def test_whole_pixel_changes_keep_bytes():
    x = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    for change in (A.Shift(1, fill=255), A.Flip(), A.Crop(1), A.Cutout(2)):
        assert change(x).dtype == np.uint8


@pytest.mark.parametrize("change", [A.Rotation(5), A.Elastic(), A.Mixup(), A.Normalise((0.0,), (1.0,))], ids=repr)
def test_fractions_of_bytes_are_refused(change):
    with pytest.raises(TypeError, match=rf"{type(change).__name__} computes with fractions and got uint8.*Rescale\(255\)"):
        change(np.zeros((2, 4, 4, 1), np.uint8))


def test_warp_reads_bilinearly_and_fills_outside():
    x = np.arange(12, dtype=np.float64).reshape(1, 3, 4, 1)
    rows = np.array([[[0.0, 0.5, 2.0, -1.0, 0.0, 1e9, -0.5]]])
    columns = np.array([[[1.0, 1.25, 3.0, 0.0, 4.0, -1e9, 0.0]]])
    out: Any = A.warp(x, rows, columns, fill=100.0)[0, 0, :, 0]
    np.testing.assert_allclose(out, [1.0, 1.25 + 2.0, 11.0, 100.0, 100.0, 100.0, 50.0])


def test_warp_equals_a_loop():
    rng = np.random.default_rng(1)
    x = rng.random((2, 5, 4, 3))
    rows, columns = rng.uniform(-2, 6, (2, 3, 3)), rng.uniform(-2, 5, (2, 3, 3))

    def at(n, r, c):
        return x[n, r, c] if 0 <= r < 5 and 0 <= c < 4 else np.full(3, 0.3)

    out: Any = A.warp(x, rows, columns, fill=0.3)
    for n, i, j in np.ndindex(2, 3, 3):
        r, c = int(np.floor(rows[n, i, j])), int(np.floor(columns[n, i, j]))
        a, b = rows[n, i, j] - r, columns[n, i, j] - c
        expected = (1 - a) * ((1 - b) * at(n, r, c) + b * at(n, r, c + 1)) + a * (
            (1 - b) * at(n, r + 1, c) + b * at(n, r + 1, c + 1)
        )
        np.testing.assert_allclose(out[n, i, j], expected, atol=1e-12)


def test_rotation_turns_by_the_drawn_angle(monkeypatch):
    x = np.random.default_rng(0).random((1, 5, 5, 1))

    class Always90:
        def uniform(self, low, high, shape):
            return np.full(shape, 90.0)

    out: Any
    out, _ = A.Rotation(90).apply(np, x, None, cast(Any, Always90()))
    np.testing.assert_allclose(out, np.rot90(x, -1, (1, 2)), atol=1e-12)
    np.testing.assert_array_equal(A.Rotation(0.0)(x), x)
    angles = []
    for step in range(50):
        image = np.zeros((1, 41, 41, 1))
        image[0, 20, 38] = 1  # a dot to the right of the middle
        turned = A.Rotation(30.0)(image, step=step)[0, ..., 0]
        grid = np.arange(41) - 20
        angles.append(np.degrees(np.arctan2((turned.sum(1) * grid).sum(), (turned.sum(0) * grid).sum())))
    assert max(np.abs(angles)) <= 31
    assert min(angles) < -15 < 15 < max(angles)


def test_elastic_field_is_smooth_and_of_the_stated_size():
    # Brightness is the row, so that the result shows the field itself.
    x = np.broadcast_to(np.arange(64.0)[None, :, None, None], (8, 64, 64, 1))
    alpha, sigma = 8.0, 4.0
    field = (A.Elastic(alpha, sigma)(x) - x)[:, 16:48, 16:48, 0]
    # The deviation of uniform noise in [-1, 1] is 1/sqrt(3); a Gaussian keeps 1 / (2 sqrt(pi) sigma) of it.
    expected = alpha / np.sqrt(3) / (2 * np.sqrt(np.pi) * sigma)
    assert 0.8 < field.std() / expected < 1.2
    assert np.abs(np.diff(field, axis=1)).max() < expected
    np.testing.assert_array_equal(A.Elastic(0.0)(x), x)


def test_mixup_mixes_images_and_labels_alike(batch):
    x, y = batch
    marked = x * 0 + y[:, None, None, None]
    mixed, p = A.Mixup(1.0, classes=5)(marked, y, seed=4)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(p @ np.arange(5), mixed[:, 0, 0, 0], rtol=1e-5, atol=1e-6)
    assert ((p > 0).sum(1) <= 2).all()
    assert (p.max(1) < 1).any()
    t = y.astype(np.float32)
    mixed, u = A.Mixup(1.0)(marked, t, seed=4)  # floating targets are mixed as they are
    np.testing.assert_allclose(u, mixed[:, 0, 0, 0], rtol=1e-6)
    with pytest.raises(ValueError, match=r"Mixup\(classes=\.\.\.\)"):
        A.Mixup()(x, y)


def test_rescale_and_normalise():
    x = np.full((2, 3, 3, 2), 51, np.uint8)
    out = A.Compose(A.Rescale(255), A.Normalise((0.1, 0.2), (0.5, 0.1)))(x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0, 0, 0], [0.2, 0.0], atol=1e-6)
    with pytest.raises(ValueError, match="Normalise has 2 channels, the images have 3"):
        A.Normalise((0.1, 0.2), (1.0, 1.0))(np.zeros((1, 2, 2, 3), np.float32))


def test_equal_stages_of_a_composition_draw_differently():
    x = np.zeros((200, 9, 9, 1), np.float32)
    x[:, 4, 4] = 1
    places = np.argwhere(A.Compose(A.Shift(1), A.Shift(1))(x))[:, 1:3] - 4
    assert {1, -1} <= set(places[:, 0].tolist())  # one stage moved, the other did not
    nested = A.Compose(A.Compose(A.Shift(1)), A.Shift(1))
    assert "Shift(pixels=1" in repr(nested)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: A.Shift(-1), "pixels must not be negative"),
        (lambda: A.Flip(1.5), r"p must lie in \[0, 1\]"),
        (lambda: A.Crop(-1), "padding must not be negative"),
        (lambda: A.Cutout(0), "size must be positive"),
        (lambda: A.Elastic(sigma=0), "sigma must be positive"),
        (lambda: A.Mixup(0), "alpha must be positive"),
        (lambda: A.Normalise((0.0,), (0.0,)), "deviations must be positive"),
        (lambda: A.Normalise((0.0,), (1.0, 1.0)), "1 means and 2 deviations"),
        (lambda: A.Crop(0, (9, 9))(np.zeros((1, 8, 8, 1))), "cannot cut 9 x 9 out of 8 x 8 with 0"),
        (lambda: A.Flip()(np.zeros((8, 8))), r"Flip expects images \(N, H, W, C\), got numpy array \(8, 8\)"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_compose_takes_augmentations_only():
    with pytest.raises(TypeError, match="Compose takes augmentations, got function"):
        A.Compose(lambda x: x)  # type: ignore[arg-type]
