// A software CUDA device: driver and runtime API on host memory. Prototype.
// SOFTWARE_GPU_LAZY=1: work waits in its stream until something demands it (finds missing synchronisation).
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {
std::recursive_mutex lock;
using Guard = std::lock_guard<std::recursive_mutex>;
bool lazy = getenv("SOFTWARE_GPU_LAZY") && atoi(getenv("SOFTWARE_GPU_LAZY"));
bool debug = getenv("SOFTWARE_GPU_DEBUG") && atoi(getenv("SOFTWARE_GPU_DEBUG"));
int device_count = getenv("SOFTWARE_GPU_COUNT") ? atoi(getenv("SOFTWARE_GPU_COUNT")) : 1;
int arch = getenv("SOFTWARE_GPU_ARCH") ? atoi(getenv("SOFTWARE_GPU_ARCH")) : 80;
size_t total_memory = (size_t)(getenv("SOFTWARE_GPU_MIB") ? atoi(getenv("SOFTWARE_GPU_MIB")) : 4096) << 20;
size_t used_memory = 0;
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
cudaError_t sticky = cudaSuccess;
std::string problem;

cudaError_t fail(cudaError_t e) {
  if (debug && e != cudaErrorNotReady) fprintf(stderr, "[software GPU] error %d\n", e);
  if (e != cudaErrorNotReady) last_error = e;
  return e;
}

using Work = std::function<void()>;
struct Graph {
  std::vector<Work> work;
};
struct Capture {
  Graph* graph;
  bool invalid = false;
  cudaStreamCaptureMode mode;
  std::set<struct Stream*> members;
  struct Stream* origin;
};
struct Stream;
struct Point {
  Stream* stream;
  unsigned long long number;
};
struct Op {
  Work work;
  std::vector<Point> after;
};
struct Stream {
  bool blocking;
  int device;
  unsigned flags;
  int priority;
  std::deque<Op> queue;
  unsigned long long submitted = 0, executed = 0;
  std::vector<Point> pending;
  Capture* capture = nullptr;
};
struct Event {
  unsigned flags;
  bool recorded = false;
  Stream* stream = nullptr;
  unsigned long long number = 0;
  std::shared_ptr<double> time = std::make_shared<double>(0);
  Capture* capture = nullptr;
};
struct Exec {
  std::vector<Work> work;
};
Stream legacy{true, 0, 0, 0};
std::set<Stream*> streams{&legacy};
std::set<Stream*> destroyed;  // kept, so that points on them stay valid
std::map<char*, size_t> device_memory, host_memory;

Stream* find(cudaStream_t s) {
  if (s == nullptr || s == cudaStreamLegacy || s == cudaStreamPerThread) return &legacy;
  Stream* found = (Stream*)s;
  return streams.count(found) ? found : nullptr;
}
void run(Stream* s, unsigned long long upto) {
  while (s->executed < upto) {
    Op op = std::move(s->queue.front());
    s->queue.pop_front();
    for (Point& p : op.after) run(p.stream, p.number);
    ++s->executed;  // a point on this very operation must not be waited for twice
    if (sticky == cudaSuccess) op.work();
  }
}
void drain(Stream* s) {
  run(s, s->submitted);
  for (Point& p : s->pending) run(p.stream, p.number);
  s->pending.clear();
}
void drain_all() {
  std::vector<Stream*> all(streams.begin(), streams.end());
  for (size_t i = all.size(); i-- > 0;) drain(all[i]);
}

bool any_blocking_capture() {
  for (Stream* s : streams)
    if (s->capture && s->blocking) return true;
  return false;
}

cudaError_t submit(Stream* s, Work work) {
  if (sticky != cudaSuccess) return fail(sticky);
  if (s->capture) {
    s->capture->graph->work.push_back(std::move(work));
    return cudaSuccess;
  }
  if (s == &legacy && any_blocking_capture()) {
    for (Stream* x : streams)
      if (x->capture && x->blocking) x->capture->invalid = true;
    return fail(cudaErrorStreamCaptureImplicit);
  }
  Op op{std::move(work), std::move(s->pending)};
  s->pending.clear();
  if (s == &legacy) {
    for (Stream* x : streams)
      if (x != s && x->blocking) op.after.push_back({x, x->submitted});
  } else if (s->blocking)
    op.after.push_back({&legacy, legacy.submitted});
  s->queue.push_back(std::move(op));
  ++s->submitted;
  if (!lazy) drain(s);
  return sticky != cudaSuccess ? fail(sticky) : cudaSuccess;
}
double now() { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
bool inside(const std::map<char*, size_t>& where, const void* p) {
  auto i = where.upper_bound((char*)p);
  if (i == where.begin()) return false;
  --i;
  return (char*)p < i->first + i->second || (char*)p == i->first;
}
cudaError_t capture_refuses() {  // calls that are unsafe while some stream of this process captures in global mode
  for (Stream* s : streams)
    if (s->capture && s->capture->mode != cudaStreamCaptureModeRelaxed) {
      s->capture->invalid = true;
      return fail(cudaErrorStreamCaptureUnsupported);
    }
  return cudaSuccess;
}
struct Module {
  void* handle;
  std::string path;
};
typedef const char* (*Runner)(const unsigned*, const unsigned*, unsigned, void**);
struct Function {
  Runner run;
  std::vector<size_t> sizes;
  std::string name;
  int shared_limit = 48 << 10;
};
}  // namespace

#define API extern "C" __attribute__((visibility("default")))
typedef cudaError_t R;

// Every function of the runtime that is not below ends here. It is the last error too: CUB and Thrust ask for that only.
API int software_gpu_unsupported(const char* name) {
  fprintf(stderr, "[software GPU] %s is not there\n", name);
  return fail(cudaErrorNotSupported);
}
API const char* software_gpu_problem() { return problem.c_str(); }
API void software_gpu_reset() {
  sticky = cudaSuccess;
  problem.clear();
}

// ---- runtime: errors, devices ----
API const char* cudaGetErrorName(R e) {
  switch (e) {
    case 0: return "cudaSuccess";
    case 1: return "cudaErrorInvalidValue";
    case 2: return "cudaErrorMemoryAllocation";
    case 101: return "cudaErrorInvalidDevice";
    case 400: return "cudaErrorInvalidResourceHandle";
    case 600: return "cudaErrorNotReady";
    case 719: return "cudaErrorLaunchFailure";
    case 801: return "cudaErrorNotSupported";
    case 900: return "cudaErrorStreamCaptureUnsupported";
    case 901: return "cudaErrorStreamCaptureInvalidated";
    case 904: return "cudaErrorStreamCaptureUnjoined";
    case 906: return "cudaErrorStreamCaptureImplicit";
    case 905: return "cudaErrorStreamCaptureIsolation";
    default: return "cudaErrorOther";
  }
}
API const char* cudaGetErrorString(R e) {
  return e == cudaErrorLaunchFailure && !problem.empty() ? problem.c_str()
         : e == cudaErrorMemoryAllocation                ? "out of memory"
         : e == cudaErrorInvalidDevice                   ? "invalid device ordinal"
         : e == 900                                      ? "operation not permitted when stream is capturing"
                                                         : "software GPU error";
}
API R cudaGetLastError() {
  R e = last_error;
  last_error = cudaSuccess;
  return e;
}
API R cudaPeekAtLastError() { return last_error; }
API R cudaDriverGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
API R cudaRuntimeGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
API R cudaGetDevice(int* d) {
  *d = current_device;
  return cudaSuccess;
}
API R cudaGetDeviceCount(int* n) {
  *n = device_count;
  return device_count ? cudaSuccess : fail(cudaErrorNoDevice);
}
API R cudaSetDevice(int d) {
  if (d < 0 || d >= device_count) return fail(cudaErrorInvalidDevice);
  current_device = d;
  return cudaSuccess;
}
API R cudaDeviceSynchronize() {
  Guard g(lock);
  for (Stream* s : streams)
    if (s->capture) {
      s->capture->invalid = true;
      return fail(cudaErrorStreamCaptureUnsupported);
    }
  drain_all();
  return sticky ? fail(sticky) : cudaSuccess;
}
API R cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int d) {
  if (d < 0 || d >= device_count) return fail(cudaErrorInvalidDevice);
  switch (a) {
    case cudaDevAttrComputeCapabilityMajor: *v = arch / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *v = arch % 10; break;
    case cudaDevAttrMultiProcessorCount: *v = 2; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 48 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = arch >= 90 ? 227 << 10 : arch == 80 ? 163 << 10 : 99 << 10; break;
    case cudaDevAttrL2CacheSize: *v = 1 << 20; break;
    case cudaDevAttrMaxGridDimX: *v = 0x7fffffff; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: *v = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *v = 64; break;
    case cudaDevAttrMemoryPoolsSupported: *v = 0; break;
    case cudaDevAttrUnifiedAddressing: *v = 1; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrClockRate: *v = 1000000; break;
    case cudaDevAttrMemoryClockRate: *v = 1000000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *v = 256; break;
    default: *v = 0;
  }
  return cudaSuccess;
}
API R cudaGetDeviceProperties(cudaDeviceProp* p, int d) {
  if (d < 0 || d >= device_count) return fail(cudaErrorInvalidDevice);
  memset(p, 0, sizeof *p);
  strcpy(p->name, "software GPU");
  p->totalGlobalMem = total_memory;
  p->sharedMemPerBlock = 48 << 10;
  p->regsPerBlock = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = arch / 10;
  p->minor = arch % 10;
  p->multiProcessorCount = 2;
  p->l2CacheSize = 1 << 20;
  p->maxThreadsPerMultiProcessor = 2048;
  p->clockRate = 1000000;
  p->memoryClockRate = 1000000;
  p->memoryBusWidth = 256;
  p->unifiedAddressing = 1;
  p->sharedMemPerBlockOptin = 163 << 10;
  return cudaSuccess;
}
API R cudaDeviceGetPCIBusId(char* s, int n, int d) {
  snprintf(s, n, "0000:%02x:00.0", d + 1);
  return cudaSuccess;
}
API R cudaDeviceCanAccessPeer(int* v, int, int) {
  *v = 1;
  return cudaSuccess;
}
API R cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
API R cudaDeviceDisablePeerAccess(int) { return cudaSuccess; }
API R cudaDeviceGetLimit(size_t* v, cudaLimit) {
  *v = 8 << 20;
  return cudaSuccess;
}
API R cudaDeviceSetLimit(cudaLimit, size_t) { return cudaSuccess; }
API R cudaProfilerStart() { return cudaSuccess; }
API R cudaProfilerStop() { return cudaSuccess; }

