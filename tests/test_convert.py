import numpy as np
import pytest

import xpnet as xn
from xpnet.convert import dense_to_conv


def crops(x, size, stride):
    """Every crop of the images, row by row: [(N, size, size, C), ...], and how many a side."""
    side = (x.shape[1] - size) // stride + 1
    found = [x[:, i * stride : i * stride + size, j * stride : j * stride + size] for i in range(side) for j in range(side)]
    return found, side


def images(N, size, C=3, seed=0):
    return np.random.default_rng(seed).standard_normal((N, size, size, C))


def classifier(size=20, **keywords):
    """Reduces by 4, no padding; batch normalisation and dropout included."""
    layers = [
        xn.Conv2D(4, 3, activation="relu"),
        xn.MaxPool2D(2),
        xn.BatchNorm(),
        xn.Conv2D(5, 2, activation="elu"),
        xn.MaxPool2D(2),
        xn.Flatten(),
        xn.Dropout(0.5),
        xn.Dense(7, "relu"),
        xn.BatchNorm(),
        xn.Dense(6, activation="gelu", use_bias=False),
        xn.LayerNorm(),
        xn.Dense(3),
        xn.Softmax(),
    ]
    return xn.Sequential(layers, input_shape=(size, size, 3), dtype="float64", **keywords)


def likelihood(probabilities, labels):
    return xn.losses.negative_log_likelihood(xn.ops.log(probabilities), labels)


def trained(model, size=20):
    """The model after a few steps, so that no statistics and biases are at their first values."""
    x, y = images(8, size, seed=5), np.arange(8) % 3
    trainer = xn.Trainer(model, loss=likelihood, optimizer=xn.optim.Adam(0.02))
    for _ in range(3):
        trainer.step(x, y)
    return model


def test_equals_the_evaluation_of_every_crop():
    model = trained(classifier())
    conv = dense_to_conv(model, input_shape=(32, 32, 3))
    x = images(2, 32)
    y = conv.predict(x)
    assert y.shape == (2, 4, 4, 3)
    assert conv.output_shape((32, 32, 3)) == (4, 4, 3)
    parts, side = crops(x, 20, 4)
    assert side == 4
    expected = np.stack([model.predict(part) for part in parts], axis=1).reshape(y.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-13)
    # The size that the model was made for gives one place.
    np.testing.assert_allclose(conv.predict(x[:, :20, :20])[:, 0, 0], model.predict(x[:, :20, :20]), rtol=1e-10, atol=1e-13)
    assert conv.count_parameters() == model.count_parameters()


def test_224_gives_one_place_and_384_gives_six_by_six():
    layers = [xn.Conv2D(2, 2, stride=2, activation="relu") for _ in range(5)]
    model = xn.Sequential([*layers, xn.Flatten(), xn.Dense(4, "relu"), xn.Dense(3)], input_shape=(224, 224, 1))
    conv = dense_to_conv(model)
    x = images(1, 384, 1).astype(np.float32)
    assert conv.predict(x[:, :224, :224]).shape == (1, 1, 1, 3)
    y = conv.predict(x)
    assert y.shape == (1, 6, 6, 3)
    parts, side = crops(x, 224, 32)
    expected = np.stack([model.predict(part) for part in parts], axis=1).reshape(1, side, side, 3)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_global_average_pooling_slides_too():
    layers = [xn.Conv2D(4, 3, stride=2, activation="relu"), xn.GlobalAveragePool2D(), xn.Dense(3)]
    model = xn.Sequential(layers, input_shape=(11, 9, 2), dtype="float64")
    x = np.random.default_rng(0).standard_normal((2, 15, 11, 2))
    y = dense_to_conv(model, (15, 11, 2)).predict(x)
    assert y.shape == (2, 3, 2, 3)
    for i in range(3):
        for j in range(2):
            np.testing.assert_allclose(y[:, i, j], model.predict(x[:, 2 * i : 2 * i + 11, 2 * j : 2 * j + 9]), rtol=1e-12)


