// What the C++ consists of that ptx/ makes of PTX: registers, numbers, memory. Instructions of warps: ptx_warp.hpp.
//
// Source: NVIDIA, "Parallel Thread Execution ISA", versions 8.8 and 9.0.
#pragma once
#include <limits>

#include "kernel_prelude.hpp"

namespace ptx {

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef float f32;
typedef double f64;

// ---- registers ----

template <size_t N>
using Bits = std::conditional_t<N == 1, u8, std::conditional_t<N == 2, u16, std::conditional_t<N == 4, u32, u64>>>;

// The bits of an operand as another type: of a wider register the low ones, into a wider register with the sign or zeros above.
template <typename T, typename R>
inline T as(R v) {
  if constexpr (std::is_same_v<T, bool>)
    return v != 0;
  else if constexpr (sizeof(T) == sizeof(R))
    return __builtin_bit_cast(T, v);
  else if constexpr (sizeof(T) < sizeof(R))
    return __builtin_bit_cast(T, (Bits<sizeof(T)>)__builtin_bit_cast(Bits<sizeof(R)>, v));
  else
    return __builtin_bit_cast(T, (Bits<sizeof(T)>)v);
}
template <typename R, typename T>
inline void put(R& r, T v) {
  r = as<R>(v);
}
template <typename T, int N>
struct Vector {
  T v[N];
};
template <typename T, int N>
inline T pack(Vector<Bits<sizeof(T) / N>, N> parts) {
  return __builtin_bit_cast(T, parts);
}
template <int N, typename T>
inline Vector<Bits<sizeof(T) / N>, N> unpack(T v) {
  typedef Vector<Bits<sizeof(T) / N>, N> V;
  return __builtin_bit_cast(V, v);
}
template <size_t N, size_t A>
struct alignas(A) Bytes {  // a parameter
  char bytes[N];
};

// ---- numbers of 16 bits: every operation is one of wider numbers, rounded once ----

struct f16 {
  u16 bits;
  f16() = default;
  f16(float v) : bits(v != v ? 0x7fff : emulator_float_to_half(v)) {}
  f16(double v) : bits(v != v ? 0x7fff : __builtin_bit_cast(u16, (_Float16)v)) {}
  operator float() const { return emulator_half_to_float(bits); }
};
struct bf16 {
  u16 bits;
  bf16() = default;
  bf16(double v) {
    // To an odd 25th bit first: rounding that to 8 bits is rounding v to 8 bits.
    float f = (float)v;
    u32 b = __builtin_bit_cast(u32, f);
    if (v != v) b = 0x7fff0000u;
    else if ((double)f != v && !(b & 1)) b = ::fabs((double)f) > ::fabs(v) ? b - 1 : b + 1;
    bits = v != v ? 0x7fff : (u16)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
  }
  bf16(float v) : bf16((double)v) {}
  operator float() const { return __builtin_bit_cast(float, (u32)bits << 16); }
};

// ---- floating-point arithmetic ----

enum Round { rn, rz, rm, rp };

// Evaluate with a mode of rounding. The compiler moves no arithmetic across the assembly, which has the operands.
template <Round R, typename F, typename... A>
inline auto rounded(F f, A... a) {
  if constexpr (R == rn) {
    return f(a...);
  } else {
    const unsigned before = _mm_getcsr();
    _mm_setcsr((before & ~0x6000u) | (R == rz ? 0x6000u : R == rp ? 0x4000u : 0x2000u));
    ((void)[&] { asm volatile("" : "+x"(a)); }(), ...);
    auto v = f(a...);
    asm volatile("" : "+x"(v));
    _mm_setcsr(before);
    return v;
  }
}
template <bool ON, typename T>
inline T flushed(T v) {
  if constexpr (ON && std::is_same_v<T, float>)
    if (__builtin_fabsf(v) < FLT_MIN) return __builtin_copysignf(0, v);
  return v;
}
template <typename T>
inline T canonical(T v) {  // what the hardware makes of every NaN
  if constexpr (std::is_same_v<T, float>)
    if (v != v) return as<float>(0x7fffffffu);
  return v;
}
template <typename T>
inline T saturated(T v) {
  return (float)v > 0 ? (float)v < 1 ? v : T(1.0f) : T(0.0f);  // 0 of NaN
}
template <Round ROUND, bool FLUSH, bool SATURATE>
struct Mode {
  static constexpr Round round = ROUND;
  static constexpr bool flush = FLUSH;
  template <typename T>
  static T result(T v) {
    v = flushed<FLUSH>(v);
    if constexpr (SATURATE) return saturated(v);
    return canonical(v);
  }
};
template <typename M, typename F, typename T, typename... A>
inline T compute(F f, T a, A... more) {
  return M::result(T(rounded<M::round>(f, flushed<M::flush>(a), flushed<M::flush>(more)...)));
}
// Sums and products of 16-bit numbers are exact in double, or rounded so far below their own last bit that it does not matter.
template <typename T>
using Wide = std::conditional_t<sizeof(T) == 2, double, T>;
#define PTX_OPERATION(NAME, PARAMETERS, EXPRESSION) \
  struct NAME {                                     \
    template <typename T>                           \
    auto operator() PARAMETERS const {              \
      typedef Wide<T> W;                            \
      return EXPRESSION;                            \
    }                                               \
  };
PTX_OPERATION(Add, (T a, T b), W(a) + W(b))
PTX_OPERATION(Sub, (T a, T b), W(a) - W(b))
PTX_OPERATION(Mul, (T a, T b), W(a) * W(b))
PTX_OPERATION(Fma, (T a, T b, T c), std::fma(W(a), W(b), W(c)))
PTX_OPERATION(Div, (T a, T b), a / b)
PTX_OPERATION(Rcp, (T a), T(1) / a)
PTX_OPERATION(Sqrt, (T a), std::sqrt(a))
PTX_OPERATION(Rsqrt, (T a), (T)(1 / std::sqrt((double)a)))
// Approximate on a GPU, to about the last bit or two; here rounded from libm's.
PTX_OPERATION(Ex2, (T a), (T)std::exp2((float)a))
PTX_OPERATION(Lg2, (T a), std::log2(a))
PTX_OPERATION(Sin, (T a), std::sin(a))
PTX_OPERATION(Cos, (T a), std::cos(a))
PTX_OPERATION(Tanh, (T a), (T)std::tanh((float)a))
#undef PTX_OPERATION

// rcp.approx.ftz.f64 and rsqrt.approx.ftz.f64 give the upper half of a double: programs refine it.
inline double upper_half(double exact) { return as<double>(as<u64>(exact) & 0xffffffff00000000u); }
inline double flushed_double(double v) { return ::fabs(v) < DBL_MIN ? ::copysign(0.0, v) : v; }

template <typename T>
inline T negated(T v) {
  return as<T>((Bits<sizeof(T)>)(as<Bits<sizeof(T)>>(v) ^ (Bits<sizeof(T)>)1 << (8 * sizeof(T) - 1)));
}
template <typename T>
inline T magnitude(T v) {
  return as<T>((Bits<sizeof(T)>)(as<Bits<sizeof(T)>>(v) & (Bits<sizeof(T)>)~((Bits<sizeof(T)>)1 << (8 * sizeof(T) - 1))));
}
// The smaller or larger number; of -0 and +0 in this order. Where one is NaN the other, or NaN.
template <bool LARGER, bool NAN_WINS, bool FLUSH, typename T>
inline T extreme(T x, T y) {
  const T a = flushed<FLUSH>(x), b = flushed<FLUSH>(y);
  const Wide<T> p = a, q = b;
  if (p != p) return canonical(NAN_WINS || q != q ? T(Wide<T>(NAN)) : b);
  if (q != q) return canonical(NAN_WINS ? T(Wide<T>(NAN)) : a);
  const bool first = p < q || (p == q && std::signbit(p));
  return first != LARGER ? a : b;
}
template <typename T>
inline T copysign(T sign, T v) {
  return std::signbit((Wide<T>)sign) == std::signbit((Wide<T>)v) ? v : negated(v);
}
// A function of numbers of 16 bits, of both that words hold.
template <typename T, typename F, typename... A>
inline u32 both(F f, A... words) {
  return (u32)f(as<T>((u16)words)...).bits | (u32)f(as<T>((u16)(words >> 16))...).bits << 16;
}
// What `set` makes of a comparison: one, or all bits.
template <typename T>
inline T truth(bool v) {
  if constexpr (std::is_integral_v<T>) return v ? (T)-1 : 0;
  else return T(v ? 1.0f : 0.0f);
}
template <typename T>
inline bool normal(T v) {
  return std::fpclassify(v) == FP_NORMAL;
}

// ---- conversions ----

template <typename T>
constexpr bool floating = std::is_floating_point_v<T> || std::is_same_v<T, f16> || std::is_same_v<T, bf16>;

// To D from S; `integral` rounds to a whole number, as MODE's rounding says.
template <typename D, typename M, bool INTEGRAL, bool SATURATE, typename S>
inline D convert(S v) {
  if constexpr (!floating<S> && !floating<D>) {
    if constexpr (SATURATE) {
      const __int128 most = std::numeric_limits<D>::max(), least = std::numeric_limits<D>::min(), x = v;
      return (D)(x > most ? most : x < least ? least : x);
    }
    return (D)v;
  } else if constexpr (!floating<S>) {
    return M::result(D(Wide<D>(v)));
  } else if constexpr (sizeof(S) == 2) {
    return convert<D, M, INTEGRAL, SATURATE>((float)v);
  } else {
    S x = flushed<M::flush>(v);
    if constexpr (INTEGRAL)
      x = M::round == rn ? __builtin_rint(x) : M::round == rz ? __builtin_trunc(x) : M::round == rm ? __builtin_floor(x) : __builtin_ceil(x);
    if constexpr (!floating<D>)
      return software_gpu::to_integer<D>(x);
    else if constexpr (INTEGRAL || sizeof(D) == 2)
      return M::result(D(x));
    else
      return M::result(rounded<M::round>([](S s) { return (D)s; }, x));
  }
}

// ---- integers ----

template <typename T>
using Double = std::conditional_t<sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, s32, u32>,
               std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, s64, u64>,
                                  std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;
template <typename T>
inline T high(T a, T b) {
  return (T)((Double<T>)a * (Double<T>)b >> 8 * sizeof(T));
}
// The sum or the difference of two words, with a carry.
template <bool USE, bool SET, typename T>
inline T carried(bool& carry, T a, T b, bool subtract) {
  typedef Bits<sizeof(T)> U;
  const unsigned __int128 x = (U)a, y = (unsigned __int128)(U)b + (USE && carry), sum = subtract ? x - y : x + y;
  if (SET) carry = sum >> 8 * sizeof(T) & 1;
  return (T)sum;
}
template <typename T>
inline T shift_left(T v, u32 n) {
  return n < 8 * sizeof(T) ? (T)(v << n) : 0;
}
template <typename T>
inline T shift_right(T v, u32 n) {
  return n < 8 * sizeof(T) ? (T)(v >> n) : v < 0 ? (T)-1 : 0;
}
// The bits of a word of 64 bits that shf takes, shifted by at most 32 where it clamps, by 0 to 31 where it wraps.
template <bool LEFT, bool CLAMP>
inline u32 funnel(u32 low, u32 high, u32 n) {
  n = CLAMP ? n < 32 ? n : 32 : n & 31;
  const u64 both = (u64)high << 32 | low;
  return (u32)(LEFT ? both << n >> 32 : both >> n);
}
template <typename T>
inline T extract(T v, u32 at, u32 length) {
  const u32 bits = 8 * sizeof(T);
  at &= 255, length &= 255;
  const u32 top = at + length < bits ? at + length - 1 : bits - 1;
  const bool sign = std::is_signed_v<T> && length && as<Bits<sizeof(T)>>(v) >> top & 1;
  T out = 0;
  for (u32 i = 0; i < bits; ++i)
    out |= (T)(i < length && at + i < bits ? as<Bits<sizeof(T)>>(v) >> (at + i) & 1 : sign) << i;
  return out;
}
template <typename T>
inline T insert(T from, T into, u32 at, u32 length) {
  at &= 255, length &= 255;
  for (u32 i = 0; i < length && at + i < 8 * sizeof(T); ++i)
    into = (into & ~((T)1 << (at + i))) | (from >> i & 1) << (at + i);
  return into;
}
// The place of the highest bit that is not the sign; all ones where there is none. SHIFT: how far to shift it to the top.
template <bool SHIFT, typename T>
inline u32 highest(T v) {
  const u64 bits = (Bits<sizeof(T)>)(v < 0 ? ~v : v);
  if (!bits) return 0xffffffffu;
  const u32 at = 63 - __builtin_clzll(bits);
  return SHIFT ? 8 * sizeof(T) - 1 - at : at;
}
template <u32 TABLE>
inline u32 logic(u32 a, u32 b, u32 c) {
  u32 out = 0;
  for (u32 i = 0; i < 8; ++i)
    if (TABLE >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return out;
}
// The sum of the products of the parts of two words: as many as A, the larger type, has in one.
template <typename A, typename B>
inline u32 dot(u32 a, u32 b, u32 c) {
  for (size_t i = 0; i < 4 / sizeof(A); ++i) c += (u32)((s32)(A)(a >> 8 * sizeof(A) * i) * (s32)(B)(b >> 8 * i));
  return c;
}
inline u32 lo(u32 v) { return v; }
inline u32 hi(u32 v) { return v >> 16; }
inline u32 permuted(u32 x, u32 y, u32 selector) {
  const u64 bytes = (u64)y << 32 | x;
  u32 out = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 s = selector >> 4 * i, byte = (u32)(bytes >> 8 * (s & 7)) & 255;
    out |= (s & 8 ? byte & 128 ? 255 : 0 : byte) << 8 * i;  // the byte, or its sign eight times
  }
  return out;
}

// ---- memory ----

// Shared memory has addresses of its own, of 32 bits: a kernel's variables come first, then what its launch asks for.
const u32 kStatic = 0x400, kDynamic = 0x10000, kDynamicBytes = 0x40000;
static char* statics;
static u32 static_bytes;

inline void enter(char* shared, u32 bytes) {
  statics = shared, static_bytes = bytes;
  if (emulator::current == 0) memset(shared, 0xff, bytes);  // NaN, as all memory that nobody wrote
}
[[noreturn]] __attribute__((noinline, cold)) static void illegal(int error, const char* what, u64 address) {
  char text[100];
  snprintf(text, sizeof text, "%s 0x%llx (block %u, thread %d)", what, (unsigned long long)address, blockIdx.x, emulator::current);
  software_gpu_stop(error, text);
}
template <size_t BYTES>
inline char* shared(u32 a) {
  if (a % BYTES) illegal(716, "misaligned address in shared memory", a);
  if (a >= kDynamic && a - kDynamic < kDynamicBytes) return software_gpu_dynamic + (a - kDynamic);
  if (a < kStatic || a - kStatic + BYTES > static_bytes) illegal(700, "no shared memory of this block at its address", a);
  return statics + (a - kStatic);
}
template <size_t BYTES>
inline char* memory(u64 a) {
  if (a % BYTES) illegal(716, "misaligned address", a);
  return (char*)a;
}
inline u64 generic_of_shared(u64 a) { return a >= kDynamic ? (u64)software_gpu_dynamic + (a - kDynamic) : (u64)statics + a - kStatic; }
inline u64 shared_of_generic(u64 p) {
  const u64 dynamic = p - (u64)software_gpu_dynamic;
  return dynamic <= kDynamicBytes ? kDynamic + dynamic : p - (u64)statics + kStatic;
}

template <typename T, int N = 1>
inline Vector<T, N> load(const char* p) {
  Vector<T, N> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <typename T, int N>
inline void store(char* p, Vector<T, N> v) {
  memcpy(p, &v, sizeof v);
}
template <typename T, typename F>
inline T atomic(char* p, F change) {
  const T old = load<T>(p).v[0];
  store(p, Vector<T, 1>{(T)change(old)});
  return old;
}

}  // namespace ptx
