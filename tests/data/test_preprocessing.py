import json
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpnet.backend import to_numpy
from xpnet.data import preprocessing as P

IMAGES = np.random.default_rng(0).normal(3.0, 2.0, (200, 4, 3, 2)).astype(np.float32) * np.linspace(0.5, 2, 24).reshape(
    4, 3, 2
).astype(np.float32)

MAKE = {
    "mean image": lambda: P.MeanSubtraction(),
    "channel mean": lambda: P.MeanSubtraction("channel"),
    "one mean": lambda: P.MeanSubtraction("all"),
    "standardize": lambda: P.Standardize(),
    "standardize features": lambda: P.Standardize("feature"),
    "min-max": lambda: P.MinMax(-1.0, 2.0),
    "pca": lambda: P.PCA(),
    "pca whitening": lambda: P.Whiten("pca"),
    "zca whitening": lambda: P.Whiten("zca"),
    "scale": lambda: P.Scale(4.0),
    "bias": lambda: P.Bias(),
    "pipeline": lambda: P.Pipeline(P.Scale(2.0), P.MeanSubtraction(), P.Whiten("zca"), P.Bias()),
}


@pytest.fixture(params=list(MAKE))
def fitted(request):
    return MAKE[request.param]().fit(IMAGES)


def test_inverse_gives_the_examples_back(fitted):
    new = IMAGES[::-1][:7] * 1.5
    z = fitted(new)
    assert z.dtype == np.float32
    back = fitted.inverse(z)
    assert back.shape == new.shape
    np.testing.assert_allclose(back, new, rtol=1e-3, atol=1e-3)


def test_state_makes_the_same_transform_again(fitted):
    state = fitted.state()
    settings = json.loads(json.dumps(state["settings"]))
    assert all(isinstance(a, np.ndarray) and a.dtype == np.float64 for a in state["arrays"].values())
    again = P.from_state({"kind": state["kind"], "settings": settings, "arrays": state["arrays"]})
    assert type(again) is type(fitted)
    np.testing.assert_array_equal(again(IMAGES), fitted(IMAGES))
    np.testing.assert_array_equal(again.inverse(again(IMAGES)), fitted.inverse(fitted(IMAGES)))
    with pytest.raises(ValueError, match="fitted already"):
        again.fit(IMAGES)