// ---- memory ----
API R cudaMalloc(void** p, size_t n) {
  Guard g(lock);
  if (R e = capture_refuses()) return e;
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
API R cudaMallocManaged(void** p, size_t n, unsigned) { return cudaMalloc(p, n); }
API R cudaFree(void* p) {
  Guard g(lock);
  if (!p) return cudaSuccess;
  if (R e = capture_refuses()) return e;
  auto i = device_memory.find((char*)p);
  if (i == device_memory.end()) return fail(cudaErrorInvalidValue);
  drain_all();
  memset(p, 0xff, i->second);
  used_memory -= i->second;
  device_memory.erase(i);
  free(p);
  return cudaSuccess;
}
API R cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
API R cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
API R cudaHostAlloc(void** p, size_t n, unsigned) {
  Guard g(lock);
  if (R e = capture_refuses()) return e;
  *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096 + 4096);
  memset(*p, 0xff, n);
  host_memory[(char*)*p] = n;
  return cudaSuccess;
}
API R cudaFreeHost(void* p) {
  Guard g(lock);
  if (!p) return cudaSuccess;
  if (!host_memory.erase((char*)p)) return fail(cudaErrorInvalidValue);
  drain_all();
  free(p);
  return cudaSuccess;
}
API R cudaHostRegister(void* p, size_t n, unsigned) {
  Guard g(lock);
  host_memory[(char*)p] = n;
  return cudaSuccess;
}
API R cudaHostUnregister(void* p) {
  Guard g(lock);
  host_memory.erase((char*)p);
  return cudaSuccess;
}
API R cudaMemGetInfo(size_t* f, size_t* t) {
  Guard g(lock);
  *f = total_memory - used_memory;
  *t = total_memory;
  return cudaSuccess;
}
API R cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  Guard g(lock);
  memset(a, 0, sizeof *a);
  bool dev = inside(device_memory, p), host = inside(host_memory, p);
  a->type = dev ? cudaMemoryTypeDevice : host ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  a->device = 0;
  if (dev) a->devicePointer = (void*)p;
  if (host) a->hostPointer = a->devicePointer = (void*)p;
  return cudaSuccess;
}
static R check_copy(void* dst, const void* src, size_t n, cudaMemcpyKind kind) {
  if (!n) return cudaSuccess;
  bool to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice,
       from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if ((to && !inside(device_memory, dst)) || (from && !inside(device_memory, src)) ||
      (to && !inside(device_memory, (char*)dst + n - 1)) || (from && !inside(device_memory, (char*)src + n - 1)))
    return fail(cudaErrorInvalidValue);
  return cudaSuccess;
}
API R cudaMemcpyAsync(void* dst, const void* src, size_t n, cudaMemcpyKind kind, cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (R e = check_copy(dst, src, n, kind)) return e;
  bool from_host = !inside(device_memory, src), to_host = !inside(device_memory, dst);
  if (!s->capture && lazy && from_host && !inside(host_memory, src)) {  // pageable: staged before the call returns
    auto copy = std::make_shared<std::string>((const char*)src, n);
    return submit(s, [=] { memcpy(dst, copy->data(), n); });
  }
  if (s->capture && ((from_host && !inside(host_memory, src)) || (to_host && !inside(host_memory, dst)))) {
    s->capture->invalid = true;
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  R e = submit(s, [=] { memmove(dst, src, n); });
  if (!e && !s->capture && to_host && !inside(host_memory, dst)) drain(s);  // pageable: returns when done
  return e;
}
API R cudaMemcpy(void* dst, const void* src, size_t n, cudaMemcpyKind kind) {
  Guard g(lock);
  if (R e = capture_refuses()) return e;
  if (R e = check_copy(dst, src, n, kind)) return e;
  R e = submit(&legacy, [=] { memmove(dst, src, n); });
  if (!e && kind != cudaMemcpyDeviceToDevice) drain(&legacy);
  return e;
}
API R cudaMemcpyPeerAsync(void* d, int, const void* s, int, size_t n, cudaStream_t st) {
  return cudaMemcpyAsync(d, s, n, cudaMemcpyDefault, st);
}
API R cudaMemcpyPeer(void* d, int, const void* s, int, size_t n) { return cudaMemcpy(d, s, n, cudaMemcpyDefault); }
API R cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  return submit(s, [=] { memset(p, v, n); });
}
API R cudaMemset(void* p, int v, size_t n) { return cudaMemsetAsync(p, v, n, nullptr); }
API R cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k, cudaStream_t st) {
  for (size_t i = 0; i < h; ++i)
    if (R e = cudaMemcpyAsync((char*)d + i * dp, (const char*)s + i * sp, w, k, st)) return e;
  return cudaSuccess;
}
API R cudaMemcpy2D(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind k) {
  for (size_t i = 0; i < h; ++i)
    if (R e = cudaMemcpy((char*)d + i * dp, (const char*)s + i * sp, w, k)) return e;
  return cudaSuccess;
}

