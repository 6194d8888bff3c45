"""Receptive fields, against what an output really depends on."""

from __future__ import annotations

import numpy as np
import pytest

import xpnet as xn
from xpnet import inspect


def seen(model, shape, place):
    """The first and last row and column of the input that the output at `place` depends on, by its gradient."""
    x = xn.Tensor(np.ones((1, *shape)), requires_grad=True)
    y = model(x)
    pick = np.zeros(y.shape)
    pick[0, place[0], place[1], 0] = 1
    (y * pick).sum().backward()
    used = np.abs(xn.to_numpy(x.grad)[0]).sum(axis=-1) > 0
    rows, columns = np.flatnonzero(used.any(axis=1)), np.flatnonzero(used.any(axis=0))
    return (rows[0], rows[-1]), (columns[0], columns[-1])


def conv(window, **keywords):
    return xn.Conv2D(2, window, kernel_initializer="ones", **keywords)


CHAINS = {
    "three 3x3": [conv(3), conv(3), conv(3)],
    "strides": [conv(3, stride=2), conv((5, 3), stride=(1, 2)), xn.AveragePool2D(2)],
    "dilation": [conv(3, dilation=2), conv(3, dilation=(3, 1))],
    "padding": [conv(3, padding=1), xn.AveragePool2D(2), conv(5, padding="same")],
}


@pytest.mark.parametrize("name", CHAINS)
def test_fields_are_what_the_gradient_reaches(name):
    shape = (40, 44, 1)
    model = xn.Sequential(CHAINS[name], input_shape=shape, dtype="float64")
    fields = inspect.receptive_fields(model)
    assert [path for path, _ in fields] == [str(i) for i in range(len(CHAINS[name]))]
    field = fields[-1][1]
    for place in ((3, 4), (4, 3)):  # inside, where no padding is seen
        for axis, (first, last) in enumerate(seen(model, shape, place)):
            assert first == field.start[axis] + place[axis] * field.stride[axis]
            assert last - first + 1 == field.size[axis]


def test_same_needs_the_shape():
    layers = [xn.Conv2D(2, 3, stride=2, padding="same")]
    with pytest.raises(ValueError, match="give input_shape"):
        inspect.receptive_fields(layers)
    assert inspect.receptive_fields(layers, (8, 8, 1))[0][1].start == (0, 0)
    assert inspect.receptive_fields(layers, (7, 7, 1))[0][1].start == (-1, -1)