def test_inner_sequentials_and_residual_blocks():
    features = xn.Sequential([xn.Conv2D(4, 3), xn.Residual([xn.Conv2D(4, 1, activation="relu")]), xn.MaxPool2D(2)])
    model = xn.Sequential([features, xn.Sequential([xn.Flatten(), xn.Dense(3)])], input_shape=(8, 8, 1), dtype="float64")
    x = images(2, 12, 1)
    y = dense_to_conv(model).predict(x)
    parts, side = crops(x, 8, 2)
    expected = np.stack([model.predict(part) for part in parts], axis=1).reshape(2, side, side, 3)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-13)


def test_weights_are_copies_and_both_models_can_be_trained():
    model = trained(classifier())
    conv = dense_to_conv(model)
    x = images(3, 20)
    before = model.predict(x)
    trainer = xn.Trainer(conv, loss="mse", optimizer=xn.optim.SGD(0.1, 0.9))
    for _ in range(2):
        trainer.step(x, np.zeros((3, 1, 1, 3)))
    np.testing.assert_array_equal(model.predict(x), before)
    assert not np.allclose(conv.predict(x)[:, 0, 0], before)
    # All parameters of the new model moved, none is held by the old one's storage.
    fresh = dense_to_conv(model)
    for path, parameter in conv.parameters().items():
        assert not np.array_equal(xn.to_numpy(parameter.array), xn.to_numpy(fresh.parameters()[path].array)), path
    again = conv.predict(x)
    trained(model)
    np.testing.assert_array_equal(conv.predict(x), again)


def test_settings_are_kept(tmp_path):
    layers = [
        xn.Flatten(),
        xn.Dense(3, kernel_regularizer=xn.regularizers.L2(0.1), kernel_constraint=xn.regularizers.MaxNorm(2.0)),
    ]
    model = xn.Sequential(layers, input_shape=(4, 4, 1)).eval()
    model[1].bias.requires_grad = False
    conv = dense_to_conv(model, (6, 6, 1))
    assert conv[0].kernel.regularizer == xn.regularizers.L2(0.1)
    assert conv[0].kernel.constraint == xn.regularizers.MaxNorm(2.0)
    assert not conv[0].bias.requires_grad
    assert not conv.training
    conv.save(tmp_path / "conv.xpnet")
    x = images(1, 6, 1).astype(np.float32)
    np.testing.assert_array_equal(xn.load(tmp_path / "conv.xpnet").predict(x), conv.predict(x))


def test_a_model_without_an_input_shape():
    model = xn.Sequential([xn.Conv2D(2, 3), xn.Flatten(), xn.Dense(3)])
    x = images(2, 6, 1).astype(np.float32)
    expected = model.predict(x)
    with pytest.raises(ValueError, match=r"pass input_shape=\(H, W, C\)"):
        dense_to_conv(model)
    np.testing.assert_allclose(dense_to_conv(model, (6, 6, 1)).predict(x)[:, 0, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([xn.Conv2D(2, 3)], "no Dense layer after"),
        ([xn.Flatten(), xn.BatchNorm(), xn.Dense(3)], r"layer '1' \(BatchNorm\) cannot slide"),
        ([xn.Flatten(), xn.Dense(4), xn.Reshape((2, 2)), xn.Flatten(), xn.Dense(3)], r"layer '2' \(Reshape\) cannot slide"),
        ([xn.Reshape((18, 2)), xn.Flatten(), xn.Dense(3)], r"layer '0' \(Reshape\) gives \(18, 2\)"),
    ],
)
def test_what_cannot_slide_is_named(layers, message):
    model = xn.Sequential(layers, input_shape=(6, 6, 1))
    with pytest.raises(ValueError, match=message):
        dense_to_conv(model)


def test_smaller_images_are_refused():
    with pytest.raises(ValueError, match="larger than the padded input"):
        dense_to_conv(classifier(), input_shape=(12, 12, 3))
