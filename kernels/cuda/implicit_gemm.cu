// Convolution as an implicit GEMM: a matrix product whose left factor, the im2col matrix, exists only in shared memory.
//
//   x (N, H, W, G*C)   im2col matrix of a group (P, K): P = N*OH*OW positions, K = KH*KW*C, see implicit_im2col.cuh
//   FORWARD, fprop:    y (P, G*O) = activation(im2col @ b (K, G*O) + bias), group by group
//   DATA, dgrad:       y (N, out_h, out_w, G*C) = im2col of dy @ the kernel turned, for each class of pixels modulo the stride;
//                      b is the kernel (KH, KW, C, G*O) as it is: a row of the turned one is read along its columns
//   WEIGHTS, wgrad:    sums (K, G*O) = im2col^T @ b (P, G*O)
//
// Launch: 256 threads a block. blockIdx.x is the output tile, blockIdx.y the group, blockIdx.z the class of pixels of DATA,
// else the split: `split_size` elements of the inner dimension (split-K). The G groups are adjacent in the rows of x, b, y and
// sums.
#include "activations.cuh"
#include "implicit_im2col.cuh"
#include "last_block.cuh"
#include "mma.cuh"

const int FORWARD = 0, DATA = 1, WEIGHTS = 2;  // as PASSES in xpnet/accel/cupy/implicit_gemm.py

// ---- split-K ---------------------------------------------------------------------------------------------------------

// Sum `sum` of this thread over all splits of the output tile, and return whether this block has the result: the last one to
// arrive. Each writes its part to a slab of `partial`, where the thread of the same number reads it. The slabs are added in
// two levels: the last block of each `fan_in` splits adds theirs, and the last of those blocks what these found; so no block
// reads more than about two roots of the number of splits. The order of the additions is fixed.
//
// `used(i)` says which runs of 4 are within the result; the others are neither written nor read. `last`: as in is_last_block.
// Every thread of the block must call it.
template <int RUNS, typename A, typename Used>
__device__ inline bool add_splits(A (&sum)[RUNS][4], A* partial, u32* counters, int fan_in, bool& last, Used used) {
  const int splits = static_cast<int>(gridDim.z), split = static_cast<int>(blockIdx.z);
  if (splits == 1) return true;
  const int tile = static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x), teams = (splits + fan_in - 1) / fan_in;
  const int team = split / fan_in, begin = team * fan_in, end = begin + fan_in < splits ? begin + fan_in : splits;
  constexpr int SLAB = RUNS * 1024;  // of 256 threads
  constexpr bool WHOLE = RUNS >= 16;  // there are no registers left for what is used
  partial += static_cast<i64>(tile) * splits * SLAB + threadIdx.x * 4;
  counters += tile * (teams + 1);

  auto write = [&](int number) {
    A* to = partial + static_cast<i64>(number) * SLAB;
#pragma unroll
    for (int i = 0; i < RUNS; ++i) {
      Vector<A, 4> run;
#pragma unroll
      for (int j = 0; j < 4; ++j) run.at[j] = sum[i][j];
      if (WHOLE || used(i)) store<4>(to + i * 1024, run);
    }
  };
  auto add = [&](int first, int until, int step) {
#pragma unroll
    for (int i = 0; i < RUNS; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] = 0;
    const A* from = partial + static_cast<i64>(first) * SLAB;
#pragma unroll(RUNS < 8 ? 8 / RUNS : 1)
    for (int number = first; number < until; number += step, from += static_cast<i64>(step) * SLAB) {
#pragma unroll
      for (int i = 0; i < RUNS; ++i) {
        if (!WHOLE && !used(i)) continue;
        const Vector<A, 4> run = load<4>(from + i * 1024);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += run.at[j];
      }
    }
  };

  write(split);
  if (!is_last_block(counters + 1 + team, end - begin, last)) return false;
  add(begin, end, 1);
  if (teams == 1) return true;
  write(begin);
  if (!is_last_block(counters, teams, last)) return false;
  add(0, splits, fan_in);
  return true;
}

// ---- any architecture, any dtype -------------------------------------------------------------------------------------

