// The second stage of sums over rows: what the slabs of the first stage left is added up, in a fixed order.
#include "columns.cuh"

// partial (slabs, columns) -> sums (columns). Blocks of 32 x 8 threads.
template <typename A>
__global__ void __launch_bounds__(256, 4)
sum_slabs(const A* partial, A* sums, int slabs, int columns) {
  const int c = my_vector();
  A sum[1] = {};
  if (c < columns) {
#pragma unroll 4
    for (int b = threadIdx.y; b < slabs; b += blockDim.y) sum[0] += partial[static_cast<i64>(b) * columns + c];
  }
  fold_rows<1>(sum);
  if (threadIdx.y == 0 && c < columns) sums[c] = sum[0];
}

// partial (slabs, 2, columns), the mean and the squared deviations of each slab -> mean and variance (columns).
template <typename A>
__global__ void __launch_bounds__(256, 4)
merge_slabs(const A* partial, A* mean, A* variance, int slabs, int columns, i64 rows, i64 slab_rows) {
  const int c = my_vector();
  Moments<A> total[1] = {};
  if (c < columns) {
    for (int b = threadIdx.y; b < slabs; b += blockDim.y) {
      i64 left = rows - b * slab_rows;
      const A* slab = partial + static_cast<i64>(b) * 2 * columns + c;
      total[0].merge(Moments<A>{static_cast<A>(left < slab_rows ? left : slab_rows), slab[0], slab[columns]});
    }
  }
  fold_moments<1>(total);
  if (threadIdx.y == 0 && c < columns) {
    mean[c] = total[0].mean;
    variance[c] = rows > 0 ? total[0].squares / static_cast<A>(rows) : static_cast<A>(0);
  }
}
