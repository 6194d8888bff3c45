// A stand-in for cuBLAS: column-major products on host memory, in the stream's order. Prototype.
#include <cstdint>
#include <cstring>
#include <cstdio>
#include <vector>
#include <new>
#define API extern "C" __attribute__((visibility("default")))
typedef void* S;
extern "C" int software_gpu_submit(S, void (*)(void*), void*, void (*)(void*));
extern "C" int cudaStreamSynchronize(S);
extern "C" int cudaDeviceSynchronize();
struct H {
  S stream = nullptr;
  int math = 0, pointer = 0, atomics = 0;
  void* workspace = nullptr;  // the caller's; a product overwrites its beginning when it runs
  size_t room = 0;
};
API int cublasCreate_v2(H** h) {
  *h = new H;
  return 0;
}
API int cublasDestroy_v2(H* h) {
  delete h;
  return cudaDeviceSynchronize() ? 14 : 0;  // cuBLAS does so, too: it frees what belongs to the handle
}
API int cublasGetVersion_v2(H*, int* v) {
  *v = 120900;
  return 0;
}
API int cublasSetStream_v2(H* h, S s) {
  h->stream = s;
  h->workspace = nullptr;  // as in cuBLAS
  h->room = 0;
  return 0;
}
API int cublasGetStream_v2(H* h, S* s) {
  *s = h->stream;
  return 0;
}
API int cublasSetWorkspace_v2(H* h, void* p, size_t n) {
  h->workspace = p;
  h->room = n < 4096 ? n : 4096;
  return 0;
}
API int cublasSetAtomicsMode(H* h, int m) {
  h->atomics = m;
  return 0;
}
API int cublasSetMathMode(H* h, int m) {
  h->math = m;
  return 0;
}
API int cublasGetMathMode(H* h, int* m) {
  *m = h->math;
  return 0;
}
API int cublasSetPointerMode_v2(H* h, int m) {
  h->pointer = m;
  return 0;
}
API int cublasGetPointerMode_v2(H* h, int* m) {
  *m = h->pointer;
  return 0;
}
static double get(const void* p, int type, int64_t i) {
  switch (type) {
    case 0: return ((const float*)p)[i];
    case 1: return ((const double*)p)[i];
    case 2: {
      _Float16 v;
      memcpy(&v, (const char*)p + 2 * i, 2);
      return (double)v;
    }
    case 14: {
      uint32_t b = (uint32_t)((const uint16_t*)p)[i] << 16;
      float v;
      memcpy(&v, &b, 4);
      return v;
    }
  }
  return 0;
}
static void set(void* p, int type, int64_t i, double v) {
  switch (type) {
    case 0: ((float*)p)[i] = (float)v; break;
    case 1: ((double*)p)[i] = v; break;
    case 2: {
      _Float16 h = (_Float16)v;
      memcpy((char*)p + 2 * i, &h, 2);
      break;
    }
    case 14: {
      float f = (float)v;
      uint32_t b;
      memcpy(&b, &f, 4);
      ((uint16_t*)p)[i] = (b & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
      break;
    }
  }
}
struct Product {
  int ta, tb, m, n, k, at, bt, ct, lda, ldb, ldc, batch;
  bool tf32;
  double alpha, beta;
  const void *a, *b;
  void* c;
  int64_t sa, sb, sc;
  const void *palpha, *pbeta;
  int st;
  std::vector<const void*> la, lb;
  std::vector<void*> lc;
  void* workspace;
  size_t room;
};
static int width(int t) { return t == 1 ? 8 : t == 0 ? 4 : 2; }
static void work(void* d) {
  Product& p = *(Product*)d;
  if (p.room) memset(p.workspace, 0xff, p.room);
  if (p.palpha) p.alpha = get(p.palpha, p.st, 0), p.beta = get(p.pbeta, p.st, 0);
  std::vector<double> a((size_t)p.m * p.k), b((size_t)p.k * p.n);
  auto rounded = [&](double v) {
    if (!p.tf32) return v;
    float f = (float)v;
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7f800000u) != 0x7f800000u) u = (u + 0x1000u) & 0xffffe000u;
    memcpy(&f, &u, 4);
    return (double)f;
  };
  for (int z = 0; z < p.batch; ++z) {
    const void* A = (const char*)p.a + z * p.sa * width(p.at);
    const void* B = (const char*)p.b + z * p.sb * width(p.bt);
    void* C = (char*)p.c + z * p.sc * width(p.ct);
    for (int i = 0; i < p.m; ++i)
      for (int l = 0; l < p.k; ++l)
        a[(size_t)i * p.k + l] = rounded(get(A, p.at, p.ta ? l + (int64_t)i * p.lda : i + (int64_t)l * p.lda));
    for (int j = 0; j < p.n; ++j)
      for (int l = 0; l < p.k; ++l)
        b[(size_t)j * p.k + l] = rounded(get(B, p.bt, p.tb ? j + (int64_t)l * p.ldb : l + (int64_t)j * p.ldb));
    for (int j = 0; j < p.n; ++j)
      for (int i = 0; i < p.m; ++i) {
        double s = 0;
        const double *x = &a[(size_t)i * p.k], *y = &b[(size_t)j * p.k];
        for (int l = 0; l < p.k; ++l) s += x[l] * y[l];
        s *= p.alpha;
        int64_t at = i + (int64_t)j * p.ldc;
        if (p.beta != 0) s += p.beta * get(C, p.ct, at);
        set(C, p.ct, at, s);
      }
  }
}
static void drop(void* d) { delete (Product*)d; }
static int go(H* h, int ta, int tb, int m, int n, int k, const void* al, const void* a, int at, int lda, int64_t sa,
              const void* b, int bt, int ldb, int64_t sb, const void* be, void* c, int ct, int ldc, int64_t sc, int batch, int st,
              bool tf32 = false) {
  if (!h) return 1;
  if (m < 0 || n < 0 || k < 0 || batch < 0 || lda < (ta ? k : m) || lda < 1 || ldb < (tb ? n : k) || ldb < 1 || ldc < m ||
      ldc < 1)
    return 7;
  auto known = [](int t) { return t == 0 || t == 1 || t == 2 || t == 14; };
  if (!known(at) || !known(bt) || !known(ct) || at != bt || (at == 1) != (ct == 1) || (at == 0 && ct != 0)) return 15;
  Product* p = new Product{ta, tb, m, n, k, at, bt, ct, lda, ldb, ldc, batch, tf32 && at == 0, 0, 0, a, b, c, sa, sb, sc};
  p->st = st;
  p->workspace = h->workspace, p->room = h->room;
  if (h->pointer == 0)
    p->alpha = get(al, st, 0), p->beta = get(be, st, 0);
  else
    p->palpha = al, p->pbeta = be;
  return software_gpu_submit(h->stream, work, p, drop) ? 13 : 0;
}
static int scale(int compute) { return compute == 70 || compute == 71 ? 1 : compute == 64 || compute == 65 ? 2 : 0; }
API int cublasSgemm_v2(H* h, int ta, int tb, int m, int n, int k, const float* al, const float* a, int lda, const float* b,
                       int ldb, const float* be, float* c, int ldc) {
  return go(h, ta, tb, m, n, k, al, a, 0, lda, 0, b, 0, ldb, 0, be, c, 0, ldc, 0, 1, 0);
}
API int cublasDgemm_v2(H* h, int ta, int tb, int m, int n, int k, const double* al, const double* a, int lda, const double* b,
                       int ldb, const double* be, double* c, int ldc) {
  return go(h, ta, tb, m, n, k, al, a, 1, lda, 0, b, 1, ldb, 0, be, c, 1, ldc, 0, 1, 1);
}
API int cublasSgemmEx(H* h, int ta, int tb, int m, int n, int k, const float* al, const void* a, int at, int lda, const void* b,
                      int bt, int ldb, const float* be, void* c, int ct, int ldc) {
  return go(h, ta, tb, m, n, k, al, a, at, lda, 0, b, bt, ldb, 0, be, c, ct, ldc, 0, 1, 0);
}
API int cublasGemmEx(H* h, int ta, int tb, int m, int n, int k, const void* al, const void* a, int at, int lda, const void* b,
                     int bt, int ldb, const void* be, void* c, int ct, int ldc, int compute, int) {
  return go(h, ta, tb, m, n, k, al, a, at, lda, 0, b, bt, ldb, 0, be, c, ct, ldc, 0, 1, scale(compute), compute == 77);
}
API int cublasGemmStridedBatchedEx(H* h, int ta, int tb, int m, int n, int k, const void* al, const void* a, int at, int lda,
                                   long long sa, const void* b, int bt, int ldb, long long sb, const void* be, void* c, int ct,
                                   int ldc, long long sc, int batch, int compute, int) {
  return go(h, ta, tb, m, n, k, al, a, at, lda, sa, b, bt, ldb, sb, be, c, ct, ldc, sc, batch, scale(compute), compute == 77);
}
API int cublasSgemmStridedBatched(H* h, int ta, int tb, int m, int n, int k, const float* al, const float* a, int lda,
                                  long long sa, const float* b, int ldb, long long sb, const float* be, float* c, int ldc,
                                  long long sc, int batch) {
  return go(h, ta, tb, m, n, k, al, a, 0, lda, sa, b, 0, ldb, sb, be, c, 0, ldc, sc, batch, 0);
}
API int cublasDgemmStridedBatched(H* h, int ta, int tb, int m, int n, int k, const double* al, const double* a, int lda,
                                  long long sa, const double* b, int ldb, long long sb, const double* be, double* c, int ldc,
                                  long long sc, int batch) {
  return go(h, ta, tb, m, n, k, al, a, 1, lda, sa, b, 1, ldb, sb, be, c, 1, ldc, sc, batch, 1);
}
// op(A) x as a product with a matrix of one column; only for increments of one or strided vectors as matrices of one row
API int cublasSgemv_v2(H* h, int t, int m, int n, const float* al, const float* a, int lda, const float* x, int ix,
                       const float* be, float* y, int iy) {
  int r = t ? n : m, k = t ? m : n;
  return go(h, 1, t ? 0 : 1, 1, r, k, al, x, 0, ix == 1 ? k : 1, 0, a, 0, lda, 0, be, y, 0, iy, 0, 1, 0);
}
API int cublasDgemv_v2(H* h, int t, int m, int n, const double* al, const double* a, int lda, const double* x, int ix,
                       const double* be, double* y, int iy) {
  int r = t ? n : m, k = t ? m : n;
  return go(h, 1, t ? 0 : 1, 1, r, k, al, x, 1, ix == 1 ? k : 1, 0, a, 1, lda, 0, be, y, 1, iy, 0, 1, 1);
}

