// CUDA's vector types, and its functions that need nothing of the emulator but shuffles.
#pragma once

// ---- vector types: as large and as aligned as CUDA's ----

#define SOFTWARE_GPU_VECTORS(NAME, T, A2, A4)                                    \
  struct NAME##1 {                                                               \
    T x;                                                                         \
  };                                                                             \
  struct alignas(A2) NAME##2 {                                                   \
    T x, y;                                                                      \
  };                                                                             \
  struct alignas(A4) NAME##4 {                                                   \
    T x, y, z, w;                                                                \
  };                                                                             \
  inline NAME##1 make_##NAME##1(T x) { return {x}; }                             \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                     \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define SOFTWARE_GPU_VECTOR3(NAME, T) \
  struct NAME##3 {                    \
    T x, y, z;                        \
  };
#define SOFTWARE_GPU_MAKE3(NAME, T) \
  inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }
SOFTWARE_GPU_VECTORS(char, signed char, 2, 4)
SOFTWARE_GPU_VECTORS(uchar, unsigned char, 2, 4)
SOFTWARE_GPU_VECTORS(short, short, 4, 8)
SOFTWARE_GPU_VECTORS(ushort, unsigned short, 4, 8)
SOFTWARE_GPU_VECTORS(int, int, 8, 16)
SOFTWARE_GPU_VECTORS(uint, unsigned, 8, 16)
SOFTWARE_GPU_VECTORS(long, long, 16, 16)
SOFTWARE_GPU_VECTORS(ulong, unsigned long, 16, 16)
SOFTWARE_GPU_VECTORS(longlong, long long, 16, 16)
SOFTWARE_GPU_VECTORS(ulonglong, unsigned long long, 16, 16)
SOFTWARE_GPU_VECTORS(float, float, 8, 16)
SOFTWARE_GPU_VECTORS(double, double, 16, 16)
SOFTWARE_GPU_VECTOR3(char, signed char)
SOFTWARE_GPU_VECTOR3(uchar, unsigned char)
SOFTWARE_GPU_VECTOR3(short, short)
SOFTWARE_GPU_VECTOR3(ushort, unsigned short)
SOFTWARE_GPU_VECTOR3(int, int)
SOFTWARE_GPU_VECTOR3(longlong, long long)
SOFTWARE_GPU_VECTOR3(float, float)
SOFTWARE_GPU_VECTOR3(double, double)
SOFTWARE_GPU_MAKE3(char, signed char)
SOFTWARE_GPU_MAKE3(uchar, unsigned char)
SOFTWARE_GPU_MAKE3(short, short)
SOFTWARE_GPU_MAKE3(ushort, unsigned short)
SOFTWARE_GPU_MAKE3(int, int)
SOFTWARE_GPU_MAKE3(uint, unsigned)
SOFTWARE_GPU_MAKE3(longlong, long long)
SOFTWARE_GPU_MAKE3(float, float)
SOFTWARE_GPU_MAKE3(double, double)

// ---- warps ----

template <typename T>
inline unsigned __match_any_sync(unsigned mask, T value) {
  unsigned same = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    T other = emulator::shuffle(mask, value, lane);
    same |= (unsigned)!memcmp(&other, &value, sizeof value) << lane;
  }
  return same;
}
#define SOFTWARE_GPU_REDUCE(NAME, T, EXPRESSION)                                                      \
  inline T NAME(unsigned mask, T value) {                                                             \
    const int first = __builtin_ctz(mask);                                                            \
    T a = emulator::shuffle(mask, value, first);                                                      \
    for (int lane = first + 1; lane < 32; ++lane) {                                                   \
      if (!(mask >> lane & 1) || emulator::current / 32 * 32 + lane >= emulator::threads) continue;   \
      T b = emulator::shuffle(mask, value, lane);                                                     \
      a = EXPRESSION;                                                                                 \
    }                                                                                                 \
    return a;                                                                                         \
  }
SOFTWARE_GPU_REDUCE(__reduce_add_sync, int, a + b)
SOFTWARE_GPU_REDUCE(__reduce_add_sync, unsigned, a + b)
SOFTWARE_GPU_REDUCE(__reduce_min_sync, int, min(a, b))
SOFTWARE_GPU_REDUCE(__reduce_min_sync, unsigned, min(a, b))
SOFTWARE_GPU_REDUCE(__reduce_max_sync, int, max(a, b))
SOFTWARE_GPU_REDUCE(__reduce_max_sync, unsigned, max(a, b))
SOFTWARE_GPU_REDUCE(__reduce_and_sync, unsigned, a & b)
SOFTWARE_GPU_REDUCE(__reduce_or_sync, unsigned, a | b)
SOFTWARE_GPU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)

// ---- atomics ----

