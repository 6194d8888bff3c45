// Row reductions: kernels over matrices (rows, columns) in which a group of LANES threads processes one row at a time: 8 or 32
// lanes of a warp (warp shuffles), or a block of 256.
#pragma once
#include "common.cuh"

// Every thread of a warp takes part in its reductions, so all threads loop equally often; active() is false where the row is
// beyond the last one.
template <int LANES>
struct Rows {
  i64 rows, base;

  __device__ inline explicit Rows(i64 count) : rows(count), base(static_cast<i64>(blockIdx.x) * (256 / LANES)) {}
  __device__ inline bool more() const { return base < rows; }
  __device__ inline void next() { base += static_cast<i64>(gridDim.x) * (256 / LANES); }
  __device__ inline i64 row() const { return base + threadIdx.x / LANES; }
  __device__ inline bool active() const { return row() < rows; }
  __device__ static inline int lane() { return threadIdx.x % LANES; }

  template <typename A>
  __device__ static inline A sum(A v) {
    if constexpr (LANES > 32)
      return block_sum<LANES>(v);
    else
      return group_sum<LANES>(v);
  }
  template <typename A>
  __device__ static inline A max(A v) {
    if constexpr (LANES > 32)
      return block_max<LANES>(v);
    else
      return group_max<LANES>(v);
  }
};