// ---- streams and events ----
API R cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority) {
  Guard g(lock);
  Stream* made = new Stream{!(flags & cudaStreamNonBlocking), current_device, flags, priority};
  streams.insert(made);
  *s = (cudaStream_t)made;
  return cudaSuccess;
}
API R cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) { return cudaStreamCreateWithPriority(s, flags, 0); }
API R cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, 0); }
API R cudaStreamDestroy(cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s || s == &legacy) return fail(cudaErrorInvalidResourceHandle);
  streams.erase(s);
  destroyed.insert(s);
  drain(s);
  return cudaSuccess;
}
API R cudaStreamGetFlags(cudaStream_t st, unsigned* f) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  *f = s->flags;
  return cudaSuccess;
}
API R cudaStreamGetPriority(cudaStream_t st, int* p) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  *p = s->priority;
  return cudaSuccess;
}
API R cudaStreamSynchronize(cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (s->capture) {
    s->capture->invalid = true;
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  if (s == &legacy) {
    if (any_blocking_capture()) return fail(cudaErrorStreamCaptureImplicit);
  }
  drain(s);
  if (s == &legacy)
    for (Stream* x : std::set<Stream*>(streams))
      if (x->blocking) drain(x);
  return sticky ? fail(sticky) : cudaSuccess;
}
API R cudaStreamQuery(cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (s->capture) {
    s->capture->invalid = true;
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  if (s->executed < s->submitted) {
    drain(s);
    return cudaErrorNotReady;
  }
  return cudaSuccess;
}
API R cudaStreamWaitEvent(cudaStream_t st, cudaEvent_t ev, unsigned) {
  Guard g(lock);
  Stream* s = find(st);
  Event* e = (Event*)ev;
  if (!s || !e) return fail(cudaErrorInvalidResourceHandle);
  if (e->capture) {
    if (s->capture && s->capture != e->capture) {
      s->capture->invalid = true;
      return fail(cudaErrorStreamCaptureIsolation);
    }
    if (s == &legacy) return fail(cudaErrorStreamCaptureImplicit);
    s->capture = e->capture;
    e->capture->members.insert(s);
    return cudaSuccess;
  }
  if (s->capture) {
    if (e->recorded) {
      s->capture->invalid = true;
      return fail(cudaErrorStreamCaptureIsolation);
    }
    return cudaSuccess;
  }
  if (e->recorded) s->pending.push_back({e->stream, e->number});
  return cudaSuccess;
}
API R cudaLaunchHostFunc(cudaStream_t st, cudaHostFn_t f, void* data) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  return submit(s, [=] { f(data); });
}
API R cudaStreamAddCallback(cudaStream_t st, cudaStreamCallback_t f, void* data, unsigned) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  return submit(s, [=] { f(st, cudaSuccess, data); });
}
API R cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
  *e = (cudaEvent_t) new Event{flags};
  return cudaSuccess;
}
API R cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
API R cudaEventDestroy(cudaEvent_t e) {
  Guard g(lock);
  delete (Event*)e;
  return cudaSuccess;
}
API R cudaEventRecord(cudaEvent_t ev, cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  Event* e = (Event*)ev;
  if (!s || !e) return fail(cudaErrorInvalidResourceHandle);
  e->capture = s->capture;
  if (s->capture) {
    e->recorded = true;
    return cudaSuccess;
  }
  e->time = std::make_shared<double>(0);
  auto time = e->time;
  R r = submit(s, [=] { *time = now(); });
  e->recorded = true;
  e->stream = s;
  e->number = s->submitted;
  return r;
}
API R cudaEventSynchronize(cudaEvent_t ev) {
  Guard g(lock);
  Event* e = (Event*)ev;
  if (e->capture) {
    e->capture->invalid = true;
    return fail(cudaErrorCapturedEvent);
  }
  if (e->recorded) run(e->stream, e->number);
  return sticky ? fail(sticky) : cudaSuccess;
}
API R cudaEventQuery(cudaEvent_t ev) {
  Guard g(lock);
  Event* e = (Event*)ev;
  if (e->capture) return fail(cudaErrorCapturedEvent);
  if (e->recorded && e->stream->executed < e->number) {
    run(e->stream, e->number);
    return cudaErrorNotReady;
  }
  return cudaSuccess;
}
API R cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  Guard g(lock);
  Event *x = (Event*)a, *y = (Event*)b;
  if (!x->recorded || !y->recorded || (x->flags | y->flags) & cudaEventDisableTiming) return fail(cudaErrorInvalidResourceHandle);
  if (x->stream->executed < x->number || y->stream->executed < y->number) return cudaErrorNotReady;
  *ms = (float)(*y->time - *x->time);
  return cudaSuccess;
}