// A block computes a tile of BM by 64, each thread BM / 16 by 4, in steps of BK = 16 of the inner dimension. Tiles are
// double-buffered: the next ones are loaded to registers while the current ones are multiplied.
template <typename T, int V, int BM, int PASS>
__global__ void __launch_bounds__(256, 2)
implicit_gemm(const T* x, const T* b, const T* bias, T* y, acc_t<T>* sums, acc_t<T>* partial, u32* counters, int positions,
              int inner, int outer, int pitch, int split_size, int fan_in, int activation, int out_h, int out_w, int H, int W,
              int pixel, int scale_h, int scale_w, int offset_h, int offset_w, int step_h, int step_w,
              FastDivmod by_channels, FastDivmod by_kw, FastDivmod by_ow, FastDivmod by_oh) {
  typedef acc_t<T> A;
  constexpr bool WGRAD = PASS == WEIGHTS, TURNED = PASS == DATA;
  constexpr int ROWS = BM / 16, BN = 64, BK = 16, LEFT = ROWS < 4 ? ROWS : 4;
  constexpr int A_RUNS = (WGRAD ? BM : BK) / V, A_STEP = 256 / A_RUNS, A_LOADS = BM * BK / V / 256;
  constexpr int B_RUNS = (TURNED ? BK : BN) / V, B_STEP = 256 / B_RUNS, B_LOADS = BN * BK / V / 256;
  __shared__ Vector<A, LEFT> a_tile[2][BK][BM / LEFT + 1];  // padded against bank conflicts
  __shared__ Vector<A, 4> b_tile[2][BK][BN / 4 + TURNED];
  const int y_pitch = gridDim.y * outer;
  x += blockIdx.y * by_channels.divisor, b += blockIdx.y * (TURNED ? by_channels.divisor : outer);  // this block's group
  TurnedKernel turned = {};
  if (TURNED)
    turned = turn(blockIdx.z, out_h, out_w, outer, inner, scale_h, scale_w, offset_h, offset_w, step_h, step_w, by_channels,
                  by_kw);
  const ImplicitIm2col<T> im2col = {x,        H,      W,      pixel,       scale_h, scale_w, offset_h,
                                    offset_w, step_h, step_w, by_channels, by_kw,   by_ow,   by_oh};
  const int thread = threadIdx.x, tiles = (outer + BN - 1) / BN;
  const int m0 = static_cast<int>(blockIdx.x) / tiles * BM, n0 = static_cast<int>(blockIdx.x) % tiles * BN;
  const int rows = WGRAD ? inner : positions, all = WGRAD ? positions : inner;
  const int begin = TURNED ? 0 : static_cast<int>(blockIdx.z) * split_size;
  const int end = TURNED || all - begin < split_size ? all : begin + split_size;

  // Constant over the inner dimension: this thread's positions, or its tap where positions are the inner dimension.
  const int a_run = thread % A_RUNS * V, a_first = thread / A_RUNS;
  typename ImplicitIm2col<T>::Position at[WGRAD ? 1 : A_LOADS];
  typename ImplicitIm2col<T>::Tap tap = {};
  if (WGRAD) {
    tap = im2col.tap(m0 + a_run, m0 + a_run < rows);
  } else {
#pragma unroll
    for (int i = 0; i < (WGRAD ? 1 : A_LOADS); ++i) {
      const int row = m0 + a_first + i * A_STEP;
      at[i] = im2col.position(row, row < rows);
    }
  }
  const int b_run = thread % B_RUNS * V, b_first = thread / B_RUNS;  // V columns of a row, or V rows of a column where TURNED

  Vector<T, V> a_next[A_LOADS], b_next[B_LOADS];
  auto load_tiles = [&](int k0) {
    if (!WGRAD) tap = im2col.tap(k0 + a_run, k0 + a_run < end);
#pragma unroll
    for (int i = 0; i < A_LOADS; ++i) {
      const int k = k0 + a_first + i * A_STEP;
      bool found;
      const T* from = im2col.address(WGRAD ? im2col.position(k, k < end) : at[WGRAD ? 0 : i], tap, found);
      a_next[i] = Vector<T, V>{};
      if (found) a_next[i] = load<V>(from);
    }
    const T* b_tap = TURNED ? b + turned.offset(tap, pitch) : b;
#pragma unroll
    for (int i = 0; i < B_LOADS; ++i) {
      const int line = b_first + i * B_STEP, k = k0 + (TURNED ? b_run : line), column = n0 + (TURNED ? line : b_run);
      b_next[i] = Vector<T, V>{};
      if (k < end && column < outer)
        b_next[i] = load<V>(TURNED ? b_tap + column * pitch : b + static_cast<i64>(k) * pitch + column);
    }
  };
  auto store_tiles = [&](int stage) {
#pragma unroll
    for (int i = 0; i < A_LOADS; ++i) {
      const int line = a_first + i * A_STEP;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        A* row = WGRAD ? a_tile[stage][line][0].at : a_tile[stage][a_run + j][0].at;
        row[WGRAD ? a_run + j : line] = widen(a_next[i].at[j]);
      }
    }
#pragma unroll
    for (int i = 0; i < B_LOADS; ++i) {
      const int line = b_first + i * B_STEP;
      Vector<A, V> wide;
#pragma unroll
      for (int j = 0; j < V; ++j) wide.at[j] = widen(b_next[i].at[j]);
      if (TURNED) {
#pragma unroll
        for (int j = 0; j < V; ++j) b_tile[stage][b_run + j][0].at[line] = wide.at[j];
      } else {
        store<V>(b_tile[stage][line][0].at + b_run, wide);
      }
    }
  };

  A sum[ROWS][4] = {};
  const int my_row = thread / 16, my_column = thread % 16;
  load_tiles(begin);
  store_tiles(0);
  __syncthreads();
  for (int k0 = begin, stage = 0; k0 < end; k0 += BK, stage ^= 1) {
    const bool more = k0 + BK < end;
    if (more) load_tiles(k0 + BK);
#pragma unroll(TURNED && sizeof(A) == 8 ? 2 : 4)
    for (int k = 0; k < BK; ++k) {
      const Vector<A, 4> right = b_tile[stage][k][my_column];
#pragma unroll
      for (int q = 0; q < ROWS / LEFT; ++q) {
        const Vector<A, LEFT> left = a_tile[stage][k][my_row * (ROWS / LEFT) + q];
#pragma unroll
        for (int i = 0; i < LEFT; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[LEFT * q + i][j] += left.at[i] * right.at[j];
      }
    }
    if (more) store_tiles(stage ^ 1);  // read before the last barrier
    __syncthreads();
  }

  const int first_row = m0 + my_row * ROWS, first_column = n0 + 4 * my_column;
  auto used = [&](int i) { return first_row + i < rows && first_column < outer; };
  bool& last = reinterpret_cast<bool&>(b_tile);
  if (!TURNED && !add_splits(sum, partial, counters, fan_in, last, used)) return;
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    const int row = first_row + i;
    i64 row_offset = static_cast<i64>(row) * y_pitch;
    if (row >= rows || (TURNED && !turned.pixel(row, by_ow, by_oh, out_h, out_w, y_pitch, row_offset))) continue;
#pragma unroll
    for (int j = 0; j < 4; j += V) {
      const int column = first_column + j, channel = blockIdx.y * outer + column;
      if (column >= outer) continue;
      const A* run = sum[i] + j;
      if (WGRAD) {
        Vector<A, V> out;
#pragma unroll
        for (int l = 0; l < V; ++l) out.at[l] = run[l];
        store<V>(sums + row_offset + channel, out);
      } else {
        Vector<T, V> shift = {}, out;
        if (bias != nullptr) shift = load<V>(bias + channel);
#pragma unroll
        for (int l = 0; l < V; ++l) out.at[l] = round_to<T>(apply_activation(activation, run[l] + widen(shift.at[l])));
        store<V>(y + row_offset + channel, out);
      }
    }
  }
}

