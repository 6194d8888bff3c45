"""The arithmetic of windows: sizes, "same" padding, and what is said where a window does not fit."""

from __future__ import annotations

import pytest

import xpnet as xn
from xpnet.ops.geometry import same_padding, windows


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((227, 11, 4), 55),  # AlexNet's first layer
        ((224, 7, 2, 3), 112),  # ResNet's
        ((32, 5, 1, 2), 32),
        ((7, 3, 1, 0), 5),
        ((7, 3, 2, 0), 3),
        ((5, 3, 2, 1), 3),
        ((10, 3, 2, 0), 4),  # rounded down, as PyTorch does
        ((28, 2, 2), 14),
        ((3, 3), 1),
        ((8, 3, 2, (0, 1)), 4),
    ],
)
def test_conv_output_size(arguments, expected):
    assert xn.conv_output_size(*arguments) == expected


def test_dilation_widens_the_window():
    assert xn.conv_output_size(10, 3, dilation=2) == 6
    assert xn.conv_output_size(5, 3, dilation=2) == 1


def test_exact_shows_the_sum_and_what_would_fit():
    assert xn.conv_output_size(227, 11, 4, exact=True) == 55
    with pytest.raises(ValueError) as raised:
        xn.conv_output_size(10, 3, 2, 0, exact=True)
    message = str(raised.value)
    assert "(10 - 3 + 2*0)/2 + 1 = 4.5" in message
    assert "does not tile" in message
    fitting = message.split("a stride of ")[1]
    assert "1 or 7" in fitting  # (10 - 3) / 1 and (10 - 3) / 7 are whole
    padding = message.split("a padding of ")[1].split(" fits")[0]
    assert padding.startswith("(0, 1)")  # 7 + 2P is odd for every P: only one end can take the rest
    for text in ("(0, 1)",):
        before, after = eval(text)
        assert (10 - 3 + before + after) % 2 == 0


def test_every_proposal_of_exact_fits():
    """For many sizes: each padding and stride that the message names does tile the input."""
    proposals = 0
    for size in range(3, 14):
        for window in (2, 3, 5):
            for stride in (2, 3):
                for padding in (0, 1):
                    try:
                        xn.conv_output_size(size, window, stride, padding, exact=True)
                    except ValueError as error:
                        message = str(error)
                        if "tile" not in message:
                            continue
                        paddings = message.split("a padding of ")[1].split(" fits")[0].replace(" or ", ", ")
                        strides = message.split("a stride of ")[1].split(" fits")[0].replace(" or ", ", ")
                        if "no value" not in paddings:
                            for p in eval(f"[{paddings}]"):
                                xn.conv_output_size(size, window, stride, p, exact=True)
                                proposals += 1
                        for s in eval(f"[{strides}]"):
                            xn.conv_output_size(size, window, s, padding, exact=True)
                            proposals += 1
    assert proposals > 100


@pytest.mark.parametrize(
    ("arguments", "keywords", "says"),
    [
        ((2, 3), {}, "window of 3 is larger than the padded input: 2 + 0 + 0 = 2"),
        ((4, 3), {"dilation": 2}, "with dilation 2 spans 5"),
        ((4, 0), {}, "window must be at least 1"),
        ((4, 3, 0), {}, "stride must be at least 1"),
        ((4, 3, 1, -1), {}, "padding must be at least 0"),
        ((4, 3), {"dilation": 0}, "dilation must be at least 1"),
        ((-1, 3), {}, "size must be at least 0"),
    ],
)
def test_conv_output_size_refuses(arguments, keywords, says):
    with pytest.raises(xn.ShapeError) as raised:
        xn.conv_output_size(*arguments, **keywords)
    assert says in str(raised.value)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
def test_same_gives_the_size_over_the_stride_rounded_up(size, window, stride):
    before, after = same_padding(size, window, stride, 1)
    assert xn.conv_output_size(size, window, stride, (before, after)) == -(-size // stride)
    assert after - before in (0, 1)  # the odd one at the end


@pytest.mark.parametrize("bad", ["full", 1.5, (1, 2, 3), ((1,), (2, 3)), -1, None])
def test_a_malformed_padding_is_explained(bad):
    with pytest.raises(ValueError, match="padding"):
        windows((1, 8, 8, 1), 3, 1, bad)


@pytest.mark.parametrize("name", ["window", "stride", "dilation"])
@pytest.mark.parametrize("bad", [(1, 2, 3), "a", 0, (2, 0)])
def test_a_malformed_size_is_explained(name, bad):
    settings = {"window": 3, "stride": 1, "dilation": 1, name: bad}
    with pytest.raises(ValueError, match=name):
        windows((1, 8, 8, 1), settings["window"], settings["stride"], 0, settings["dilation"])


def test_numpy_integers_are_integers():
    """Sizes often come out of arrays."""
    import numpy as np

    x, kernel = np.zeros((1, 6, 6, 1)), np.zeros((3, 3, 1, 1))
    y = xn.ops.conv2d(x, kernel, stride=np.int64(2), padding=np.int64(1))
    assert y.shape == (1, 3, 3, 1)
    assert xn.conv_output_size(np.int64(6), 3, 2, np.int64(1)) == 3  # type: ignore[arg-type]
    assert xn.ops.max_pool2d(x, np.int32(2)).shape == (1, 3, 3, 1)
    assert xn.ops.sum(x, axis=np.int64(1)).shape == (1, 6, 1)
    assert xn.ops.reshape(x, np.int64(36)).shape == (36,)