SOFTWARE_GPU_ATOMIC(atomicExch, float, v)
SOFTWARE_GPU_ATOMIC(atomicInc, unsigned, old >= v ? 0 : old + 1)
SOFTWARE_GPU_ATOMIC(atomicDec, unsigned, old == 0 || old > v ? v : old - 1)
#define SOFTWARE_GPU_SCOPES(NAME)                       \
  template <typename T, typename... V>                  \
  inline auto NAME##_block(T* p, V... v) {              \
    return NAME(p, v...);                               \
  }                                                     \
  template <typename T, typename... V>                  \
  inline auto NAME##_system(T* p, V... v) {             \
    return NAME(p, v...);                               \
  }
SOFTWARE_GPU_SCOPES(atomicAdd)
SOFTWARE_GPU_SCOPES(atomicSub)
SOFTWARE_GPU_SCOPES(atomicExch)
SOFTWARE_GPU_SCOPES(atomicMin)
SOFTWARE_GPU_SCOPES(atomicMax)
SOFTWARE_GPU_SCOPES(atomicInc)
SOFTWARE_GPU_SCOPES(atomicDec)
SOFTWARE_GPU_SCOPES(atomicCAS)
SOFTWARE_GPU_SCOPES(atomicAnd)
SOFTWARE_GPU_SCOPES(atomicOr)
SOFTWARE_GPU_SCOPES(atomicXor)

// ---- memory and time ----

#define SOFTWARE_GPU_LOAD(NAME) \
  template <typename T>         \
  inline T NAME(const T* p) {   \
    return *p;                  \
  }
#define SOFTWARE_GPU_STORE(NAME)                           \
  template <typename T>                                    \
  inline void NAME(T* p, std::common_type_t<T> v) {        \
    *p = v;                                                \
  }
SOFTWARE_GPU_LOAD(__ldcs)
SOFTWARE_GPU_LOAD(__ldcg)
SOFTWARE_GPU_LOAD(__ldca)
SOFTWARE_GPU_LOAD(__ldlu)
SOFTWARE_GPU_LOAD(__ldcv)
SOFTWARE_GPU_STORE(__stcs)
SOFTWARE_GPU_STORE(__stcg)
SOFTWARE_GPU_STORE(__stwb)
SOFTWARE_GPU_STORE(__stwt)
inline long long clock64() { return (long long)__builtin_ia32_rdtsc(); }
// Instead of the C library's, as <time.h> declares it: each kernel's library has its own.
typedef long clock_t;
extern "C" __attribute__((visibility("hidden"))) clock_t clock() noexcept { return (clock_t)clock64(); }
inline void __nanosleep(unsigned) { emulator::yield(); }

// ---- integers ----

inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline unsigned long long __brevll(unsigned long long v) {
  return (unsigned long long)__brev((unsigned)v) << 32 | __brev((unsigned)(v >> 32));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long bytes = (unsigned long long)y << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= ((unsigned)(bytes >> 8 * (selector >> 4 * i & 7)) & 255) << 8 * i;
  return out;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
  return (unsigned)(((unsigned long long)high << 32 | low) << (n & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
  return (unsigned)(((unsigned long long)high << 32 | low) >> (n & 31));
}
inline int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }
inline unsigned __sad(int a, int b, unsigned c) { return (a < b ? (unsigned)b - (unsigned)a : (unsigned)a - (unsigned)b) + c; }
inline unsigned __usad(unsigned a, unsigned b, unsigned c) { return (a < b ? b - a : a - b) + c; }
inline int __hadd(int a, int b) { return (int)(((long long)a + b) >> 1); }
inline int __rhadd(int a, int b) { return (int)(((long long)a + b + 1) >> 1); }
inline long long __mul64hi(long long a, long long b) { return (long long)(((__int128)a * b) >> 64); }

inline unsigned umin(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned umax(unsigned a, unsigned b) { return a < b ? b : a; }
inline long long llmin(long long a, long long b) { return a < b ? a : b; }
inline long long llmax(long long a, long long b) { return a < b ? b : a; }
inline unsigned long long ullmin(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline unsigned long long ullmax(unsigned long long a, unsigned long long b) { return a < b ? b : a; }

// The smaller and the larger of two numbers of different types, in the type that both are converted to.
template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B> && !std::is_same_v<A, B>>>
inline std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return min((T)a, (T)b);
}
template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B> && !std::is_same_v<A, B>>>
inline std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return max((T)a, (T)b);
}

// ---- floating point ----

inline float __saturatef(float v) { return v > 0 ? v < 1 ? v : 1 : 0; }  // 0 of NaN
inline float fdividef(float a, float b) { return a / b; }
inline float __sinf(float v) { return sinf(v); }
inline float __cosf(float v) { return cosf(v); }
inline float __tanf(float v) { return tanf(v); }
inline void __sincosf(float v, float* s, float* c) { *s = sinf(v), *c = cosf(v); }
inline float __log2f(float v) { return log2f(v); }
inline float __log10f(float v) { return log10f(v); }
inline float __exp10f(float v) { return powf(10.0f, v); }
inline float sinpif(float v) { return (float)sinpi((double)v); }
inline float cospif(float v) { return (float)cospi((double)v); }
inline void sincospif(float v, float* s, float* c) { *s = sinpif(v), *c = cospif(v); }
inline float normcdff(float v) { return (float)normcdf((double)v); }

// The inverse of erfc: a rational approximation (Abramowitz and Stegun, 26.2.22), and Halley's method.
inline double erfinv(double v);
inline double erfcinv(double y) {
  if (!(y >= 0 && y <= 2)) return NAN;
  if (y == 0 || y == 2) return y ? -HUGE_VAL : HUGE_VAL;
  if (y > 0.5 && y < 1.5) return erfinv(1 - y);
  const double half = y < 1 ? y : 2 - y, t = ::sqrt(-2 * ::log(half / 2));
  double x = -0.70711 * ((2.30753 + t * 0.27061) / (1 + t * (0.99229 + t * 0.04481)) - t);
  for (int i = 0; i < 3; ++i) {
    const double error = ::erfc(x) - half;
    x += error / (1.12837916709551257 * ::exp(-x * x) - x * error);
  }
  return y < 1 ? x : -x;
}
// Of a small number by erf, as 1 - v would lose its digits.
inline double erfinv(double v) {
  if (!(::fabs(v) < 0.5)) return v < 0 ? -erfcinv(1 + v) : erfcinv(1 - v);
  double x = v * 0.886226925452758;
  for (int i = 0; i < 4; ++i) {
    const double error = v - ::erf(x);
    x += error / (1.12837916709551257 * ::exp(-x * x) + x * error);
  }
  return x;
}
inline double normcdfinv(double p) { return -1.41421356237309505 * erfcinv(2 * p); }
// exp(v * v) * erfc(v): the rounding of the square is made good; from 5 on a continued fraction.
inline double erfcx(double v) {
  const double square = v * v;
  if (v < -27) return HUGE_VAL;
  if (v < 5) return ::exp(square) * (1 + ::fma(v, v, -square)) * ::erfc(v);
  double below = v;
  for (int i = 60; i > 0; --i) below = v + 0.5 * i / below;
  return 0.564189583547756287 / below;
}
inline float erfcinvf(float y) { return (float)erfcinv((double)y); }
inline float erfinvf(float v) { return (float)erfinv((double)v); }
inline float normcdfinvf(float p) { return (float)normcdfinv((double)p); }
inline float erfcxf(float v) { return (float)erfcx((double)v); }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float v) { return sqrtf(v); }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __frsqrt_rn(float v) { return (float)(1.0 / ::sqrt((double)v)); }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double v) { return ::sqrt(v); }
inline double __drcp_rn(double v) { return 1.0 / v; }

