// Copies and fills, in the order of their stream.
#include "device.hpp"

namespace software_gpu {

struct Rows {  // of a copy
  char* to;
  const char* from;
  size_t to_pitch, from_pitch, width, height;

  size_t to_bytes() const { return (height - 1) * to_pitch + width; }
  size_t from_bytes() const { return (height - 1) * from_pitch + width; }
};

static void move(const Rows& r) {
  running = {"a copy", r.to, r.from, r.width * r.height};
  if (r.height == 1 || (r.to_pitch == r.width && r.from_pitch == r.width)) {
    memmove(r.to, r.from, r.width * r.height);
    return;
  }
  for (size_t i = 0; i < r.height; ++i) memmove(r.to + i * r.to_pitch, r.from + i * r.from_pitch, r.width);
}

// Refuse a copy that leaves its memory, or whose kind is another. cudaMemcpyDefault goes by the addresses.
static cudaError_t check(const Rows& r, cudaMemcpyKind kind, const Where& to, const Where& from) {
  if ((int)kind < 0 || (int)kind > 4) return fail(cudaErrorInvalidMemcpyDirection);
  if (to.place == Place::kNowhere) return fail(cudaErrorInvalidValue, "the destination is not in one allocation: " + describe(r.to));
  if (from.place == Place::kNowhere) return fail(cudaErrorInvalidValue, "the source is not in one allocation: " + describe(r.from));
  bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (kind == cudaMemcpyDefault) return cudaSuccess;
  if (!to.managed && to_device != (to.place == Place::kDevice))
    return fail(cudaErrorInvalidValue, to_device ? "the destination is host memory" : "the destination is device memory");
  if (!from.managed && from_device != (from.place == Place::kDevice))
    return fail(cudaErrorInvalidValue, from_device ? "the source is host memory" : "the source is device memory");
  return cudaSuccess;
}

// Put a copy into a stream. Memory of the host that is not pinned is read before the call returns, and written when it
// returns; pinned memory is read and written when the copy runs. `waits`: the call returns when the copy is done, but for one
// within the device; so it does for every copy within the host. A copy between two devices in a legacy stream, as all of cudaMemcpyPeer's, comes after all that both have
// (and the current device, if it `waits`), and before all that they get from then on: "CUDA C++ Programming Guide",
// peer-to-peer memory copy.
static cudaError_t copy(const Rows& r, cudaMemcpyKind kind, Stream* s, bool waits) {
  if (cudaError_t e = refused()) return e;
  if (!s) return fail(cudaErrorInvalidResourceHandle, "no such stream; was it destroyed?");
  if (r.height > 1 && (r.to_pitch < r.width || r.from_pitch < r.width)) return fail(cudaErrorInvalidPitchValue);
  if (!r.width || !r.height) return cudaSuccess;
  Where to = where(r.to, r.to_bytes()), from = where(r.from, r.from_bytes());
  if (cudaError_t e = check(r, kind, to, from)) return e;
  bool from_host = from.place != Place::kDevice, to_host = to.place != Place::kDevice;
  bool from_pageable = from.place == Place::kPageable, to_pageable = to.place == Place::kPageable;
  if (s->capture && (from_pageable || to_pageable))
    return invalidate(*s->capture, cudaErrorStreamCaptureUnsupported, "a copy of pageable memory");
  Kind how = from_host || to_host ? Kind::copy : Kind::kernel;
  if (s->capture) label = "copy " + std::to_string(r.width * r.height) + (from_host ? " from host" : to_host ? " to host" : "");
  if (from_pageable && !to_host) {
    if (waits) drain(s);  // before the copy, not after it: the call returns when the source has been read
    auto staged = std::make_shared<std::vector<char>>(r.from_bytes());
    perform([&] { move({staged->data(), r.from, r.from_pitch, r.from_pitch, r.width, r.height}); });
    return submit(s, [r, staged] { move({r.to, staged->data(), r.to_pitch, r.from_pitch, r.width, r.height}); }, how);
  }
  if (s->legacy && !from_host && !to_host && from.device != to.device)
    return submit_across(s, [r] { move(r); }, {from.device, to.device, waits ? s->device : to.device});
  cudaError_t e = submit(s, [r] { move(r); }, how);
  if (e || s->capture || how == Kind::kernel || !(waits || to_pageable || (from_host && to_host))) return e;
  drain(s);
  check_canaries();
  return sticky ? fail(sticky) : cudaSuccess;
}
static cudaError_t copy_now(const Rows& r, cudaMemcpyKind kind) {
  Stream* s = legacy_stream(current_device);
  // With a blocking stream that records, the legacy stream itself refuses.
  if (!any_blocking_capture(s->device))
    if (cudaError_t e = capture_refuses("cudaMemcpy")) return e;
  return copy(r, kind, s, true);
}
static Rows row(void* to, const void* from, size_t n) { return {(char*)to, (const char*)from, n, n, n, 1}; }

static cudaError_t fill(char* p, size_t pitch, int value, size_t width, size_t height, Stream* s) {
  if (cudaError_t e = refused()) return e;
  if (!s) return fail(cudaErrorInvalidResourceHandle, "no such stream; was it destroyed?");
  if (height > 1 && pitch < width) return fail(cudaErrorInvalidPitchValue);
  if (!width || !height) return cudaSuccess;
  Where w = where(p, (height - 1) * pitch + width);
  if (w.place != Place::kDevice && w.place != Place::kPinned)
    return fail(cudaErrorInvalidValue, "cudaMemset of what is not in one allocation: " + describe(p));
  if (s->capture) label = "fill " + std::to_string(width * height);
  return submit(s, [=] {
    running = {"a fill", p, nullptr, width * height};
    for (size_t i = 0; i < height; ++i) memset(p + i * pitch, value, width);
  }, Kind::copy);
}

}  // namespace software_gpu

