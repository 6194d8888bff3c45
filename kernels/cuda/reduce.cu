// The second stage of reductions over rows and of split-K: partial results are combined in a fixed order.
//
// Launch: blocks of 32 x 8 threads, 32 columns a block.
#include "column_reduction.cuh"

// partial (parts, columns) -> sums (columns).
template <typename A>
__global__ void __launch_bounds__(256, 4)
sum_partials(const A* partial, A* sums, int parts, int columns) {
  const int c = vector_index();
  A sum[1] = {};
  if (c < columns) {
#pragma unroll 4
    for (int b = threadIdx.y; b < parts; b += blockDim.y) sum[0] += partial[static_cast<i64>(b) * columns + c];
  }
  block_sum_rows<1>(sum);
  if (threadIdx.y == 0 && c < columns) sums[c] = sum[0];
}