namespace software_gpu {
// Convert as PTX does: what is too large is the type's largest; NaN is 0, or the largest power of two in an integer from a double.
template <typename I, typename F>
inline I to_integer(F v) {
  if (v != v) return sizeof(F) == 8 || sizeof(I) == 8 ? (I)((I)1 << (8 * sizeof(I) - 1)) : 0;
  const I most = std::is_signed_v<I> ? (I)~((unsigned long long)1 << 63 >> (64 - 8 * sizeof(I))) : (I)-1, least = -most - 1;
  if (v >= (F)most) return most;
  if (v <= (F)(std::is_signed_v<I> ? least : 0)) return std::is_signed_v<I> ? least : 0;
  return (I)v;
}
}  // namespace software_gpu
#define SOFTWARE_GPU_ROUND(NAME, I, F)                                                    \
  inline I NAME##_rn(F v) { return software_gpu::to_integer<I>((F)__builtin_rint(v)); }   \
  inline I NAME##_rz(F v) { return software_gpu::to_integer<I>((F)__builtin_trunc(v)); }  \
  inline I NAME##_rd(F v) { return software_gpu::to_integer<I>((F)__builtin_floor(v)); }  \
  inline I NAME##_ru(F v) { return software_gpu::to_integer<I>((F)__builtin_ceil(v)); }
SOFTWARE_GPU_ROUND(__float2int, int, float)
SOFTWARE_GPU_ROUND(__float2uint, unsigned, float)
SOFTWARE_GPU_ROUND(__float2ll, long long, float)
SOFTWARE_GPU_ROUND(__float2ull, unsigned long long, float)
SOFTWARE_GPU_ROUND(__double2int, int, double)
SOFTWARE_GPU_ROUND(__double2uint, unsigned, double)
SOFTWARE_GPU_ROUND(__double2ll, long long, double)
SOFTWARE_GPU_ROUND(__double2ull, unsigned long long, double)
inline float __int2float_rn(int v) { return (float)v; }
inline float __uint2float_rn(unsigned v) { return (float)v; }
inline float __ll2float_rn(long long v) { return (float)v; }
inline float __ull2float_rn(unsigned long long v) { return (float)v; }
inline double __int2double_rn(int v) { return v; }
inline double __uint2double_rn(unsigned v) { return v; }
inline double __ll2double_rn(long long v) { return (double)v; }
inline double __ull2double_rn(unsigned long long v) { return (double)v; }
inline float __double2float_rn(double v) { return (float)v; }
