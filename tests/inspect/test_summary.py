import copy

import numpy as np
import pytest

import xpnet as xn
from xpnet.inspect.summary import summarize


def vgg16():
    layers = []
    for filters, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [xn.Conv2D(filters, 3, padding=1, activation="relu") for _ in range(count)] + [xn.MaxPool2D(2)]
    return xn.Sequential([*layers, xn.Flatten(), xn.Dense(4096, "relu"), xn.Dense(4096, "relu"), xn.Dense(1000)])


# Layer by layer: the output's shape, its values, the weights without biases. Source: CS231n, "Convolutional networks",
# and Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2014, network D.
VGG16 = [
    ((224, 224, 64), 3_211_264, 1_728),
    ((224, 224, 64), 3_211_264, 36_864),
    ((112, 112, 64), 802_816, 0),
    ((112, 112, 128), 1_605_632, 73_728),
    ((112, 112, 128), 1_605_632, 147_456),
    ((56, 56, 128), 401_408, 0),
    ((56, 56, 256), 802_816, 294_912),
    ((56, 56, 256), 802_816, 589_824),
    ((56, 56, 256), 802_816, 589_824),
    ((28, 28, 256), 200_704, 0),
    ((28, 28, 512), 401_408, 1_179_648),
    ((28, 28, 512), 401_408, 2_359_296),
    ((28, 28, 512), 401_408, 2_359_296),
    ((14, 14, 512), 100_352, 0),
    ((14, 14, 512), 100_352, 2_359_296),
    ((14, 14, 512), 100_352, 2_359_296),
    ((14, 14, 512), 100_352, 2_359_296),
    ((7, 7, 512), 25_088, 0),
    ((25_088,), 0, 0),
    ((4096,), 4096, 102_760_448),
    ((4096,), 4096, 16_777_216),
    ((1000,), 1000, 4_096_000),
]


def test_vgg16_has_the_numbers_of_its_table_and_nothing_is_allocated():
    model = vgg16()
    table = summarize(model, (224, 224, 3))
    assert [(row.output_shape, row.values, row.weights) for row in table.rows] == VGG16
    assert table.weights == 138_344_128
    assert table.parameters == 138_357_544
    assert model.parameters() == {}
    values = 150_528 + sum(v for _, v, _ in VGG16)
    assert table.values == values == 15_237_608
    assert table.forward_bytes == 4 * values
    assert table.kept_bytes == 4 * values
    assert table.parameter_bytes == 4 * 138_357_544
    assert table.optimizer_bytes == 2 * table.parameter_bytes
    assert summarize(model, (224, 224, 3), optimizer=xn.optim.SGD(0.1)).optimizer_bytes == 0
    assert summarize(model, (224, 224, 3), batch_size=8).forward_bytes == 8 * table.forward_bytes
    text = str(table)
    for number in ("224 x 224 x 64", "3,211,264", "102,764,544", "138,357,544", "527.8 MiB"):
        assert number in text


def test_the_small_network_for_mnist(capsys):
    model = xn.models.cnn((28, 28, 1), 10)
    table = model.summary(batch_size=128)
    assert capsys.readouterr().out == f"{table}\n"
    assert table.parameters == model.count_parameters() == 34_826
    assert [row.kind for row in table.rows] == ["Conv2D", "MaxPool2D", "Conv2D", "MaxPool2D", "Flatten", "Dropout", "Dense"]
    dropout = table.rows[5]
    assert (dropout.values, dropout.kept) == (0, 1600)


def test_it_is_the_same_before_and_after_building():
    model = xn.Sequential(
        [
            xn.Conv2D(4, 3, activation="gelu"),
            xn.ops.relu,
            xn.Residual([xn.Conv2D(6, 1)], shortcut=xn.Conv2D(6, 1, use_bias=False)),
            xn.Flatten(),
            xn.Dense(2),
        ]
    )
    before = summarize(model, (8, 8, 2))
    assert model.parameters() == {}
    assert [(r.path, r.kind, r.output_shape) for r in before.rows] == [
        ("0", "Conv2D", (6, 6, 4)),
        ("1", "relu", (6, 6, 4)),
        ("2.body.0", "Conv2D", (6, 6, 6)),
        ("2.shortcut", "Conv2D", (6, 6, 6)),
        ("2", "Residual", (6, 6, 6)),
        ("3", "Flatten", (216,)),
        ("4", "Dense", (2,)),
    ]
    assert before.rows[0].kept == 2 * before.rows[0].values
    model(np.zeros((1, 8, 8, 2), np.float32))
    assert summarize(model) == before
    assert before.parameters == model.count_parameters()


class Siamese(xn.Module):
    def __init__(self):
        self.body = xn.Sequential([xn.Dense(5, "relu"), xn.Dropout(0.5)])
        self.head = xn.Dense(3)
        self.scale = xn.Parameter(np.ones(1, np.float32))

    def forward(self, x):
        return self.head(self.body(x) - self.body(x * 2)) * self.scale


def test_a_class_of_ones_own_and_shared_layers():
    model = Siamese()
    before = summarize(model, (4,))
    assert list(model.parameters()) == ["scale"]
    model(np.zeros((1, 4), np.float32))
    counters = model.rng_counters()
    after = summarize(model, (4,))
    assert after == before
    assert model.rng_counters() == counters
    assert [(r.path, r.parameters) for r in after.rows] == [
        ("body.0", 25),
        ("body.1", 0),
        ("body.0", 0),
        ("body.1", 0),
        ("head", 18),
        ("(own)", 1),
    ]
    assert after.parameters == model.count_parameters() == 44
    np.testing.assert_array_equal(model.eval()(np.ones((2, 4), np.float32)).shape, (2, 3))


def test_what_cannot_be_summarised():
    with pytest.raises(ValueError, match="input_shape"):
        xn.Sequential([xn.Dense(2)]).summary()
    with pytest.raises(xn.ShapeError, match="expected images"):
        xn.Sequential([xn.Conv2D(2, 3)]).summary((4,))
    with pytest.raises(ValueError, match="batch_size"):
        xn.models.mlp((4,), 2).summary(batch_size=0)


def test_models_with_operations_can_be_copied():
    model = xn.Sequential([xn.Dense(3, xn.ops.gelu), xn.ops.relu], input_shape=(2,))
    x = np.ones((1, 2), np.float32)
    other = copy.deepcopy(model)
    np.testing.assert_array_equal(other.predict(x), model.predict(x))
    assert other.layers[1] is xn.ops.relu
    assert other.layers[0].kernel is not model.layers[0].kernel