using namespace software_gpu;

API cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t n, cudaMemcpyKind kind, cudaStream_t st) {
  Guard g(lock);
  return copy(row(dst, src, n), kind, find(st), false);
}
API cudaError_t cudaMemcpy(void* dst, const void* src, size_t n, cudaMemcpyKind kind) {
  Guard g(lock);
  return copy_now(row(dst, src, n), kind);
}
API cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k,
                                  cudaStream_t st) {
  Guard g(lock);
  return copy({(char*)d, (const char*)s, dp, sp, w, h}, k, find(st), false);
}
API cudaError_t cudaMemcpy2D(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k) {
  Guard g(lock);
  return copy_now({(char*)d, (const char*)s, dp, sp, w, h}, k);
}

// Between devices, with or without access to each other's memory.
static cudaError_t check_peers(void* d, int to, const void* s, int from, size_t n) {
  if (to < 0 || to >= device_count || from < 0 || from >= device_count) return fail(cudaErrorInvalidDevice);
  if (!n) return cudaSuccess;
  Where there = where(d, n), here = where(s, n);
  if (there.place != Place::kDevice || (there.device != to && !there.managed)) return fail(cudaErrorInvalidValue, "the destination is not on that device");
  if (here.place != Place::kDevice || (here.device != from && !here.managed)) return fail(cudaErrorInvalidValue, "the source is not on that device");
  return cudaSuccess;
}
API cudaError_t cudaMemcpyPeerAsync(void* d, int to, const void* s, int from, size_t n, cudaStream_t st) {
  Guard g(lock);
  if (cudaError_t e = check_peers(d, to, s, from, n)) return e;
  return copy(row(d, s, n), cudaMemcpyDeviceToDevice, find(st), false);
}
API cudaError_t cudaMemcpyPeer(void* d, int to, const void* s, int from, size_t n) {
  Guard g(lock);
  if (cudaError_t e = check_peers(d, to, s, from, n)) return e;
  return copy_now(row(d, s, n), cudaMemcpyDeviceToDevice);
}

API cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t st) {
  Guard g(lock);
  return fill((char*)p, n, v, n, 1, find(st));
}
API cudaError_t cudaMemset(void* p, int v, size_t n) { return cudaMemsetAsync(p, v, n, nullptr); }
API cudaError_t cudaMemset2DAsync(void* p, size_t pitch, int v, size_t w, size_t h, cudaStream_t st) {
  Guard g(lock);
  return fill((char*)p, pitch, v, w, h, find(st));
}
