"""Weights and gradients as images: filters of the first layer, templates of a linear classifier, saliency."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from xpnet import backend, ops
from xpnet.autograd.tensor import Tensor
from xpnet.backend import Array
from xpnet.inspect.figures import new_figure, style
from xpnet.io.archive import write_atomically
from xpnet.layers.context import Shape
from xpnet.layers.convolution import Conv2D
from xpnet.layers.dense import Dense
from xpnet.layers.execution import runs_on_its_device, takes_batch
from xpnet.layers.modes import eval_mode
from xpnet.layers.module import Module

NumpyArray = np.ndarray[Any, Any]


def tile(images: Array, *, columns: int | None = None, gap: int = 1, scale: int = 1, together: bool = False) -> NumpyArray:
    """Tile images into one image with white gaps, each stretched to the full range from black to white.

    Args:
        images: (N, H, W, C) with C = 1 or 3; any range of values.
        columns: how many in a row; None for an approximate square.
        gap: white pixels between images.
        scale: enlarge every pixel by this factor.
        together: use one range for all images, with 0 at mid-grey, so that they can be compared.

    Returns:
        float64 (rows, columns, C) in [0, 1].

    Raises:
        ValueError: another shape.
    """
    stack = np.asarray(backend.to_numpy(images), dtype=np.float64)
    if stack.ndim != 4 or stack.shape[-1] not in (1, 3) or not len(stack):
        raise ValueError(f"tile: expected images (N, H, W, C) with C = 1 or 3 and N >= 1, got shape {stack.shape}")
    N, H, W, C = stack.shape
    if together:
        reach = float(np.max(np.abs(stack))) or 1.0
        stack = 0.5 + 0.5 * stack / reach
    else:
        low = stack.min(axis=(1, 2, 3), keepdims=True)
        spread = stack.max(axis=(1, 2, 3), keepdims=True) - low
        stack = np.where(spread > 0, (stack - low) / np.where(spread > 0, spread, 1), 0.5)
    stack = stack.repeat(scale, axis=1).repeat(scale, axis=2)
    H, W = H * scale, W * scale
    columns = columns or math.ceil(math.sqrt(N))
    rows = -(-N // columns)
    canvas = np.ones((rows * (H + gap) - gap, columns * (W + gap) - gap, C))
    for i, image in enumerate(stack):
        r, c = i // columns * (H + gap), i % columns * (W + gap)
        canvas[r : r + H, c : c + W] = image
    return canvas


@runs_on_its_device
def first_filters(model: Module) -> NumpyArray:
    """Return the kernels of the first convolution as images: (O, KH, KW, C).

    Raises:
        ValueError: there is no convolution with weights, or its input has neither 1 nor 3 channels.
    """
    for module in model.modules():
        if isinstance(module, Conv2D):
            if not module.built:
                raise ValueError(f"first_filters: layer {module.path!r} has no weights yet; give the model an input_shape")
            kernel = backend.to_numpy(module.kernel.array)  # (KH, KW, C, O)
            if kernel.shape[2] not in (1, 3):
                raise ValueError(f"first_filters: the kernel has shape {kernel.shape}; only 1 or 3 channels make an image")
            return np.moveaxis(kernel, -1, 0)
    raise ValueError("first_filters: the model has no Conv2D layer")


@runs_on_its_device
def filters_image(model: Module, **settings: Any) -> NumpyArray:
    """Tile the filters of the first convolution into one image (see :func:`tile` for the settings)."""
    return tile(first_filters(model), **{"scale": 8, "gap": 4, **settings})


@runs_on_its_device
def templates(model: Module, image_shape: Shape | None = None) -> NumpyArray:
    """Return the weights of every class of a linear classifier as images (K, H, W, C), one template for each class.

    Args:
        model: its first Dense layer takes the flattened images.
        image_shape: (H, W, C); None takes the input_shape of a Sequential.

    Raises:
        ValueError: no Dense layer, or one that does not take such images.

    Source: CS231n, "Linear classification", interpretation as template matching.
    """
    shape = image_shape or getattr(model, "input_shape", None)
    for module in model.modules():
        if isinstance(module, Dense) and module.built:
            kernel = backend.to_numpy(module.kernel.array)  # (H*W*C, K)
            if shape is None or len(shape) != 3 or math.prod(shape) != kernel.shape[0]:
                raise ValueError(
                    f"templates: the first Dense layer takes {kernel.shape[0]} values, the image shape is {shape}; "
                    f"give image_shape=(H, W, C) with that many"
                )
            return np.moveaxis(kernel.reshape(*shape, kernel.shape[1]), -1, 0)
    raise ValueError("templates: the model has no Dense layer with weights")


@takes_batch
def saliency(model: Module, x: Array, labels: Array | None = None) -> Array:
    """Compute a saliency map: how much each pixel affects the score of a class, max |d score / d pixel| over channels.

    Args:
        model: maps images to scores (N, K): logits rather than probabilities, which saturate.
        x: (N, H, W, C), floating point.
        labels: class indices (N,); None takes the class with the highest score.

    Returns:
        (N, H, W), a native array on the model's device.

    Source: Simonyan et al., "Deep inside convolutional networks", 2014.
    """
    if any(not layer.built for layer in model.modules()):
        model.predict(x)  # builds the model
    image = Tensor(x, requires_grad=True)
    parameters = [p for p in model.parameters().values() if p.requires_grad]
    with eval_mode(model):
        try:
            for parameter in parameters:  # their gradients are not needed and must be preserved
                parameter.requires_grad = False
            scores = model(image)
            if scores.ndim != 2:
                raise ValueError(f"saliency: the model gives shape {scores.shape}, expected scores (N, K)")
            xp = backend.namespace(scores.array)
            if labels is None:
                labels = xp.argmax(scores.array, axis=-1)
            chosen = xp.asarray(labels)[:, None] == xp.arange(scores.shape[1], device=scores.array.device)
            ops.sum(scores * xp.astype(chosen, scores.dtype)).backward()
        finally:
            for parameter in parameters:
                parameter.requires_grad = True
    return cast(Array, xp.max(xp.abs(image.grad), axis=-1))


def draw_images(images: Array, *, titles: Sequence[str] = (), columns: int | None = None, size: float = 1.1) -> Any:
    """Draw images with titles, each stretched to its full range.

    Args:
        images: (N, H, W, C) with C = 1 or 3, or (N, H, W).
        titles: one for each, or none.
        columns: how many in a row; None for an approximate square.
        size: of one image, in inches.

    Returns:
        The matplotlib Figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    stack = backend.to_numpy(images)
    stack = stack[..., None] if stack.ndim == 3 else stack
    columns = columns or math.ceil(math.sqrt(len(stack)))
    rows = -(-len(stack) // columns)
    figure = new_figure(size * columns, (size + (0.22 if titles else 0)) * rows)
    with style():
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.axis("off")
        for i, axes in enumerate(grid[: len(stack)]):
            picture = tile(stack[i : i + 1])
            axes.imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)
            if titles:
                axes.set_title(titles[i], fontsize=8, loc="center", fontweight="normal")
    return figure


def save_image(path: str | os.PathLike[str], image: Array) -> Path:
    """Write one image (H, W, 1 or 3), values in [0, 1], to a PNG file, atomically. Return its path.

    Raises:
        ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("writing an image needs Pillow, which is not installed: pip install 'xpnet[plot]'") from None
    pixels = np.clip(np.rint(255 * np.asarray(backend.to_numpy(image), dtype=np.float64)), 0, 255).astype(np.uint8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    write_atomically(path, lambda file: picture.save(file, format="PNG"))
    return path
