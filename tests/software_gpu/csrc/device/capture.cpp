// Recording streams into graphs, and running these.
#include "device.hpp"

namespace software_gpu {

struct Exec {
  std::shared_ptr<std::vector<Work>> work;  // also of launches that have not run yet
};

bool any_blocking_capture() {
  for (Stream* s : streams)
    if (s->capture && s->blocking) return true;
  return false;
}

cudaError_t capture_refuses() {  // calls that are unsafe while some stream of this process captures in global mode
  for (Stream* s : streams)
    if (s->capture && s->capture->mode != cudaStreamCaptureModeRelaxed) {
      s->capture->invalid = true;
      return fail(cudaErrorStreamCaptureUnsupported);
    }
  return cudaSuccess;
}

}  // namespace software_gpu

using namespace software_gpu;

API cudaError_t cudaStreamBeginCapture(cudaStream_t st, cudaStreamCaptureMode mode) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (s == &legacy) return fail(cudaErrorStreamCaptureUnsupported);
  if (s->capture) return fail(cudaErrorIllegalState);
  s->capture = new Capture{new Graph, false, mode, {s}, s};
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t st, cudaGraph_t* out) {
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
API cudaError_t cudaStreamIsCapturing(cudaStream_t st, cudaStreamCaptureStatus* v) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  if (s == &legacy && any_blocking_capture()) return fail(cudaErrorStreamCaptureImplicit);
  *v = !s->capture           ? cudaStreamCaptureStatusNone
       : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                             : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
API cudaError_t cudaGraphInstantiate(cudaGraphExec_t* x, cudaGraph_t gr, unsigned long long) {
  Guard g(lock);
  *x = (cudaGraphExec_t) new Exec{std::make_shared<std::vector<Work>>(((Graph*)gr)->work)};
  return cudaSuccess;
}
API cudaError_t cudaGraphDestroy(cudaGraph_t gr) {
  Guard g(lock);
  delete (Graph*)gr;
  return cudaSuccess;
}
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) {
  Guard g(lock);
  delete (Exec*)x;
  return cudaSuccess;
}
API cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
API cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle);
  std::shared_ptr<std::vector<Work>> work = ((Exec*)x)->work;
  return submit(s, [=] {
    for (Work& w : *work)
      if (!sticky) w();
  });
}
