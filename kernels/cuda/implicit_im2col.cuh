// Addresses of the elements of an im2col matrix that is never written to memory (implicit GEMM).
#pragma once
#include "common.cuh"

// Row p = (n, oh, ow), a position, and column k = (kh, kw, c), a tap. Along each axis the pixel is
// position * scale + offset + tap * step; outside the image the element is 0:
//   fprop, wgrad:  scale = stride, offset = -padding, step = dilation
//   dgrad:         scale = 1, step < 0, for one class of pixels modulo the stride and the taps that reach it, see `turn`
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
    int h, w, c, kh, kw;
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
    return Tap{static_cast<int>(kh) * step_h, static_cast<int>(kw) * step_w, static_cast<int>(c), static_cast<int>(kh),
               static_cast<int>(kw),          inside};
  }

  // The element's address; outside the image x, and `found` is false.
  __device__ const T* address(const Position& at, const Tap& tap, bool& found) const {
    const int h = at.h + tap.h, w = at.w + tap.w;
    found = tap.inside && h >= 0 && w >= 0 && h < H && w < W;
    return found ? x + static_cast<i64>(at.image + h * W + w) * pixel + tap.c : x;
  }
};

// dgrad: one axis for the pixels `first`, `first` + stride, ..., a class of them modulo the stride. The taps `tap`,
// `tap` + `apart`, ... of the window reach them, `window` in number; tap k reaches pixel p from the position
// (p + before - k * dilation) / stride, where that is an integer.
struct PixelClass {
  int first, stride, tap, apart, window, offset, step;
};
__device__ inline PixelClass pixel_class(int first, int window, int stride, int before, int dilation) {
  PixelClass of = {first, stride, 0, 1, 0, 0, 0};
  while (of.apart < window && of.apart * dilation % stride != 0) ++of.apart;
  while (of.tap < of.apart && of.tap < window && (first + before - of.tap * dilation) % stride != 0) ++of.tap;
  if (of.tap < of.apart && of.tap < window) of.window = (window - of.tap + of.apart - 1) / of.apart;
  of.offset = (first + before - of.tap * dilation) / stride, of.step = -(of.apart * dilation / stride);
  return of;
}

// As `fast_divmod` in xpnet/accel/cupy/launch.py, for a divisor that is not known at launch: the division is a long one, bit by
// bit, as it is done once.
__device__ inline FastDivmod fast_divmod(u32 d) {
  u32 shift = 0, quotient = 0;
  while ((1u << shift) < d) ++shift;
  u32 rest = (1u << shift) - d;
  for (int bit = 0; bit < 32; ++bit) {
    rest *= 2, quotient *= 2;
    if (rest >= d) rest -= d, ++quotient;
  }
  return FastDivmod{d, quotient + 1, shift};
}

// dgrad: the right factor, the kernel (KH, KW, C, O) turned to (kh, kw, O, C) with the taps of one class of pixels, and where
// these pixels are.
struct TurnedKernel {
  PixelClass h, w;
  int KW, channels;

  // The offset of an element in the first row of a tap, from which the row of channel c is c * `pitch` further.
  template <typename Tap>
  __device__ i64 offset(const Tap& at, int pitch) const {
    const int place = (h.tap + at.kh * h.apart) * KW + w.tap + at.kw * w.apart;
    return static_cast<i64>(place * channels) * pitch + at.c;
  }

  // Find the offset of the pixel of a position in images (N, H, W, pitch); return whether there is one.
  __device__ bool pixel(u32 position, FastDivmod by_ow, FastDivmod by_oh, int H, int W, int pitch, i64& found) const {
    u32 ow, oh;
    const u32 n = by_oh.divmod(by_ow.divmod(position, ow), oh);
    const int at_h = h.first + static_cast<int>(oh) * h.stride, at_w = w.first + static_cast<int>(ow) * w.stride;
    found = static_cast<i64>((static_cast<int>(n) * H + at_h) * W + at_w) * pitch;
    return at_h < H && at_w < W;
  }
};

// Set what an implicit im2col matrix of dgrad needs for one class of the pixels of images (H, W). Before the call scale, offset
// and step are the stride, the padding and the dilation of the convolution, `inner` and `by_kw` those of the whole window.
__device__ inline TurnedKernel turn(int number, int H, int W, int channels, int& inner, int& scale_h, int& scale_w,
                                    int& offset_h, int& offset_w, int& step_h, int& step_w, const FastDivmod& by_channels,
                                    FastDivmod& by_kw) {
  const int KW = static_cast<int>(by_kw.divisor), C = static_cast<int>(by_channels.divisor);
  const int columns = scale_w < W ? scale_w : W;
  const PixelClass h = pixel_class(number / columns, inner / (KW * C), scale_h, offset_h, step_h);
  const PixelClass w = pixel_class(number % columns, KW, scale_w, offset_w, step_w);
  inner = h.window * w.window * C;
  scale_h = scale_w = 1, offset_h = h.offset, offset_w = w.offset, step_h = h.step, step_w = w.step;
  if (w.window != KW) by_kw = fast_divmod(w.window > 0 ? w.window : 1);
  return {h, w, KW, channels};
}
