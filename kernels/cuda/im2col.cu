// im2col: the sliding windows of NHWC images as the rows of a matrix; col2im: its adjoint.
//
//   x     (N, H, W, G*C)
//   cols  (G, N, OH, OW, KH, KW, C)     G groups of a grouped convolution, else 1
//
// Launch: a grid-stride loop of 256 threads over fewer than 2^31 vectors of the result (the caller splits the batch), so that
// index arithmetic is 32-bit; addresses are 64-bit. Writes are coalesced; reads are runs of C.
#include "common.cuh"

template <typename T, int V, int KH, int KW>  // KH = KW = 0: the window is an argument
__global__ void __launch_bounds__(256, 4)
im2col(const T* x, T* cols, i64 vectors, int N, int H, int W, int channels, int pixel, int OH, int kh_, int kw_,
       int stride_h, int stride_w, int dilation_h, int dilation_w, int top, int left, FastDivmod by_channels,
       FastDivmod by_kw, FastDivmod by_kh, FastDivmod by_ow, FastDivmod by_oh, FastDivmod by_n) {
  for (i64 i = thread_index(); i < vectors; i += grid_stride()) {
    u32 c, kw, kh, ow, oh, n;
    u32 rest = by_channels.divmod(static_cast<u32>(i), c);
    if (KH > 0) {
      kw = rest % (KW > 0 ? KW : 1), rest /= (KW > 0 ? KW : 1);
      kh = rest % (KH > 0 ? KH : 1), rest /= (KH > 0 ? KH : 1);
    } else {
      rest = by_kw.divmod(rest, kw);
      rest = by_kh.divmod(rest, kh);
    }
    rest = by_ow.divmod(rest, ow);
    rest = by_oh.divmod(rest, oh);
    u32 g = by_n.divmod(rest, n);
    int h = static_cast<int>(oh) * stride_h - top + static_cast<int>(kh) * dilation_h;
    int w = static_cast<int>(ow) * stride_w - left + static_cast<int>(kw) * dilation_w;
    Vector<T, V> v = {};
    if (h >= 0 && h < H && w >= 0 && w < W)
      v = load<V>(x + ((static_cast<i64>(n) * H + h) * W + w) * pixel + static_cast<i64>(g) * channels + c * V);
    store<V>(cols + i * V, v);
  }
}

// x[n, h, w, c] = the sum over the windows that cover the pixel: gathered in a fixed order, without atomics.
template <typename T, int V, int KH, int KW>
__global__ void __launch_bounds__(256, 4)
col2im(const T* cols, T* x, i64 vectors, int N, int H, int W, int channels, int OH, int OW, int kh_, int kw_,
       int stride_h, int stride_w, int dilation_h, int dilation_w, int top, int left, FastDivmod by_channels,
       FastDivmod by_groups, FastDivmod by_w, FastDivmod by_h, FastDivmod by_stride_h, FastDivmod by_stride_w) {
  const int kh_end = KH > 0 ? KH : kh_, kw_end = KW > 0 ? KW : kw_;
  for (i64 i = thread_index(); i < vectors; i += grid_stride()) {
    u32 c, g, w, h;
    u32 rest = by_channels.divmod(static_cast<u32>(i), c);
    rest = by_groups.divmod(rest, g);
    rest = by_w.divmod(rest, w);
    u32 n = by_h.divmod(rest, h);
    const i64 image = static_cast<i64>(g) * N + n;
    acc_t<T> sum[V] = {};
    for (int kh = 0; kh < kh_end; ++kh) {
      int at_h = static_cast<int>(h) + top - kh * dilation_h;
      if (at_h < 0) break;
      u32 off_h;
      int oh = static_cast<int>(by_stride_h.divmod(static_cast<u32>(at_h), off_h));
      if (off_h != 0 || oh >= OH) continue;
#pragma unroll
      for (int kw = 0; kw < kw_end; ++kw) {
        int at_w = static_cast<int>(w) + left - kw * dilation_w;
        if (at_w < 0) break;
        u32 off_w;
        int ow = static_cast<int>(by_stride_w.divmod(static_cast<u32>(at_w), off_w));
        if (off_w != 0 || ow >= OW) continue;
        i64 window = ((image * OH + oh) * OW + ow) * (kh_end * kw_end) + kh * kw_end + kw;
        Vector<T, V> v = load<V>(cols + window * channels + c * V);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += widen(v.at[j]);
      }
    }
    Vector<T, V> out;
#pragma unroll
    for (int j = 0; j < V; ++j) out.at[j] = round_to<T>(sum[j]);
    store<V>(x + i * V, out);
  }
}
