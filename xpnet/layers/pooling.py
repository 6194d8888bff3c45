"""Pooling layers."""

from __future__ import annotations

from typing import Any

from xpnet import ops
from xpnet.layers.context import Shape
from xpnet.layers.convolution import image_shape
from xpnet.layers.given import naming
from xpnet.layers.module import Module
from xpnet.ops.geometry import Padding, Size, pair, windows
from xpnet.runtime.settings import check_numbers


class _Pool(Module):
    """Base class of the poolings: a window that slides over images."""

    def __init__(self, window: Size, stride: Size | None = None, padding: Padding = 0) -> None:
        with naming(self):
            self.window = pair(window, "window")
            self.stride = self.window if stride is None else pair(stride, "stride")
            self.padding = padding
            sliding = windows((1, 1 << 20, 1 << 20, 1), self.window, self.stride, padding)  # malformed values raise here
        for axis in sliding:
            if max(axis.before, axis.after) >= axis.window:
                raise ValueError(f"{type(self).__name__}: padding {padding} must be smaller than the window {window}")

    def output_shape(self, input_shape: Shape) -> Shape:
        """Map (H, W, C) to (OH, OW, C)."""
        H, W, C = image_shape(type(self).__name__, input_shape)
        g = windows((1, H, W, C), self.window, self.stride, self.padding)
        return g.h.out, g.w.out, C


class MaxPool2D(_Pool):
    """Max pooling, the largest element of every window: (N, H, W, C) -> (N, OH, OW, C).

    Args:
        window: int or (KH, KW).
        stride: int or (h, w); None means the window.
        padding: as in Conv2D; padding never wins.
    """

    plannable = True

    def forward(self, x: Any) -> Any:
        """Map x (N, H, W, C) to (N, OH, OW, C)."""
        return ops.max_pool2d(x, self.window, stride=self.stride, padding=self.padding)


class AveragePool2D(_Pool):
    """Average pooling, the mean of every window: (N, H, W, C) -> (N, OH, OW, C).

    Args:
        window, stride, padding: as in MaxPool2D.
        count_include_pad: divide by the window's size even where part of it lies in the padding.
    """

    plannable = True

    def __init__(
        self, window: Size, stride: Size | None = None, padding: Padding = 0, *, count_include_pad: bool = False
    ) -> None:
        super().__init__(window, stride, padding)
        self.count_include_pad = count_include_pad

    def forward(self, x: Any) -> Any:
        """Map x (N, H, W, C) to (N, OH, OW, C)."""
        return ops.average_pool2d(
            self.as_float(x), self.window, stride=self.stride, padding=self.padding, count_include_pad=self.count_include_pad
        )


class LpPool2D(_Pool):
    """Lp pooling, the p-norm of every window: (N, H, W, C) -> (N, OH, OW, C).

    Args:
        window, stride, padding: as in MaxPool2D.
        p: at least 1; 2 is L2-norm pooling.
    """

    plannable = True

    def __init__(self, window: Size, stride: Size | None = None, padding: Padding = 0, *, p: float = 2.0) -> None:
        super().__init__(window, stride, padding)
        check_numbers("LpPool2D", "[1, inf)", p=p)
        self.p = p

    def forward(self, x: Any) -> Any:
        """Map x (N, H, W, C) to (N, OH, OW, C)."""
        return ops.lp_pool2d(self.as_float(x), self.window, p=self.p, stride=self.stride, padding=self.padding)


class GlobalAveragePool2D(Module):
    """Global average pooling, the mean of every channel: (N, H, W, C) -> (N, C)."""

    plannable = True

    def output_shape(self, input_shape: Shape) -> Shape:
        """Map (H, W, C) to (C,)."""
        return image_shape("GlobalAveragePool2D", input_shape)[2:]

    def forward(self, x: Any) -> Any:
        """Map x (N, H, W, C) to (N, C)."""
        return ops.global_average_pool2d(self.as_float(x))
