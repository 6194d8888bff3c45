"""Tiles of convolutions that are followed by max pooling: unpooling as a prologue, pooling as an epilogue."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from xpnet.accel.numpy.chunks import PASS_SECONDS, Chunk, balanced_chunk_size
from xpnet.accel.numpy.epilogue import (
    GradientTiles,
    ImageTiles,
    OutputTiles,
    TileFootprint,
    activate,
    activation_gradient,
    fill_padded,
)  # fmt: skip
from xpnet.accel.numpy.max_pooling import MaxMask, mask_footprint, pool_chunk, unpool_chunk, unpool_footprint
from xpnet.accel.numpy.pooling_tiles import CHUNK, PoolTile, reduce_footprint, seconds
from xpnet.accel.numpy.workspace import Floats, workspace
from xpnet.ops.geometry import Geometry
from xpnet.runtime.threads import parallel


class UnpooledTiles(GradientTiles):
    """A source: the gradient before an activation and a max pooling.

    Args:
        dy: (N, PH, PW, C), the gradient of the pooled output.
        y: (N, PH, PW, C), the pooled output.
        mask: the pooling's argmax mask.
        activation: applied after the pooling, which gives the same result as it is monotonic.
        g: the pooling's windows on the unpooled images.
    """

    whole_images = True
    calls = 15

    def __init__(self, dy: Floats, y: Floats, mask: MaxMask, activation: str | None, g: Geometry) -> None:
        super().__init__(dy, y, activation)
        self.mask = mask
        self.g = g
        self.shape = (dy.shape[0], g.h.size, g.w.size, dy.shape[3])

    def load_tile(self, P: Floats, images: tuple[int, int], top: int, left: int) -> None:
        """See `ImageTiles.load_tile`."""
        part = slice(*images)
        dy, y = self.array[part], None if self.y is None else self.y[part]
        mask = MaxMask(self.mask.across[:, part], self.mask.down[:, part])
        H, W = self.shape[1:3]
        (dz,) = workspace(self.dtype, dy.shape, slot="epilogue")
        activation_gradient(dy, y, self.activation, dz)
        if top <= 0 and left <= 0 and top + P.shape[1] >= H and left + P.shape[2] >= W:
            inside = P[:, -top : H - top, -left : W - left]
            if inside.shape != P.shape:
                P[:, :-top] = 0
                P[:, H - top :] = 0
                P[:, -top : H - top, :-left] = 0
                P[:, -top : H - top, W - left :] = 0
            unpool_chunk(dz, mask, self.g, inside)
        else:
            (full,) = workspace(self.dtype, (len(dy), H, W, dy.shape[3]), slot="unpooled")
            unpool_chunk(dz, mask, self.g, full)
            fill_padded(P, full, None, None, (0, len(dy)), top, left)

    def materialize(self) -> GradientTiles:
        """Return the same gradient computed at once: for two readers that can spare the memory."""
        N = self.shape[0]
        dz = np.empty(self.shape, self.dtype)
        images = images_per_chunk(self.shape, self.dtype)

        def chunk(number: int) -> None:
            n0, n1 = number * images, min((number + 1) * images, N)
            self.load_tile(dz[n0:n1], (n0, n1), 0, 0)

        parallel(chunk, -(-N // images), seconds(self.shape, self.g), 15)
        return GradientTiles(dz, None, None)

    def at(self, rows: slice, columns: slice) -> ImageTiles:
        """Refuse: pooling windows do not split into such rows and columns."""
        raise NotImplementedError("whole images only")


def images_per_chunk(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Return how many images of `shape` (N, H, W, C) to unpool at once."""
    return balanced_chunk_size(shape[0], max(1, CHUNK // (prod(shape[1:]) * dtype.itemsize)), 6 * PASS_SECONDS * prod(shape))


class PooledOutputTiles(OutputTiles):
    """A target: outputs after max pooling and a monotonic activation, with the pooling's argmax mask.

    Args:
        shape: (N, OH, OW, O), the shape before the pooling.
        y: (N, PH, PW, O).
        mask: of all images, filled here; or None.
        activation: applied after the pooling.
        g: the pooling's windows.
    """

    whole_images = True
    calls = 12

    def __init__(self, shape: tuple[int, ...], y: Floats, mask: MaxMask | None, activation: str | None, g: Geometry) -> None:
        super().__init__(y, activation)
        self.shape = shape
        self.mask = mask
        self.g = g

    def output_tile(self, chunk: Chunk) -> Floats:
        """See `OutputTiles.output_tile`."""
        (array,) = workspace(self.y.dtype, (chunk[1] - chunk[0], *self.shape[1:]), slot="epilogue")
        return array

    def store_tile(self, chunk: Chunk, result: Floats) -> None:
        """See `OutputTiles.store_tile`."""
        part = slice(chunk[0], chunk[1])
        pool_chunk(result, self.g, self.y[part], self.mask, part)
        activate(self.y[part], self.activation)


class PooledTileFootprint(TileFootprint):
    """What the tiles of `UnpooledTiles` and `PooledOutputTiles` allocate, on fake arrays.

    Args:
        xp: the namespace of fake arrays.
        dtype, channels: of the images.
        pool: the pooling's windows.
        save: whether the pooling keeps its argmax mask.
    """

    whole_images = True

    def __init__(self, xp: Any, dtype: Any, channels: int, pool: Geometry, save: bool = True) -> None:
        super().__init__(dtype)
        self.xp, self.channels, self.pool, self.save = xp, channels, pool, save

    def load(self, n: int, count: int) -> None:
        """See `TileFootprint.load`."""
        tile = PoolTile(self.pool, (0, n, 0, self.pool.h.out), self.channels)
        self.xp.workspace(self.dtype, count, tile.out, slot="epilogue")
        self.xp.workspace(self.dtype, count, tile.shape, slot="pool")
        unpool_footprint(self.xp, self.dtype, tile, count)

    def store(self, n: int, count: int) -> None:
        """See `TileFootprint.store`."""
        g = self.pool
        self.xp.workspace(self.dtype, count, (n, g.h.size, g.w.size, self.channels), slot="epilogue")
        tile = PoolTile(g, (0, n, 0, g.h.out), self.channels)
        (mask_footprint if self.save else reduce_footprint)(self.xp, self.dtype, tile, count)
