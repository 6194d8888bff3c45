// Where the windows of NHWC images lie: element (position, k) of the matrix of columns that is never written down.
#pragma once
#include "common.cuh"

// Position p = (n, oh, ow) and column k = (kh, kw, c). Along each axis the pixel is (at * scale + offset + tap * step) /
// by_ratio where that division leaves no rest and the quotient is inside the image, else there is none:
//   a convolution:               scale = stride, offset = -padding, step = dilation,  ratio = 1
//   the gradient of its images:  scale = 1,      offset = padding,  step = -dilation, ratio = stride
// There are fewer than 2^31 positions, columns and pixels; addresses are 64-bit.
template <typename T>
struct Gather {
  const T* x;  // (N, H, W, pixel), from the first channel of the group on: C of them, by_channels.divisor, are seen
  int H, W, pixel, scale_h, scale_w, offset_h, offset_w, step_h, step_w;
  Divisor by_channels, by_kw, by_ow, by_oh, by_ratio_h, by_ratio_w;

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
    u32 rest_h, rest_w;
    const int row = static_cast<int>(by_ratio_h.split(static_cast<u32>(h), rest_h));
    const int column = static_cast<int>(by_ratio_w.split(static_cast<u32>(w), rest_w));
    found = tap.inside && h >= 0 && w >= 0 && rest_h == 0 && rest_w == 0 && row < H && column < W;
    return found ? x + static_cast<i64>(at.image + row * W + column) * pixel + tap.c : x;
  }
};
