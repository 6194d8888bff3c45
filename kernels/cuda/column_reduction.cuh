// Column reductions: kernels over matrices (rows, columns) in which a thread stays in its columns and loops over rows.
//
// Launch (`partition` in xpnet/accel/cupy/reductions.py): a block has TX x TY = 256 threads, both powers of two: TX vectors of
// adjacent columns, TY rows at a time. blockIdx.x is the tile of columns, blockIdx.y the part of `part_rows` consecutive
// rows. With few columns TX is small, and accesses of a warp are still coalesced because rows are adjacent in memory.
#pragma once
#include "last_block.cuh"

const int BLOCK = 256;

struct RowRange {
  i64 begin, end;
};
__device__ inline RowRange row_range(i64 rows, i64 part_rows) {
  i64 begin = blockIdx.y * part_rows, end = begin + part_rows;
  return {begin, end < rows ? end : rows};
}
__device__ inline int vector_index() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

// Sum over the TY threads of each column, in shared memory; the threads with threadIdx.y == 0 get the sums. Every thread of
// the block must call it.
template <int V, typename A>
__device__ inline void block_sum_rows(A (&sum)[V]) {
  __shared__ A held[BLOCK * V];
  const int me = threadIdx.y * blockDim.x + threadIdx.x;
  __syncthreads();  // the previous use of `held` has ended
#pragma unroll
  for (int j = 0; j < V; ++j) held[j * BLOCK + me] = sum[j];
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.y) < half) {
#pragma unroll
      for (int j = 0; j < V; ++j) held[j * BLOCK + me] += held[j * BLOCK + me + half * blockDim.x];
    }
  }
  if (threadIdx.y == 0) {  // each of these threads reads what it wrote
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = held[j * BLOCK + me];
  }
}

// Sum the parts of V adjacent columns: partial (gridDim.y, columns), of which each block has written its part, to sums. The
// block of a tile of columns that comes last does it, in a fixed order. Every thread of the block must call it, with its
// columns from c on.
template <int V, typename A>
__device__ inline void sum_parts(const A* partial, A* sums, u32* counters, int c, int columns) {
  if (!is_last_block(counters + blockIdx.x, gridDim.y)) return;
  A sum[V] = {};
  if (c < columns) {
    const int parts = static_cast<int>(gridDim.y);
#pragma unroll 4
    for (int part = threadIdx.y; part < parts; part += blockDim.y) {
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += partial[static_cast<i64>(part) * columns + c + j];
    }
  }
  block_sum_rows<V>(sum);
  if (threadIdx.y == 0 && c < columns) {
#pragma unroll
    for (int j = 0; j < V; ++j) sums[c + j] = sum[j];
  }
}

// Count, mean and sum of squared deviations of a set of numbers; `merge` makes them those of the union with another set.
// Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
template <typename A>
struct Moments {
  A count, mean, squares;

  __device__ inline void merge(const Moments& other) {
    A total = count + other.count;
    if (other.count > 0) {
      A distance = other.mean - mean, share = other.count / total;
      mean += distance * share;
      squares += other.squares + distance * (distance * (count * share));  // 0 for count 0, however large the mean
      count = total;
    }
  }
};

// As block_sum_rows, for moments.
template <int V, typename A>
__device__ inline void block_merge_moments(Moments<A> (&m)[V]) {
  __shared__ A counts[BLOCK], means[BLOCK * V], squares[BLOCK * V];
  const int me = threadIdx.y * blockDim.x + threadIdx.x;
  __syncthreads();
  counts[me] = m[0].count;  // equal in all columns of a thread
#pragma unroll
  for (int j = 0; j < V; ++j) means[j * BLOCK + me] = m[j].mean, squares[j * BLOCK + me] = m[j].squares;
  for (int half = blockDim.y / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.y) < half) {
      const int other = me + half * blockDim.x;
      const A theirs = counts[other];
#pragma unroll
      for (int j = 0; j < V; ++j) {
        m[j].merge(Moments<A>{theirs, means[j * BLOCK + other], squares[j * BLOCK + other]});
        means[j * BLOCK + me] = m[j].mean, squares[j * BLOCK + me] = m[j].squares;
      }
      counts[me] = m[0].count;
    }
  }
}
