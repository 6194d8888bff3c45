// Batch normalisation over the rows of a matrix (rows, channels), what may stand behind it, and the parameter gradients of
// every normalisation.
//
//   z = (x - mean) * inverse * scale + offset,   inverse = 1 / sqrt(variance + epsilon)
//   y = activation(z + residual)
//
// Launch: column_reduction.cuh. Statistics and sums are partial results of a part of the rows; of each tile of columns the
// block that comes last combines them. Loops load STAGE rows a thread before they use one.
#include "activations.cuh"
#include "column_reduction.cuh"

const int STAGE = 2;

template <int V, typename T>
__device__ inline void read_columns(acc_t<T> (&out)[V], const T* p, int c, acc_t<T> otherwise) {
#pragma unroll
  for (int j = 0; j < V; ++j) out[j] = p == nullptr ? otherwise : widen(p[c + j]);
}

// The same in both passes, as the backward pass finds in it where the activation was cut off.
template <typename A>
__device__ inline A normalized(A value, A centre, A factor, A shift) {
  return (value - centre) * factor + shift;
}

// Add COUNT rows less `pivot`, `step` elements apart, to the moments of V columns. The differences from the mean of the rows
// before are as exact as those of Welford's recurrence, which this is for COUNT = 1, with one division for all.
template <int COUNT, int V, typename T>
__device__ inline void add_rows(Moments<acc_t<T>> (&m)[V], const acc_t<T> (&pivot)[V], const T* p, i64 step) {
  typedef acc_t<T> A;
  Vector<T, V> rows[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) rows[i] = load<V>(p + i * step);
  const A count = m[0].count + COUNT, share = 1 / count;  // equal in all columns of a thread
#pragma unroll
  for (int j = 0; j < V; ++j) {
    A sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const A distance = widen(rows[i].at[j]) - pivot[j] - m[j].mean;
      sum += distance;
      squares += distance * distance;
    }
    const A shift = sum * share;
    m[j].mean += shift;
    m[j].squares += squares - shift * sum;
    m[j].count = count;
  }
}

// Mean and biased variance of every channel: partial (parts, 2, channels), the mean and the squared deviations of each part.
// Where running statistics are given they become kept * running + rest * mean, kept * running + unbiased_rest * variance.
//
// All means are those of the differences from the first row, so that also far from 0 they have the digits of a deviation.
template <typename T, int V>
__global__ void __launch_bounds__(256, 3)
batch_moments(const T* x, acc_t<T>* partial, acc_t<T>* mean, acc_t<T>* variance, acc_t<T>* running_mean,
              acc_t<T>* running_variance, u32* counters, i64 rows, i64 part_rows, int channels, acc_t<T> kept, acc_t<T> rest,
              acc_t<T> unbiased_rest) {
  typedef acc_t<T> A;
  const int c = vector_index() * V, parts = static_cast<int>(gridDim.y);
  Moments<A> m[V] = {};
  A pivot[V] = {};
  if (c < channels) {
    const RowRange range = row_range(rows, part_rows);
    const i64 step = static_cast<i64>(blockDim.y) * channels;
    i64 r = range.begin + threadIdx.y;
    read_columns<V>(pivot, x, c, static_cast<A>(0));
    if (r < range.end) {  // begin near the mean of this thread, wherever the first row is
      Vector<T, V> first = load<V>(x + r * channels + c);
#pragma unroll
      for (int j = 0; j < V; ++j) m[j].mean = widen(first.at[j]) - pivot[j];
    }
    for (; r + 3 * blockDim.y < range.end; r += 4 * blockDim.y) add_rows<4>(m, pivot, x + r * channels + c, step);
    for (; r < range.end; r += blockDim.y) add_rows<1>(m, pivot, x + r * channels + c, step);
  }
  block_merge_moments<V>(m);
  if (threadIdx.y == 0 && c < channels) {
    A* out = partial + static_cast<i64>(blockIdx.y) * 2 * channels + c;
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = m[j].mean, out[channels + j] = m[j].squares;
  }
  if (!is_last_block(counters + blockIdx.x, gridDim.y)) return;
#pragma unroll
  for (int j = 0; j < V; ++j) m[j] = Moments<A>{};
  if (c < channels) {
#pragma unroll 2
    for (int part = threadIdx.y; part < parts; part += blockDim.y) {
      const i64 left = rows - part * part_rows;
      const A count = static_cast<A>(left < part_rows ? left : part_rows);
      const A* from = partial + static_cast<i64>(part) * 2 * channels + c;
#pragma unroll
      for (int j = 0; j < V; ++j) m[j].merge(Moments<A>{count, from[j], from[channels + j]});
    }
  }
  block_merge_moments<V>(m);
  if (threadIdx.y == 0 && c < channels) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const A centre = pivot[j] + m[j].mean, spread = m[j].squares / static_cast<A>(rows);
      mean[c + j] = centre, variance[c + j] = spread;
      if (running_mean != nullptr) {
        running_mean[c + j] = kept * running_mean[c + j] + rest * centre;
        running_variance[c + j] = kept * running_variance[c + j] + unbiased_rest * spread;
      }
    }
  }
}

