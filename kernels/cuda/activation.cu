// Epilogue of a matrix product as a kernel of its own, y = activation(y + bias), and its gradient together with that of the
// bias; and activations alone, elementwise.
//
//   y, dy, dz (rows, channels)     bias, dbias (channels)     partial (parts, channels): workspace
//
// Launch: bias_activation* as column_reduction.cuh says; the elementwise ones in a grid-stride loop of 256 threads a block.
#include "activations.cuh"
#include "column_reduction.cuh"

// The activation alone and its gradient, V elements an access.
template <typename T, int V, int ACTIVATION>
__global__ void __launch_bounds__(256, 4)
activation(const T* x, T* y, i64 count) {
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> v = load<V>(x + i);
#pragma unroll
    for (int j = 0; j < V; ++j) v.at[j] = round_to<T>(activate<ACTIVATION>(widen(v.at[j])));
    store<V>(y + i, v);
  }
}

template <typename T, int V, int ACTIVATION>
__global__ void __launch_bounds__(256, 4)
activation_backward(const T* dy, const T* y, T* dx, i64 count) {
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> g = load<V>(dy + i), v = load<V>(y + i);
#pragma unroll
    for (int j = 0; j < V; ++j) g.at[j] = round_to<T>(activation_gradient<ACTIVATION>(widen(g.at[j]), widen(v.at[j])));
    store<V>(dx + i, g);
  }
}

// In place. A thread stays in its columns, so that it reads the bias once.
template <typename T, int V, int ACTIVATION>
__global__ void __launch_bounds__(256, 4)
bias_activation(T* y, const T* bias, i64 rows, i64 part_rows, int channels) {
  const int c = vector_index() * V;
  if (c >= channels) return;
  acc_t<T> b[V] = {};
  if (bias != nullptr) {
    Vector<T, V> v = load<V>(bias + c);
#pragma unroll
    for (int j = 0; j < V; ++j) b[j] = widen(v.at[j]);
  }
  const RowRange range = row_range(rows, part_rows);
#pragma unroll 2
  for (i64 r = range.begin + threadIdx.y; r < range.end; r += blockDim.y) {
    Vector<T, V> v = load<V>(y + r * channels + c);
#pragma unroll
    for (int j = 0; j < V; ++j) v.at[j] = round_to<T>(activate<ACTIVATION>(widen(v.at[j]) + b[j]));
    store<V>(y + r * channels + c, v);
  }
}

// dz = dy * activation'(y), not written where dz is null. SUMS: dbias = the column sums of dz.
template <typename T, int V, int ACTIVATION, bool SUMS>
__global__ void __launch_bounds__(256, 4)
bias_activation_backward(const T* dy, const T* y, T* dz, acc_t<T>* partial, acc_t<T>* dbias, u32* counters, i64 rows,
                         i64 part_rows, int channels) {
  const int c = vector_index() * V;
  acc_t<T> sum[V] = {};
  if (c < channels) {
    const RowRange range = row_range(rows, part_rows);
#pragma unroll 2
    for (i64 r = range.begin + threadIdx.y; r < range.end; r += blockDim.y) {
      Vector<T, V> g = load<V>(dy + r * channels + c), v = g;
      if (ACTIVATION != IDENTITY) v = load<V>(y + r * channels + c);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        acc_t<T> d = activation_gradient<ACTIVATION>(widen(g.at[j]), widen(v.at[j]));
        sum[j] += d;
        g.at[j] = round_to<T>(d);
      }
      if (ACTIVATION != IDENTITY && dz != nullptr) store<V>(dz + r * channels + c, g);
    }
  }
  if (SUMS) {
    block_sum_rows<V>(sum);
    if (threadIdx.y == 0 && c < channels) {
#pragma unroll
      for (int j = 0; j < V; ++j) partial[static_cast<i64>(blockIdx.y) * channels + c + j] = sum[j];
    }
    sum_parts<V>(partial, dbias, counters, c, channels);
  }
}
