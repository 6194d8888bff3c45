// Dropout. Element i looks at 16-bit lane i % 4 (lowest first) of 64-bit word i / 4 of the stream, and is kept where the
// lane is at least the threshold. One thread computes one Philox block: 4 words, 16 elements.
#include "philox.cuh"

// y = x * scale where kept, else 0. The same launch with dy in the place of x is the backward pass: the mask is computed
// again and never stored. The counter's words are (block + 1, 0, step, 0), as NumPy counts. A step that changes from replay
// to replay of a CUDA graph is read from the device.
template <typename T, int V>
__global__ void __launch_bounds__(256, 4)
dropout(const T* x, T* y, i64 count, u64 key0, u64 key1, u64 step, const u64* counter, u32 threshold, acc_t<T> scale) {
  if (counter != nullptr) step += *counter;
  for (i64 block = first_index(); block * 16 < count; block += index_step()) {
    const Words words = philox(key0, key1, static_cast<u64>(block) + 1, 0, step, 0);
#pragma unroll
    for (int e = 0; e < 16; e += V) {
      const i64 i = block * 16 + e;
      if (i >= count) break;
      Vector<T, V> v = load<V>(x + i);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        u32 lane = static_cast<u32>(words.at[(e + j) / 4] >> (16 * ((e + j) % 4))) & 0xffffu;
        v.at[j] = down<T>(lane >= threshold ? up(v.at[j]) * scale : static_cast<acc_t<T>>(0));
      }
      store<V>(y + i, v);
    }
  }
}

// The mask itself, as bytes 0 and 1.
template <int V>
__global__ void __launch_bounds__(256, 4)
keep_mask(u8* mask, i64 count, u64 key0, u64 key1, u64 step, const u64* counter, u32 threshold) {
  if (counter != nullptr) step += *counter;
  for (i64 block = first_index(); block * 16 < count; block += index_step()) {
    const Words words = philox(key0, key1, static_cast<u64>(block) + 1, 0, step, 0);
#pragma unroll
    for (int e = 0; e < 16; e += V) {
      const i64 i = block * 16 + e;
      if (i >= count) break;
      Vector<u8, V> v;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        u32 lane = static_cast<u32>(words.at[(e + j) / 4] >> (16 * ((e + j) % 4))) & 0xffffu;
        v.at[j] = lane >= threshold ? 1 : 0;
      }
      store<V>(mask + i, v);
    }
  }
}
