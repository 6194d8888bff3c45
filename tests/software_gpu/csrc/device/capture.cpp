// Recording streams into graphs, and running these.
#include "device.hpp"

#include <algorithm>

namespace software_gpu {

struct Exec {
  std::shared_ptr<const Nodes> nodes;  // also of launches that have not run yet
  Graph graph;                         // for a launch that is recorded
  Point last{nullptr, 0};              // its last launch, which the next one waits for
};
Nodes::Nodes(const Graph& graph) : work(graph.work), kinds(graph.kinds), after(graph.work.size()) {
  const size_t n = work.size(), none = ~size_t(0);
  std::vector<size_t> chain_of(n), number(n);
  std::vector<std::vector<size_t>> made;
  for (size_t i = 0; i < n; ++i) {
    size_t chain = none;
    for (size_t before : graph.after[i])  // the last one recorded of those that end a chain
      if (made[chain_of[before]].back() == before) chain = chain_of[before];
    if (chain == none) chain = made.size(), made.emplace_back();
    made[chain].push_back(i);
    chain_of[i] = chain, number[i] = made[chain].size();
  }
  std::vector<size_t> order(made.size()), place(made.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return made[a].back() < made[b].back(); });
  for (size_t i = 0; i < order.size(); ++i) place[order[i]] = i, chains.push_back(made[order[i]]);
  for (size_t i = 0; i < n; ++i)
    for (size_t before : graph.after[i])
      if (chain_of[before] != chain_of[i]) after[i].push_back({place[chain_of[before]], number[before]});
}
thread_local std::string label;
static std::string last_labels;  // of the graph that was instantiated last, a line each
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
cudaError_t record(Stream* s, Work work, Kind kind) {
  Capture& c = *s->capture;
  std::string what = std::move(label);
  label.clear();
  if (c.invalid) return fail(cudaErrorStreamCaptureInvalidated);
  c.graph.work.push_back(std::move(work));
  c.graph.labels.push_back(what.empty() ? "other" : what);
  c.graph.kinds.push_back(kind);
  c.graph.after.push_back(std::move(s->tail));
  s->tail = {c.graph.work.size() - 1};
  return cudaSuccess;
}
// Put a graph's nodes into the one that a stream records.
static cudaError_t record_nodes(Stream* s, const Graph& graph) {
  Capture& c = *s->capture;
  if (c.invalid) return fail(cudaErrorStreamCaptureInvalidated);
  const size_t first = c.graph.work.size();
  std::set<size_t> ends = graph.work.empty() ? s->tail : std::set<size_t>();
  for (size_t i = 0; i < graph.work.size(); ++i) {
    std::set<size_t> after = graph.after[i].empty() ? s->tail : std::set<size_t>();
    for (size_t before : graph.after[i]) after.insert(first + before), ends.erase(first + before);
    c.graph.work.push_back(graph.work[i]);
    c.graph.labels.push_back(graph.labels[i]);
    c.graph.kinds.push_back(graph.kinds[i]);
    c.graph.after.push_back(std::move(after));
    ends.insert(first + i);
  }
  s->tail = std::move(ends);
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
  Exec* made = new Exec{std::make_shared<Nodes>(*(Graph*)gr), *(Graph*)gr};
  execs.insert(made);
  *x = (cudaGraphExec_t)made;
  last_labels.clear();
  for (const std::string& what : made->graph.labels) last_labels += what + "\n";
  return cudaSuccess;
}
// The nodes of the graph that was instantiated last, in the order of recording, a line each.
API const char* software_gpu_last_graph() {
  Guard g(lock);
  static thread_local std::string text;
  text = last_labels;
  return text.c_str();
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
  if (cudaError_t e = refused()) return e;
  if (s->capture) return record_nodes(s, exec->graph);
  cudaError_t e = submit_nodes(s, exec->nodes, exec->last);
  if (!e) exec->last = {s, s->submitted};
  return e;
}