template <typename T, int V, bool ADD, int ACTIVATION>
__global__ void __launch_bounds__(256, 3)
batch_norm_apply(const T* x, const acc_t<T>* mean, const acc_t<T>* variance, const T* scale, const T* offset,
                 const T* residual, T* y, i64 rows, i64 part_rows, int channels, acc_t<T> epsilon) {
  typedef acc_t<T> A;
  const int c = vector_index() * V;
  if (c >= channels) return;
  A factor[V], shift[V], centre[V];
  read_columns<V>(factor, scale, c, static_cast<A>(1));
  read_columns<V>(shift, offset, c, static_cast<A>(0));
#pragma unroll
  for (int j = 0; j < V; ++j) centre[j] = mean[c + j], factor[j] *= 1 / xsqrt(variance[c + j] + epsilon);
  const RowRange range = row_range(rows, part_rows);
  for (i64 start = range.begin + threadIdx.y; start < range.end; start += STAGE * blockDim.y) {
    Vector<T, V> v[STAGE], side[STAGE];
#pragma unroll
    for (int i = 0; i < STAGE; ++i) {
      const i64 r = start + i * blockDim.y;
      if (r < range.end) {
        v[i] = load<V>(x + r * channels + c);
        if (ADD) side[i] = load<V>(residual + r * channels + c);
      }
    }
#pragma unroll
    for (int i = 0; i < STAGE; ++i) {
      const i64 r = start + i * blockDim.y;
      if (r < range.end) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          A z = normalized(widen(v[i].at[j]), centre[j], factor[j], shift[j]);
          if (ADD) z += widen(side[i].at[j]);
          v[i].at[j] = round_to<T>(activate<ACTIVATION>(z));
        }
        store<V>(y + r * channels + c, v[i]);
      }
    }
  }
}

// Where the gradient dz of z comes from, if the activation is relu: dy where y > 0, else 0.
const int UNMASKED = 0;  // there is no activation: dz = dy
const int FROM_X = 1;    // y is computed again
const int FROM_Y = 2;    // y is read, as it depends on the residual, too; dz is written, which is the residual's gradient

template <typename T>
__device__ inline T masked(T gradient, acc_t<T> y) {
  return widen(round_to<T>(y)) > 0 ? gradient : round_to<T>(static_cast<acc_t<T>>(0));
}

// dscale and doffset (channels), the sums of dz * xhat and of dz: partial (parts, 2, channels). PER_ROW: mean and variance
// belong to rows (layer normalisation), else to channels. With MASK FROM_Y the gradient may have two parts, dy + more.
template <typename T, int V, bool PER_ROW, int MASK>
__global__ void __launch_bounds__(256, 2)
norm_gradient_sums(const T* dy, const T* more, const T* x, const T* y, const acc_t<T>* mean, const acc_t<T>* variance, const T* scale,
                   const T* offset, T* dz, acc_t<T>* partial, acc_t<T>* dscale, acc_t<T>* doffset, u32* counters, i64 rows,
                   i64 part_rows, int channels, acc_t<T> epsilon) {
  typedef acc_t<T> A;
  const int DEPTH = MASK == FROM_Y && V == 8 ? 1 : STAGE;  // four arrays of 16 bytes a row are enough in flight
  const int c = vector_index() * V, parts = static_cast<int>(gridDim.y);
  A plain[V] = {}, weighted[V] = {};
  if (c < channels) {
    A centre[V], factor[V], shift[V];
    if (!PER_ROW) read_columns<V>(centre, mean, c, static_cast<A>(0));
    if (MASK == FROM_X) {
      read_columns<V>(factor, scale, c, static_cast<A>(1));
      read_columns<V>(shift, offset, c, static_cast<A>(0));
#pragma unroll
      for (int j = 0; j < V; ++j) factor[j] *= 1 / xsqrt(variance[c + j] + epsilon);
    }
    const RowRange range = row_range(rows, part_rows);
    for (i64 start = range.begin + threadIdx.y; start < range.end; start += DEPTH * blockDim.y) {
      Vector<T, V> g[DEPTH], v[DEPTH], out[DEPTH], other[DEPTH];
      A row_centre[DEPTH], row_inverse[DEPTH];
#pragma unroll
      for (int i = 0; i < DEPTH; ++i) {
        const i64 r = start + i * blockDim.y;
        if (r < range.end) {
          g[i] = load<V>(dy + r * channels + c), v[i] = load<V>(x + r * channels + c);
          if (MASK == FROM_Y) out[i] = load<V>(y + r * channels + c);
          if (MASK == FROM_Y && more != nullptr) other[i] = load<V>(more + r * channels + c);
          if (PER_ROW) row_centre[i] = mean[r], row_inverse[i] = 1 / xsqrt(variance[r] + epsilon);
        }
      }
#pragma unroll
      for (int i = 0; i < DEPTH; ++i) {
        const i64 r = start + i * blockDim.y;
        if (r < range.end) {
#pragma unroll
          for (int j = 0; j < V; ++j) {
            const A value = widen(v[i].at[j]);
            if (MASK == FROM_X) g[i].at[j] = masked(g[i].at[j], normalized(value, centre[j], factor[j], shift[j]));
            if (MASK == FROM_Y && more != nullptr) g[i].at[j] = round_to<T>(widen(g[i].at[j]) + widen(other[i].at[j]));
            if (MASK == FROM_Y) g[i].at[j] = masked(g[i].at[j], widen(out[i].at[j]));
            const A d = widen(g[i].at[j]);
            plain[j] += d;
            weighted[j] += d * (PER_ROW ? (value - row_centre[i]) * row_inverse[i] : value - centre[j]);
          }
          if (MASK == FROM_Y) store<V>(dz + r * channels + c, g[i]);
        }
      }
    }
    if (!PER_ROW) {
#pragma unroll
      for (int j = 0; j < V; ++j) weighted[j] *= 1 / xsqrt(variance[c + j] + epsilon);
    }
  }
  block_sum_rows<V>(plain);
  block_sum_rows<V>(weighted);
  if (threadIdx.y == 0 && c < channels) {
    A* out = partial + static_cast<i64>(blockIdx.y) * 2 * channels + c;
#pragma unroll
    for (int j = 0; j < V; ++j) out[j] = plain[j], out[channels + j] = weighted[j];
  }
  if (!is_last_block(counters + blockIdx.x, gridDim.y)) return;
#pragma unroll
  for (int j = 0; j < V; ++j) plain[j] = weighted[j] = 0;
  if (c < channels) {
#pragma unroll 2
    for (int part = threadIdx.y; part < parts; part += blockDim.y) {
      const A* from = partial + static_cast<i64>(part) * 2 * channels + c;
#pragma unroll
      for (int j = 0; j < V; ++j) plain[j] += from[j], weighted[j] += from[channels + j];
    }
  }
  block_sum_rows<V>(plain);
  block_sum_rows<V>(weighted);
  if (threadIdx.y == 0 && c < channels) {
#pragma unroll
    for (int j = 0; j < V; ++j) doffset[c + j] = plain[j], dscale[c + j] = weighted[j];
  }
}

