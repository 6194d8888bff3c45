// Tensor cores of compute capability 9.0 as a group of four warps uses them: products of tiles that lie in shared memory,
// done while the warps go on. The machine instructions are written out; a plain C++ compiler gets functions of the emulator.
//
// Rows of both tiles are 128 bytes, in groups of 8 (1024 bytes, which the tiles begin at multiples of), and 16-byte chunk c
// of row r lies in the place of chunk c ^ (r % 8).
//
// Source: NVIDIA, "Parallel Thread Execution ISA", sections on wgmma and its matrix descriptors (128-byte swizzling).
#pragma once
#include "mma.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HAS_WGMMA 1
#endif

#ifdef HAS_WGMMA

// Where a tile begins, the bytes from one block of 128-byte rows to the next along M or N (`leading`, for tiles with rows
// along these), and from one group of 8 rows to the next (`stride`).
#ifdef __CUDACC__
typedef u64 TileAddress;
__device__ inline TileAddress tile_address(const Chunk* start, int leading, int stride) {
  const u64 swizzled = 1;  // over 128 bytes
  return static_cast<u64>((shared_address(start) & 0x3ffff) >> 4) | static_cast<u64>(leading >> 4) << 16 |
         static_cast<u64>(stride >> 4) << 32 | swizzled << 62;
}
#else
typedef emulator::TileAddress TileAddress;
inline TileAddress tile_address(const Chunk* start, int leading, int stride) {
  return {reinterpret_cast<const char*>(start), leading, stride};
}
#endif

// What this thread's copies have written becomes visible to products after the next barrier.
__device__ inline void copies_for_products() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async;" ::: "memory");
#endif
}

// Before the first product of a series, and after its last one.
__device__ inline void products_begin() {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ inline void products_commit() {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// All products are done, and their sums can be read.
__device__ inline void products_wait(float (&c)[64]) {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(c[i])::"memory");
#else
  emulator_products_wait();
#endif
}

// c += a b for a (64, 16) with rows along K and b (16, 128) with rows along N, 16-bit elements. With w the warp's number in
// its group, c[4 * j + 2 * q + i] is element (16 * w + 8 * q + g, 8 * j + 2 * t + i) (g = lane / 4, t = lane % 4).
template <typename T>
__device__ inline void multiply_tiles(float (&c)[64], TileAddress a, TileAddress b);

#ifdef __CUDACC__
#define XPNET_4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define XPNET_16(i) XPNET_4(i), XPNET_4(i + 4), XPNET_4(i + 8), XPNET_4(i + 12)
#define XPNET_WGMMA(T, NAME)                                                                                   \
  template <>                                                                                                  \
  __device__ inline void multiply_tiles<T>(float (&c)[64], TileAddress a, TileAddress b) {                     \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME                                  \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19," \
                 " %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37,"  \
                 " %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55,"  \
                 " %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, 1, 1, 1, 0, 1;"                          \
                 : XPNET_16(0), XPNET_16(16), XPNET_16(32), XPNET_16(48)                                       \
                 : "l"(a), "l"(b));                                                                            \
  }
XPNET_WGMMA(float16, "f16")
XPNET_WGMMA(bfloat16, "bf16")
#undef XPNET_WGMMA
#undef XPNET_16
#undef XPNET_4
#else
template <>
inline void multiply_tiles<float16>(float (&c)[64], TileAddress a, TileAddress b) {
  emulator_multiply_tiles(c, a, b, [](u16 bits) { return up(float16{bits}); });
}
template <>
inline void multiply_tiles<bfloat16>(float (&c)[64], TileAddress a, TileAddress b) {
  emulator_multiply_tiles(c, a, b, [](u16 bits) { return up(bfloat16{bits}); });
}
#endif

#endif  // HAS_WGMMA
