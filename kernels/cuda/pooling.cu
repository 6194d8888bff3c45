// Max and average pooling of NHWC images, forward and backward; windows may overlap and be padded.
//
//   x, dx (N, H, W, C)      y, dy, switches (N, OH, OW, C)
//
// Launch: a grid-stride loop of 256 threads over fewer than 2^31 vectors of the result; the caller splits the batch.
// max_pool_backward as column_reduction.cuh says: its rows are the pixels.
#include "column_reduction.cuh"

// Switches (argmax mask): the offset of the maximum in its window, kh * KW + kw, as one byte. Of equal maxima the first is
// taken; a NaN is the maximum, as in maximum(). Padding is never chosen.
template <typename T, int V, int KH, int KW, bool SWITCHES>
__global__ void __launch_bounds__(256, 4)
max_pool(const T* x, T* y, u8* switches, i64 vectors, int H, int W, int channels, int kh_, int kw_, int stride_h,
         int stride_w, int top, int left, FastDivmod by_channels, FastDivmod by_ow, FastDivmod by_oh) {
  const int kh_end = KH > 0 ? KH : kh_, kw_end = KW > 0 ? KW : kw_;
  for (i64 i = thread_index(); i < vectors; i += grid_stride()) {
    u32 c, ow, oh;
    u32 rest = by_channels.divmod(static_cast<u32>(i), c);
    rest = by_ow.divmod(rest, ow);
    u32 n = by_oh.divmod(rest, oh);
    const int h0 = static_cast<int>(oh) * stride_h - top, w0 = static_cast<int>(ow) * stride_w - left;
    acc_t<T> best[V];
    int where[V];
#pragma unroll
    for (int j = 0; j < V; ++j) best[j] = -infinity<acc_t<T>>(), where[j] = -1;
#pragma unroll
    for (int kh = 0; kh < kh_end; ++kh) {
      int h = h0 + kh;
      if (h < 0 || h >= H) continue;
#pragma unroll
      for (int kw = 0; kw < kw_end; ++kw) {
        int w = w0 + kw;
        if (w < 0 || w >= W) continue;
        Vector<T, V> v = load<V>(x + ((static_cast<i64>(n) * H + h) * W + w) * channels + c * V);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          acc_t<T> a = widen(v.at[j]);
          // `where < 0`: a window of -inf alone takes its first pixel. The first NaN stays.
          if (where[j] < 0 || a > best[j] || (a != a && best[j] == best[j])) best[j] = a, where[j] = kh * kw_end + kw;
        }
      }
    }
    Vector<T, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out.at[j] = round_to<T>(best[j]);
    store<V>(y + i * V, out);
    if (SWITCHES) {
      Vector<u8, V> s;
#pragma unroll
      for (int j = 0; j < V; ++j) s.at[j] = static_cast<u8>(where[j] < 0 ? 0 : where[j]);
      store<V>(switches + i * V, s);
    }
  }
}

// The first and one past the last window that cover a pixel, along one axis. `at` is the pixel's padded position.
__device__ inline void windows_over(int at, int window, int stride, const FastDivmod& by_stride, int out, int& first,
                                    int& end) {
  int below = at - window + 1;  // windows that start before it do not reach the pixel
  first = below <= 0 ? 0 : static_cast<int>(by_stride.divide(static_cast<u32>(below + stride - 1)));
  int last = static_cast<int>(by_stride.divide(static_cast<u32>(at)));
  end = last + 1 < out ? last + 1 : out;
}

// With y, dx is the gradient before a relu in front of the pooling: the maxima are its outputs, so that y says where it let
// the gradient through. With dbias, that is the column sums of dx; partial (parts, channels) and `counters` are for it.
template <typename T, int V>
__global__ void __launch_bounds__(256, 3)
max_pool_backward(const T* dy, const u8* switches, const T* y, T* dx, acc_t<T>* partial, acc_t<T>* dbias, u32* counters,
                  i64 rows, i64 part_rows, int channels, int KH, int KW, int OH, int OW, int stride_h, int stride_w, int top,
                  int left, FastDivmod by_w, FastDivmod by_h, FastDivmod by_stride_h, FastDivmod by_stride_w) {
  const int c = vector_index() * V;
  acc_t<T> total[V] = {};
  if (c < channels) {
    const RowRange range = row_range(rows, part_rows);
#pragma unroll 1
    for (i64 r = range.begin + threadIdx.y; r < range.end; r += blockDim.y) {
      u32 w, h;
      const u32 n = by_h.divmod(by_w.divmod(static_cast<u32>(r), w), h);
      const int at_h = static_cast<int>(h) + top, at_w = static_cast<int>(w) + left;
      int oh, oh_end, ow0, ow_end;
      windows_over(at_h, KH, stride_h, by_stride_h, OH, oh, oh_end);
      windows_over(at_w, KW, stride_w, by_stride_w, OW, ow0, ow_end);
      acc_t<T> sum[V] = {};
#pragma unroll 1
      for (; oh < oh_end; ++oh) {
#pragma unroll 2
        for (int ow = ow0; ow < ow_end; ++ow) {
          const int mine = (at_h - oh * stride_h) * KW + (at_w - ow * stride_w);
          const i64 from = ((static_cast<i64>(n) * OH + oh) * OW + ow) * channels + c;
          const Vector<u8, V> s = load<V>(switches + from);
          const Vector<T, V> v = load<V>(dy + from);
          Vector<T, V> maximum = v;
          if (y != nullptr) maximum = load<V>(y + from);
#pragma unroll
          for (int j = 0; j < V; ++j)
            if (s.at[j] == mine && (y == nullptr || widen(maximum.at[j]) > 0)) sum[j] += widen(v.at[j]);
        }
      }
      Vector<T, V> out;
#pragma unroll
      for (int j = 0; j < V; ++j) out.at[j] = round_to<T>(sum[j]), total[j] += sum[j];
      store<V>(dx + r * channels + c, out);
    }
  }
  if (dbias == nullptr) return;
  block_sum_rows<V>(total);
  if (threadIdx.y == 0 && c < channels) {
#pragma unroll
    for (int j = 0; j < V; ++j) partial[static_cast<i64>(blockIdx.y) * channels + c + j] = total[j];
  }
  sum_parts<V>(partial, dbias, counters, c, channels);
}

