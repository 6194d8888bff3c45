// Convolution as one matrix product whose left factor, the columns of the images, exists only in shared memory.
//
//   x (N, H, W, G*C)   columns of a group (P, K): P = N*OH*OW positions, K = KH*KW*C, see gather.cuh
//   forward, and the gradient of the images:   y (P, G*O) = activation(columns @ b (K, G*O) + bias), group by group
//   WEIGHTS, the gradient of the kernel:       partial (splits, K, G*O), the sums over a span of positions each of
//                                              columns^T @ b (P, G*O), group by group
// Row (n, oh, ow) of y lies at y_first + n * y_image + oh * y_row + ow * y_pixel.
// G groups that do not see each other lie beside each other in the rows of all of these; a block works for one of them.
// Partial sums are added up by a second kernel in a fixed order, so results are the same every time.
#include "activated.cuh"
#include "gather.cuh"
#include "mma.cuh"

// ---- any architecture, any dtype -------------------------------------------------------------------------------------

// A block of 256 threads makes a tile of 16*ROWS by 64, each thread ROWS by 4, from slices of 16 columns. The next slice
// is on its way to registers while the present one is worked on.
template <typename T, int V, bool WEIGHTS>
__global__ void __launch_bounds__(256, 2)
implicit_gemm(const T* x, const T* b, const T* bias, T* y, acc_t<T>* partial, int positions, int inner, int outer,
              int pitch, int span, int activation, i64 y_first, i64 y_image, i64 y_row, i64 y_pixel, int H, int W,
              int pixel, int scale_h, int scale_w, int offset_h, int offset_w, int step_h, int step_w,
              Divisor by_channels, Divisor by_kw, Divisor by_ow, Divisor by_oh) {
  typedef acc_t<T> A;
  constexpr int ROWS = sizeof(A) == 4 ? 8 : 4, BM = 16 * ROWS, BN = 64, BK = 16;
  constexpr int A_RUNS = (WEIGHTS ? BM : BK) / V, A_STEP = 256 / A_RUNS, A_LOADS = BM * BK / V / 256;
  constexpr int B_RUNS = BN / V, B_STEP = 256 / B_RUNS, B_LOADS = BK / B_STEP;
  __shared__ Vector<A, 4> a_tile[2][BK][BM / 4 + 1];  // one more: rows that follow each other begin in other banks
  __shared__ Vector<A, 4> b_tile[2][BK][BN / 4];
  x += blockIdx.y * by_channels.divisor, b += blockIdx.y * outer;  // this block's group
  const Gather<T> gather = {x,        H,      W,      pixel,       scale_h, scale_w, offset_h,
                            offset_w, step_h, step_w, by_channels, by_kw,   by_ow,   by_oh};
  const int thread = threadIdx.x, tiles = (outer + BN - 1) / BN;
  const int m0 = static_cast<int>(blockIdx.x) / tiles * BM, n0 = static_cast<int>(blockIdx.x) % tiles * BN;
  const int rows = WEIGHTS ? inner : positions, begin = WEIGHTS ? static_cast<int>(blockIdx.z) * span : 0;
  const int end = WEIGHTS ? (positions - begin < span ? positions : begin + span) : inner;

  // What stays the same from slice to slice: this thread's positions, or its taps where positions are summed over.
  const int a_run = thread % A_RUNS * V, a_first = thread / A_RUNS;
  typename Gather<T>::Position at[WEIGHTS ? 1 : A_LOADS];
  typename Gather<T>::Tap tap = {};
  if (WEIGHTS) {
    tap = gather.tap(m0 + a_run, m0 + a_run < rows);
  } else {
#pragma unroll
    for (int i = 0; i < (WEIGHTS ? 1 : A_LOADS); ++i) {
      const int row = m0 + a_first + i * A_STEP;
      at[i] = gather.position(row, row < rows);
    }
  }
  const int b_run = n0 + thread % B_RUNS * V, b_first = thread / B_RUNS;

  Vector<T, V> a_next[A_LOADS], b_next[B_LOADS];
  auto fetch = [&](int k0) {
    if (!WEIGHTS) tap = gather.tap(k0 + a_run, k0 + a_run < end);
#pragma unroll
    for (int i = 0; i < A_LOADS; ++i) {
      const int k = k0 + a_first + i * A_STEP;
      bool found;
      const T* from = gather.find(WEIGHTS ? gather.position(k, k < end) : at[WEIGHTS ? 0 : i], tap, found);
      a_next[i] = Vector<T, V>{};
      if (found) a_next[i] = load<V>(from);
    }
#pragma unroll
    for (int i = 0; i < B_LOADS; ++i) {
      const int k = k0 + b_first + i * B_STEP;
      b_next[i] = Vector<T, V>{};
      if (k < end && b_run < outer) b_next[i] = load<V>(b + static_cast<i64>(k) * pitch + b_run);
    }
  };
  auto put = [&](int stage) {
#pragma unroll
    for (int i = 0; i < A_LOADS; ++i) {
      const int line = a_first + i * A_STEP;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        A* row = WEIGHTS ? a_tile[stage][line][0].at : a_tile[stage][a_run + j][0].at;
        row[WEIGHTS ? a_run + j : line] = up(a_next[i].at[j]);
      }
    }
#pragma unroll
    for (int i = 0; i < B_LOADS; ++i) {
      Vector<A, V> wide;
#pragma unroll
      for (int j = 0; j < V; ++j) wide.at[j] = up(b_next[i].at[j]);
      store<V>(b_tile[stage][b_first + i * B_STEP][0].at + thread % B_RUNS * V, wide);
    }
  };

  A sum[ROWS][4] = {};
  const int my_row = thread / 16, my_column = thread % 16;
  fetch(begin);
  put(0);
  __syncthreads();
  for (int k0 = begin, stage = 0; k0 < end; k0 += BK, stage ^= 1) {
    const bool more = k0 + BK < end;
    if (more) fetch(k0 + BK);
#pragma unroll 4
    for (int k = 0; k < BK; ++k) {
      const Vector<A, 4> right = b_tile[stage][k][my_column];
#pragma unroll
      for (int q = 0; q < ROWS / 4; ++q) {
        const Vector<A, 4> left = a_tile[stage][k][my_row * (ROWS / 4) + q];
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[4 * q + i][j] += left.at[i] * right.at[j];
      }
    }
    if (more) put(stage ^ 1);  // which was read before the last barrier
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    const int row = m0 + my_row * ROWS + i;
    if (row >= rows) continue;
    const i64 begins = WEIGHTS ? (static_cast<i64>(blockIdx.z) * rows + row) * pitch
                               : place(row, by_ow, by_oh, y_first, y_image, y_row, y_pixel);
#pragma unroll
    for (int j = 0; j < 4; j += V) {
      const int column = n0 + 4 * my_column + j, channel = blockIdx.y * outer + column;
      if (column >= outer) continue;
      const A* run = sum[i] + j;
      if (WEIGHTS) {
        Vector<A, V> out;
#pragma unroll
        for (int l = 0; l < V; ++l) out.at[l] = run[l];
        store<V>(partial + begins + channel, out);
      } else {
        Vector<T, V> shift = {}, out;
        if (bias != nullptr) shift = load<V>(bias + channel);
#pragma unroll
        for (int l = 0; l < V; ++l) out.at[l] = down<T>(activated_by(activation, run[l] + up(shift.at[l])));
        store<V>(y + begins + channel, out);
      }
    }
  }
}

