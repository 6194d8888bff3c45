// Streams and events.
#include "device.hpp"

#include <chrono>

namespace software_gpu {

Stream legacy{true, 0, 0, 0};
std::set<Stream*> streams{&legacy};
std::vector<Stream*> leftover;

Stream* find(cudaStream_t s) {
  if (s == nullptr || s == cudaStreamLegacy || s == cudaStreamPerThread) return &legacy;
  Stream* found = (Stream*)s;
  return streams.count(found) ? found : nullptr;
}
static double now() { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace software_gpu

using namespace software_gpu;

API cudaError_t cudaDeviceSynchronize() {
  Guard g(lock);
  for (Stream* s : streams)
    if (s->capture) {
      s->capture->invalid = true;
      return fail(cudaErrorStreamCaptureUnsupported);
    }
  drain_all();
  return sticky ? fail(sticky) : cudaSuccess;
}
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority) {
  Guard g(lock);
  Stream* made = new Stream{!(flags & cudaStreamNonBlocking), current_device, flags, priority};
  streams.insert(made);
  *s = (cudaStream_t)made;
  return cudaSuccess;
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) { return cudaStreamCreateWithPriority(s, flags, 0); }
API cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, 0); }
API cudaError_t cudaStreamDestroy(cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s || s == &legacy) return fail(cudaErrorInvalidResourceHandle);
  streams.erase(s);
  leftover.push_back(s);  // its work still runs; it is never deleted, so points on it stay valid
  return cudaSuccess;
}
API cudaError_t cudaStreamGetFlags(cudaStream_t st, unsigned* f) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  *f = s->flags;
  return cudaSuccess;
}
API cudaError_t cudaStreamGetPriority(cudaStream_t st, int* p) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  *p = s->priority;
  return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t st) {
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
API cudaError_t cudaStreamQuery(cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (s->capture) {
    s->capture->invalid = true;
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  return done(s, s->submitted) ? cudaSuccess : cudaErrorNotReady;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t st, cudaEvent_t ev, unsigned) {
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
API cudaError_t cudaLaunchHostFunc(cudaStream_t st, cudaHostFn_t f, void* data) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  return submit(s, [=] { f(data); });
}
API cudaError_t cudaStreamAddCallback(cudaStream_t st, cudaStreamCallback_t f, void* data, unsigned) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  return submit(s, [=] { f(st, cudaSuccess, data); });
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
  *e = (cudaEvent_t) new Event{flags};
  return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t e) {
  Guard g(lock);
  delete (Event*)e;
  return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t ev, cudaStream_t st) {
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
  cudaError_t r = submit(s, [=] { *time = now(); }, Kind::mark);
  e->recorded = true;
  e->stream = s;
  e->number = s->submitted;
  return r;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t ev) {
  Guard g(lock);
  Event* e = (Event*)ev;
  if (e->capture) {
    e->capture->invalid = true;
    return fail(cudaErrorCapturedEvent);
  }
  if (e->recorded) run(e->stream, e->number);
  return sticky ? fail(sticky) : cudaSuccess;
}
API cudaError_t cudaEventQuery(cudaEvent_t ev) {
  Guard g(lock);
  Event* e = (Event*)ev;
  if (e->capture) return fail(cudaErrorCapturedEvent);
  return !e->recorded || done(e->stream, e->number) ? cudaSuccess : cudaErrorNotReady;
}
API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  Guard g(lock);
  Event *x = (Event*)a, *y = (Event*)b;
  if (!x->recorded || !y->recorded || (x->flags | y->flags) & cudaEventDisableTiming) return fail(cudaErrorInvalidResourceHandle);
  if (x->stream->executed < x->number || y->stream->executed < y->number) return cudaErrorNotReady;
  *ms = (float)(*y->time - *x->time);
  return cudaSuccess;
}
API cudaError_t software_gpu_submit(cudaStream_t st, void (*f)(void*), void* data, void (*drop)(void*)) {  // for the other stand-ins
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  std::shared_ptr<void> held(data, drop);
  return submit(s, [=] { f(held.get()); });
}
