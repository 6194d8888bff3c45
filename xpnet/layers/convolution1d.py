"""The convolutional layer over sequences."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

from xpnet import ops
from xpnet.layers.context import Shape, Spec
from xpnet.layers.convolution import Convolution
from xpnet.layers.given import naming
from xpnet.ops.geometry import conv_output_size, same_padding
from xpnet.ops.shapes import ShapeError, is_whole
from xpnet.runtime.settings import check_whole


class Conv1D(Convolution):
    """Convolution over sequences, and an activation.

    Args:
        filters: O, the number of output channels.
        window: K, how many neighbouring steps a kernel covers.
        stride: the step between windows.
        padding: zeros at both ends: int, (before, after), "valid" (none), "same" (as many as give ceil(L / stride) outputs) or
            "causal" (all in front, so that no output depends on a later step).
        dilation: distance between neighbouring elements of the window.
        groups, activation, ...: as in Conv2D.

    Shapes:
        (N, L, C) -> (N, OL, O). Parameters: kernel (K, C/groups, O), bias (O,).
    """

    plannable = True

    def __init__(
        self,
        filters: int,
        window: int,
        *,
        stride: int = 1,
        padding: int | str | Sequence[int] = "valid",
        dilation: int = 1,
        **keywords: Any,
    ) -> None:
        super().__init__(filters, **keywords)
        if isinstance(padding, str) and padding not in ("valid", "same", "causal"):
            raise ValueError(f'Conv1D: padding must be an int, (before, after), "valid", "same" or "causal", got {padding!r}')
        ends = padding if isinstance(padding, (tuple, list)) else (0, 0) if isinstance(padding, str) else (padding, padding)
        if len(ends) != 2 or not all(map(is_whole, ends)):
            raise ValueError(f'Conv1D: padding must be an int, (before, after), "valid", "same" or "causal", got {padding!r}')
        check_whole("Conv1D", 1, window=window, stride=stride, dilation=dilation)
        self.window = int(window)
        self.stride = int(stride)
        self.padding = padding
        self.dilation = int(dilation)
        with naming(self):
            self._ends(1 << 20)  # malformed values raise here

    def _ends(self, L: int) -> tuple[tuple[int, int], int]:
        """Return the padding at both ends, and the number of outputs."""
        if self.padding == "same":
            ends = same_padding(L, self.window, self.stride, self.dilation)
        elif self.padding == "causal":
            ends = (self.dilation * (self.window - 1), 0)
        elif isinstance(self.padding, str):
            ends = (0, 0)
        elif isinstance(self.padding, int):
            ends = (self.padding, self.padding)
        else:
            before, after = self.padding
            ends = (index(before), index(after))
        return ends, conv_output_size(L, self.window, self.stride, ends, dilation=self.dilation)

    def _sequence_shape(self, input_shape: Shape) -> tuple[int, int]:
        if len(input_shape) != 2:
            raise ShapeError(
                f"Conv1D got examples of shape {tuple(input_shape)}, expected sequences (L, C); put Reshape((L, C)) before "
                f"it, with C=1 for a single series"
            )
        return input_shape[0], input_shape[1]

    def parameter_specs(self, input_shape: Shape) -> dict[str, Spec]:
        """Return the specs of the kernel and the bias."""
        return self._specs((self.window,), self._sequence_shape(input_shape)[1])

    def output_shape(self, input_shape: Shape) -> Shape:
        """Map (L, C) to (OL, O)."""
        L, C = self._sequence_shape(input_shape)
        self._check_channels(C)
        return self._ends(L)[1], self.filters

    def forward(self, x: Any) -> Any:
        """Map x (N, L, C) to (N, OL, O)."""
        x = self.as_float(x)
        y = ops.conv1d(
            x,
            self.kernel,
            self.bias if self.use_bias else None,
            stride=self.stride,
            padding=self._ends(x.shape[1])[0] if x.ndim == 3 else 0,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.fused,
        )
        return y if self.after is None else self.after(y)
