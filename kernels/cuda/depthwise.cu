// Depthwise convolution of NHWC images, fprop, dgrad and wgrad. There is one input channel a group, so a GEMM would have
// a single column; these kernels read the images directly and are bound by memory bandwidth.
//
//   x, dx (N, H, W, C)      y, dy (N, OH, OW, C)      kernel (KH, KW, C)
//
// The padding is a part of the windows: its zeros are multiplied, as by the other algorithms, where 0 times an infinity is NaN.
//
// Launch: fprop and dgrad in a grid-stride loop of 256 threads over fewer than 2^31 vectors of the result; wgrad as
// column_reduction.cuh says, with blockIdx.z as the group of elements of the window.
#include "column_reduction.cuh"

template <typename T, int V>
__global__ void __launch_bounds__(256, 3)
depthwise_fprop(const T* x, const T* kernel, T* y, i64 vectors, int H, int W, int channels, int KH, int KW, int stride_h,
                int stride_w, int dilation_h, int dilation_w, int top, int left, FastDivmod by_channels, FastDivmod by_ow,
                FastDivmod by_oh) {
  for (i64 i = thread_index(); i < vectors; i += grid_stride()) {
    u32 c, ow, oh;
    u32 rest = by_channels.divmod(static_cast<u32>(i), c);
    rest = by_ow.divmod(rest, ow);
    u32 n = by_oh.divmod(rest, oh);
    const int h0 = static_cast<int>(oh) * stride_h - top, w0 = static_cast<int>(ow) * stride_w - left;
    acc_t<T> sum[V] = {};
#pragma unroll 1
    for (int kh = 0; kh < KH; ++kh) {
      const int h = h0 + kh * dilation_h;
#pragma unroll 2
      for (int kw = 0; kw < KW; ++kw) {
        const int w = w0 + kw * dilation_w;
        Vector<T, V> v = {};
        if (h >= 0 && h < H && w >= 0 && w < W) v = load<V>(x + ((static_cast<i64>(n) * H + h) * W + w) * channels + c * V);
        Vector<T, V> k = load<V>(kernel + static_cast<i64>(kh * KW + kw) * channels + c * V);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += widen(v.at[j]) * widen(k.at[j]);
      }
    }
    Vector<T, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out.at[j] = round_to<T>(sum[j]);
    store<V>(y + i * V, out);
  }
}

// dx: every pixel gathers from the windows that cover it.
template <typename T, int V>
__global__ void __launch_bounds__(256, 3)
depthwise_dgrad(const T* dy, const T* kernel, T* dx, i64 vectors, int channels, int KH, int KW, int OH, int OW,
                int dilation_h, int dilation_w, int top, int left, FastDivmod by_channels, FastDivmod by_w, FastDivmod by_h,
                FastDivmod by_stride_h, FastDivmod by_stride_w) {
  for (i64 i = thread_index(); i < vectors; i += grid_stride()) {
    u32 c, w, h;
    u32 rest = by_channels.divmod(static_cast<u32>(i), c);
    rest = by_w.divmod(rest, w);
    u32 n = by_h.divmod(rest, h);
    acc_t<T> sum[V] = {};
#pragma unroll 1
    for (int kh = 0; kh < KH; ++kh) {
      const int at_h = static_cast<int>(h) + top - kh * dilation_h;
      if (at_h < 0) break;
      u32 off_h;
      const int oh = static_cast<int>(by_stride_h.divmod(static_cast<u32>(at_h), off_h));
      if (off_h != 0 || oh >= OH) continue;
#pragma unroll 2
      for (int kw = 0; kw < KW; ++kw) {
        const int at_w = static_cast<int>(w) + left - kw * dilation_w;
        if (at_w < 0) break;
        u32 off_w;
        const int ow = static_cast<int>(by_stride_w.divmod(static_cast<u32>(at_w), off_w));
        if (off_w != 0 || ow >= OW) continue;
        Vector<T, V> v = load<V>(dy + ((static_cast<i64>(n) * OH + oh) * OW + ow) * channels + c * V);
        Vector<T, V> k = load<V>(kernel + static_cast<i64>(kh * KW + kw) * channels + c * V);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += widen(v.at[j]) * widen(k.at[j]);
      }
    }
    Vector<T, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out.at[j] = round_to<T>(sum[j]);
    store<V>(dx + i * V, out);
  }
}

