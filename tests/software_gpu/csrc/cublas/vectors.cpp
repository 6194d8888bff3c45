// Vectors, products with vectors, sums and scalings of matrices. Sums are in double, in the order of the index.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cublas.hpp"

using namespace software_gpu;

namespace {

template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, float>, double, std::conditional_t<std::is_same_v<T, Single>, Double, T>>;

template <typename T>
double size1(T v) {  // |re| + |im|: what BLAS calls the size of a complex number in sums and maxima
  return std::abs((double)std::real(v)) + std::abs((double)std::imag(v));
}

// Element i of n, at a distance that may be negative: then the vector starts at its end.
template <typename T>
T& at(T* x, int n, int step, int i) {
  return x[(int64_t)(step < 0 ? i - n + 1 : i) * step];
}

template <typename T, typename F>
int index_of(Handle* h, int n, const T* x, int step, int* result, F better) {
  if (!h) return kNotInitialized;
  return submit_result(h, [=] {
    int best = 0;
    for (int i = 1; i < n; ++i)
      if (better(size1(x[(int64_t)i * step]), size1(x[(int64_t)best * step]))) best = i;
    *result = n < 1 || step < 1 ? 0 : best + 1;
  });
}

template <typename T, typename R, typename F>
int sum_of(Handle* h, int n, const T* x, int step, R* result, F term, bool root) {
  if (!h) return kNotInitialized;
  return submit_result(h, [=] {
    double sum = 0;
    if (step > 0)
      for (int i = 0; i < n; ++i) sum += term(x[(int64_t)i * step]);
    *result = (R)(root ? std::sqrt(sum) : sum);
  });
}

template <typename T>
int dot(Handle* h, int n, const T* x, int sx, const T* y, int sy, T* result, bool conjugated) {
  if (!h) return kNotInitialized;
  return submit_result(h, [=] {
    Wide<T> sum{};
    for (int i = 0; i < n; ++i) {
      Wide<T> left(at(x, n, sx, i));
      sum += (conjugated ? conjugate(left) : left) * Wide<T>(at(y, n, sy, i));
    }
    *result = T(sum);
  });
}

template <typename T>
int axpy(Handle* h, int n, const T* alpha, const T* x, int sx, T* y, int sy) {
  if (!h) return kNotInitialized;
  Number<T> factor(h, alpha);
  return submit(h, [=] {
    Wide<T> a(factor.get());
    for (int i = 0; i < n; ++i) at(y, n, sy, i) = T(Wide<T>(at(y, n, sy, i)) + a * Wide<T>(at(x, n, sx, i)));
  });
}

template <typename T, typename A>
int scal(Handle* h, int n, const A* alpha, T* x, int step) {
  if (!h) return kNotInitialized;
  Number<A> factor(h, alpha);
  return submit(h, [=] {
    if (step > 0)
      for (int i = 0; i < n; ++i) x[(int64_t)i * step] *= factor.get();
  });
}

template <typename T>
int gemv(Handle* h, int op, int m, int n, const T* alpha, const T* a, int lda, const T* x, int sx, const T* beta, T* y, int sy) {
  if (!h) return kNotInitialized;
  if (op < 0 || op > 2 || m < 0 || n < 0 || lda < std::max(1, m) || !sx || !sy) return kInvalidValue;
  Number<T> scale(h, alpha), old(h, beta);
  return submit(h, [=] {
    const Wide<T> factor(scale.get()), kept(old.get());
    const int rows = op ? n : m, inner = op ? m : n;
    for (int i = 0; i < rows; ++i) {
      Wide<T> sum{};
      if (factor != Wide<T>(0))
        for (int l = 0; l < inner; ++l) {
          Wide<T> v(op ? a[l + (int64_t)i * lda] : a[i + (int64_t)l * lda]);
          sum += (op == 2 ? conjugate(v) : v) * Wide<T>(at(x, inner, sx, l));
        }
      T& to = at(y, rows, sy, i);
      sum *= factor;
      if (kept != Wide<T>(0)) sum += kept * Wide<T>(to);
      to = T(sum);
    }
  });
}

template <typename T>
int ger(Handle* h, int m, int n, const T* alpha, const T* x, int sx, const T* y, int sy, T* a, int lda, bool conjugated) {
  if (!h) return kNotInitialized;
  if (m < 0 || n < 0 || lda < std::max(1, m) || !sx || !sy) return kInvalidValue;
  Number<T> scale(h, alpha);
  return submit(h, [=] {
    const Wide<T> factor(scale.get());
    for (int j = 0; j < n; ++j) {
      Wide<T> right(at(y, n, sy, j));
      if (conjugated) right = conjugate(right);
      for (int i = 0; i < m; ++i) {
        T& to = a[i + (int64_t)j * lda];
        to = T(Wide<T>(to) + factor * Wide<T>(at(x, m, sx, i)) * right);
      }
    }
  });
}

template <typename T>
int geam(Handle* h, int op_a, int op_b, int m, int n, const T* alpha, const T* a, int lda, const T* beta, const T* b, int ldb, T* c,
         int ldc) {
  if (!h) return kNotInitialized;
  if (m < 0 || n < 0 || lda < std::max(1, op_a ? n : m) || ldb < std::max(1, op_b ? n : m) || ldc < std::max(1, m))
    return kInvalidValue;
  Number<T> left(h, alpha), right(h, beta);
  return submit(h, [=] {
    auto element = [](const T* p, int ld, int op, int i, int j) {
      T v = op ? p[j + (int64_t)i * ld] : p[i + (int64_t)j * ld];
      return Wide<T>(op == 2 ? conjugate(v) : v);
    };
    const Wide<T> x(left.get()), y(right.get());
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < m; ++i) {  // a factor of zero leaves its matrix unread
        Wide<T> sum{};
        if (x != Wide<T>(0)) sum += x * element(a, lda, op_a, i, j);
        if (y != Wide<T>(0)) sum += y * element(b, ldb, op_b, i, j);
        c[i + (int64_t)j * ldc] = T(sum);
      }
  });
}

