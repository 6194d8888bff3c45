// The second stage of a reduction within the kernel of its first: the block that arrives last combines what all have written.
//
// Which block that is differs from run to run; what it does, and in which order, does not.
//
// Source: NVIDIA, "CUDA C++ Programming Guide", memory fence functions.
#pragma once
#include "common.cuh"

// Return, in all threads of a block, whether it is the last of `blocks` to get here with this counter. It then sees what the
// others wrote to global memory before; it must not have read that memory earlier. The counter is 0 before and afterwards
// (`counters` in xpnet/accel/cupy/launch.py). Every thread of the block must call it. `last` is shared memory that the block
// uses for nothing else any more.
__device__ inline bool is_last_block(u32* counter, u32 blocks, bool& last) {
  if (blocks == 1) {
    __syncthreads();
    return true;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x + threadIdx.y == 0) last = atomicInc(counter, blocks - 1) == blocks - 1;
  __syncthreads();
  if (last) __threadfence();
  return last;
}
__device__ inline bool is_last_block(u32* counter, u32 blocks) {
  __shared__ bool last;
  return is_last_block(counter, blocks, last);
}
