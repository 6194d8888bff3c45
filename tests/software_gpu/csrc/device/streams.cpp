// Streams and events.
#include "device.hpp"

#include <chrono>

namespace software_gpu {

std::set<Stream*> streams;
std::vector<Stream*> leftover;

// Events have numbers for handles, which never come back: so a destroyed one is recognised.
static std::map<uintptr_t, std::unique_ptr<Event>> events;
static uintptr_t last_event = 0x10000;

Stream* legacy_stream(int device) {
  static std::map<int, Stream*> made;
  Stream*& s = made[device];
  if (!s) {
    s = new Stream{true, device, 0, 0, true};
    streams.insert(s);
  }
  return s;
}
static Stream* stream_of_thread() {
  static thread_local std::map<int, Stream*> made;
  Stream*& s = made[current_device];
  if (!s) {
    s = new Stream{true, current_device, 0, 0};
    streams.insert(s);
  }
  return s;
}
Stream* find(cudaStream_t s) {
  if (s == nullptr || s == cudaStreamLegacy) return legacy_stream(current_device);
  if (s == cudaStreamPerThread) return stream_of_thread();
  Stream* found = (Stream*)s;
  return streams.count(found) ? found : nullptr;
}
static Event* find(cudaEvent_t e) {
  auto found = events.find((uintptr_t)e);
  return found == events.end() ? nullptr : found->second.get();
}
static cudaError_t no_stream() { return fail(cudaErrorInvalidResourceHandle, "no such stream; was it destroyed?"); }
static cudaError_t no_event() { return fail(cudaErrorInvalidResourceHandle, "no such event; was it destroyed?"); }
double now() { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

static cudaError_t captured(Event* e, const char* call) {
  return e->capture->ended ? fail(cudaErrorCapturedEvent, call) : invalidate(*e->capture, cudaErrorCapturedEvent, call);
}
// The end of a call that waited.
static cudaError_t waited() {
  check_canaries();
  return sticky ? fail(sticky) : cudaSuccess;
}

}  // namespace software_gpu

using namespace software_gpu;

API cudaError_t cudaDeviceSynchronize() {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  for (Stream* s : streams)
    if (s->capture && s->device == current_device)
      return invalidate(*s->capture, cudaErrorStreamCaptureUnsupported, "cudaDeviceSynchronize");
  drain_device(current_device);
  return waited();
}
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  if (flags & ~cudaStreamNonBlocking) return fail(cudaErrorInvalidValue, "unknown flags of a stream");
  Stream* made = new Stream{!(flags & cudaStreamNonBlocking), current_device, flags, priority};
  streams.insert(made);
  *s = (cudaStream_t)made;
  return cudaSuccess;
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) { return cudaStreamCreateWithPriority(s, flags, 0); }
API cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, 0); }
API cudaError_t cudaStreamDestroy(cudaStream_t st) {
  Guard g(lock);
  Stream* s = st == cudaStreamPerThread ? nullptr : find(st);
  if (!s || s->legacy) return no_stream();
  if (s->capture) return invalidate(*s->capture, cudaErrorStreamCaptureUnsupported, "cudaStreamDestroy of a stream that records");
  streams.erase(s);
  leftover.push_back(s);  // its work still runs; it is never deleted, so points on it stay valid
  return cudaSuccess;
}
API cudaError_t cudaStreamGetFlags(cudaStream_t st, unsigned* f) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return no_stream();
  *f = s->flags;
  return cudaSuccess;
}
API cudaError_t cudaStreamGetPriority(cudaStream_t st, int* p) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return no_stream();
  *p = s->priority;
  return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t st) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  Stream* s = find(st);
  if (!s) return no_stream();
  if (s->capture) return invalidate(*s->capture, cudaErrorStreamCaptureUnsupported, "cudaStreamSynchronize");
  if (s->legacy && any_blocking_capture(s->device)) {
    for (Stream* x : streams)
      if (x->capture && x->blocking && x->device == s->device) x->capture->invalid = true;
    return fail(cudaErrorStreamCaptureImplicit, "cudaStreamSynchronize of the legacy stream");
  }
  synchronise(s);
  return waited();
}
API cudaError_t cudaStreamQuery(cudaStream_t st) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  Stream* s = find(st);
  if (!s) return no_stream();
  if (s->capture) return invalidate(*s->capture, cudaErrorStreamCaptureUnsupported, "cudaStreamQuery");
  if (s->legacy && any_blocking_capture(s->device)) return fail(cudaErrorStreamCaptureImplicit, "cudaStreamQuery of the legacy stream");
  return idle(s) ? cudaSuccess : cudaErrorNotReady;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t st, cudaEvent_t ev, unsigned) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  Stream* s = find(st);
  Event* e = find(ev);
  if (!s) return no_stream();
  if (!e) return no_event();
  if (s->capture && s->capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
  if (e->capture && e->capture->ended)
    return s->capture ? invalidate(*s->capture, cudaErrorStreamCaptureIsolation, "an event of a capture that has ended")
                      : fail(cudaErrorCapturedEvent, "an event of a capture that has ended");
  if (e->capture) {
    if (s->capture && s->capture != e->capture) {
      e->capture->invalid = true;
      return invalidate(*s->capture, cudaErrorStreamCaptureMerge, "an event of another capture");
    }
    if (s->legacy) return invalidate(*e->capture, cudaErrorStreamCaptureImplicit, "the legacy stream waits for a captured event");
    s->capture = e->capture;
    s->capture->members.insert(s);
    s->tail.insert(e->tail.begin(), e->tail.end());
    return cudaSuccess;
  }
  if (!e->recorded) return cudaSuccess;
  if (s->capture) return invalidate(*s->capture, cudaErrorStreamCaptureIsolation, "an event recorded outside of the capture");
  s->pending.push_back({e->stream, e->number});
  return cudaSuccess;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t st, cudaHostFn_t f, void* data) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return no_stream();
  return submit(s, [=] { f(data); }, Kind::host);
}
API cudaError_t cudaStreamAddCallback(cudaStream_t st, cudaStreamCallback_t f, void* data, unsigned) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return no_stream();
  if (s->capture) return invalidate(*s->capture, cudaErrorStreamCaptureUnsupported, "cudaStreamAddCallback");
  return submit(s, [=] { f(st, cudaSuccess, data); }, Kind::host);
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
  Guard g(lock);
  if (cudaError_t r = refused()) return r;
  if (flags & ~(cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess))
    return fail(cudaErrorInvalidValue, "unknown flags of an event");
  events[++last_event] = std::make_unique<Event>(Event{flags, current_device});
  *e = (cudaEvent_t)last_event;
  return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
