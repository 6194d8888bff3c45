// Batch normalisation over the rows of a matrix (rows, channels), and the parameter gradients of every normalisation.
//
//   y = (x - mean) * inverse * scale + offset,   inverse = 1 / sqrt(variance + epsilon)
//
// Launch: column_reduction.cuh. Statistics and sums are partial results of a part of the rows, which reduce.cu combines.
//
// Launch: column_reduction.cuh. Statistics and sums are partial results of a part of the rows, which reduce.cu combines.
#include "column_reduction.cuh"

template <int V, typename T>
__device__ inline void read_columns(acc_t<T> (&out)[V], const T* p, int c, acc_t<T> otherwise) {
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = p == nullptr ? otherwise : widen(p[c + j]);
}

// Mean and squared deviations of every channel over each part of the rows, by Welford's recurrence: partial (parts, 2,
// channels).
template <typename T, int V>
__global__ void __launch_bounds__(256, 4)
batch_moments(const T* x, acc_t<T>* partial, i64 rows, i64 part_rows, int channels) {
  typedef acc_t<T> A;
  const int c = vector_index() * V;
  Moments<A> m[V] = {};
  if (c < channels) {
    const RowRange range = row_range(rows, part_rows);
    A count = 0;
#pragma unroll 2
    for (i64 r = range.begin + threadIdx.y; r < range.end; r += blockDim.y) {
      Vector<T, V> v = load<V>(x + r * channels + c);
      count += 1;
      const A share = 1 / count;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        A a = widen(v.at[j]), distance = a - m[j].mean;
        m[j].mean += distance * share;
        m[j].squares += distance * (a - m[j].mean);
      }
    }
#pragma unroll
    for (int j = 0; j < V; ++j) m[j].count = count;
  }
  block_merge_moments<V>(m);
  if (threadIdx.y == 0 && c < channels) {
    acc_t<T>* out = partial + static_cast<i64>(blockIdx.y) * 2 * channels + c;
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = m[j].mean, out[channels + j] = m[j].squares;
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(256, 4)
batch_norm_apply(const T* x, const acc_t<T>* mean, const acc_t<T>* variance, const T* scale, const T* offset, T* y, i64 rows,
                 i64 part_rows, int channels, acc_t<T> epsilon) {
  typedef acc_t<T> A;
  const int c = vector_index() * V;
  if (c >= channels) return;
  A factor[V], shift[V], centre[V];
  read_columns<V>(factor, scale, c, static_cast<A>(1));
  read_columns<V>(shift, offset, c, static_cast<A>(0));
#pragma unroll
  for (int j = 0; j < V; ++j) centre[j] = mean[c + j], factor[j] *= 1 / xsqrt(variance[c + j] + epsilon);
  const RowRange range = row_range(rows, part_rows);
#pragma unroll 2
  for (i64 r = range.begin + threadIdx.y; r < range.end; r += blockDim.y) {
    Vector<T, V> v = load<V>(x + r * channels + c);
#pragma unroll
    for (int j = 0; j < V; ++j) v.at[j] = round_to<T>((widen(v.at[j]) - centre[j]) * factor[j] + shift[j]);
    store<V>(y + r * channels + c, v);
  }
}

// The sums of dy and of dy * xhat for every channel over each part of the rows: partial (parts, 2, channels). PER_ROW: mean
// and variance belong to rows (layer normalisation), else to channels.
template <typename T, int V, bool PER_ROW>
__global__ void __launch_bounds__(256, 4)
norm_gradient_sums(const T* dy, const T* x, const acc_t<T>* mean, const acc_t<T>* variance, acc_t<T>* partial, i64 rows,
                   i64 part_rows, int channels, acc_t<T> epsilon) {
  typedef acc_t<T> A;
  const int c = vector_index() * V;
  A plain[V] = {}, weighted[V] = {};
  if (c < channels) {
    A centre[V], inverse[V];
    if (!PER_ROW) {
#pragma unroll
      for (int j = 0; j < V; ++j) centre[j] = mean[c + j], inverse[j] = 1 / xsqrt(variance[c + j] + epsilon);
    }
    const RowRange range = row_range(rows, part_rows);
#pragma unroll 2
    for (i64 r = range.begin + threadIdx.y; r < range.end; r += blockDim.y) {
      Vector<T, V> g = load<V>(dy + r * channels + c), v = load<V>(x + r * channels + c);
      A row_centre = 0, row_inverse = 0;
      if (PER_ROW) row_centre = mean[r], row_inverse = 1 / xsqrt(variance[r] + epsilon);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        A d = widen(g.at[j]);
        plain[j] += d;
        weighted[j] += d * ((widen(v.at[j]) - (PER_ROW ? row_centre : centre[j])) * (PER_ROW ? row_inverse : inverse[j]));
      }
    }
  }
  block_sum_rows<V>(plain);
  block_sum_rows<V>(weighted);
  if (threadIdx.y == 0 && c < channels) {
    acc_t<T>* out = partial + static_cast<i64>(blockIdx.y) * 2 * channels + c;
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = plain[j], out[channels + j] = weighted[j];
  }
}

// TRAINING: mean and variance depend on x, and may have gradients themselves. Otherwise they are constants.
template <typename T, int V, bool TRAINING>
__global__ void __launch_bounds__(256, 3)
batch_norm_backward(const T* dy, const T* x, const acc_t<T>* mean, const acc_t<T>* variance, const T* scale,
                    const acc_t<T>* sums, const acc_t<T>* dmean, const acc_t<T>* dvariance, T* dx, i64 rows,
                    i64 part_rows, int channels, acc_t<T> epsilon) {
  typedef acc_t<T> A;
  const int c = vector_index() * V;
  if (c >= channels) return;
  // dx = factor * (dy - sum(dy)/n - xhat * sum(dy xhat)/n) + (dmean + 2 dvariance (x - mean)) / n
  //    = factor * dy + slope * (x - mean) + constant
  A factor[V], slope[V], constant[V], centre[V];
  read_columns<V>(factor, scale, c, static_cast<A>(1));
  const A share = 1 / static_cast<A>(rows);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    A inverse = 1 / xsqrt(variance[c + j] + epsilon);
    factor[j] *= inverse;
    if (TRAINING) {
      centre[j] = mean[c + j];
      A from_variance = dvariance == nullptr ? static_cast<A>(0) : 2 * dvariance[c + j];
      A from_mean = dmean == nullptr ? static_cast<A>(0) : dmean[c + j];
      slope[j] = share * (from_variance - factor[j] * inverse * sums[channels + c + j]);
      constant[j] = share * (from_mean - factor[j] * sums[c + j]);
    }
  }
  const RowRange range = row_range(rows, part_rows);
#pragma unroll 2
  for (i64 r = range.begin + threadIdx.y; r < range.end; r += blockDim.y) {
    Vector<T, V> g = load<V>(dy + r * channels + c);
    if (TRAINING) {
      Vector<T, V> v = load<V>(x + r * channels + c);
#pragma unroll
      for (int j = 0; j < V; ++j)
        g.at[j] = round_to<T>(factor[j] * widen(g.at[j]) + (slope[j] * (widen(v.at[j]) - centre[j]) + constant[j]));
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) g.at[j] = round_to<T>(factor[j] * widen(g.at[j]));
    }
    store<V>(dx + r * channels + c, g);
  }
}