// ---- tensor cores: TF32, float16, bfloat16 ---------------------------------------------------------------------------

// Tiles lie in shared memory as chunks of 16 bytes. The eight chunks of one access are kept in eight different groups of
// banks by permuting the chunks of a row.
__device__ inline int across(int row, int chunk) { return row * 4 + (chunk ^ (row >> 1 & 3)); }  // rows of four chunks
template <typename T, int CHUNKS>
__device__ inline int along(int k, int chunk) {  // rows of CHUNKS
  return CHUNKS == 4 ? across(k, chunk) : k * CHUNKS + (chunk ^ (sizeof(T) == 2 ? k & 7 : (k & 3) * 2));
}

// A block of 8 warps makes a tile of BM by BN, from slices of 64 bytes of columns, three of which are in flight. A warp
// makes 32 columns of it and as many rows as there are for each: 64 of 128 by 128, 16 of 64 by 64. A group's C and O are multiples of 16 bytes' worth of elements.
template <typename T, int BM, int BN, bool WEIGHTS>
__global__ void __launch_bounds__(256, 2)
implicit_gemm_mma(const T* x, const T* b, const T* bias, T* y, float* partial, int positions, int inner, int outer,
                  int pitch, int span, int activation, i64 y_first, i64 y_image, i64 y_row, i64 y_pixel, int H, int W,
                  int pixel, int scale_h, int scale_w, int offset_h, int offset_w, int step_h, int step_w,
                  Divisor by_channels, Divisor by_kw, Divisor by_ow, Divisor by_oh) {
#ifdef HAS_MMA
  constexpr int V = 16 / sizeof(T), BK = 4 * V, STAGES = 3, A_CHUNKS = BM / V, B_CHUNKS = BN / V;
  constexpr int WARPS_N = BN / 32, TILES_M = BM * WARPS_N / 8 / 16, A_LOADS = BM * 4 / 256;
  __shared__ Chunk a_tile[STAGES][BM * 4];
  __shared__ Chunk b_tile[STAGES][BN * 4];
  x += blockIdx.y * by_channels.divisor, b += blockIdx.y * outer;  // this block's group
  const Gather<T> gather = {x,        H,      W,      pixel,       scale_h, scale_w, offset_h,
                            offset_w, step_h, step_w, by_channels, by_kw,   by_ow,   by_oh};
  const int thread = threadIdx.x, tiles = (outer + BN - 1) / BN;
  const int m0 = static_cast<int>(blockIdx.x) / tiles * BM, n0 = static_cast<int>(blockIdx.x) % tiles * BN;
  const int rows = WEIGHTS ? inner : positions, begin = WEIGHTS ? static_cast<int>(blockIdx.z) * span : 0;
  const int end = WEIGHTS ? (positions - begin < span ? positions : begin + span) : inner;

  const int a_chunk = WEIGHTS ? thread % A_CHUNKS : thread % 4, a_first = WEIGHTS ? thread / A_CHUNKS : thread / 4;
  constexpr int A_STEP = WEIGHTS ? 256 / A_CHUNKS : 64;
  typename Gather<T>::Position at[A_LOADS] = {};
  typename Gather<T>::Tap tap = {};
  if (WEIGHTS) {
    tap = gather.tap(m0 + a_chunk * V, m0 + a_chunk * V < rows);
  } else {
#pragma unroll
    for (int i = 0; i < A_LOADS; ++i)
      at[i] = gather.position(m0 + a_first + i * A_STEP, m0 + a_first + i * A_STEP < rows);
  }
  auto fetch = [&](int stage, int k0) {
    if (!WEIGHTS) tap = gather.tap(k0 + a_chunk * V, k0 + a_chunk * V < end);
#pragma unroll
    for (int i = 0; i < A_LOADS; ++i) {
      const int line = a_first + i * A_STEP;
      bool found;
      const T* from = gather.find(WEIGHTS ? gather.position(k0 + line, k0 + line < end) : at[i], tap, found);
      copy_async(&a_tile[stage][WEIGHTS ? along<T, A_CHUNKS>(line, a_chunk) : across(line, a_chunk)], from, found);
    }
#pragma unroll
    for (int i = 0; i < (BN * 4 + 255) / 256; ++i) {
      const int k = (thread + i * 256) / B_CHUNKS, chunk = (thread + i * 256) % B_CHUNKS;
      if (BN * 4 < 256 && k >= BK) break;  // half of the threads bring a narrow tile
      const bool found = k0 + k < end && n0 + chunk * V < outer;
      const T* from = b + static_cast<i64>(k0 + k) * pitch + n0 + chunk * V;
      copy_async(&b_tile[stage][along<T, B_CHUNKS>(k, chunk)], found ? from : b, found);
    }
  };

  const int lane = thread % 32, g = lane / 4, t = lane % 4, part = lane / 8, line = lane % 8;
  const int warp_m = thread / 32 / WARPS_N * TILES_M * 16, warp_n = thread / 32 % WARPS_N * 32;
  float sum[TILES_M][4][4] = {};
  // One element of a tile with rows of CHUNKS chunks, for what ldmatrix cannot transpose: 32 bits.
  auto word = [](const Chunk* tile, int index, int element) { return tile[index].at[element % 4]; };
  auto work = [&](int stage) {
    const Chunk *a_now = a_tile[stage], *b_now = b_tile[stage];
#pragma unroll 1  // unrolled, two blocks would not find room in the registers
    for (int half = 0; half < 2; ++half) {  // 32 bytes of columns: one product of the tensor cores
      u32 right[4][2];
      if (sizeof(T) == 2) {
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          u32 four[4];
          const int k = half * 16 + part % 2 * 8 + line, chunk = (warp_n + j * 8) / V + part / 2;
          load_matrices<true>(four, b_now + along<T, B_CHUNKS>(k, chunk));
          right[j][0] = four[0], right[j][1] = four[1], right[j + 1][0] = four[2], right[j + 1][1] = four[3];
        }
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int q = 0; q < 2; ++q) {
            const int k = half * 8 + q * 4 + t, n = warp_n + j * 8 + g;
            right[j][q] = to_tf32(word(b_now, along<T, B_CHUNKS>(k, n / 4), n));
          }
      }
#pragma unroll
      for (int i = 0; i < TILES_M; ++i) {
        const int m = warp_m + i * 16;
        u32 left[4];
        if (!WEIGHTS) {
          load_matrices<false>(left, a_now + across(m + part % 2 * 8 + line, half * 2 + part / 2));
        } else if (sizeof(T) == 2) {
          const int k = half * 16 + part / 2 * 8 + line;
          load_matrices<true>(left, a_now + along<T, A_CHUNKS>(k, m / V + part % 2));
        } else {
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            const int k = half * 8 + q / 2 * 4 + t, row = m + q % 2 * 8 + g;
            left[q] = word(a_now, along<T, A_CHUNKS>(k, row / 4), row);
          }
        }
        if (sizeof(T) == 4) {
#pragma unroll
          for (int q = 0; q < 4; ++q) left[q] = to_tf32(left[q]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply<T>(sum[i][j], left, right[j]);
      }
    }
  };

  const int slices = (end - begin + BK - 1) / BK;
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < slices) fetch(s, begin + s * BK);
    copy_commit();
  }
  for (int s = 0, stage = 0; s < slices; ++s) {
    copy_wait<STAGES - 2>();
    __syncthreads();  // everybody's copies have arrived, and everybody is done with the stage that is filled next
    const int last = stage == 0 ? STAGES - 1 : stage - 1;
    if (s + STAGES - 1 < slices) fetch(last, begin + (s + STAGES - 1) * BK);
    copy_commit();
    work(stage);
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }

#pragma unroll
  for (int i = 0; i < TILES_M; ++i)
#pragma unroll
    for (int q = 0; q < 2; ++q) {
      const int row = m0 + warp_m + i * 16 + q * 8 + g;
      if (row >= rows) continue;
      const i64 begins = WEIGHTS ? (static_cast<i64>(blockIdx.z) * rows + row) * pitch
                                 : place(row, by_ow, by_oh, y_first, y_image, y_row, y_pixel);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = n0 + warp_n + j * 8 + 2 * t, channel = blockIdx.y * outer + column;
        if (column >= outer) continue;
        float first = sum[i][j][2 * q], second = sum[i][j][2 * q + 1];
        if (WEIGHTS) {
          store<2>(partial + begins + channel, Vector<float, 2>{{first, second}});
        } else {
          if (bias != nullptr) first += up(bias[channel]), second += up(bias[channel + 1]);
          first = activated_by(activation, first), second = activated_by(activation, second);
          store<2>(y + begins + channel, Vector<T, 2>{{down<T>(first), down<T>(second)}});
        }
      }
    }
#endif
}
