// Where the windows of NHWC images lie: element (position, k) of the matrix of columns that is never written down.
#pragma once
#include "common.cuh"

// Position p = (n, oh, ow) and column k = (kh, kw, c). Along each axis the pixel is at * scale + offset + tap * step, where
// that is inside the image, else there is none:
//   a convolution:               scale = stride, offset = -padding, step = dilation
//   the gradient of its images:  scale = 1, step < 0, for the pixels that lie a stride apart and the taps that see them
// There are fewer than 2^31 positions, columns and pixels; addresses are 64-bit.
template <typename T>
struct Gather {
  const T* x;  // (N, H, W, pixel), from the first channel of the group on: C of them, by_channels.divisor, are seen
  int H, W, pixel, scale_h, scale_w, offset_h, offset_w, step_h, step_w;
  Divisor by_channels, by_kw, by_ow, by_oh;

  struct Position {
    int h, w, image;  // of the image: how many pixels come before it
  };
  struct Tap {
    int h, w, c;
    bool inside;
  };

  __device__ Position position(u32 p, bool inside) const {
    u32 ow, oh;
    u32 n = by_oh.split(by_ow.split(p, ow), oh);
    Position at;
    at.h = inside ? static_cast<int>(oh) * scale_h + offset_h : -(1 << 30);  // which no tap brings back into the image
    at.w = static_cast<int>(ow) * scale_w + offset_w;
    at.image = static_cast<int>(n) * H * W;
    return at;
  }

  __device__ Tap tap(u32 k, bool inside) const {
    u32 c, kw;
    u32 kh = by_kw.split(by_channels.split(k, c), kw);
    return Tap{static_cast<int>(kh) * step_h, static_cast<int>(kw) * step_w, static_cast<int>(c), inside};
  }

  // The element's address; where there is none, x and `found` false.
  __device__ const T* find(const Position& at, const Tap& tap, bool& found) const {
    const int h = at.h + tap.h, w = at.w + tap.w;
    found = tap.inside && h >= 0 && w >= 0 && h < H && w < W;
    return found ? x + static_cast<i64>(at.image + h * W + w) * pixel + tap.c : x;
  }
};

// Where in the result y the row of a position begins.
__device__ inline i64 place(u32 position, Divisor by_ow, Divisor by_oh, i64 first, i64 image, i64 row, i64 pixel) {
  u32 ow, oh;
  const u32 n = by_oh.split(by_ow.split(position, ow), oh);
  return first + n * image + oh * row + ow * pixel;
}
