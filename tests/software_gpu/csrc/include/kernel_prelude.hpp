// What CuPy's own kernels need on top of xpnet's emulator header.
#pragma once
#include <math.h>
#include <cstddef>
#include <cstdlib>
#include <climits>
#include <cfloat>
#include <type_traits>
#include <xmmintrin.h>
#include <string_view>
#include "cuda_emulator.hpp"
#include "assert.h"
// NVRTC has none of these, so programs may name their own so.
#undef M_E
#undef M_LOG2E
#undef M_LOG10E
#undef M_LN2
#undef M_LN10
#undef M_PI
#undef M_PI_2
#undef M_PI_4
#undef M_1_PI
#undef M_2_PI
#undef M_2_SQRTPI
#undef M_SQRT2
#undef M_SQRT1_2
#define __builtin_assume(...) ((void)0)
#define __assume(...) ((void)0)
[[noreturn]] inline void __trap() { __builtin_trap(); }
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __constant__
#define __managed__
#define __grid_constant__
#define __inline__ inline
#define warpSize 32
// Dynamic shared memory: one for all kernels of the process. What lies beyond the size of a launch is not accessible. An array,
// not a pointer: so what a kernel declares is initialised with a constant, and is no uninitialised static variable, which would
// count as static shared memory.
extern "C" char software_gpu_dynamic[];

namespace software_gpu {
struct Argument {  // what a launch has to know of an argument
  size_t size;
  bool pointer;
};
template <typename... A>
int list(void (*)(A...), const Argument** p) {
  static const Argument all[] = {{sizeof(std::decay_t<A>), std::is_pointer_v<std::decay_t<A>>}..., {0, false}};
  *p = all;
  return sizeof...(A);
}

// -ftz=true is about float: a kernel that has doubles among its arguments keeps its subnormal numbers.
template <typename F>
constexpr bool wide(F*) {
  return std::string_view(__PRETTY_FUNCTION__).find("double") != std::string_view::npos;
}
struct Flush {  // while it lives, subnormal numbers are zero, read and written
  unsigned before = _mm_getcsr();
  explicit Flush(bool on) {
    if (on) _mm_setcsr(before | 0x8040);
  }
  ~Flush() { _mm_setcsr(before); }
};

template <bool flush, bool leaving, typename T>
const char* run(const char* symbol, T* what, const unsigned* grid, const unsigned* block, void** arguments) {
  if constexpr (std::is_function_v<T>) {
    Flush flushed(flush && !wide(what));
    emulator::leaving_is_arriving = leaving || !strncmp(symbol, "cupy", 4);
    return emulator::launch(what, grid, block, arguments);
  } else {
    return "it is a variable, not a kernel";
  }
}
template <typename T>
int arguments(T* what, const Argument** p) {
  if constexpr (std::is_function_v<T>)
    return list(what, p);
  else
    return -1;
}
template <typename T>
void* variable(T* what, size_t* bytes) {
  if constexpr (std::is_function_v<T>) {
    return nullptr;
  } else {
    *bytes = sizeof(T);
    return const_cast<std::remove_const_t<T>*>(what);
  }
}
}  // namespace software_gpu

// What the device finds in a module, for each name: the kernel, its arguments, its address and the bound of its threads
// (the first number of __launch_bounds__, or 0); the variable.
#define SOFTWARE_GPU_EXPORT extern "C" __attribute__((visibility("default")))
// A parameter here must not hide a kernel of its name.
#define SOFTWARE_GPU_KERNEL(SYMBOL, BOUND, ...)                                                                       \
  SOFTWARE_GPU_EXPORT const char* software_gpu_run_##SYMBOL(const unsigned* software_gpu_grid,                        \
                                                            const unsigned* software_gpu_block, unsigned,             \
                                                            void** software_gpu_list) {                               \
    return software_gpu::run<software_gpu_flush, software_gpu_leaving>(#SYMBOL, &__VA_ARGS__, software_gpu_grid,      \
                                                                       software_gpu_block, software_gpu_list);        \
  }                                                                                                                   \
  SOFTWARE_GPU_EXPORT int software_gpu_arguments_##SYMBOL(const software_gpu::Argument** software_gpu_list) {         \
    return software_gpu::arguments(&__VA_ARGS__, software_gpu_list);                                                  \
  }                                                                                                                   \
  SOFTWARE_GPU_EXPORT const void* software_gpu_entry_##SYMBOL(int* software_gpu_bound) {                              \
    auto* software_gpu_kernel = &__VA_ARGS__;                                                                         \
    *software_gpu_bound = BOUND;                                                                                      \
    return (const void*)software_gpu_kernel;                                                                          \
  }
#define SOFTWARE_GPU_VARIABLE(SYMBOL, ...)                                          \
  SOFTWARE_GPU_EXPORT void* software_gpu_variable_##SYMBOL(size_t* software_gpu_bytes) { \
    return software_gpu::variable(&__VA_ARGS__, software_gpu_bytes);                \
  }
#define SOFTWARE_GPU_NAMED(SYMBOL, BOUND, ...)    \
  SOFTWARE_GPU_KERNEL(SYMBOL, BOUND, __VA_ARGS__) \
  SOFTWARE_GPU_VARIABLE(SYMBOL, __VA_ARGS__)

