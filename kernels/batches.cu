// A batch out of a data set that lives on the device as bytes: rows gathered in the order of an index, converted and
// normalised on the way.
#include "common.cuh"

// out[b, f] = (data[index[b], f] * scale - mean[c]) / deviation[c] with c = f % channels; mean and deviation may be null.
// An index outside 0..examples-1 gives a row of NaN.
template <typename T, int V>
__global__ void __launch_bounds__(256, 4)
gather_bytes(const u8* data, const i64* index, const acc_t<T>* mean, const acc_t<T>* deviation, T* out, i64 batch,
             i64 examples, i64 features, int channels, acc_t<T> scale) {
  typedef acc_t<T> A;
  for (i64 b = blockIdx.y; b < batch; b += gridDim.y) {
    const i64 row = index[b];
    const bool valid = row >= 0 && row < examples;
    for (i64 f = first_index() * V; f < features; f += index_step() * V) {
      Vector<u8, V> bytes = {};
      if (valid) bytes = load<V>(data + row * features + f);
      u32 c = mean == nullptr ? 0 : static_cast<u32>(f % channels);
      Vector<T, V> values;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        A v = up(bytes.at[j]) * scale;
        if (mean != nullptr) {
          v = (v - mean[c]) / deviation[c];
          c = c + 1 == static_cast<u32>(channels) ? 0 : c + 1;
        }
        values.at[j] = down<T>(valid ? v : infinity<A>() - infinity<A>());
      }
      store<V>(out + b * features + f, values);
    }
  }
}
