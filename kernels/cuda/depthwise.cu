// Depthwise convolution of NHWC images, fprop, dgrad and wgrad. There is one input channel a group, so a GEMM would have
// a single column; these kernels read the images directly and are bound by memory bandwidth.
//
//   x, dx (N, H, W, C)      y, dy (N, OH, OW, C)      kernel (KH, KW, C)
//
// The padding is a part of the windows: its zeros are multiplied, as by the other algorithms, where 0 times an infinity is NaN.
//
// Launch: fprop and dgrad in a grid-stride loop of 256 threads over fewer than 2^31 vectors of the result; wgrad as
// column_reduction.cuh says, with blockIdx.z as the element of the window.
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

// The gradient of the kernel: the sum of x * dy over each part of the positions, for element blockIdx.z of the window.
// partial (parts, KH, KW, C).
template <typename T, int V>
__global__ void __launch_bounds__(256, 3)
depthwise_wgrad(const T* x, const T* dy, acc_t<T>* partial, i64 rows, i64 part_rows, int H, int W, int channels,
                int stride_h, int stride_w, int dilation_h, int dilation_w, int top, int left, FastDivmod by_kw,
                FastDivmod by_ow, FastDivmod by_oh) {
  const int c = vector_index() * V;
  u32 kw;
  const u32 kh = by_kw.divmod(blockIdx.z, kw);
  acc_t<T> sum[V] = {};
  if (c < channels) {
    const RowRange range = row_range(rows, part_rows);
#pragma unroll 2
    for (i64 r = range.begin + threadIdx.y; r < range.end; r += blockDim.y) {
      u32 ow, oh;
      const u32 rest = by_ow.divmod(static_cast<u32>(r), ow);
      const u32 n = by_oh.divmod(rest, oh);
      const int h = static_cast<int>(oh) * stride_h - top + static_cast<int>(kh) * dilation_h;
      const int w = static_cast<int>(ow) * stride_w - left + static_cast<int>(kw) * dilation_w;
      Vector<T, V> v = {};
      if (h >= 0 && h < H && w >= 0 && w < W) v = load<V>(x + ((static_cast<i64>(n) * H + h) * W + w) * channels + c);
      Vector<T, V> g = load<V>(dy + r * channels + c);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += widen(v.at[j]) * widen(g.at[j]);
    }
  }
  block_sum_rows<V>(sum);
  if (threadIdx.y == 0 && c < channels) {
    const i64 place = (static_cast<i64>(blockIdx.y) * gridDim.z + blockIdx.z) * channels + c;
#pragma unroll
    for (int j = 0; j < V; ++j) partial[place + j] = sum[j];
  }
}
