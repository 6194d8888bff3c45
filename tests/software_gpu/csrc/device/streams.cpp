// Streams, events, and when submitted work runs.
#include "device.hpp"

#include <chrono>

namespace software_gpu {

Stream legacy{true, 0, 0, 0};
std::set<Stream*> streams{&legacy};
static std::set<Stream*> destroyed;  // kept, so that points on them stay valid

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
  destroyed.insert(s);
  drain(s);
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
  if (s->executed < s->submitted) {
    drain(s);
    return cudaErrorNotReady;
  }
  return cudaSuccess;
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
  cudaError_t r = submit(s, [=] { *time = now(); });
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
  if (e->recorded && e->stream->executed < e->number) {
    run(e->stream, e->number);
    return cudaErrorNotReady;
  }
  return cudaSuccess;
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
