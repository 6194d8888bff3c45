"""Stairs: is a 2x2 grey image a stair? The forward and the backward pass of a small classifier, to five digits.

An image is [1, p1, p2, p3, p4], where the 1 carries the bias; class 1 are stairs. One hidden layer of two sigmoid units and a
bias unit, softmax over two classes, mean cross entropy. Source: B. Gordon (GormAnalysis), "Introduction to neural networks"
(2017). The data set that is learnt afterwards follows a rule, and shows why pixels are scaled and centred.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import xpnet as xn
from xpnet.examples._report import Folder, Report, picture

IMAGES = np.array([[252, 4, 155, 175], [175, 10, 186, 200], [82, 131, 230, 100], [115, 138, 80, 88]], dtype=np.float64)
STAIRS = np.array([1, 1, 0, 0])
W1 = np.array([[-0.00469, 0.00797], [-0.00256, 0.00889], [0.00146, 0.00322], [0.00816, 0.00258], [-0.00597, -0.00876]])
W2 = np.array([[-0.00588, -0.00232], [-0.00647, 0.00540], [0.00374, -0.00005]])


def network(seed: int = 0) -> xn.Sequential:
    """Return a 4-2-2 network; the first rows of the text's W1 and W2 are its biases."""
    return xn.Sequential([xn.Dense(2, "sigmoid"), xn.Dense(2)], input_shape=(4,), dtype="float64", seed=seed)


def with_bias_row(layer: xn.Dense, gradient: bool = False) -> Any:
    """Stack the bias above the kernel, as the text writes W; or their gradients."""
    parts = (layer.bias, layer.kernel)
    return np.concatenate([np.atleast_2d(np.asarray(p.grad if gradient else p.array)) for p in parts])


def make_images(n: int, seed: int) -> tuple[Any, Any]:
    """Return n images that follow a rule, half of them stairs, and their labels.

    Stairs have one dark pixel (0 to 64) in the upper row, left or right, and three light ones (128 to 255), as the two in the
    text. The others are of four kinds: all light, all dark, the upper row dark, or a dark pixel in the lower row.
    """
    rng = xn.random.generator(xn.random.key(seed, "stairs"))
    stairs = np.array([[0, 1, 1, 1], [1, 0, 1, 1]])
    others = np.array([[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]])
    label = rng.integers(0, 2, n)
    light = np.where(label[:, None] == 1, stairs[rng.integers(0, 2, n)], others[rng.integers(0, 5, n)])
    pixels = np.where(light == 1, rng.integers(128, 256, (n, 4)), rng.integers(0, 65, (n, 4)))
    return pixels.astype(np.float64), label


def learn(prepare: Any, seed: int, epochs: int = 60, hidden: int = 4) -> xn.History:
    """Train a 4-hidden-2 net on pixels preprocessed by `prepare`."""
    x, y = make_images(2000, seed)
    xv, yv = make_images(1000, seed + 1)
    model = xn.Sequential([xn.Dense(hidden, "sigmoid"), xn.Dense(2)], input_shape=(4,), seed=seed)
    optimizer = xn.optim.SGD(0.1, momentum=0.9)
    trainer = xn.Trainer(model, loss="softmax_cross_entropy", optimizer=optimizer, metrics=["accuracy"], seed=seed)
    return trainer.fit((prepare(x), y), validation=(prepare(xv), yv), epochs=epochs, batch_size=50, verbose=False)


PIXELS = {
    "unscaled, 0 to 255": lambda x: x,
    "scaled, 0 to 1": lambda x: x / 255,
    "centred, -1 to 1": lambda x: x / 127.5 - 1,
}


def run(out: Folder = None, seed: int = 0) -> Report:
    """Print both passes beside the text; learn a generated data set; draw how the range of the pixels affects training."""
    report = Report("Stairs")
    model = network()
    hidden, last = model.layers
    model.load_state({"0.bias": W1[0], "0.kernel": W1[1:], "1.bias": W2[0], "1.kernel": W2[1:]})

    report.section("Forward")
    z1 = IMAGES @ hidden.kernel.array + hidden.bias.array
    report.row("Z1, images 1 and 2", "-.42392 1.12803 -.11433 .32380", z1[:2])
    report.row("Z1, images 3 and 4", "1.25645 .87617 .02983 .91020", z1[2:])
    h = hidden(IMAGES).array
    report.row("hidden, images 1 and 2", ".39558 .75548 .47145 .58025", h[:2])
    report.row("hidden, images 3 and 4", ".77841 .70603 .50746 .71304", h[2:])
    p = xn.ops.softmax(model.predict(IMAGES))
    report.row("prediction, images 1 and 2", ".49865 .50135 .49826 .50174", p[:2])
    report.row("prediction, images 3 and 4", ".49747 .50253 .49828 .50172", p[2:])

    report.section("Backward; the text's first column is the class of the stairs")
    # In the text class 0 is "stairs".
    xn.losses.softmax_cross_entropy(model(IMAGES), 1 - STAIRS).backward()
    dw1, dw2 = with_bias_row(hidden, True), with_bias_row(last, True)
    report.row("dW2, row 1", "-.00183 .00183", dw2[0])
    report.row("dW2, row 2", ".05131 -.05131", dw2[1])
    report.row("dW2, row 3", ".00916 -.00916", dw2[2])
    report.row("dW1, row 3", "-.07923 .02464", dw1[2])
    report.row("dW1, row 5", ".07847 -.02023", dw1[4])

    report.section("One step of 0.1")
    xn.optim.SGD(0.1).step(model)
    w1, w2 = with_bias_row(hidden), with_bias_row(last)
    report.row("W2, row 1", "-.00570 -.00250", w2[0])
    report.row("W2, row 2", "-.01160 .01053", w2[1])
    report.row("W2, row 3", ".00282 .00087", w2[2])
    report.row("W1, rows 1 and 2", "-.00470 .00797 -.01168 .01121", w1[:2])
    report.row("W1, rows 3 and 4", ".00938 .00076 .00456 .00307", w1[2:4])
    report.row("W1, row 5", "-.01382 -.00674", w1[4])

    report.section("2,000 generated images, 1,000 held out")
    histories = {name: learn(prepare, seed) for name, prepare in PIXELS.items()}
    for name, history in histories.items():
        report.found(f"held-out accuracy, {name}", f"{100 * history['val_accuracy'][-1]:.1f} %")
    report.at_least("held-out accuracy (%), centred", 95, 100 * histories["centred, -1 to 1"]["val_accuracy"][-1])

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for name, history in histories.items():
            epochs = np.arange(1, len(history["loss"]) + 1)
            left.plot(epochs, history["loss"], label=name)
            right.plot(epochs, 100 * np.array(history["val_accuracy"]), label=name)
        left.set(xlabel="epoch", ylabel="training loss", yscale="log", title="stairs: the same net, three ranges of pixels")
        right.set(xlabel="epoch", ylabel="held-out accuracy (%)", ylim=(45, 101))
        right.legend(title="pixels")

    picture(out, "stairs.png", draw, 9.0, 3.4)
    return report