// ---- graphs ----
API R cudaStreamBeginCapture(cudaStream_t st, cudaStreamCaptureMode mode) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (s == &legacy) return fail(cudaErrorStreamCaptureUnsupported);
  if (s->capture) return fail(cudaErrorIllegalState);
  s->capture = new Capture{new Graph, false, mode, {s}, s};
  return cudaSuccess;
}
API R cudaStreamEndCapture(cudaStream_t st, cudaGraph_t* out) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s || !s->capture) return fail(cudaErrorIllegalState);
  Capture* c = s->capture;
  for (Stream* m : c->members) m->capture = nullptr;
  *out = nullptr;
  if (c->invalid) return fail(cudaErrorStreamCaptureInvalidated);
  *out = (cudaGraph_t)c->graph;
  return cudaSuccess;
}
API R cudaStreamIsCapturing(cudaStream_t st, cudaStreamCaptureStatus* v) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (s == &legacy && any_blocking_capture()) return fail(cudaErrorStreamCaptureImplicit);
  *v = !s->capture           ? cudaStreamCaptureStatusNone
       : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                             : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
API R cudaGraphInstantiate(cudaGraphExec_t* x, cudaGraph_t gr, unsigned long long) {
  Guard g(lock);
  *x = (cudaGraphExec_t) new Exec{((Graph*)gr)->work};
  return cudaSuccess;
}
API R cudaGraphDestroy(cudaGraph_t gr) {
  Guard g(lock);
  delete (Graph*)gr;
  return cudaSuccess;
}
API R cudaGraphExecDestroy(cudaGraphExec_t x) {
  Guard g(lock);
  drain_all();
  delete (Exec*)x;
  return cudaSuccess;
}
API R cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
API R cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  std::vector<Work>* work = &((Exec*)x)->work;
  return submit(s, [=] {
    for (Work& w : *work)
      if (!sticky) w();
  });
}

