// Layer normalisation: every row of a matrix (rows, K) is normalised over its K elements.
//
//   y = (x - mean) * inverse * scale + offset,   inverse = 1 / sqrt(variance + epsilon),   scale, offset (K)
//
// The gradients of scale and offset are column sums: norm_gradient_sums in batch_norm.cu. Launch: row_reduction.cuh.
#include "row_reduction.cuh"

template <int V, typename T>
__device__ inline void read(acc_t<T> (&out)[V], const T* p, acc_t<T> otherwise, bool given) {
  if (given) {
    Vector<T, V> v = load<V>(p);
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = widen(v.at[j]);
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = otherwise;
  }
}

template <typename T, int V, int LANES>
__global__ void __launch_bounds__(256, 3)
layer_norm(const T* x, const T* scale, const T* offset, T* y, acc_t<T>* mean, acc_t<T>* variance, i64 rows, int K,
           acc_t<T> epsilon) {
  typedef acc_t<T> A;
  for (Rows<LANES> r(rows); r.more(); r.next()) {
    const int end = r.active() ? K : 0;
    const T* from = x + r.row() * K;
    A values[V], sum = 0, squares = 0;
    for (int c = r.lane() * V; c < end; c += LANES * V) {
      read<V>(values, from + c, static_cast<A>(0), true);
#pragma unroll
      for (int j = 0; j < V; ++j) sum += values[j];
    }
    const A centre = Rows<LANES>::sum(sum) / static_cast<A>(K);
    for (int c = r.lane() * V; c < end; c += LANES * V) {
      read<V>(values, from + c, static_cast<A>(0), true);
#pragma unroll
      for (int j = 0; j < V; ++j) squares += (values[j] - centre) * (values[j] - centre);
    }
    const A spread = Rows<LANES>::sum(squares) / static_cast<A>(K);
    const A inverse = 1 / xsqrt(spread + epsilon);
    if (r.active() && r.lane() == 0) mean[r.row()] = centre, variance[r.row()] = spread;
    for (int c = r.lane() * V; c < end; c += LANES * V) {
      A factor[V], shift[V];
      read<V>(values, from + c, static_cast<A>(0), true);
      read<V>(factor, scale + c, static_cast<A>(1), scale != nullptr);
      read<V>(shift, offset + c, static_cast<A>(0), offset != nullptr);
      Vector<T, V> out;
#pragma unroll
      for (int j = 0; j < V; ++j) out.at[j] = round_to<T>((values[j] - centre) * inverse * factor[j] + shift[j]);
      store<V>(y + r.row() * K + c, out);
    }
  }
}

// dx = inverse * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * scale, the means over a row.
template <typename T, int V, int LANES>
__global__ void __launch_bounds__(256, 3)
layer_norm_backward(const T* dy, const T* x, const T* scale, const acc_t<T>* mean, const acc_t<T>* variance, T* dx, i64 rows,
                    int K, acc_t<T> epsilon) {
  typedef acc_t<T> A;
  for (Rows<LANES> r(rows); r.more(); r.next()) {
    const int end = r.active() ? K : 0;
    const i64 start = r.row() * K;
    const A centre = r.active() ? mean[r.row()] : static_cast<A>(0);
    const A inverse = 1 / xsqrt((r.active() ? variance[r.row()] : static_cast<A>(1)) + epsilon);
    A g[V], values[V], factor[V], plain = 0, weighted = 0;
    for (int c = r.lane() * V; c < end; c += LANES * V) {
      read<V>(g, dy + start + c, static_cast<A>(0), true);
      read<V>(values, x + start + c, static_cast<A>(0), true);
      read<V>(factor, scale + c, static_cast<A>(1), scale != nullptr);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        A d = g[j] * factor[j];
        plain += d;
        weighted += d * ((values[j] - centre) * inverse);
      }
    }
    plain = Rows<LANES>::sum(plain) / static_cast<A>(K);
    weighted = Rows<LANES>::sum(weighted) / static_cast<A>(K);
    for (int c = r.lane() * V; c < end; c += LANES * V) {
      read<V>(g, dy + start + c, static_cast<A>(0), true);
      read<V>(values, x + start + c, static_cast<A>(0), true);
      read<V>(factor, scale + c, static_cast<A>(1), scale != nullptr);
      Vector<T, V> out;
#pragma unroll
      for (int j = 0; j < V; ++j)
        out.at[j] = round_to<T>(inverse * (g[j] * factor[j] - plain - (values[j] - centre) * inverse * weighted));
      store<V>(dx + start + c, out);
    }
  }
}
