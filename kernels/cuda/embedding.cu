// Rows of a table by index, and their gradient: sums of rows by index, in the order of the index.
//
// Both launch blocks of 32 x 4 threads; a warp handles a row, or 32 columns of kRows rows.
#include "common.cuh"

// y (count, width) = table (rows, width) at indices (count); NaN for an index outside 0..rows-1.
template <typename T, int V, typename I>
__global__ void __launch_bounds__(128)
gather_rows(const T* table, const I* indices, T* y, i64 count, i64 rows, i64 width) {
  for (i64 m = static_cast<i64>(blockIdx.x) * 4 + threadIdx.y; m < count; m += static_cast<i64>(gridDim.x) * 4) {
    const i64 row = static_cast<i64>(indices[m]);
    const bool inside = row >= 0 && row < rows;
    const T* from = table + (inside ? row : 0) * width;  // a table has a row
    T* to = y + m * width;
    for (i64 d = static_cast<i64>(threadIdx.x) * V; d < width; d += 32 * V) {
      Vector<T, V> v = load<V>(from + d);
#pragma unroll
      for (int j = 0; j < V; ++j) v.at[j] = inside ? v.at[j] : round_to<T>(static_cast<acc_t<T>>(__uint_as_float(0x7fc00000u)));
      store<V>(to + d, v);
    }
  }
}

// sums (size, width): the sum of all rows (count, width) whose index is this row's number; others count nowhere.
//
// A warp owns kRows rows of the sums, one column a lane, and reads the whole index, 32 entries at a time. Nobody else adds to
// these sums, and every lane adds in the order of the index: there are no atomics, and the result is the same in every run.
template <typename T, typename I, typename O>
__global__ void __launch_bounds__(128)
scatter_rows(const T* rows, const I* index, O* sums, i64 count, i64 size, i64 width) {
  constexpr int kRows = 16, kAhead = 4;
  typedef acc_t<T> A;
  __shared__ A partial[4][kRows + 1][32];  // the last row takes what belongs to none
  const int lane = threadIdx.x;
  const i64 first = (static_cast<i64>(blockIdx.x) * 4 + threadIdx.y) * kRows;
  if (first >= size) return;
  for (i64 column = static_cast<i64>(blockIdx.y) * 32 + lane; column - lane < width; column += static_cast<i64>(gridDim.y) * 32) {
    const bool used = column < width;
#pragma unroll
    for (int r = 0; r <= kRows; ++r) partial[threadIdx.y][r][lane] = 0;
    for (i64 start = 0; start < count; start += 32) {
      const i64 at = start + lane < count ? static_cast<i64>(index[start + lane]) - first : -1;
      const int mine = at >= 0 && at < kRows ? static_cast<int>(at) : kRows;
      u32 found = warp_ballot(mine < kRows);
      while (found != 0) {  // the same in all lanes; several loads before the additions that wait for them
        int row[kAhead];
        A value[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const int bit = lowest_bit(found | 0x80000000u);
          const int other = __shfl_sync(0xffffffffu, mine, bit);
          row[j] = found != 0 ? other : kRows;
          value[j] = used && found != 0 ? widen(rows[(start + bit) * width + column]) : A(0);
          found &= found - 1;
        }
#pragma unroll
        for (int j = 0; j < kAhead; ++j) partial[threadIdx.y][row[j]][lane] += value[j];
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (used && first + r < size) sums[(first + r) * width + column] = round_to<O>(partial[threadIdx.y][r][lane]);
  }
}
