// The sum over all threads of a launch, in one launch and in a fixed order.
#pragma once
#include "last_block.cuh"

// Call finish(sum of `mine` over all threads) in one thread of the grid, which has blocks of 256 threads in one dimension.
// `partial` holds a number for each block, `counter` is that of `is_last_block`. Every thread must call it, once.
template <typename A, typename F>
__device__ inline void grid_sum(A mine, A* partial, u32* counter, F finish) {
  A total = block_sum<256>(mine);
  if (gridDim.x > 1) {
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
    if (!is_last_block(counter, gridDim.x)) return;
    total = 0;
    for (u32 b = threadIdx.x; b < gridDim.x; b += 256) total += partial[b];
    total = block_sum<256>(total);
  }
  if (threadIdx.x == 0) finish(total);
}
