// Tensor cores of compute capability 8.0 and later, for one warp: asynchronous copies to shared memory (cp.async), loads of
// 8x8 matrices (ldmatrix), and the product of a 16x(32 bytes) by a (32 bytes)x8 tile (mma). Inline PTX for NVRTC; a plain
// C++ compiler gets functions of the emulator that move the same registers between the same lanes.
//
// Source of the layouts: NVIDIA, "Parallel Thread Execution ISA", sections on ldmatrix, mma.m16n8k8 and mma.m16n8k16.
#pragma once
#include "common.cuh"

#if !defined(__CUDACC__) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
#define HAS_MMA 1
#endif

#ifdef HAS_MMA

typedef Vector<u32, 4> Chunk;  // 16 bytes: one copy, or one row of an 8x8 matrix

// The 32-bit address in shared memory that PTX instructions take instead of a pointer. It is a number, to which the compiler
// adds constants within the load.
#ifdef __CUDACC__
typedef u32 SharedAddress;
__device__ inline SharedAddress shared_address(const void* p) {
  u64 wide;
  asm("cvta.to.shared.u64 %0, %1;" : "=l"(wide) : "l"(p));
  return static_cast<u32>(wide);
}
__device__ inline u32 load_word(SharedAddress from) {
  u32 word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
  return word;
}
#else
typedef u64 SharedAddress;
inline SharedAddress shared_address(const void* p) { return reinterpret_cast<SharedAddress>(p); }
inline u32 load_word(SharedAddress from) { return *reinterpret_cast<const u32*>(from); }
#endif

// Start to copy 16 bytes from global to shared memory; where not `inside`, clear them without reading `from`.
__device__ inline void cp_async(Chunk* to, const void* from, bool inside) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
#else
  emulator_cp_async(to, inside ? from : nullptr);
#endif
}

// Close a group of copies of this thread; `cp_async_wait<N>` waits for all but the N latest groups.
__device__ inline void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulator_cp_async_commit();
#endif
}
template <int N>
__device__ inline void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
  emulator_cp_async_wait(N);
#endif
}

// Load four 8x8 matrices of 16-bit elements. Lane 8j + r gives the address of row r of matrix j; in r[j] a lane gets elements
// 2t and 2t + 1 of row g of matrix j (g = lane / 4, t = lane % 4), or of column g where TRANSPOSED. Read as 32-bit
// elements, a row has four of them and a lane gets the t-th.
template <bool TRANSPOSED>
__device__ inline void ldmatrix(u32 (&r)[4], SharedAddress row) {
#ifdef __CUDACC__
  if (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
#else
  emulator_ldmatrix(r, reinterpret_cast<const Chunk*>(row), TRANSPOSED);
#endif
}

// Round a float to the 11 bits that tensor cores take.
__device__ inline u32 to_tf32(u32 bits) {
#ifdef __CUDACC__
  u32 rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
#else
  return emulator_to_tf32(bits);
#endif
}

// c += a b, accumulated in float32.
//   c (16, 8): lane has (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
//   a (16, 16) of 16-bit elements: pairs at (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8); b (16, 8): (2t, g), (2t + 8, g)
//   a (16, 8) of TF32: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4);                         b (8, 8): (t, g), (t + 4, g)
template <typename T>
__device__ inline void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]);

#ifdef __CUDACC__
#define XPNET_MMA(T, SHAPE)                                                                                   \
  template <>                                                                                                 \
  __device__ inline void mma<T>(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {                   \
    asm volatile("mma.sync.aligned." SHAPE " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                         \
  }
XPNET_MMA(float, "m16n8k8.row.col.f32.tf32.tf32.f32")
XPNET_MMA(float16, "m16n8k16.row.col.f32.f16.f16.f32")
XPNET_MMA(bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
#undef XPNET_MMA
#else
template <>
inline void mma<float>(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  emulator_mma(c, a, b, 1, [](u32 bits, int) { return __uint_as_float(bits & 0xffffe000u); });
}
template <>
inline void mma<float16>(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  emulator_mma(c, a, b, 2, [](u32 bits, int i) { return widen(float16{static_cast<u16>(bits >> (16 * i))}); });
}
template <>
inline void mma<bfloat16>(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  emulator_mma(c, a, b, 2, [](u32 bits, int i) { return widen(bfloat16{static_cast<u16>(bits >> (16 * i))}); });
}
#endif

#endif  // HAS_MMA
