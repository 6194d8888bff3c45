"""Networks to start from. Each is a function (input_shape, classes, seed, device) -> Sequential that ends in logits."""

from __future__ import annotations

from collections.abc import Sequence

from xpnet.layers import Conv2D, Dense, Dropout, Flatten, MaxPool2D, Module, Sequential
from xpnet.runtime.settings import checked

SMALL_IMAGE = 16
"""Images with fewer rows or columns are padded, so that convolutions do not shrink them."""


@checked
def mlp(input_shape: Sequence[int], classes: int, seed: int = 0, device: str = "cpu") -> Sequential:
    """Build a multilayer perceptron: two fully connected hidden layers with ReLU.

    Args:
        input_shape: of one example: (F,) or (H, W, C).
        classes: the number of outputs.
        seed: of the initial weights and dropout masks.
        device: "cpu", "cuda" or "cuda:N".
    """
    images = len(input_shape) == 3
    units = 256 if images else 32
    layers: list[Module] = [Flatten()] if images else []
    dropout: list[Module] = [Dropout(0.3)] if images else []
    layers += [Dense(units, "relu"), *dropout, Dense(units // 2, "relu"), *dropout, Dense(classes)]
    return Sequential(layers, input_shape=input_shape, seed=seed, device=device)


@checked
def cnn(input_shape: Sequence[int], classes: int, seed: int = 0, device: str = "cpu") -> Sequential:
    """Build a small convolutional network: two stages of 3x3 convolution and 2x2 pooling, dropout, and a classifier.

    On (28, 28, 1) with 10 classes it has 34,826 parameters. Colour images and images of fewer than 16 rows or columns get
    a second convolution in each stage.

    Args:
        input_shape: of one example: (H, W, C).
        classes, seed, device: as for :func:`mlp`.

    Raises:
        ValueError: the examples are not images.
    """
    if len(input_shape) != 3:
        raise ValueError(f"cnn needs images (H, W, C), got examples of shape {tuple(input_shape)}; use the mlp")
    H, W, C = input_shape
    small = min(H, W) < SMALL_IMAGE
    padding = "same" if small else "valid"
    layers: list[Module] = []
    for filters in (32, 64):
        layers += [Conv2D(filters, 3, padding=padding, activation="relu")]
        if small or C > 1:
            layers += [Conv2D(filters, 3, padding="same", activation="relu")]
        layers += [MaxPool2D(2)]
    layers += [Flatten(), Dropout(0.5), Dense(classes)]
    return Sequential(layers, input_shape=input_shape, seed=seed, device=device)