// The number of pixels of the image in a window that starts at `start`, along one (unpadded) axis.
__device__ inline int pixels_inside(int start, int window, int size) {
  int from = start < 0 ? 0 : start, end = start + window < size ? start + window : size;
  return end > from ? end - from : 0;
}

// 1 / count; 0 for a window of padding alone, whose mean is then 0.
template <typename A>
__device__ inline A mean_factor(bool all, int KH, int KW, int rows, int columns) {
  int count = all ? KH * KW : rows * columns;
  return count > 0 ? static_cast<A>(1) / static_cast<A>(count) : static_cast<A>(0);
}

template <typename T, int V, bool PADDING_COUNTS>
__global__ void __launch_bounds__(256, 4)
average_pool(const T* x, T* y, i64 vectors, int H, int W, int channels, int KH, int KW, int stride_h, int stride_w,
             int top, int left, FastDivmod by_channels, FastDivmod by_ow, FastDivmod by_oh) {
  for (i64 i = thread_index(); i < vectors; i += grid_stride()) {
    u32 c, ow, oh;
    u32 rest = by_channels.divmod(static_cast<u32>(i), c);
    rest = by_ow.divmod(rest, ow);
    u32 n = by_oh.divmod(rest, oh);
    const int h0 = static_cast<int>(oh) * stride_h - top, w0 = static_cast<int>(ow) * stride_w - left;
    const int h_from = h0 < 0 ? 0 : h0, h_end = h0 + KH < H ? h0 + KH : H;
    const int w_from = w0 < 0 ? 0 : w0, w_end = w0 + KW < W ? w0 + KW : W;
    acc_t<T> sum[V] = {};
#pragma unroll 1
    for (int h = h_from; h < h_end; ++h) {
#pragma unroll 2
      for (int w = w_from; w < w_end; ++w) {
        Vector<T, V> v = load<V>(x + ((static_cast<i64>(n) * H + h) * W + w) * channels + c * V);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += widen(v.at[j]);
      }
    }
    const acc_t<T> scale = mean_factor<acc_t<T>>(PADDING_COUNTS, KH, KW, pixels_inside(h0, KH, H), pixels_inside(w0, KW, W));
    Vector<T, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out.at[j] = round_to<T>(sum[j] * scale);
    store<V>(y + i * V, out);
  }
}

template <typename T, int V, bool PADDING_COUNTS>
__global__ void __launch_bounds__(256, 4)
average_pool_backward(const T* dy, T* dx, i64 vectors, int H, int W, int channels, int KH, int KW, int OH, int OW,
                      int stride_h, int stride_w, int top, int left, FastDivmod by_channels, FastDivmod by_w, FastDivmod by_h,
                      FastDivmod by_stride_h, FastDivmod by_stride_w) {
  for (i64 i = thread_index(); i < vectors; i += grid_stride()) {
    u32 c, w, h;
    u32 rest = by_channels.divmod(static_cast<u32>(i), c);
    rest = by_w.divmod(rest, w);
    u32 n = by_h.divmod(rest, h);
    int oh, oh_end, ow0, ow_end;
    windows_over(static_cast<int>(h) + top, KH, stride_h, by_stride_h, OH, oh, oh_end);
    windows_over(static_cast<int>(w) + left, KW, stride_w, by_stride_w, OW, ow0, ow_end);
    acc_t<T> sum[V] = {};
#pragma unroll 1
    for (; oh < oh_end; ++oh) {
      const int rows = pixels_inside(oh * stride_h - top, KH, H);
#pragma unroll 2
      for (int ow = ow0; ow < ow_end; ++ow) {
        const int columns = pixels_inside(ow * stride_w - left, KW, W);
        const acc_t<T> scale = mean_factor<acc_t<T>>(PADDING_COUNTS, KH, KW, rows, columns);
        Vector<T, V> v = load<V>(dy + ((static_cast<i64>(n) * OH + oh) * OW + ow) * channels + c * V);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += widen(v.at[j]) * scale;
      }
    }
    Vector<T, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out.at[j] = round_to<T>(sum[j]);
    store<V>(dx + i * V, out);
  }
}
