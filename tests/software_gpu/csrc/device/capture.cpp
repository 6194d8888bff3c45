// Recording streams into graphs, and running these.
#include "device.hpp"

namespace software_gpu {

struct Nodes {  // also of launches that have not run yet
  std::vector<Work> work;      // in the order of recording
  std::vector<size_t> latest;  // another order that the edges allow: of the nodes that may run, always the last one
};
struct Exec {
  std::shared_ptr<Nodes> nodes;
  Point last{nullptr, 0};  // its last launch, which the next one waits for
};
static std::vector<size_t> latest_first(const Graph& graph) {
  const size_t n = graph.work.size();
  std::vector<size_t> missing(n), order;
  std::vector<std::vector<size_t>> next(n);
  std::set<size_t> ready;
  for (size_t i = 0; i < n; ++i) {
    missing[i] = graph.after[i].size();
    for (size_t before : graph.after[i]) next[before].push_back(i);
    if (!missing[i]) ready.insert(i);
  }
  while (!ready.empty()) {
    const size_t i = *ready.rbegin();
    ready.erase(i);
    order.push_back(i);
    for (size_t later : next[i])
      if (!--missing[later]) ready.insert(later);
  }
  return order;
}
static std::set<Graph*> graphs;
static std::set<Exec*> execs;

// What a thread lets others' captures forbid it; see cudaThreadExchangeStreamCaptureMode.
static thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool any_blocking_capture(int device) {
  for (Stream* s : streams)
    if (s->capture && s->blocking && s->device == device) return true;
  return false;
}
cudaError_t invalidate(Capture& capture, cudaError_t e, const std::string& why) {
  capture.invalid = true;
  return fail(e, why);
}
// Unsafe is what may wait for the device, or make it wait: a capture of this thread forbids it unless it is relaxed, one of
// another thread if it is global. A thread in relaxed mode may do it, one in thread-local mode asks for its own captures only.
cudaError_t capture_refuses(const char* call) {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (Stream* s : streams) {
    if (!s->capture) continue;
    bool own = s->capture->thread == std::this_thread::get_id();
    if (own ? s->capture->mode != cudaStreamCaptureModeRelaxed
            : thread_mode == cudaStreamCaptureModeGlobal && s->capture->mode == cudaStreamCaptureModeGlobal)
      return invalidate(*s->capture, cudaErrorStreamCaptureUnsupported, call);
  }
  return cudaSuccess;
}
cudaError_t record(Stream* s, Work work) {
  Capture& c = *s->capture;
  if (c.invalid) return fail(cudaErrorStreamCaptureInvalidated);
  c.graph.work.push_back(std::move(work));
  c.graph.after.push_back(std::move(s->tail));
  s->tail = {c.graph.work.size() - 1};
  return cudaSuccess;
}
// Whether every node comes before the end of the stream that began the capture.
static bool joined(const Capture& c) {
  std::set<size_t> reached;
  std::vector<size_t> next(c.origin->tail.begin(), c.origin->tail.end());
  while (!next.empty()) {
    size_t node = next.back();
    next.pop_back();
    if (!reached.insert(node).second) continue;
    next.insert(next.end(), c.graph.after[node].begin(), c.graph.after[node].end());
  }
  return reached.size() == c.graph.work.size();
}

}  // namespace software_gpu

using namespace software_gpu;

API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  if ((int)*mode < 0 || (int)*mode > 2) return fail(cudaErrorInvalidValue);
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}
API cudaError_t cudaStreamBeginCapture(cudaStream_t st, cudaStreamCaptureMode mode) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle, "no such stream");
  if ((int)mode < 0 || (int)mode > 2) return fail(cudaErrorInvalidValue, "no such mode of capture");
  if (s->legacy) return fail(cudaErrorStreamCaptureUnsupported, "the legacy stream cannot record");
  if (s->capture) return fail(cudaErrorIllegalState, "the stream records already");
  s->capture = std::make_shared<Capture>();
  s->capture->mode = mode;
  s->capture->origin = s;
  s->capture->thread = std::this_thread::get_id();
  s->capture->members = {s};
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t st, cudaGraph_t* out) {
  Guard g(lock);
  *out = nullptr;
  if (cudaError_t e = refused()) return e;
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle, "no such stream");
  if (!s->capture) return fail(cudaErrorIllegalState, "the stream does not record");
  std::shared_ptr<Capture> c = s->capture;
  if (c->origin != s) return invalidate(*c, cudaErrorStreamCaptureUnmatched, "another stream began it");
  if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id())
    return fail(cudaErrorStreamCaptureWrongThread);
  bool whole = joined(*c);
  c->ended = true;
  for (Stream* m : c->members) {
    m->capture = nullptr;
    m->tail.clear();
  }
  if (c->invalid) return fail(cudaErrorStreamCaptureInvalidated);
  if (!whole) return fail(cudaErrorStreamCaptureUnjoined, "the stream that began it does not wait for all that others did");
  *out = (cudaGraph_t) * graphs.insert(new Graph(c->graph)).first;
  return cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t st, cudaStreamCaptureStatus* v) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle, "no such stream");
  if (s->legacy && any_blocking_capture(s->device)) return fail(cudaErrorStreamCaptureImplicit, "cudaStreamIsCapturing");
  *v = !s->capture           ? cudaStreamCaptureStatusNone
       : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                             : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
API cudaError_t cudaGraphInstantiate(cudaGraphExec_t* x, cudaGraph_t gr, unsigned long long) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  if (!graphs.count((Graph*)gr)) return fail(cudaErrorInvalidValue, "no such graph; was it destroyed?");
  Exec* made = new Exec{std::make_shared<Nodes>(Nodes{((Graph*)gr)->work, latest_first(*(Graph*)gr)})};
  execs.insert(made);
  *x = (cudaGraphExec_t)made;
  return cudaSuccess;
}
API cudaError_t cudaGraphDestroy(cudaGraph_t gr) {
  Guard g(lock);
  if (!graphs.erase((Graph*)gr)) return fail(cudaErrorInvalidValue, "no such graph; was it destroyed?");
  delete (Graph*)gr;
  return cudaSuccess;
}
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) {
  Guard g(lock);
  if (!execs.erase((Exec*)x)) return fail(cudaErrorInvalidValue, "no such graph; was it destroyed?");
  delete (Exec*)x;
  return cudaSuccess;
}
API cudaError_t cudaGraphUpload(cudaGraphExec_t x, cudaStream_t st) {
  Guard g(lock);
  if (!execs.count((Exec*)x)) return fail(cudaErrorInvalidValue, "no such graph; was it destroyed?");
  return find(st) ? cudaSuccess : fail(cudaErrorInvalidResourceHandle, "no such stream");
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t st) {
  Guard g(lock);
  Stream* s = find(st);
  if (!s) return fail(cudaErrorInvalidResourceHandle, "no such stream");
  if (!execs.count((Exec*)x)) return fail(cudaErrorInvalidValue, "no such graph; was it destroyed?");
  Exec* exec = (Exec*)x;
  std::shared_ptr<Nodes> nodes = exec->nodes;
  const bool recorded = s->capture != nullptr;
  if (!recorded && exec->last.stream) s->pending.push_back(exec->last);
  cudaError_t e = submit(s, [nodes] {
    const bool other = out_of_order();
    for (size_t i = 0; i < nodes->work.size(); ++i)
      if (!sticky) nodes->work[other ? nodes->latest[i] : i]();
  });
  if (!recorded && !e) exec->last = {s, s->submitted};
  return e;
}
