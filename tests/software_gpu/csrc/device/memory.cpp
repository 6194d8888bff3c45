// Device memory and pinned memory, and copies between them.
#include "device.hpp"

namespace software_gpu {

static size_t used_memory = 0;
static std::map<char*, size_t> device_memory, host_memory;

static bool inside(const std::map<char*, size_t>& where, const void* p) {
  auto i = where.upper_bound((char*)p);
  if (i == where.begin()) return false;
  --i;
  return (char*)p < i->first + i->second || (char*)p == i->first;
}

}  // namespace software_gpu

using namespace software_gpu;

API cudaError_t cudaMalloc(void** p, size_t n) {
  Guard g(lock);
  if (cudaError_t e = capture_refuses()) return e;
  if (sticky) return fail(sticky);
  if (used_memory + n > total_memory) {
    *p = nullptr;
    return fail(cudaErrorMemoryAllocation);
  }
  size_t room = (n + 511) / 512 * 512;
  if (!room) room = 512;
  void* q = aligned_alloc(512, room);
  if (!q) return fail(cudaErrorMemoryAllocation);
  memset(q, 0xff, room);
  used_memory += n;
  device_memory[(char*)q] = n;
  *p = q;
  return cudaSuccess;
}
API cudaError_t cudaMallocManaged(void** p, size_t n, unsigned) { return cudaMalloc(p, n); }
API cudaError_t cudaFree(void* p) {
  Guard g(lock);
  if (!p) return cudaSuccess;
  if (cudaError_t e = capture_refuses()) return e;
  auto i = device_memory.find((char*)p);
  if (i == device_memory.end()) return fail(cudaErrorInvalidValue);
  drain_all();
  memset(p, 0xff, i->second);
  used_memory -= i->second;
  device_memory.erase(i);
  free(p);
  return cudaSuccess;
}
API cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
API cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
API cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
  Guard g(lock);
  if (cudaError_t e = capture_refuses()) return e;
  *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096 + 4096);
  memset(*p, 0xff, n);
  host_memory[(char*)*p] = n;
  return cudaSuccess;
}
API cudaError_t cudaFreeHost(void* p) {
  Guard g(lock);
  if (!p) return cudaSuccess;
  if (!host_memory.erase((char*)p)) return fail(cudaErrorInvalidValue);
  drain_all();
  free(p);
  return cudaSuccess;
}
API cudaError_t cudaHostRegister(void* p, size_t n, unsigned) {
  Guard g(lock);
  host_memory[(char*)p] = n;
  return cudaSuccess;
}
API cudaError_t cudaHostUnregister(void* p) {
  Guard g(lock);
  host_memory.erase((char*)p);
  return cudaSuccess;
}
API cudaError_t cudaMemGetInfo(size_t* f, size_t* t) {
  Guard g(lock);
  *f = total_memory - used_memory;
  *t = total_memory;
  return cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  Guard g(lock);
  memset(a, 0, sizeof *a);
  bool dev = inside(device_memory, p), host = inside(host_memory, p);
  a->type = dev ? cudaMemoryTypeDevice : host ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  a->device = 0;
  if (dev) a->devicePointer = (void*)p;
  if (host) a->hostPointer = a->devicePointer = (void*)p;
  return cudaSuccess;
}
static cudaError_t check_copy(void* dst, const void* src, size_t n, cudaMemcpyKind kind) {
  if (!n) return cudaSuccess;
  bool to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice,
       from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if ((to && !inside(device_memory, dst)) || (from && !inside(device_memory, src)) ||
      (to && !inside(device_memory, (char*)dst + n - 1)) || (from && !inside(device_memory, (char*)src + n - 1)))
    return fail(cudaErrorInvalidValue);
  return cudaSuccess;
}
// Submit a copy. Memory of the host that is not pinned is read before the call returns, and written when it returns; pinned
// memory is read and written when the copy runs.
static cudaError_t copy(Stream* s, void* dst, const void* src, size_t n) {
  bool from_host = !inside(device_memory, src), to_host = !inside(device_memory, dst);
  bool pageable_source = from_host && !inside(host_memory, src), pageable_target = to_host && !inside(host_memory, dst);
  if (s->capture && (pageable_source || pageable_target)) {
    s->capture->invalid = true;
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  Kind kind = from_host || to_host ? Kind::copy : Kind::kernel;
  if (pageable_source && !to_host) {
    auto staged = std::make_shared<std::string>((const char*)src, n);
    return submit(s, [=] { memcpy(dst, staged->data(), n); }, kind);
  }
  cudaError_t e = submit(s, [=] { memmove(dst, src, n); }, kind);
  if (!e && pageable_target) drain(s);
  return e;
}
API cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t n, cudaMemcpyKind kind, cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (cudaError_t e = check_copy(dst, src, n, kind)) return e;
  return copy(s, dst, src, n);
}
API cudaError_t cudaMemcpy(void* dst, const void* src, size_t n, cudaMemcpyKind kind) {
  Guard g(lock);
  if (cudaError_t e = capture_refuses()) return e;
  if (cudaError_t e = check_copy(dst, src, n, kind)) return e;
  bool from_host = !inside(device_memory, src), to_host = !inside(device_memory, dst);
  bool staged = from_host && !to_host && !inside(host_memory, src);
  if (staged) drain(&legacy);  // before the copy, not after it: the call returns when the source has been read
  cudaError_t e = copy(&legacy, dst, src, n);
  if (!e && !staged && (from_host || to_host)) drain(&legacy);
  return e;
}
API cudaError_t cudaMemcpyPeerAsync(void* d, int, const void* s, int, size_t n, cudaStream_t st) {
  return cudaMemcpyAsync(d, s, n, cudaMemcpyDefault, st);
}
API cudaError_t cudaMemcpyPeer(void* d, int, const void* s, int, size_t n) { return cudaMemcpy(d, s, n, cudaMemcpyDefault); }
API cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  return submit(s, [=] { memset(p, v, n); }, Kind::copy);
}
API cudaError_t cudaMemset(void* p, int v, size_t n) { return cudaMemsetAsync(p, v, n, nullptr); }
API cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k, cudaStream_t st) {
  for (size_t i = 0; i < h; ++i)
    if (cudaError_t e = cudaMemcpyAsync((char*)d + i * dp, (const char*)s + i * sp, w, k, st)) return e;
  return cudaSuccess;
}
API cudaError_t cudaMemcpy2D(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k) {
  for (size_t i = 0; i < h; ++i)
    if (cudaError_t e = cudaMemcpy((char*)d + i * dp, (const char*)s + i * sp, w, k)) return e;
  return cudaSuccess;
}