template <typename T>
inline T __ldg(const T* p) {
  return *p;
}
template <typename T>
inline T __shfl_up_sync(unsigned lanes, T v, int d, int width = 32) {
  int l = emulator::current % 32;
  T r = emulator::shuffle(lanes, v, l % width >= d ? l - d : l);
  return r;
}
template <typename T>
inline T __shfl_xor_sync(unsigned lanes, T v, int m, int width) {
  int l = emulator::current % 32, from = l ^ m;  // a lane of a segment further down may be read, none further up
  return emulator::shuffle(lanes, v, from / width <= l / width ? from : l);
}
template <typename T>
inline T __shfl_down_sync(unsigned lanes, T v, int d, int width) {
  int l = emulator::current % 32;
  return emulator::shuffle(lanes, v, l % width + d < width ? l + d : l);
}
template <typename T>
inline T __shfl_sync(unsigned lanes, T v, int lane, int width) {
  int l = emulator::current % 32;
  return emulator::shuffle(lanes, v, l / width * width + lane % width);
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll(v) : 64; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline int __float_as_int(float v) {
  int b;
  memcpy(&b, &v, 4);
  return b;
}
inline float __int_as_float(int v) {
  float b;
  memcpy(&b, &v, 4);
  return b;
}
inline long long __double_as_longlong(double v) {
  long long b;
  memcpy(&b, &v, 8);
  return b;
}
inline double __longlong_as_double(long long v) {
  double b;
  memcpy(&b, &v, 8);
  return b;
}
inline int __double2hiint(double v) { return (int)(__double_as_longlong(v) >> 32); }
inline int __double2loint(double v) { return (int)__double_as_longlong(v); }
inline double __hiloint2double(int h, int l) {
  return __longlong_as_double((long long)((unsigned long long)(unsigned)h << 32 | (unsigned)l));
}
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline double rsqrt(double v) { return 1.0 / ::sqrt(v); }
inline float rsqrt(float v) { return 1.0f / sqrtf(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float v) { return expf(v); }
inline float __logf(float v) { return logf(v); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return ::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float exp10f(float v) { return powf(10.0f, v); }
inline double exp10(double v) { return ::pow(10.0, v); }
// Reduced exactly: large numbers have their digits, and whole and half ones give whole numbers.
inline void sincospi(double v, double* s, double* c) {
  const double a = ::fabs(::fmod(v, 2.0));
  const int quarter = (int)::rint(2 * a);
  const double t = (a - 0.5 * quarter) * 3.14159265358979323846, sine = ::sin(t), cosine = ::cos(t);
  const double y = quarter & 1 ? cosine : sine, x = quarter & 1 ? 0 - sine : cosine;
  *s = ::copysign(1.0, v) * (quarter & 2 ? 0 - y : y);
  *c = quarter & 2 ? 0 - x : x;
}
inline double cospi(double v) {
  double s, c;
  sincospi(v, &s, &c);
  return c;
}
inline double sinpi(double v) {
  double s, c;
  sincospi(v, &s, &c);
  return s;
}
inline double normcdf(double v) { return 0.5 * ::erfc(-v * 0.70710678118654752440); }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1u) << (31 - i);
  return r;
}

#define SOFTWARE_GPU_MINMAX(T)                  \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
SOFTWARE_GPU_MINMAX(int)
SOFTWARE_GPU_MINMAX(unsigned) SOFTWARE_GPU_MINMAX(long) SOFTWARE_GPU_MINMAX(unsigned long)
    SOFTWARE_GPU_MINMAX(long long) SOFTWARE_GPU_MINMAX(unsigned long long) inline float min(float a, float b) {
  return fminf(a, b);
}
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return ::fmin(a, b); }
inline double max(double a, double b) { return ::fmax(a, b); }
inline double min(float a, double b) { return ::fmin((double)a, b); }
inline double max(float a, double b) { return ::fmax((double)a, b); }
inline double min(double a, float b) { return ::fmin(a, (double)b); }
inline double max(double a, float b) { return ::fmax(a, (double)b); }

#define SOFTWARE_GPU_ATOMIC(NAME, T, EXPRESSION) \
  inline T NAME(T* p, T v) {                        \
    T old = *p;                                     \
    *p = (EXPRESSION);                              \
    return old;                                     \
  }
#define SOFTWARE_GPU_ATOMICS(T)                                                                 \
  SOFTWARE_GPU_ATOMIC(atomicMin, T, v < old ? v : old)                                          \
  SOFTWARE_GPU_ATOMIC(atomicMax, T, v > old ? v : old) SOFTWARE_GPU_ATOMIC(atomicExch, T, v) \
      SOFTWARE_GPU_ATOMIC(atomicAnd, T, old& v) SOFTWARE_GPU_ATOMIC(atomicOr, T, old | v)    \
          SOFTWARE_GPU_ATOMIC(atomicXor, T, old ^ v) inline T                                   \
          atomicCAS(T* p, T c, T v) {                                                              \
    T old = *p;                                                                                    \
    if (old == c) *p = v;                                                                          \
    return old;                                                                                    \
  }
SOFTWARE_GPU_ATOMICS(int)
SOFTWARE_GPU_ATOMICS(unsigned)
    SOFTWARE_GPU_ATOMICS(unsigned long long) inline unsigned short atomicCAS(unsigned short* p, unsigned short c,
                                                                                unsigned short v) {
  unsigned short old = *p;
  if (old == c) *p = v;
  return old;
}
SOFTWARE_GPU_ATOMIC(atomicMin, long long, v < old ? v : old)
SOFTWARE_GPU_ATOMIC(atomicMax, long long, v > old ? v : old) SOFTWARE_GPU_ATOMIC(atomicAdd, int, old + v)
    SOFTWARE_GPU_ATOMIC(atomicAdd, unsigned long long, old + v) SOFTWARE_GPU_ATOMIC(atomicAdd, float, old + v)
    SOFTWARE_GPU_ATOMIC(atomicAdd, double, old + v) SOFTWARE_GPU_ATOMIC(atomicSub, int, old - v) SOFTWARE_GPU_ATOMIC(atomicSub, unsigned, old - v)
#include "device_functions.hpp"