// What waits for it goes on to do so: it is the point in the stream that they wait for.
API cudaError_t cudaEventDestroy(cudaEvent_t e) {
  Guard g(lock);
  return events.erase((uintptr_t)e) ? cudaSuccess : no_event();
}
API cudaError_t cudaEventRecord(cudaEvent_t ev, cudaStream_t st) {
  Guard g(lock);
  if (cudaError_t r = refused()) return r;
  Stream* s = find(st);
  Event* e = find(ev);
  if (!s) return no_stream();
  if (!e) return no_event();
  if (e->device != s->device) return fail(cudaErrorInvalidResourceHandle, "an event and a stream of different devices");
  if (s->capture) {
    if (s->capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
    e->recorded = true;
    e->capture = s->capture;
    e->tail = s->tail;
    return cudaSuccess;
  }
  auto time = std::make_shared<double>(0);
  cudaError_t r = submit(s, [time] { *time = now(); }, Kind::mark);
  if (r) return r;
  e->capture = nullptr;
  e->time = time;
  e->recorded = true;
  e->stream = s;
  e->number = s->submitted;
  return cudaSuccess;
}
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) { return cudaEventRecord(e, s); }
API cudaError_t cudaEventSynchronize(cudaEvent_t ev) {
  Guard g(lock);
  if (cudaError_t r = refused()) return r;
  Event* e = find(ev);
  if (!e) return no_event();
  if (e->capture) return captured(e, "cudaEventSynchronize");
  if (e->recorded) run(e->stream, e->number);
  return waited();
}
API cudaError_t cudaEventQuery(cudaEvent_t ev) {
  Guard g(lock);
  if (cudaError_t r = refused()) return r;
  Event* e = find(ev);
  if (!e) return no_event();
  if (e->capture) return captured(e, "cudaEventQuery");
  if (cudaError_t r = capture_refuses("cudaEventQuery")) return r;
  return !e->recorded || done(e->stream, e->number) ? cudaSuccess : cudaErrorNotReady;
}
API cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) {
  Guard g(lock);
  if (cudaError_t r = refused()) return r;
  Event *x = find(a), *y = find(b);
  if (!x || !y) return no_event();
  if (x->capture || y->capture) return captured(x->capture ? x : y, "cudaEventElapsedTime");
  if (!x->recorded || !y->recorded || (x->flags | y->flags) & cudaEventDisableTiming)
    return fail(cudaErrorInvalidResourceHandle, "events that are not recorded, or take no time");
  if (x->device != y->device) return fail(cudaErrorInvalidResourceHandle, "events of different devices");
  if (x->stream->executed < x->number || y->stream->executed < y->number) return cudaErrorNotReady;
  *ms = (float)(*y->time - *x->time);
  return cudaSuccess;
}
// For the other stand-ins. what: for the list of a graph's nodes.
API cudaError_t software_gpu_submit(cudaStream_t st, void (*f)(void*), void* data, void (*drop)(void*), const char* what) {
  Guard g(lock);
  std::shared_ptr<void> held(data, drop);
  Stream* s = find(st);
  if (!s) return no_stream();
  if (s->capture) label = what;
  return submit(s, [=] {
    running = {"a library's function (cuBLAS)", nullptr, nullptr, 0};
    if (!counts_only) f(held.get());
  });
}