// ---- tensor cores: TF32, float16, bfloat16 ---------------------------------------------------------------------------

// Tiles are stored in shared memory as chunks of 16 bytes. The chunks of a row are permuted (swizzled), so that the eight
// chunks of one access are in eight different groups of banks.
__device__ inline int swizzle_4(int row, int chunk) { return row * 4 + (chunk ^ (row >> 1 & 3)); }  // rows of four chunks
template <typename T, int CHUNKS>
__device__ inline int swizzle(int k, int chunk) {  // rows of CHUNKS
  return CHUNKS == 4 ? swizzle_4(k, chunk) : k * CHUNKS + (chunk ^ (sizeof(T) == 2 ? k & 7 : (k & 3) * 2));
}

// A block of 8 warps computes a tile of BM by BN in steps of 64 bytes of the inner dimension, a pipeline of three stages of
// asynchronous copies. A warp computes 32 columns and BM * BN / 256 rows: 64 of a tile of 128 by 128, 16 of 64 by 64. A
// group's C and O are multiples of 16 bytes.
template <typename T, int BM, int BN, int PASS>
__global__ void __launch_bounds__(256, 2)
implicit_gemm_mma(const T* x, const T* b, const T* bias, T* y, float* sums, float* partial, u32* counters, int positions,
                  int inner, int outer, int pitch, int split_size, int fan_in, int activation, int out_h, int out_w, int H,
                  int W, int pixel, int scale_h, int scale_w, int offset_h, int offset_w, int step_h, int step_w,
                  FastDivmod by_channels, FastDivmod by_kw, FastDivmod by_ow, FastDivmod by_oh) {
#ifdef HAS_MMA
  constexpr bool WGRAD = PASS == WEIGHTS, TURNED = PASS == DATA;
  constexpr int V = 16 / sizeof(T), BK = 4 * V, STAGES = 3, A_CHUNKS = BM / V, B_CHUNKS = BN / V;
  constexpr int WARPS_N = BN / 32, TILES_M = BM * WARPS_N / 8 / 16, A_LOADS = BM * 4 / 256;
  alignas(512) __shared__ Chunk a_tile[STAGES][BM * 4];  // aligned to a row, so that chunks can be flipped
  alignas(512) __shared__ Chunk b_tile[STAGES][BN * 4];
  const int y_pitch = gridDim.y * outer;
  x += blockIdx.y * by_channels.divisor, b += blockIdx.y * (TURNED ? by_channels.divisor : outer);  // this block's group
  TurnedKernel turned = {};
  if (TURNED)
    turned = turn(blockIdx.z, out_h, out_w, outer, inner, scale_h, scale_w, offset_h, offset_w, step_h, step_w, by_channels,
                  by_kw);
  const ImplicitIm2col<T> im2col = {x,        H,      W,      pixel,       scale_h, scale_w, offset_h,
                                    offset_w, step_h, step_w, by_channels, by_kw,   by_ow,   by_oh};
  const int thread = threadIdx.x, tiles = (outer + BN - 1) / BN;
  const int m0 = static_cast<int>(blockIdx.x) / tiles * BM, n0 = static_cast<int>(blockIdx.x) % tiles * BN;
  const int rows = WGRAD ? inner : positions, all = WGRAD ? positions : inner;
  const int begin = TURNED ? 0 : static_cast<int>(blockIdx.z) * split_size;
  const int end = TURNED || all - begin < split_size ? all : begin + split_size;

  const int a_chunk = WGRAD ? thread % A_CHUNKS : thread % 4, a_first = WGRAD ? thread / A_CHUNKS : thread / 4;
  constexpr int A_STEP = WGRAD ? 256 / A_CHUNKS : 64;
  typename ImplicitIm2col<T>::Position at[A_LOADS] = {};
  typename ImplicitIm2col<T>::Tap tap = {};
  if (WGRAD) {
    tap = im2col.tap(m0 + a_chunk * V, m0 + a_chunk * V < rows);
  } else {
#pragma unroll
    for (int i = 0; i < A_LOADS; ++i)
      at[i] = im2col.position(m0 + a_first + i * A_STEP, m0 + a_first + i * A_STEP < rows);
  }
  auto load_tiles = [&](int stage, int k0) {
    if (!WGRAD) tap = im2col.tap(k0 + a_chunk * V, k0 + a_chunk * V < end);
#pragma unroll
    for (int i = 0; i < A_LOADS; ++i) {
      const int line = a_first + i * A_STEP;
      bool found;
      const T* from = im2col.address(WGRAD ? im2col.position(k0 + line, k0 + line < end) : at[i], tap, found);
      cp_async(&a_tile[stage][WGRAD ? swizzle<T, A_CHUNKS>(line, a_chunk) : swizzle_4(line, a_chunk)], from, found);
    }
    const T* b_tap = TURNED ? b + turned.offset(tap, pitch) : b;
#pragma unroll
    for (int i = 0; i < (BN * 4 + 255) / 256; ++i) {
      // Half of the threads load a narrow tile. A thread's chunk of a row is the same in both factors where TURNED.
      const int place = thread + i * 256, line = place / (TURNED ? 4 : B_CHUNKS), chunk = place % (TURNED ? 4 : B_CHUNKS);
      if (BN * 4 < 256 && line >= (TURNED ? BN : BK)) break;
      const int k = k0 + (TURNED ? chunk * V : line), column = n0 + (TURNED ? line : chunk * V);
      const bool found = k < end && column < outer;
      const T* from = TURNED ? b_tap + column * pitch : b + static_cast<i64>(k) * pitch + column;
      cp_async(&b_tile[stage][TURNED ? swizzle_4(line, chunk) : swizzle<T, B_CHUNKS>(line, chunk)], found ? from : b, found);
    }
  };

  const int lane = thread % 32, g = lane / 4, t = lane % 4, part = lane / 8, line = lane % 8;
  const int warp_m = thread / 32 / WARPS_N * TILES_M * 16, warp_n = thread / 32 % WARPS_N * 32;
  float sum[TILES_M][4][4] = {};
  // Where this lane's first elements are in the tiles of stage 0. What it reads later differs by constants that the loads hold:
  // rows are added, chunks of a row are flipped (^), as the permutation flips them too. So the loop computes no addresses.
  SharedAddress a_first_element, b_first_element;
  if (!WGRAD)
    a_first_element = shared_address(&a_tile[0][swizzle_4(warp_m + part % 2 * 8 + line, part / 2)]);
  else if (sizeof(T) == 2)
    a_first_element = shared_address(&a_tile[0][swizzle<T, A_CHUNKS>(part / 2 * 8 + line, warp_m / V + part % 2)]);
  else
    a_first_element = shared_address(&a_tile[0][swizzle<T, A_CHUNKS>(t, (warp_m + g) / 4)].at[g % 4]);
  if (TURNED)
    b_first_element = shared_address(&b_tile[0][swizzle_4(warp_n + part / 2 * 8 + line, part % 2)]);
  else if (sizeof(T) == 2)
    b_first_element = shared_address(&b_tile[0][swizzle<T, B_CHUNKS>(part % 2 * 8 + line, warp_n / V + part / 2)]);
  else
    b_first_element = shared_address(&b_tile[0][swizzle<T, B_CHUNKS>(t, (warp_n + g) / 4)].at[g % 4]);
  auto multiply_tiles = [&](int stage) {
    const SharedAddress a_now = a_first_element + stage * (BM * 64), b_now = b_first_element + stage * (BN * 64);
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // 32 bytes of the inner dimension: one mma instruction
      u32 right[4][2];
      if (sizeof(T) == 2) {
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          u32 four[4];
          ldmatrix<true>(four, (b_now ^ j * 16) + half * 16 * B_CHUNKS * 16);
          right[j][0] = four[0], right[j][1] = four[1], right[j + 1][0] = four[2], right[j + 1][1] = four[3];
        }
      } else {  // ldmatrix transposes 16-bit elements only
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int q = 0; q < 2; ++q)
            right[j][q] = to_tf32(load_word((b_now ^ j * 32) + (half * 8 + q * 4) * B_CHUNKS * 16));
      }