@pytest.mark.parametrize("library", ["array_api_strict", pytest.param("torch", marks=pytest.mark.torch)])
def test_every_backend_gives_the_same(fitted, library):
    xp = array_api_strict if library == "array_api_strict" else pytest.importorskip("torch")
    z = fitted(xp.asarray(IMAGES[:5]))
    assert type(z).__module__.startswith(library)
    np.testing.assert_allclose(to_numpy(z), fitted(IMAGES[:5]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(to_numpy(fitted.inverse(z)), IMAGES[:5], rtol=1e-3, atol=1e-3)
    refitted = P.from_state(fitted.state())
    assert refitted.state()["settings"] == fitted.state()["settings"]


def test_fitting_on_another_backend_gives_the_same_numbers():
    ours = P.Whiten().fit(IMAGES)
    theirs = P.Whiten().fit(array_api_strict.asarray(IMAGES))
    for name, array in ours.arrays.items():
        np.testing.assert_array_equal(array, theirs.arrays[name])


def test_input_is_left_alone_and_dtypes_are_kept(fitted):
    x = IMAGES.copy()
    x.flags.writeable = False
    fitted(x)
    assert fitted(x.astype(np.float64)).dtype == np.float64
    assert fitted((x * 10).astype(np.uint8)).dtype == np.float32
    assert len(fitted(x[:0])) == 0
    assert len(fitted.inverse(fitted(x[:0]))) == 0


def test_chunks_do_not_change_what_is_fitted(monkeypatch):
    whole = [make().fit(IMAGES) for make in MAKE.values()]
    monkeypatch.setattr(P.base, "_CHUNK_BYTES", 8 * 24 * 7)  # 7 examples at a time
    for a, b in zip(whole, [make().fit(IMAGES) for make in MAKE.values()], strict=True):
        np.testing.assert_allclose(a(IMAGES), b(IMAGES), rtol=1e-4, atol=1e-4)


def test_a_mapped_file_can_be_fitted(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(P.PCA(3).fit(mapped)(IMAGES), P.PCA(3).fit(IMAGES)(IMAGES))


# What each one is


def test_mean_subtraction():
    np.testing.assert_allclose(P.MeanSubtraction().fit(IMAGES)(IMAGES).mean(0), 0, atol=1e-5)
    by_channel = P.MeanSubtraction("channel").fit(IMAGES)
    np.testing.assert_allclose(by_channel.arrays["mean"], IMAGES.mean((0, 1, 2), dtype=np.float64))
    assert P.MeanSubtraction("all").fit(IMAGES).arrays["mean"].shape == ()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), shift=st.floats(-1e3, 1e3), scale=st.floats(1e-3, 1e3), n=st.integers(2, 50))
def test_standardize_gives_mean_zero_and_deviation_one(seed, shift, scale, n):
    x = np.random.default_rng(seed).normal(size=(n, 3)) * scale + shift
    x[:, 2] = shift  # a constant feature becomes 0
    z = P.Standardize().fit(x)(x)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(z[:, :2].std(0), 1, rtol=1e-6)
    np.testing.assert_allclose(z[:, 2], 0, atol=1e-6)


def test_standardize_with_published_moments():
    p = P.Standardize.from_moments((0.5, 0.25), (0.1, 0.2), (4, 3, 2))
    np.testing.assert_allclose(p(np.full((1, 4, 3, 2), 0.75))[0, 0, 0], [2.5, 2.5])
    for mean, std, message in [
        ((0.5,), (0.1, 0.2), r"mean has shape \(1,\)"),
        ((0.5, 0.5), (0.1, 0.0), "std must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            P.Standardize.from_moments(mean, std, (4, 3, 2))


def test_min_max_maps_the_training_range():
    x = np.array([[0.0, 5.0], [10.0, 5.0], [4.0, 5.0]])
    p = P.MinMax(-1, 1).fit(x)
    np.testing.assert_allclose(p(x), np.array([[-1, -1], [1, -1], [-0.2, -1]]))
    np.testing.assert_allclose(p(np.array([[20.0, 6.0]])), [[3.0, 1.0]])  # new data may lie outside


@pytest.mark.parametrize("n", [200, 9])  # more examples than features, and fewer
def test_pca_is_the_singular_value_decomposition(n):
    x = IMAGES[:n].reshape(n, -1).astype(np.float64)
    k = 5
    p = P.PCA(k)
    p.fit(x)
    centred = x - x.mean(0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    z = p(x)
    assert z.shape == (n, k)
    np.testing.assert_allclose(np.abs(z), np.abs(u[:, :k] * s[:k]), atol=1e-8)
    np.testing.assert_allclose(p.arrays["variances"], s[:k] ** 2 / n)
    np.testing.assert_allclose(p.explained, s[:k] ** 2 / (s**2).sum())
    np.testing.assert_allclose(p.inverse(z), x.mean(0) + (u[:, :k] * s[:k]) @ vt[:k], atol=1e-8)
    vectors = p.arrays["vectors"]
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), atol=1e-12)
    largest = vectors[np.abs(vectors).argmax(0), np.arange(k)]
    assert (largest > 0).all()


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_whitened_data_have_the_identity_as_covariance(kind):
    x = IMAGES.reshape(200, -1).astype(np.float64)
    z = P.Whiten(kind, epsilon=0.0).fit(x)(x)
    np.testing.assert_allclose(z.T @ z / 200, np.eye(24), atol=1e-9)
    if kind == "zca":
        # Of all whitenings the one nearest to the data: its matrix is symmetric, covariance ** -1/2.
        variances, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
        np.testing.assert_allclose(z, (x - x.mean(0)) @ vectors / np.sqrt(variances) @ vectors.T, atol=1e-8)


def test_zca_keeps_the_shape_and_pca_reduces_it():
    assert P.Whiten("zca").fit(IMAGES)(IMAGES).shape == IMAGES.shape
    assert P.Whiten("pca", 4).fit(IMAGES)(IMAGES).shape == (200, 4)
    assert P.Whiten("zca", 4).fit(IMAGES)(IMAGES).shape == IMAGES.shape


def test_whitening_survives_directions_without_variance():
    x = np.random.default_rng(0).normal(size=(50, 4))
    x[:, 3] = x[:, 2]
    for epsilon in (0.0, 1e-5):
        z = P.Whiten("pca", epsilon=epsilon).fit(x)(x)
        assert np.isfinite(z).all()
        assert np.abs(z[:, 3]).max() < 1e-6
    assert np.abs(P.Whiten().fit(np.ones((5, 3)))(np.ones((5, 3)))).max() == 0


def test_bias_trick():
    W, b = np.random.default_rng(0).normal(size=(24, 3)), np.arange(3.0)
    x = IMAGES.reshape(200, -1).astype(np.float64)
    np.testing.assert_allclose(P.Bias()(x) @ np.vstack([W, b]), x @ W + b)


def test_pipeline_fits_each_stage_to_what_comes_before():
    p = P.Pipeline(P.MinMax(), P.Standardize(), P.PCA(2)).fit(IMAGES)
    first = P.MinMax().fit(IMAGES)
    second = P.Standardize().fit(first(IMAGES))
    np.testing.assert_allclose(p(IMAGES), P.PCA(2).fit(second(first(IMAGES)))(second(first(IMAGES))))
    assert set(p.state()["arrays"]) >= {"0.least", "1.std", "2.vectors"}
    assert P.from_state(P.Pipeline(P.Pipeline(P.PCA(2)), P.Bias()).fit(IMAGES).state())(IMAGES).shape == (
        200,
        3,
    )


# What goes wrong


@pytest.mark.parametrize("name", [n for n in MAKE if n not in ("scale", "bias")])
def test_use_before_fit_second_fit_other_shape(name):
    p = MAKE[name]()
    with pytest.raises(ValueError, match=rf"{type(p).__name__} is not fitted: call fit\(x_train\) first"):
        p(IMAGES)
    with pytest.raises(ValueError, match="is not fitted"):
        p.inverse(IMAGES)
    p.fit(IMAGES)
    with pytest.raises(ValueError, match="is fitted already; make a new one"):
        p.fit(IMAGES)
    with pytest.raises(ValueError, match=r"fitted to examples of shape \(4, 3, 2\), got numpy array \(200, 4, 3\)"):
        p(IMAGES[..., 0])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: P.PCA(25).fit(IMAGES), "25 components of 200 examples with 24 features; expected 1 to 24"),
        (lambda: P.PCA(0).fit(IMAGES), "0 components"),
        (lambda: P.Standardize("pixel"), 'per must be "channel", "feature" or "all"'),  # type: ignore[arg-type]
        (lambda: P.MinMax(1, 1), "low must be less than high"),
        (lambda: P.Whiten("cholesky"), 'kind must be "pca" or "zca"'),  # type: ignore[arg-type]
        (lambda: P.Whiten(epsilon=-1), "epsilon must not be negative"),
        (lambda: P.Scale(0), "divisor must not be 0"),
        (lambda: P.Standardize().fit(IMAGES[:0]), "N at least 1"),
        (lambda: P.Standardize().fit(IMAGES[:, 0, 0, 0]), r"needs examples \(N, ...\)"),
        (lambda: P.Standardize().fit(np.array([[1.0], [np.nan]])), "the fitted mean is not finite"),
        (
            lambda: P.from_state({"kind": "os.system", "settings": {"shape": None}, "arrays": {}}),
            "unknown transform",
        ),
        (lambda: P.from_state({"kind": "PCA"}), "not the state of a transform"),
        (
            lambda: P.from_state({"kind": "PCA", "settings": {"a": 1, "shape": None}, "arrays": {}}),
            "unexpected keyword",
        ),
        (lambda: P.from_state({"kind": "PCA", "settings": {"shape": [3]}, "arrays": {}}), "lacks the arrays"),
    ],
)
def test_errors(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_a_pipeline_takes_transforms_only():
    with pytest.raises(TypeError, match="Pipeline takes transforms, got function"):
        P.Pipeline(lambda x: x)  # type: ignore[arg-type]


# Labels


@given(labels=st.lists(st.integers(0, 6), max_size=20))
def test_one_hot_and_back(labels):
    y = np.array(labels, np.int64)
    p: Any = P.one_hot(y, 7)
    assert p.shape == (len(y), 7)
    assert p.dtype == np.float32
    assert (p.sum(1) == 1).all()
    np.testing.assert_array_equal(P.from_one_hot(p), y)


def test_one_hot_of_other_backends_axes_and_types():
    strict = P.one_hot(array_api_strict.asarray([[0, 2]]), 3, dtype="float64")
    np.testing.assert_array_equal(to_numpy(strict), [[[1, 0, 0], [0, 0, 1]]])
    with pytest.raises(ValueError, match="labels run from 0 to 3, expected 0 to 2"):
        P.one_hot(np.array([0, 3]), 3)
    with pytest.raises(ValueError, match="labels run from -1"):
        P.one_hot(np.array([-1]), 3)
    with pytest.raises(ValueError, match=r"expects integer labels, got numpy array .* float64"):
        P.one_hot(np.array([0.0]), 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(40, 6), (4, 6)])
@pytest.mark.parametrize("name", [n for n in P.__all__ if getattr(getattr(P, n), "fitted_names", None)])
def test_every_transform_that_is_fitted_refuses_values_that_are_not_finite(name, shape, value):
    x = np.random.default_rng(0).normal(size=shape)
    x[2, 3] = value
    with pytest.raises(ValueError, match=rf"^{name}: .*x holds NaN or infinite values$"), np.errstate(invalid="ignore"):
        getattr(P, name)().fit(x)
