// A stand-in for cuBLAS: column-major matrices and vectors in the device's memory, in the stream's order.
//
// handle.cpp    handles and their settings
// products.cpp  products of matrices
// vectors.cpp   vectors, products with vectors, sums and scalings of matrices
//
// What CuPy asks for and is not here reports its name and is CUBLAS_STATUS_NOT_SUPPORTED: build.py writes these functions.
#pragma once
#include <complex>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#define API extern "C" __attribute__((visibility("default")))

extern "C" int software_gpu_submit(void* stream, void (*work)(void*), void* data, void (*drop)(void*), const char* what);
extern "C" void software_gpu_missing(const char* name);
extern "C" int cudaStreamSynchronize(void* stream);
extern "C" int cudaDeviceSynchronize();

namespace software_gpu {

enum Status { kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kExecutionFailed = 13, kInternal = 14, kNotSupported = 15 };

struct Handle {
  void* stream = nullptr;
  int math = 0, atomics = 0;
  int pointer = 0;            // 0: alpha, beta and results are in the host's memory; 1: in the device's
  void* workspace = nullptr;  // the caller's; a product overwrites its beginning when it runs
  size_t room = 0;
};

using Single = std::complex<float>;
using Double = std::complex<double>;

// Run `work` in the handle's stream. what: for the list of a graph's nodes.
template <typename F>
int submit(Handle* h, F work, const char* what = "library") {
  F* held = new F(std::move(work));
  return software_gpu_submit(
             h->stream, [](void* f) { (*static_cast<F*>(f))(); }, held, [](void* f) { delete static_cast<F*>(f); }, what)
             ? kExecutionFailed
             : kSuccess;
}
// Run `work`, which writes a result that the caller reads on the host where the handle's pointer mode says so.
template <typename F>
int submit_result(Handle* h, F work) {
  int status = submit(h, std::move(work));
  if (status || h->pointer) return status;
  return cudaStreamSynchronize(h->stream) ? kExecutionFailed : kSuccess;
}

// A number that is read when the call is made, or when the work runs: alpha and beta.
template <typename T>
struct Number {
  T value{};
  const T* later = nullptr;
  Number(const Handle* h, const void* p) {
    if (h->pointer)
      later = static_cast<const T*>(p);
    else
      std::memcpy(&value, p, sizeof value);
  }
  T get() const { return later ? *later : value; }
};

inline float conjugate(float v) { return v; }
inline double conjugate(double v) { return v; }
template <typename T>
std::complex<T> conjugate(std::complex<T> v) {
  return std::conj(v);
}

// Each function once for each of BLAS's four types.
#define FOR_REAL(F) F(S, float) F(D, double)
#define FOR_COMPLEX(F) F(C, Single) F(Z, Double)
#define FOR_ALL(F) FOR_REAL(F) FOR_COMPLEX(F)

}  // namespace software_gpu
