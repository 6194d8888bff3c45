// Handles and their settings.
#include "cublas.hpp"

using namespace software_gpu;

API int cublasCreate_v2(Handle** h) {
  *h = new Handle;
  return kSuccess;
}
API int cublasDestroy_v2(Handle* h) {
  if (!h) return kNotInitialized;
  delete h;
  return cudaDeviceSynchronize() ? kInternal : kSuccess;  // cuBLAS does so, too: it frees what belongs to the handle
}
API int cublasGetVersion_v2(Handle*, int* v) {
  *v = SOFTWARE_GPU_CUDA == 12 ? 120900 : 130000;
  return kSuccess;
}
API int cublasSetStream_v2(Handle* h, void* stream) {
  if (!h) return kNotInitialized;
  h->stream = stream;
  h->workspace = nullptr, h->room = 0;  // as in cuBLAS
  return kSuccess;
}
API int cublasGetStream_v2(Handle* h, void** stream) {
  *stream = h->stream;
  return kSuccess;
}
API int cublasSetWorkspace_v2(Handle* h, void* p, size_t n) {
  h->workspace = p;
  h->room = p ? (n < 4096 ? n : 4096) : 0;
  return kSuccess;
}
API int cublasSetAtomicsMode(Handle* h, int m) {
  h->atomics = m;
  return kSuccess;
}
API int cublasSetMathMode(Handle* h, int m) {
  h->math = m;
  return kSuccess;
}
API int cublasGetMathMode(Handle* h, int* m) {
  *m = h->math;
  return kSuccess;
}
API int cublasSetPointerMode_v2(Handle* h, int m) {
  h->pointer = m;
  return kSuccess;
}
API int cublasGetPointerMode_v2(Handle* h, int* m) {
  *m = h->pointer;
  return kSuccess;
}