#pragma unroll
      for (int i = 0; i < TILES_M; ++i) {
        u32 left[4];
        if (!WGRAD) {
          ldmatrix<false>(left, (a_now ^ half * 32) + i * 16 * 64);
        } else if (sizeof(T) == 2) {
          ldmatrix<true>(left, (a_now ^ i * 32) + half * 16 * A_CHUNKS * 16);
        } else {
#pragma unroll
          for (int q = 0; q < 4; ++q)
            left[q] = load_word((a_now ^ (i * 64 + q % 2 * 32)) + (half * 8 + q / 2 * 4) * A_CHUNKS * 16);
        }
        if (sizeof(T) == 4) {
#pragma unroll
          for (int q = 0; q < 4; ++q) left[q] = to_tf32(left[q]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) mma<T>(sum[i][j], left, right[j]);
      }
    }
  };

  // The same where TURNED: the elements of both factors that one instruction takes are adjacent in shared memory.
  auto multiply_turned_tiles = [&](int stage) {
    const SharedAddress a_now = a_first_element + stage * (BM * 64), b_now = b_first_element + stage * (BN * 64);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      u32 right[2][4];  // of four times 8 columns
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        ldmatrix<false>(right[j], (b_now ^ half * 32) + j * 16 * 64);
        if (sizeof(T) == 4) {
#pragma unroll
          for (int q = 0; q < 4; ++q) right[j][q] = to_tf32(right[j][q]);
        }
      }
