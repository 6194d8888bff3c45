// Addresses of the elements of an im2col matrix that is never written to memory (implicit GEMM).
#pragma once
#include "common.cuh"

// Row p = (n, oh, ow), a position, and column k = (kh, kw, c), a tap. Along each axis the pixel is
// position * scale + offset + tap * step; outside the image the element is 0:
//   fprop, wgrad:  scale = stride, offset = -padding, step = dilation
//   dgrad:         scale = 1, step < 0, for one class of pixels modulo the stride and the taps that reach it
// There are fewer than 2^31 positions, columns and pixels; addresses are 64-bit.
template <typename T>
struct ImplicitIm2col {
  const T* x;  // (N, H, W, pixel), at the first of the group's by_channels.divisor channels
  int H, W, pixel, scale_h, scale_w, offset_h, offset_w, step_h, step_w;
  FastDivmod by_channels, by_kw, by_ow, by_oh;

  struct Position {
    int h, w, image;  // image: the number of pixels before it
  };
  struct Tap {
    int h, w, c;
    bool inside;
  };

  __device__ Position position(u32 p, bool inside) const {
    u32 ow, oh;
    u32 n = by_oh.divmod(by_ow.divmod(p, ow), oh);
    Position at;
    at.h = inside ? static_cast<int>(oh) * scale_h + offset_h : -(1 << 30);  // outside for every tap
    at.w = static_cast<int>(ow) * scale_w + offset_w;
    at.image = static_cast<int>(n) * H * W;
    return at;
  }

  __device__ Tap tap(u32 k, bool inside) const {
    u32 c, kw;
    u32 kh = by_kw.divmod(by_channels.divmod(k, c), kw);
    return Tap{static_cast<int>(kh) * step_h, static_cast<int>(kw) * step_w, static_cast<int>(c), inside};
  }

  // The element's address; outside the image x, and `found` is false.
  __device__ const T* address(const Position& at, const Tap& tap, bool& found) const {
    const int h = at.h + tap.h, w = at.w + tap.w;
    found = tap.inside && h >= 0 && w >= 0 && h < H && w < W;
    return found ? x + static_cast<i64>(at.image + h * W + w) * pixel + tap.c : x;
  }
};

// The offset in y of the row of a position.
__device__ inline i64 output_offset(u32 position, FastDivmod by_ow, FastDivmod by_oh, i64 first, i64 image, i64 row,
                                    i64 pixel) {
  u32 ow, oh;
  const u32 n = by_oh.divmod(by_ow.divmod(position, ow), oh);
  return first + n * image + oh * row + ow * pixel;
}