// ---- driver ----
typedef CUresult D;
API D cuGetErrorName(D e, const char** s) {
  *s = e == CUDA_ERROR_LAUNCH_FAILED   ? "CUDA_ERROR_LAUNCH_FAILED"
       : e == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
       : e == CUDA_ERROR_NOT_FOUND     ? "CUDA_ERROR_NOT_FOUND"
       : e == CUDA_ERROR_INVALID_IMAGE ? "CUDA_ERROR_INVALID_IMAGE"
                                       : "CUDA_ERROR_UNKNOWN";
  return CUDA_SUCCESS;
}
API D cuGetErrorString(D e, const char** s) {
  *s = e == CUDA_ERROR_LAUNCH_FAILED ? problem.c_str() : "software GPU error";
  return CUDA_SUCCESS;
}
API D cuInit(unsigned) { return CUDA_SUCCESS; }
API D cuDriverGetVersion(int* v) {
  *v = CUDART_VERSION;
  return CUDA_SUCCESS;
}
API D cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
API D cuCtxGetCurrent(CUcontext* c) {
  *c = (CUcontext)(intptr_t)(0x1000 + current_device);
  return CUDA_SUCCESS;
}
API D cuCtxSetCurrent(CUcontext c) {
  if (c) current_device = (int)((intptr_t)c - 0x1000);
  return CUDA_SUCCESS;
}
API D cuCtxGetDevice(CUdevice* d) {
  *d = current_device;
  return CUDA_SUCCESS;
}
API D cuStreamGetCtx(CUstream, CUcontext* c) { return cuCtxGetCurrent(c); }
API D cuModuleLoadData(CUmodule* m, const void* image) {
  Guard g(lock);
  const char* p = (const char*)image;
  if (memcmp(p, "//CUDASIM\n", 10)) return CUDA_ERROR_INVALID_IMAGE;
  size_t n = strtoull(p + 10, nullptr, 10);
  std::string path = (std::filesystem::temp_directory_path() / "software_gpuXXXXXX").string();
  int f = mkstemp(path.data());
  const char* body = p + 32;
  while (n) {
    ssize_t w = write(f, body, n);
    if (w <= 0) return CUDA_ERROR_OUT_OF_MEMORY;
    body += w, n -= w;
  }
  close(f);
  void* h = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!h) fprintf(stderr, "[software GPU] %s\n", dlerror());
  unlink(path.c_str());
  if (!h) return CUDA_ERROR_INVALID_IMAGE;
  *m = (CUmodule) new Module{h, path};
  return CUDA_SUCCESS;
}
API D cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }  // functions of it may be queued or in graphs: kept
API D cuModuleGetFunction(CUfunction* f, CUmodule m, const char* name) {
  Guard g(lock);
  void* h = ((Module*)m)->handle;
  std::string n(name);
  Runner run = (Runner)dlsym(h, ("software_gpu_run_" + n).c_str());
  typedef int (*Sizes)(const size_t**);
  Sizes sizes = (Sizes)dlsym(h, ("software_gpu_sizes_" + n).c_str());
  if (!run || !sizes) return CUDA_ERROR_NOT_FOUND;
  const size_t* list;
  int count = sizes(&list);
  *f = (CUfunction) new Function{run, std::vector<size_t>(list, list + count), n};
  return CUDA_SUCCESS;
}
API D cuModuleGetGlobal_v2(CUdeviceptr* p, size_t* n, CUmodule m, const char* name) {
  *p = (CUdeviceptr)dlsym(((Module*)m)->handle, name);
  if (n) *n = 0;
  return *p ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
API D cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
  if (a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    int most;
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    if (v > most) return CUDA_ERROR_INVALID_VALUE;
    ((Function*)f)->shared_limit = v;
  }
  return CUDA_SUCCESS;
}
API D cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction f) {
  *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK           ? 1024
       : a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? ((Function*)f)->shared_limit
                                                              : 32;
  return CUDA_SUCCESS;
}
API D cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction, int, size_t) {
  *n = 2;
  return CUDA_SUCCESS;
}
API D cuOccupancyMaxPotentialBlockSize(int* g, int* b, CUfunction, CUoccupancyB2DSize, size_t, int) {
  *g = 2, *b = 256;
  return CUDA_SUCCESS;
}
API D cuLaunchKernel(CUfunction cf, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                     CUstream st, void** args, void** extra) {
  Guard g(lock);
  Function* f = (Function*)cf;
  Stream* s = find((cudaStream_t)st);
  if (!s) return CUDA_ERROR_INVALID_HANDLE;
  if (!gx || !gy || !gz || !bx || !by || !bz || gx > 0x7fffffffu || gy > 65535 || gz > 65535 || bx > 1024 || by > 1024 ||
      bz > 64 || bx * by * bz > 1024 || shared > (unsigned)f->shared_limit || extra)
    return CUDA_ERROR_INVALID_VALUE;
  size_t slots = 0;
  for (size_t n : f->sizes) slots += (n + 15) / 16;
  struct Slot {
    alignas(16) char bytes[16];
  };
  auto packed = std::make_shared<std::vector<Slot>>(slots + 1);
  auto pointers = std::make_shared<std::vector<void*>>();
  size_t at = 0;
  for (size_t i = 0; i < f->sizes.size(); ++i) {
    char* to = (*packed)[at].bytes;
    memcpy(to, args[i], f->sizes[i]);
    pointers->push_back(to);
    at += (f->sizes[i] + 15) / 16;
  }
  R e = submit(s, [=] {
    unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    (void)packed;
    if (const char* wrong = f->run(grid, block, shared, pointers->data())) {
      problem = f->name + ": " + wrong;
      fprintf(stderr, "[software GPU] %s\n", problem.c_str());
      sticky = cudaErrorLaunchFailure;
    }
  });
  return (D)e;
}
API D cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                unsigned sh, CUstream st, void** a) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
API R software_gpu_submit(cudaStream_t st, void (*f)(void*), void* data, void (*drop)(void*)) {  // for the other stand-ins
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  std::shared_ptr<void> held(data, drop);
  return submit(s, [=] { f(held.get()); });
}
