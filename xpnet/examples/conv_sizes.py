"""Conv sizes: the output size, the number of weights and the receptive field of convolutions.

(W - F + 2P) / S + 1 for an input of W, a window of F, a stride of S and a padding of P. Source: Stanford CS231n,
"Convolutional neural networks for visual recognition"; Krizhevsky et al., 2012, for the first layer of AlexNet.
"""

from __future__ import annotations

import numpy as np

import xpnet as xn
from xpnet.examples._report import Folder, Report
from xpnet.inspect.receptive import receptive_fields
from xpnet.layers.module import Module


def weights(model: Module) -> tuple[int, int]:
    """Count the (weights, biases) of a model."""
    sizes = {name: p.size for name, p in model.parameters().items()}
    biases = sum(n for name, n in sizes.items() if name.endswith("bias"))
    return sum(sizes.values()) - biases, biases


def run(out: Folder = None) -> Report:
    """Print sizes, weights and receptive fields beside the text's."""
    report = Report("The sizes of convolutions")
    alexnet = xn.Sequential([xn.Conv2D(96, 11, stride=4)], input_shape=(227, 227, 3))
    report.row("(227 - 11) / 4 + 1", "55", xn.conv_output_size(227, 11, 4, exact=True))
    report.row("AlexNet, first layer", "55 55 96", alexnet.output_shape((227, 227, 3)))
    report.row("its weights and biases", "34848 96", weights(alexnet))
    try:
        xn.conv_output_size(224, 11, 4, exact=True)  # the paper says 224, for which the window does not fit
    except xn.ShapeError as error:
        report.found("with 224 as in the paper", str(error).split(";")[0])

    small = xn.Sequential([xn.Conv2D(2, 3, stride=2, padding=1)], input_shape=(5, 5, 3))
    report.row("5x5x3, K=2 F=3 S=2 P=1", "3 3 2", small.predict(np.zeros((1, 5, 5, 3), np.float32)).shape[1:])

    report.section("Three 3x3 layers against one of 7x7, C channels in and out")
    C = 64
    three = [xn.Conv2D(C, 3, use_bias=False) for _ in range(3)]
    one = [xn.Conv2D(C, 7, use_bias=False)]
    stacked = weights(xn.Sequential(three, input_shape=(32, 32, C)))[0]
    single = weights(xn.Sequential(one, input_shape=(32, 32, C)))[0]
    report.row("weights / C^2", "27 49", [stacked / C**2, single / C**2])
    report.row("receptive field, after 1, 2, 3 layers", "3 5 7", [field.size[0] for _, field in receptive_fields(three)])
    report.row("receptive field, 7x7", "7", receptive_fields(one)[-1][1].size[0])

    report.section("Receptive field of one unit of VGG-16 after each pooling")
    vgg: list[Module] = []
    for convolutions in (2, 2, 3, 3, 3):
        vgg += [*(xn.Conv2D(1, 3, padding=1) for _ in range(convolutions)), xn.MaxPool2D(2)]
    pools = [field for (_, field), layer in zip(receptive_fields(vgg), vgg) if isinstance(layer, xn.MaxPool2D)]
    report.row("size", "6 16 44 100 212", [field.size[0] for field in pools])
    report.row("stride", "2 4 8 16 32", [field.stride[0] for field in pools])
    return report