template <typename T>
int dgmm(Handle* h, int side, int m, int n, const T* a, int lda, const T* x, int step, T* c, int ldc) {
  if (!h) return kNotInitialized;
  if (m < 0 || n < 0 || lda < std::max(1, m) || ldc < std::max(1, m)) return kInvalidValue;
  return submit(h, [=] {
    const int count = side ? n : m;  // the right side: columns are scaled
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < m; ++i)
        c[i + (int64_t)j * ldc] = T(Wide<T>(a[i + (int64_t)j * lda]) * Wide<T>(at(x, count, step, side ? j : i)));
  });
}

template <typename T>
double absolute(T v) {
  return size1(v);
}
template <typename T>
double squared(T v) {
  return (double)std::real(v) * std::real(v) + (double)std::imag(v) * std::imag(v);
}
bool greater(double a, double b) { return a > b; }
bool less(double a, double b) { return a < b; }

}  // namespace

#define INDEX(SMALL, T)                                                                                      \
  API int cublasI##SMALL##amax_v2(Handle* h, int n, const T* x, int s, int* r) { return index_of(h, n, x, s, r, greater); } \
  API int cublasI##SMALL##amin_v2(Handle* h, int n, const T* x, int s, int* r) { return index_of(h, n, x, s, r, less); }
INDEX(s, float) INDEX(d, double) INDEX(c, Single) INDEX(z, Double)

#define SUMS(NAME, T, R)                                                                            \
  API int cublas##NAME##asum_v2(Handle* h, int n, const T* x, int s, R* r) {                        \
    return sum_of(h, n, x, s, r, absolute<T>, false);                                               \
  }                                                                                                 \
  API int cublas##NAME##nrm2_v2(Handle* h, int n, const T* x, int s, R* r) {                        \
    return sum_of(h, n, x, s, r, squared<T>, true);                                                 \
  }
SUMS(S, float, float) SUMS(D, double, double) SUMS(Sc, Single, float) SUMS(Dz, Double, double)

#define DOT(NAME, T, CONJUGATED)                                                                          \
  API int cublas##NAME##_v2(Handle* h, int n, const T* x, int sx, const T* y, int sy, T* r) {             \
    return dot(h, n, x, sx, y, sy, r, CONJUGATED);                                                        \
  }
DOT(Sdot, float, false) DOT(Ddot, double, false)
DOT(Cdotu, Single, false) DOT(Zdotu, Double, false) DOT(Cdotc, Single, true) DOT(Zdotc, Double, true)

#define GER(NAME, T, CONJUGATED)                                                                                        \
  API int cublas##NAME##_v2(Handle* h, int m, int n, const T* alpha, const T* x, int sx, const T* y, int sy, T* a, int lda) { \
    return ger(h, m, n, alpha, x, sx, y, sy, a, lda, CONJUGATED);                                                       \
  }
GER(Sger, float, false) GER(Dger, double, false)
GER(Cgeru, Single, false) GER(Zgeru, Double, false) GER(Cgerc, Single, true) GER(Zgerc, Double, true)

#define EVERY(LETTER, T)                                                                                                      \
  API int cublas##LETTER##axpy_v2(Handle* h, int n, const T* alpha, const T* x, int sx, T* y, int sy) {                       \
    return axpy(h, n, alpha, x, sx, y, sy);                                                                                   \
  }                                                                                                                           \
  API int cublas##LETTER##scal_v2(Handle* h, int n, const T* alpha, T* x, int s) { return scal(h, n, alpha, x, s); }          \
  API int cublas##LETTER##gemv_v2(Handle* h, int op, int m, int n, const T* alpha, const T* a, int lda, const T* x, int sx,   \
                                  const T* beta, T* y, int sy) {                                                              \
    return gemv(h, op, m, n, alpha, a, lda, x, sx, beta, y, sy);                                                              \
  }                                                                                                                           \
  API int cublas##LETTER##geam(Handle* h, int ta, int tb, int m, int n, const T* alpha, const T* a, int lda, const T* beta,   \
                               const T* b, int ldb, T* c, int ldc) {                                                          \
    return geam(h, ta, tb, m, n, alpha, a, lda, beta, b, ldb, c, ldc);                                                        \
  }                                                                                                                           \
  API int cublas##LETTER##dgmm(Handle* h, int side, int m, int n, const T* a, int lda, const T* x, int s, T* c, int ldc) {    \
    return dgmm(h, side, m, n, a, lda, x, s, c, ldc);                                                                         \
  }
FOR_ALL(EVERY)
API int cublasCsscal_v2(Handle* h, int n, const float* alpha, Single* x, int s) { return scal(h, n, alpha, x, s); }
API int cublasZdscal_v2(Handle* h, int n, const double* alpha, Double* x, int s) { return scal(h, n, alpha, x, s); }
