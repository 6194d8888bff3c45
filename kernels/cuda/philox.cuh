// The Philox4x64-10 random number generator, with the bits of numpy.random.Philox.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once
#include "common.cuh"

struct Words {
  u64 at[4];
};

__device__ inline Words philox(u64 key0, u64 key1, u64 c0, u64 c1, u64 c2, u64 c3) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u64 m0 = 0xd2e7470ee14c6c93ull, m1 = 0xca5a826395121157ull;
    u64 high0 = __umul64hi(m0, c0), low0 = m0 * c0;
    u64 high1 = __umul64hi(m1, c2), low1 = m1 * c2;
    c0 = high1 ^ c1 ^ key0, c1 = low1;
    c2 = high0 ^ c3 ^ key1, c3 = low0;
    key0 += 0x9e3779b97f4a7c15ull, key1 += 0xbb67ae8584caa73bull;
  }
  return {{c0, c1, c2, c3}};
}
