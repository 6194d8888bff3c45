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

// partial (parts, 2, columns), mean and squared deviations of each part -> mean and variance (columns).
template <typename A>
__global__ void __launch_bounds__(256, 4)
merge_moments(const A* partial, A* mean, A* variance, int parts, int columns, i64 rows, i64 part_rows) {
  const int c = vector_index();
  Moments<A> total[1] = {};
  if (c < columns) {
    for (int b = threadIdx.y; b < parts; b += blockDim.y) {
      i64 left = rows - b * part_rows;
      const A* part = partial + static_cast<i64>(b) * 2 * columns + c;
      total[0].merge(Moments<A>{static_cast<A>(left < part_rows ? left : part_rows), part[0], part[columns]});
    }
  }
  block_merge_moments<1>(total);
  if (threadIdx.y == 0 && c < columns) {
    mean[c] = total[0].mean;
    variance[c] = rows > 0 ? total[0].squares / static_cast<A>(rows) : static_cast<A>(0);
  }
}