// TRAINING: mean and variance depend on x, and may have gradients themselves. Otherwise they are constants. With MASK FROM_Y
// dy is dz, which norm_gradient_sums has written, and this runs UNMASKED.
template <typename T, int V, bool TRAINING, int MASK>
__global__ void __launch_bounds__(256, 2)
batch_norm_backward(const T* dy, const T* x, const acc_t<T>* mean, const acc_t<T>* variance, const T* scale,
                    const T* offset, const acc_t<T>* dscale, const acc_t<T>* doffset, const acc_t<T>* dmean,
                    const acc_t<T>* dvariance, T* dx, i64 rows, i64 part_rows, int channels, acc_t<T> epsilon) {
  typedef acc_t<T> A;
  const int c = vector_index() * V;
  if (c >= channels) return;
  // dx = factor * (dz - sum(dz)/n - xhat * sum(dz xhat)/n) + (dmean + 2 dvariance (x - mean)) / n
  //    = factor * dz + slope * (x - mean) + constant
  A factor[V], slope[V], constant[V], centre[V], shift[V];
  read_columns<V>(factor, scale, c, static_cast<A>(1));
  if (MASK == FROM_X) read_columns<V>(shift, offset, c, static_cast<A>(0));
  const A share = 1 / static_cast<A>(rows);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const A inverse = 1 / xsqrt(variance[c + j] + epsilon);
    factor[j] *= inverse;
    if (TRAINING) {
      centre[j] = mean[c + j];
      const A from_variance = dvariance == nullptr ? static_cast<A>(0) : 2 * dvariance[c + j];
      const A from_mean = dmean == nullptr ? static_cast<A>(0) : dmean[c + j];
      slope[j] = share * (from_variance - factor[j] * inverse * dscale[c + j]);
      constant[j] = share * (from_mean - factor[j] * doffset[c + j]);
    }
  }
  const RowRange range = row_range(rows, part_rows);
  for (i64 start = range.begin + threadIdx.y; start < range.end; start += STAGE * blockDim.y) {
    Vector<T, V> g[STAGE], v[STAGE];
#pragma unroll
    for (int i = 0; i < STAGE; ++i) {
      const i64 r = start + i * blockDim.y;
      if (r < range.end) {
        g[i] = load<V>(dy + r * channels + c);
        if (TRAINING) v[i] = load<V>(x + r * channels + c);
      }
    }
#pragma unroll
    for (int i = 0; i < STAGE; ++i) {
      const i64 r = start + i * blockDim.y;
      if (r < range.end) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          if (TRAINING) {
            const A value = widen(v[i].at[j]);
            if (MASK == FROM_X) g[i].at[j] = masked(g[i].at[j], normalized(value, centre[j], factor[j], shift[j]));
            g[i].at[j] = round_to<T>(factor[j] * widen(g[i].at[j]) + (slope[j] * (value - centre[j]) + constant[j]));
          } else {
            g[i].at[j] = round_to<T>(factor[j] * widen(g[i].at[j]));
          }
        }
        store<V>(dx + r * channels + c, g[i]);
      }
    }
  }
}
