// Mixed precision: 16-bit copies of float32 arrays, and loss scaling for float16.
//
// Launch: grid-stride loops of 256 threads; adjust_scale with a single thread.
#include "common.cuh"

// to = from in another dtype, rounded to nearest; overflow of float16 becomes infinite.
template <typename T, typename U, int V>
__global__ void __launch_bounds__(256, 4)
convert(const T* from, U* to, i64 count) {
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> v = load<V>(from + i);
    Vector<U, V> w;
#pragma unroll
    for (int j = 0; j < V; ++j) w.at[j] = round_to<U>(static_cast<acc_t<U>>(widen(v.at[j])));
    store<V>(to + i, w);
  }
}

// g /= scale, in place; `overflow` becomes 1 if an element is not finite. Every thread that finds one writes the same 1.
template <typename T, int V>
__global__ void __launch_bounds__(256, 4)
unscale(T* g, const float* scale, u32* overflow, i64 count) {
  const acc_t<T> inverse = 1 / *scale;
  bool bad = false;
  for (i64 i = thread_index() * V; i < count; i += grid_stride() * V) {
    Vector<T, V> v = load<V>(g + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      acc_t<T> a = widen(v.at[j]) * inverse;
      bad = bad || !(a - a == 0);
      v.at[j] = round_to<T>(a);
    }
    store<V>(g + i, v);
  }
  if (bad) *overflow = 1;
}

// Adjust the loss scale after a step, in one thread: after an overflow divide it by `factor`, but not below `smallest`; after
// `interval` steps in a row without overflow multiply it by `factor`, unless that overflows a float.
template <typename T>
__global__ void __launch_bounds__(32)
adjust_scale(T* scale, i64* good, u32* overflow, acc_t<T> factor, i64 interval, acc_t<T> smallest) {
  if (threadIdx.x > 0 || blockIdx.x > 0) return;
  const acc_t<T> now = *scale;
  if (*overflow != 0) {
    const acc_t<T> less = now / factor, least = now < smallest ? now : smallest;
    *scale = less > least ? less : least;
    *good = 0;
    *overflow = 0;
    return;
  }
  const i64 count = *good + 1;
  const acc_t<T> more = now * factor;
  if (count >= interval && more - more == 0) *scale = more;
  *good = count >= interval ? 0 : count;
}