#pragma unroll
      for (int i = 0; i < TILES_M; ++i) {
        u32 left[4];
        ldmatrix<false>(left, (a_now ^ half * 32) + i * 16 * 64);
        if (sizeof(T) == 4) {
#pragma unroll
          for (int q = 0; q < 4; ++q) left[q] = to_tf32(left[q]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const u32 pair[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
          mma<T>(sum[i][j], left, pair);
        }
      }
    }
  };

  const int slices = (end - begin + BK - 1) / BK;
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < slices) load_tiles(s, begin + s * BK);
    cp_async_commit();
  }
  for (int s = 0, stage = 0; s < slices; ++s) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // all copies have arrived, and all warps are done with the stage that is filled next
    const int last = stage == 0 ? STAGES - 1 : stage - 1;
    if (s + STAGES - 1 < slices) load_tiles(last, begin + (s + STAGES - 1) * BK);
    cp_async_commit();
    if (TURNED)
      multiply_turned_tiles(stage);
    else
      multiply_tiles(stage);
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }

  const int first_row = m0 + warp_m + g, first_column = n0 + warp_n + 2 * t;
  auto used = [&](int i) { return first_row + i / 4 * 16 < rows && first_column + i % 4 * 8 < outer; };
  bool& last = reinterpret_cast<bool&>(b_tile);
  auto& runs = reinterpret_cast<float(&)[TILES_M * 4][4]>(sum);
  // Tiles of 128 by 128 are for results that occupy the device without splits.
  constexpr bool SPLIT = WGRAD || (!TURNED && BM * BN < 128 * 128);
  if (SPLIT && !add_splits(runs, partial, counters, fan_in, last, used)) return;
#pragma unroll
  for (int i = 0; i < TILES_M; ++i)
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const int row = first_row + i * 16 + q * 8;
      i64 row_offset = static_cast<i64>(row) * y_pitch;
      if (row >= rows || (TURNED && !turned.pixel(row, by_ow, by_oh, out_h, out_w, y_pitch, row_offset))) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = first_column + j * 8, channel = blockIdx.y * outer + column;
        if (column >= outer) continue;
        float first = sum[i][j][2 * q], second = sum[i][j][2 * q + 1];
        if (WGRAD) {
          store<2>(sums + row_offset + channel, Vector<float, 2>{{first, second}});
        } else {
          if (bias != nullptr) first += widen(bias[channel]), second += widen(bias[channel + 1]);
          first = apply_activation(activation, first), second = apply_activation(activation, second);
          store<2>(y + row_offset + channel, Vector<T, 2>{{round_to<T>(first), round_to<T>(second)}});
        }
      }
    }
#endif
}
