// The forward pass of implicit_gemm.cu, and its gradient of the images, on the tensor cores of compute capability 9.0: two
// groups of four warps make a tile of 128 by 128 of y from tiles that lie in shared memory. Code for sm_90a only.
#include "activated.cuh"
#include "gather.cuh"
#include "wgmma.cuh"

// Slices of 64 columns; three are in flight, 32 KiB each. A group's C and O are multiples of 8.
template <typename T>
__global__ void __launch_bounds__(256, 2)
implicit_gemm_wgmma(const T* x, const T* b, const T* bias, T* y, int positions, int inner, int outer, int pitch,
                    int activation, i64 y_first, i64 y_image, i64 y_row, i64 y_pixel, int H, int W, int pixel,
                    int scale_h, int scale_w, int offset_h, int offset_w, int step_h, int step_w, Divisor by_channels,
                    Divisor by_kw, Divisor by_ow, Divisor by_oh) {
#ifdef HAS_WGMMA
  constexpr int V = 8, BM = 128, BN = 128, BK = 64, STAGES = 3, A_TILE = BM * BK / V, STAGE = A_TILE + BK * BN / V;
#ifdef __CUDACC__
  extern __shared__ __align__(1024) Chunk tiles[];
#else
  alignas(1024) __shared__ Chunk tiles[STAGES * STAGE];
#endif
  x += blockIdx.y * by_channels.divisor, b += blockIdx.y * outer;  // this block's group
  const Gather<T> gather = {x,        H,      W,      pixel,       scale_h, scale_w, offset_h,
                            offset_w, step_h, step_w, by_channels, by_kw,   by_ow,   by_oh};
  const int thread = threadIdx.x, across = (outer + BN - 1) / BN;
  const int m0 = static_cast<int>(blockIdx.x) / across * BM, n0 = static_cast<int>(blockIdx.x) % across * BN;

  const int a_chunk = thread % 8, a_first = thread / 8, b_chunk = thread % 16, b_first = thread / 16;
  typename Gather<T>::Position at[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) at[i] = gather.position(m0 + a_first + i * 32, m0 + a_first + i * 32 < positions);
  auto fetch = [&](int stage, int k0) {
    Chunk *a_tile = tiles + stage * STAGE, *b_tile = a_tile + A_TILE;
    const typename Gather<T>::Tap tap = gather.tap(k0 + a_chunk * V, k0 + a_chunk * V < inner);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = a_first + i * 32;
      bool found;
      const T* from = gather.find(at[i], tap, found);
      copy_async(a_tile + row * 8 + (a_chunk ^ (row & 7)), from, found);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = b_first + i * 16, column = n0 + b_chunk * V;
      const bool found = k0 + k < inner && column < outer;
      const T* from = b + static_cast<i64>(k0 + k) * pitch + column;
      copy_async(b_tile + b_chunk / 8 * (BK * 8) + k * 8 + (b_chunk % 8 ^ (k & 7)), found ? from : b, found);
    }
  };

  const int group = thread / 128;
  float sum[64] = {};
  const int slices = (inner + BK - 1) / BK;
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < slices) fetch(s, s * BK);
    copy_commit();
  }
  for (int s = 0, stage = 0; s < slices; ++s) {
    copy_wait<STAGES - 2>();
    copies_for_products();
    products_wait(sum);
    __syncthreads();  // everybody's copies have arrived, and everybody is done with the stage that is filled next
    const Chunk *a_tile = tiles + stage * STAGE, *b_tile = a_tile + A_TILE;
    products_begin();
#pragma unroll
    for (int k = 0; k < BK / 16; ++k)
      multiply_tiles<T>(sum, tile_address(a_tile + group * 512 + k * 2, 16, 1024),
                        tile_address(b_tile + k * 128, BK * 128, 1024));
    products_commit();
    const int last = stage == 0 ? STAGES - 1 : stage - 1;
    if (s + STAGES - 1 < slices) fetch(last, (s + STAGES - 1) * BK);
    copy_commit();
    stage = stage == STAGES - 1 ? 0 : stage + 1;
  }
  products_wait(sum);

  const int lane = thread % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    const int row = m0 + thread / 32 * 16 + q * 8 + g;
    if (row >= positions) continue;
    T* to = y + place(row, by_ow, by_oh, y_first, y_image, y_row, y_pixel);
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const int column = n0 + j * 8 + 2 * t, channel = blockIdx.y * outer + column;
      if (column >= outer) continue;
      float first = sum[4 * j + 2 * q], second = sum[4 * j + 2 * q + 1];
      if (bias != nullptr) first += up(bias[channel]), second += up(bias[channel + 1]);
      first = activated_by(activation, first), second = activated_by(activation, second);
      store<2>(to + channel, Vector<T, 2>{{down<T>(first), down<T>(second)}});
    }
  }
#endif
}
