// Shared by all kernels: short type names, 16-bit floats, vectorised loads and stores of 16 bytes, fast integer division,
// the grid-stride loop, and reductions within a warp and a block.
//
// xpnet/accel/cupy/source.py reads the parameter list of every __global__ template from these files and packs the arguments
// accordingly, so a parameter is one of
//     T*, const T*            an array of the template's type T, or of a type named here
//     int, i64, u64           integers
//     acc_t<T>                a number of the accumulator type of T
//     FastDivmod              an int that the kernel divides by
// No NVIDIA header is included: NVRTC and a plain C++ compiler both compile these sources.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

// ---- numbers -------------------------------------------------------------------------------------------------------

// 16-bit floats are storage types only: kernels compute in float and round once at the end. That runs on every architecture
// (sm_75 has no bfloat16 arithmetic) and costs nothing in kernels bound by memory bandwidth.
struct float16 {
  u16 bits;
};
struct bfloat16 {
  u16 bits;
};

template <typename T>
struct Accumulator {
  typedef float type;
};
template <>
struct Accumulator<double> {
  typedef double type;
};
template <typename T>
using acc_t = typename Accumulator<T>::type;

// Storage type to accumulator type, and back.
__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(u8 v) { return static_cast<float>(v); }
__device__ inline float widen(bfloat16 v) { return __uint_as_float(static_cast<u32>(v.bits) << 16); }
__device__ inline float widen(float16 v) {
#ifdef __CUDACC__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
#else
  return emulator_half_to_float(v.bits);
#endif
}

template <typename T>
__device__ inline T round_to(acc_t<T> v);
template <>
__device__ inline float round_to<float>(float v) {
  return v;
}
template <>
__device__ inline double round_to<double>(double v) {
  return v;
}
template <>
__device__ inline float16 round_to<float16>(float v) {
  float16 narrow;
#ifdef __CUDACC__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(v));
#else
  narrow.bits = emulator_float_to_half(v);
#endif
  return narrow;
}
template <>
__device__ inline bfloat16 round_to<bfloat16>(float v) {
  bfloat16 narrow;
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(v));
#else
  // Round to nearest, ties to even, on the upper half of a float's bits.
  u32 bits = __float_as_uint(v);
  u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  narrow.bits = static_cast<u16>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded);
#endif
  return narrow;
}

template <typename A>
__device__ inline A infinity() {
  return static_cast<A>(__uint_as_float(0x7f800000u));
}

__device__ inline float xexp(float v) { return expf(v); }
__device__ inline double xexp(double v) { return exp(v); }
__device__ inline float xlog(float v) { return logf(v); }
__device__ inline double xlog(double v) { return log(v); }
__device__ inline float xsqrt(float v) { return sqrtf(v); }
__device__ inline double xsqrt(double v) { return sqrt(v); }
__device__ inline float xtanh(float v) { return tanhf(v); }
__device__ inline double xtanh(double v) { return tanh(v); }

// ---- memory --------------------------------------------------------------------------------------------------------

// V adjacent elements for one vectorised access of up to 16 bytes. The address must be a multiple of the vector's size; the
// launch checks that where V > 1 (`vector_width` in xpnet/accel/cupy/launch.py).
template <typename T, int V>
struct alignas(sizeof(T) * V) Vector {
  T at[V];
};

template <int V, typename T>
__device__ inline Vector<T, V> load(const T* p) {
  return *reinterpret_cast<const Vector<T, V>*>(p);
}
template <int V, typename T>
__device__ inline void store(T* p, const Vector<T, V>& v) {
  *reinterpret_cast<Vector<T, V>*>(p) = v;
}

// ---- indices -------------------------------------------------------------------------------------------------------

// Division of 0 <= n < 2^31 by a number known at launch: one multiplication, one addition, one shift. The host computes magic
// and shift (`fast_divmod` in xpnet/accel/cupy/launch.py).
struct FastDivmod {
  u32 divisor, magic, shift;

  __device__ inline u32 divide(u32 n) const { return (__umulhi(n, magic) + n) >> shift; }
  __device__ inline u32 divmod(u32 n, u32& remainder) const {  // returns the quotient
    u32 q = divide(n);
    remainder = n - q * divisor;
    return q;
  }
};

// for (i64 i = thread_index(); i < count; i += grid_stride())
__device__ inline i64 thread_index() { return static_cast<i64>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline i64 grid_stride() { return static_cast<i64>(gridDim.x) * blockDim.x; }

// ---- reductions ----------------------------------------------------------------------------------------------------

// Sum and maximum over groups of WIDTH adjacent lanes (a power of two), by warp shuffles; every lane gets the result. The
// order of the additions is fixed, so results are deterministic.
template <int WIDTH, typename A>
__device__ inline A group_sum(A v) {
#pragma unroll
  for (int d = WIDTH / 2; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}
template <int WIDTH, typename A>
__device__ inline A group_max(A v) {
#pragma unroll
  for (int d = WIDTH / 2; d > 0; d /= 2) {
    A other = __shfl_xor_sync(0xffffffffu, v, d);
    v = (other > v || other != other) ? other : v;
  }
  return v;
}

// Bit i says whether lane i of the warp has `v`; and the number of the lowest bit that is set.
__device__ inline u32 warp_ballot(bool v) {
#ifdef __CUDACC__
  return __ballot_sync(0xffffffffu, v);
#else
  u32 bits = v ? 1u << (threadIdx.x % 32) : 0u;
  for (int d = 16; d > 0; d /= 2) bits |= __shfl_xor_sync(0xffffffffu, bits, d);
  return bits;
#endif
}
__device__ inline int lowest_bit(u32 bits) {
#ifdef __CUDACC__
  return __ffs(static_cast<int>(bits)) - 1;
#else
  return __builtin_ctz(bits);
#endif
}

// The same over a block of THREADS threads (a multiple of 32), through shared memory.
template <int THREADS, typename A>
__device__ inline A block_sum(A v) {
  __shared__ A partial[THREADS / 32];
  v = group_sum<32>(v);
  __syncthreads();  // the previous use of `partial` has ended
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  A total = partial[0];
#pragma unroll
  for (int w = 1; w < THREADS / 32; ++w) total += partial[w];
  return total;
}
template <int THREADS, typename A>
__device__ inline A block_max(A v) {
  __shared__ A partial[THREADS / 32];
  v = group_max<32>(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  A top = partial[0];
#pragma unroll
  for (int w = 1; w < THREADS / 32; ++w) top = (partial[w] > top || partial[w] != partial[w]) ? partial[w] : top;
  return top;
}
