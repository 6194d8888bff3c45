// Dropout with a mask that is computed, never stored. Element i is kept where 16-bit lane i % 4 (lowest first) of 64-bit
// word i / 4 of the Philox stream is at least the threshold.
//
// Launch: a grid-stride loop of 256 threads, one Philox block a thread: 4 words, 16 elements.
#include "philox.cuh"

// y = x * scale where kept, else 0; with dy instead of x the backward pass. The Philox counter is (block + 1, 0, step, 0),
// as in NumPy. `counter` (may be null) is added to the step: a CUDA graph advances it from replay to replay.
template <typename T, int V>
__global__ void __launch_bounds__(256, 4)
dropout(const T* x, T* y, i64 count, u64 key0, u64 key1, u64 step, const u64* counter, u32 threshold, acc_t<T> scale) {
  if (counter != nullptr) step += *counter;
  for (i64 block = thread_index(); block * 16 < count; block += grid_stride()) {
    const Words words = philox(key0, key1, static_cast<u64>(block) + 1, 0, step, 0);
#pragma unroll
    for (int e = 0; e < 16; e += V) {
      const i64 i = block * 16 + e;
      if (i >= count) break;
      Vector<T, V> v = load<V>(x + i);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        u32 lane = static_cast<u32>(words.at[(e + j) / 4] >> (16 * ((e + j) % 4))) & 0xffffu;
        v.at[j] = round_to<T>(lane >= threshold ? widen(v.at[j]) * scale : static_cast<acc_t<T>>(0));
      }
      store<V>(y + i, v);
    }
  }
}

// The mask itself, bytes 0 and 1.
template <int V>
__global__ void __launch_bounds__(256, 4)
keep_mask(u8* mask, i64 count, u64 key0, u64 key1, u64 step, const u64* counter, u32 threshold) {
  if (counter != nullptr) step += *counter;
  for (i64 block = thread_index(); block * 16 < count; block += grid_stride()) {
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
