// Products of matrices: C = alpha op(A) op(B) + beta C.
//
// Factors are widened to double, packed, and summed in double in the order of the inner index, whatever the shape: a product
// is the same alone and in a batch. A GPU sums in float32 in an order of its own.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "cublas.hpp"

using namespace software_gpu;

namespace {

// ---- elements, by cudaDataType ----

enum Type { kFloat = 0, kDouble = 1, kHalf = 2, kInt8 = 3, kSingleComplex = 4, kDoubleComplex = 5, kInt32 = 10, kBfloat16 = 14 };

int width(int type) {
  switch (type) {
    case kInt8: return 1;
    case kHalf: case kBfloat16: return 2;
    case kFloat: case kInt32: return 4;
    case kDouble: case kSingleComplex: return 8;
    default: return 16;
  }
}

float bits_to_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
uint32_t float_to_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

const float* halves() {  // the value of each of the 65536 halves: the conversion is slow without its instruction
  static const std::vector<float> table = [] {
    std::vector<float> made(65536);
    for (unsigned i = 0; i < 65536; ++i) {
      uint16_t bits = (uint16_t)i;
      _Float16 v;
      std::memcpy(&v, &bits, 2);
      made[i] = (float)v;
    }
    return made;
  }();
  return table.data();
}

struct Half {
  uint16_t bits;
  operator double() const { return halves()[bits]; }
};
struct Bfloat16 {
  uint16_t bits;
  operator double() const { return bits_to_float((uint32_t)bits << 16); }
};

void store(float& to, double v) { to = (float)v; }
void store(double& to, double v) { to = v; }
void store(int32_t& to, double v) { to = (int32_t)(int64_t)v; }
void store(Half& to, double v) {
  _Float16 h = (_Float16)v;
  std::memcpy(&to.bits, &h, 2);
}
void store(Bfloat16& to, double v) {
  uint32_t b = float_to_bits((float)v);
  to.bits = (b & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
void store(Single& to, Double v) { to = Single(v); }
void store(Double& to, Double v) { to = v; }

double tf32(double v) {  // a tensor core reads 10 bits of a float's mantissa: to nearest, ties away from zero
  uint32_t bits = float_to_bits((float)v);
  return (bits & 0x7f800000u) == 0x7f800000u ? v : bits_to_float((bits + 0x1000u) & 0xffffe000u);
}
Double tf32(Double v) { return {tf32(v.real()), tf32(v.imag())}; }

// ---- the product ----

struct Shape {
  int op_a, op_b, m, n, k, lda, ldb, ldc;
  bool rounded;  // to TF32
};

// Write op(X), rows x columns, into a buffer whose rows are adjacent.
template <typename Wide, typename T>
void pack(Wide* to, const T* from, int ld, int op, int rows, int columns, bool rounded) {
  for (int j = 0; j < columns; ++j)
    for (int i = 0; i < rows; ++i) {
      Wide v = static_cast<Wide>(op ? from[j + (int64_t)i * ld] : from[i + (int64_t)j * ld]);
      if (op == 2) v = conjugate(v);
      to[(int64_t)j * rows + i] = rounded ? tf32(v) : v;
    }
}

const int kRows = 32, kColumns = 4;

// sums[c][r] = sum over l of a[l * m + r] b[c * k + l], for a tile that is full or cut off at the matrix's end
template <bool full>
inline __attribute__((always_inline)) void tile(double (&sums)[kColumns][kRows], const double* a, const double* b, int m, int k,
                                                int rows, int columns) {
  const int height = full ? kRows : rows, wide = full ? kColumns : columns;
  for (auto& column : sums) std::fill(column, column + kRows, 0.0);
  for (int l = 0; l < k; ++l) {
    const double* x = a + (int64_t)l * m;
    for (int c = 0; c < wide; ++c) {
      const double y = b[(int64_t)c * k + l];
      for (int r = 0; r < height; ++r) sums[c][r] += x[r] * y;
    }
  }
}
// The wider instructions do the same operations on each element: without fused ones the bits are the same.
__attribute__((target_clones("avx2", "default"))) void any_tile(double (&sums)[kColumns][kRows], const double* a, const double* b,
                                                                int m, int k, int rows, int columns) {
  if (rows == kRows && columns == kColumns)
    tile<true>(sums, a, b, m, k, rows, columns);
  else
    tile<false>(sums, a, b, m, k, rows, columns);
}
void any_tile(Double (&sums)[kColumns][kRows], const Double* a, const Double* b, int m, int k, int rows, int columns) {
  for (auto& column : sums) std::fill(column, column + kRows, Double());
  for (int l = 0; l < k; ++l)
    for (int c = 0; c < columns; ++c) {
      const Double y = b[(int64_t)c * k + l];
      for (int r = 0; r < rows; ++r) {
        const Double x = a[(int64_t)l * m + r];
        sums[c][r] += Double(x.real() * y.real() - x.imag() * y.imag(), x.real() * y.imag() + x.imag() * y.real());
      }
    }
}

template <typename Wide, typename T, typename U>
void product(const Shape& s, Wide alpha, const T* a, const T* b, Wide beta, U* c) {
  if (!s.m || !s.n) return;
  int k = alpha == Wide(0) ? 0 : s.k;  // then A and B are not read
  std::unique_ptr<Wide[]> left(new Wide[(size_t)s.m * k]), right(new Wide[(size_t)k * s.n]);
  pack(left.get(), a, s.lda, s.op_a, s.m, k, s.rounded);
  pack(right.get(), b, s.ldb, s.op_b, k, s.n, s.rounded);
  Wide sums[kColumns][kRows];
  for (int j = 0; j < s.n; j += kColumns)
    for (int i = 0; i < s.m; i += kRows) {
      int rows = std::min(kRows, s.m - i), columns = std::min(kColumns, s.n - j);
      any_tile(sums, left.get() + i, right.get() + (int64_t)j * k, s.m, k, rows, columns);
      for (int y = 0; y < columns; ++y)
        for (int x = 0; x < rows; ++x) {
          U& to = c[i + x + (int64_t)(j + y) * s.ldc];
          Wide sum = alpha * sums[y][x];
          if (beta != Wide(0)) sum += beta * static_cast<Wide>(to);
          store(to, sum);
        }
    }
}

// ---- calls ----

struct Batch {
  int count = 1;
  long long a = 0, b = 0, c = 0;  // elements from one matrix to the next
  bool pointers = false;          // the matrices are arrays of pointers, in the device's memory
};

template <typename T>
const T* matrix(const void* first, const Batch& batch, long long stride, int z) {
  return batch.pointers ? static_cast<const T* const*>(first)[z] : static_cast<const T*>(first) + z * stride;
}

template <typename Scale, typename Wide, typename T, typename U>
int go(Handle* h, const Shape& s, const Batch& batch, const void* alpha, const void* a, const void* b, const void* beta, void* c) {
  Number<Scale> scale(h, alpha), old(h, beta);
  void* workspace = h->workspace;
  size_t room = h->room;
  const std::string what = "product " + std::to_string(batch.count) + " x " + std::to_string(s.m) + "," + std::to_string(s.n) +
                           "," + std::to_string(s.k) + " of " + std::to_string(sizeof(T)) + " bytes";
  return submit(h, [=] {
    if (room) std::memset(workspace, 0xff, room);
    const Wide x = static_cast<Wide>(scale.get()), y = static_cast<Wide>(old.get());
    for (int z = 0; z < batch.count; ++z)
      product<Wide, T, U>(s, x, matrix<T>(a, batch, batch.a, z), matrix<T>(b, batch, batch.b, z), y,
                          const_cast<U*>(matrix<U>(c, batch, batch.c, z)));
  }, what.c_str());
}

int refuse(const char* name, int at, int bt, int ct, int compute) {
  std::string types = " for the types " + std::to_string(at) + ", " + std::to_string(bt) + ", " + std::to_string(ct) +
                      " (cudaDataType) and the compute type " + std::to_string(compute);
  software_gpu_missing((name + types).c_str());
  return kNotSupported;
}

int check(Handle* h, const Shape& s, const Batch& batch) {
  if (!h) return kNotInitialized;
  auto wrong = [](int op) { return op < 0 || op > 2; };
  if (wrong(s.op_a) || wrong(s.op_b) || s.m < 0 || s.n < 0 || s.k < 0 || batch.count < 0 ||
      s.lda < std::max(1, s.op_a ? s.k : s.m) || s.ldb < std::max(1, s.op_b ? s.n : s.k) || s.ldc < std::max(1, s.m))
    return kInvalidValue;
  return kSuccess;
}

enum Compute { kCompute16 = 64, kCompute16Pedantic, kCompute32 = 68, kCompute32Pedantic, kCompute64, kCompute64Pedantic,
               kComputeInt32, kComputeInt32Pedantic, kFastTf32 = 77 };

int general(Handle* h, Shape s, const Batch& batch, const void* alpha, const void* a, int at, const void* b, int bt,
            const void* beta, void* c, int ct, int compute, const char* name) {
  if (int status = check(h, s, batch)) return status;
  if (at != bt) return refuse(name, at, bt, ct, compute);
  bool single = compute == kCompute32 || compute == kCompute32Pedantic || compute == kFastTf32;
  bool wide = compute == kCompute64 || compute == kCompute64Pedantic;
  s.rounded = (at == kFloat || at == kSingleComplex) && (compute == kFastTf32 || (compute == kCompute32 && h->math == 3));
  if (single) {
    if (at == kFloat && ct == kFloat) return go<float, double, float, float>(h, s, batch, alpha, a, b, beta, c);
    if (at == kHalf && ct == kHalf) return go<float, double, Half, Half>(h, s, batch, alpha, a, b, beta, c);
    if (at == kHalf && ct == kFloat) return go<float, double, Half, float>(h, s, batch, alpha, a, b, beta, c);
    if (at == kBfloat16 && ct == kBfloat16) return go<float, double, Bfloat16, Bfloat16>(h, s, batch, alpha, a, b, beta, c);
    if (at == kBfloat16 && ct == kFloat) return go<float, double, Bfloat16, float>(h, s, batch, alpha, a, b, beta, c);
    if (at == kSingleComplex && ct == at) return go<Single, Double, Single, Single>(h, s, batch, alpha, a, b, beta, c);
  } else if (wide) {
    if (at == kDouble && ct == kDouble) return go<double, double, double, double>(h, s, batch, alpha, a, b, beta, c);
    if (at == kDoubleComplex && ct == at) return go<Double, Double, Double, Double>(h, s, batch, alpha, a, b, beta, c);
  } else if (compute == kCompute16 || compute == kCompute16Pedantic) {
    if (at == kHalf && ct == kHalf) return go<Half, double, Half, Half>(h, s, batch, alpha, a, b, beta, c);
  } else if (compute == kComputeInt32 || compute == kComputeInt32Pedantic) {
    if (at == kInt8 && ct == kInt32) return go<int32_t, double, int8_t, int32_t>(h, s, batch, alpha, a, b, beta, c);
  }
  return refuse(name, at, bt, ct, compute);
}

template <typename T>
struct Of;
template <>
struct Of<float> { static const int type = kFloat, compute = kCompute32; };
template <>
struct Of<double> { static const int type = kDouble, compute = kCompute64; };
template <>
struct Of<Single> { static const int type = kSingleComplex, compute = kCompute32; };
template <>
struct Of<Double> { static const int type = kDoubleComplex, compute = kCompute64; };

template <typename T>
int same(Handle* h, const Shape& s, const Batch& batch, const void* alpha, const void* a, const void* b, const void* beta, void* c,
         const char* name) {
  const int type = Of<T>::type;
  return general(h, s, batch, alpha, a, type, b, type, beta, c, type, Of<T>::compute, name);
}

}  // namespace

#define GEMM(LETTER, T)                                                                                                        \
  API int cublas##LETTER##gemm_v2(Handle* h, int ta, int tb, int m, int n, int k, const T* alpha, const T* a, int lda,         \
                                  const T* b, int ldb, const T* beta, T* c, int ldc) {                                         \
    return same<T>(h, {ta, tb, m, n, k, lda, ldb, ldc, false}, {}, alpha, a, b, beta, c, __func__);                            \
  }                                                                                                                            \
  API int cublas##LETTER##gemmStridedBatched(Handle* h, int ta, int tb, int m, int n, int k, const T* alpha, const T* a,       \
                                             int lda, long long sa, const T* b, int ldb, long long sb, const T* beta, T* c,    \
                                             int ldc, long long sc, int count) {                                               \
    return same<T>(h, {ta, tb, m, n, k, lda, ldb, ldc, false}, {count, sa, sb, sc, false}, alpha, a, b, beta, c, __func__);    \
  }                                                                                                                            \
  API int cublas##LETTER##gemmBatched(Handle* h, int ta, int tb, int m, int n, int k, const T* alpha, const T* const* a,       \
                                      int lda, const T* const* b, int ldb, const T* beta, T* const* c, int ldc, int count) {   \
    return same<T>(h, {ta, tb, m, n, k, lda, ldb, ldc, false}, {count, 0, 0, 0, true}, alpha, a, b, beta, (void*)c, __func__); \
  }
FOR_ALL(GEMM)

API int cublasSgemmEx(Handle* h, int ta, int tb, int m, int n, int k, const float* alpha, const void* a, int at, int lda,
                      const void* b, int bt, int ldb, const float* beta, void* c, int ct, int ldc) {
  return general(h, {ta, tb, m, n, k, lda, ldb, ldc, false}, {}, alpha, a, at, b, bt, beta, c, ct, kCompute32, __func__);
}
API int cublasGemmEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int at, int lda,
                     const void* b, int bt, int ldb, const void* beta, void* c, int ct, int ldc, int compute, int) {
  return general(h, {ta, tb, m, n, k, lda, ldb, ldc, false}, {}, alpha, a, at, b, bt, beta, c, ct, compute, __func__);
}
API int cublasGemmStridedBatchedEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int at,
                                   int lda, long long sa, const void* b, int bt, int ldb, long long sb, const void* beta, void* c,
                                   int ct, int ldc, long long sc, int count, int compute, int) {
  return general(h, {ta, tb, m, n, k, lda, ldb, ldc, false}, {count, sa, sb, sc, false}, alpha, a, at, b, bt, beta, c, ct, compute,
                 __func__);
}