// The gradient of the kernel: sums (KH * KW, C) of x * dy over all positions. A block takes a part of the positions and as many
// elements of the window, from blockIdx.z on, as a thread has registers for: dy is read once for all of them, and so is x, but
// by the L1 cache, as neighbouring windows overlap. The last block of a tile of columns adds what the others have written to
// partial (parts, KH * KW, C).
template <typename T, int V>
__global__ void __launch_bounds__(256, 1)
depthwise_wgrad(const T* x, const T* dy, acc_t<T>* partial, acc_t<T>* sums, u32* counters, i64 rows, i64 part_rows, int H,
                int W, int channels, int KH, int KW, int stride_h, int stride_w, int dilation_h, int dilation_w, int top,
                int left, FastDivmod by_ow, FastDivmod by_oh) {
  typedef acc_t<T> A;
  constexpr int TAPS = V == 8 ? 9 : 13;  // as in xpnet/accel/cupy/depthwise.py; a window of 5 by 5 takes two blocks
  const int c = vector_index() * V, elements = KH * KW, first = blockIdx.z * TAPS;
  const int first_kh = first / KW, first_kw = first % KW, parts = static_cast<int>(gridDim.y);
  A sum[TAPS][V] = {};
  if (c < channels) {
    const RowRange range = row_range(rows, part_rows);
#pragma unroll 1
    for (i64 r = range.begin + threadIdx.y; r < range.end; r += blockDim.y) {
      u32 ow, oh;
      const u32 n = by_oh.divmod(by_ow.divmod(static_cast<u32>(r), ow), oh);
      const int h0 = static_cast<int>(oh) * stride_h - top, w0 = static_cast<int>(ow) * stride_w - left;
      const i64 corner = (static_cast<i64>(n) * H + h0) * W + w0;
      const Vector<T, V> g = load<V>(dy + r * channels + c);
      int kh = first_kh, kw = first_kw;
#pragma unroll
      for (int t = 0; t < TAPS; ++t) {
        if (first + t >= elements) break;
        const int h = h0 + kh * dilation_h, w = w0 + kw * dilation_w;
        Vector<T, V> v = {};
        if (h >= 0 && h < H && w >= 0 && w < W)
          v = load<V>(x + (corner + kh * dilation_h * W + kw * dilation_w) * channels + c);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[t][j] += widen(v.at[j]) * widen(g.at[j]);
        if (++kw == KW) kw = 0, ++kh;
      }
    }
  }
  auto place = [&](int part, int t) { return (static_cast<i64>(part) * elements + first + t) * channels + c; };
#pragma unroll
  for (int t = 0; t < TAPS; ++t) {
    if (first + t >= elements) break;
    block_sum_rows<V>(sum[t]);
    Vector<A, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out.at[j] = sum[t][j], sum[t][j] = 0;
    if (threadIdx.y == 0 && c < channels) store<V>(partial + place(blockIdx.y, t), out);
  }
  if (!is_last_block(counters + blockIdx.z * gridDim.x + blockIdx.x, parts)) return;
  if (c < channels) {
#pragma unroll 1
    for (int part = threadIdx.y; part < parts; part += blockDim.y) {
#pragma unroll
      for (int t = 0; t < TAPS; ++t) {
        if (first + t >= elements) break;
        const Vector<A, V> run = load<V>(partial + place(part, t));
#pragma unroll
        for (int j = 0; j < V; ++j) sum[t][j] += run.at[j];
      }
    }
  }
#pragma unroll
  for (int t = 0; t < TAPS; ++t) {
    if (first + t >= elements) break;
    block_sum_rows<V>(sum[t]);
    if (threadIdx.y == 0 && c < channels) {
#pragma unroll
      for (int j = 0; j < V; ++j) sums[place(0, t) + j] = sum[t][j];
    }
  }
}