API int cublasSdot_v2(H* h, int n, const float* x, int ix, const float* y, int iy, float* r) {
  static const float one = 1, zero = 0;
  int before = h->pointer;
  h->pointer = 0;
  int e = go(h, 1, 1, 1, 1, n, &one, x, 0, n < 1 ? 1 : n, 0, y, 0, 1, 0, &zero, r, 0, 1, 0, 1, 0);
  h->pointer = before;
  if (!e && !before) e = cudaStreamSynchronize(h->stream) ? 13 : 0;  // the result is in the host's memory
  return ix == 1 && iy == 1 ? e : 15;
}
API int cublasDdot_v2(H* h, int n, const double* x, int ix, const double* y, int iy, double* r) {
  static const double one = 1, zero = 0;
  int before = h->pointer;
  h->pointer = 0;
  int e = go(h, 1, 1, 1, 1, n, &one, x, 1, n < 1 ? 1 : n, 0, y, 1, 1, 0, &zero, r, 1, 1, 0, 1, 1);
  h->pointer = before;
  if (!e && !before) e = cudaStreamSynchronize(h->stream) ? 13 : 0;  // the result is in the host's memory
  return ix == 1 && iy == 1 ? e : 15;
}
struct Batched {
  H h;
  int ta, tb, m, n, k, type, lda, ldb, ldc, batch;
  double alpha, beta;
  const void *const *a, *const *b;
  void* const* c;
};
static void work_batched(void* d) {
  Batched& q = *(Batched*)d;
  for (int i = 0; i < q.batch; ++i) {
    Product p{q.ta, q.tb,  q.m,     q.n,    q.k,    q.type, q.type, q.type, q.lda, q.ldb, q.ldc,
              1,    false, q.alpha, q.beta, q.a[i], q.b[i], q.c[i], 0,      0,     0};
    work(&p);
  }
}
static void drop_batched(void* d) { delete (Batched*)d; }
static int batched(H* h, int type, int ta, int tb, int m, int n, int k, const void* al, const void* const* a, int lda,
                   const void* const* b, int ldb, const void* be, void* const* c, int ldc, int batch) {
  if (h->pointer) return 15;
  if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m || lda < 1 || ldb < 1 || ldc < 1) return 7;
  return software_gpu_submit(
             h->stream, work_batched,
             new Batched{*h, ta, tb, m, n, k, type, lda, ldb, ldc, batch, get(al, type, 0), get(be, type, 0), a, b, c},
             drop_batched)
             ? 13
             : 0;
}
API int cublasSgemmBatched(H* h, int ta, int tb, int m, int n, int k, const float* al, const void* const* a, int lda,
                           const void* const* b, int ldb, const float* be, void* const* c, int ldc, int batch) {
  return batched(h, 0, ta, tb, m, n, k, al, a, lda, b, ldb, be, c, ldc, batch);
}
API int cublasDgemmBatched(H* h, int ta, int tb, int m, int n, int k, const double* al, const void* const* a, int lda,
                           const void* const* b, int ldb, const double* be, void* const* c, int ldc, int batch) {
  return batched(h, 1, ta, tb, m, n, k, al, a, lda, b, ldb, be, c, ldc, batch);
}
