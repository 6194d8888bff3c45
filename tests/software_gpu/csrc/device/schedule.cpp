// When submitted work runs: any order is allowed that the streams, the events and the host's waiting leave open.
//
//   eager          at once
//   lazy           when something waits for it: shows work that relies on other work without waiting for it
//   lazy-forwards  likewise; where something waits for all streams, the ones that were made first run first, not last
//   early-copies   copies to and from the host and memsets as soon as their stream and its events allow, everything else when
//                  something waits for it: shows a copy that overwrites what is still read, or reads what is not yet written
//   early-kernels  the converse
//   random:SEED    by turns, drawn anew at each call; the same for the same calls in one thread
#include "device.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>

namespace software_gpu {

enum class Mode { eager, lazy, lazy_forwards, early_copies, early_kernels, random };
static Mode mode = Mode::eager;
static std::mt19937 turns;
static Stream* working = nullptr;  // the stream whose operation runs

// So many questions whether work is done are answered with no before it is run, but none so many milliseconds after the first.
static const int PATIENCE = 100;
static const double PATIENCE_MS = 300;
// After so many milliseconds in which the host submits and awaits nothing, everything runs: it may wait for a host function,
// or for memory that a kernel writes. Long enough for a busy machine, so that a wait that is missing still shows.
static const double IDLE_MS = 1000;
static std::atomic<double> last_call{0};
static std::atomic<int> busy{0};

static std::vector<Stream*> in_order();
static std::atomic<bool> ending{false};
static pid_t watched;  // the process that has the thread

static void at_exit() {
  ending = true;
  if (getpid() != watched) return;
  Guard g(lock);  // once it is free, the thread runs nothing, and will not
}
static void watch_idle_host() {
  for (;;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (busy || now() - last_call < IDLE_MS) continue;
    Guard g(lock);
    if (ending) return;
    if (now() - last_call < IDLE_MS || host_function_elsewhere()) continue;
    for (Stream* s : in_order())
      if (s->executed < s->submitted) {
        drain_all();
        break;
      }
  }
}
static void watch() {
  static bool started = false;
  if (started) return;
  started = true;
  watched = getpid();
  atexit(at_exit);
  std::thread(watch_idle_host).detach();
}

static bool runnable(const Stream* s) {
  if (s->queue.empty()) return false;
  for (const Point& p : s->queue.front().after)
    if (p.stream->executed < p.number) return false;
  return true;
}
// Whether a stream's operation has ended. One whose host function still runs counts as executed already.
static bool reached(const Stream* s, unsigned long long upto) {
  return s->executed - (s == working && host_function_elsewhere()) >= upto;
}
static void step(Stream* s) {
  wait_for_host_function();
  if (s->queue.empty()) return;  // another thread was faster
  Op op = std::move(s->queue.front());
  s->queue.pop_front();
  for (Point& p : op.after) run(p.stream, p.number);
  ++s->executed;  // a point on this very operation must not be waited for twice
  s->asked = 0;
  Stream* outer = working;
  working = s;
  if (sticky == cudaSuccess) perform(op.work);
  working = outer;
}
// Every stream, in the order in which they were made; of the destroyed ones those whose work has not run.
static std::vector<Stream*> in_order() {
  for (auto i = leftover.begin(); i != leftover.end();) i = (*i)->queue.empty() ? leftover.erase(i) : std::next(i);
  std::vector<Stream*> all(streams.begin(), streams.end());
  all.insert(all.end(), leftover.begin(), leftover.end());
  std::sort(all.begin(), all.end(), [](const Stream* a, const Stream* b) { return a->serial < b->serial; });
  return all;
}
// Run one operation that may run now, of any stream; return whether there was one.
static bool any_step() {
  std::vector<Stream*> ready;
  for (Stream* s : in_order())
    if (runnable(s)) ready.push_back(s);
  if (ready.empty()) return false;
  step(ready[turns() % ready.size()]);
  return true;
}
// Run what the schedule lets run ahead.
static void go_ahead() {
  if (mode == Mode::random) {
    for (unsigned count = turns() % 3; count && any_step(); --count) {
    }
    return;
  }
  if (mode != Mode::early_copies && mode != Mode::early_kernels) return;
  const Kind early = mode == Mode::early_copies ? Kind::copy : Kind::kernel;
  std::vector<Stream*> all = in_order();
  for (bool moved = true; moved;) {
    moved = false;
    for (Stream* s : all)
      while (runnable(s) && (s->queue.front().kind == early || s->queue.front().kind == Kind::mark)) {
        step(s);
        moved = true;
      }
  }
}

void run(Stream* s, unsigned long long upto) {
  last_call = now();
  if (reached(s, upto)) return;
  wait_for_host_function();
  while (s->executed < upto)
    if (mode != Mode::random || !any_step()) step(s);
}
void drain(Stream* s) {
  run(s, s->submitted);
  for (Point& p : s->pending) run(p.stream, p.number);
  s->pending.clear();
}
// What a stream's synchronisation waits for.
static std::vector<Point> awaited(Stream* s) {
  std::vector<Point> points = s->pending;
  points.push_back({s, s->submitted});
  if (s->legacy)
    for (Stream* x : in_order())
      if (x != s && x->blocking && x->device == s->device) {
        points.insert(points.end(), x->pending.begin(), x->pending.end());
        points.push_back({x, x->submitted});
      }
  return points;
}
void synchronise(Stream* s) {
  const std::vector<Point> points = awaited(s);
  drain(s);
  for (const Point& p : points) run(p.stream, p.number);
}
static bool patience_ends(Stream* s) {
  if (!s->asked++) s->asked_since = now();
  return s->asked >= PATIENCE || now() - s->asked_since > PATIENCE_MS;
}
void drain_all() {
  std::vector<Stream*> all = in_order();
  if (mode == Mode::lazy_forwards) std::reverse(all.begin(), all.end());
  for (size_t i = all.size(); i-- > 0;) drain(all[i]);
}
void drain_device(int device) {
  std::vector<Stream*> all = in_order();
  if (mode == Mode::lazy_forwards) std::reverse(all.begin(), all.end());
  for (size_t i = all.size(); i-- > 0;)
    if (all[i]->device == device) drain(all[i]);
}
bool done(Stream* s, unsigned long long upto) {
  if (reached(s, upto)) return true;
  if (host_function_elsewhere()) return false;
  if (mode == Mode::random) go_ahead();
  else if (patience_ends(s)) run(s, upto);
  return false;
}
bool idle(Stream* s) {
  bool all = true;
  for (const Point& p : awaited(s)) all = all && reached(p.stream, p.number);
  if (all) return true;
  if (host_function_elsewhere()) return false;
  if (mode == Mode::random) go_ahead();
  else if (patience_ends(s)) synchronise(s);
  return false;
}
bool out_of_order() { return mode == Mode::random ? turns() % 2 : mode != Mode::eager; }

cudaError_t submit(Stream* s, Work work, Kind kind) {
  last_call = now();
  if (cudaError_t e = refused()) return e;
  if (s->capture) return record(s, std::move(work));
  if (s->legacy && any_blocking_capture(s->device)) {
    for (Stream* x : streams)
      if (x->capture && x->blocking && x->device == s->device) x->capture->invalid = true;
    return fail(cudaErrorStreamCaptureImplicit, "work in the legacy stream");
  }
  Op op{std::move(work), std::move(s->pending), kind};
  s->pending.clear();
  if (s->legacy) {
    for (Stream* x : in_order())
      if (x != s && x->blocking && x->device == s->device) {
        op.after.push_back({x, x->submitted});
        op.after.insert(op.after.end(), x->pending.begin(), x->pending.end());
      }
  } else if (s->blocking) {
    Stream* first = legacy_stream(s->device);
    op.after.push_back({first, first->submitted});
    op.after.insert(op.after.end(), first->pending.begin(), first->pending.end());
  }
  s->queue.push_back(std::move(op));
  ++s->submitted;
  if (mode != Mode::eager || host_function_elsewhere()) watch();
  // A submission never waits for a host function: that one may need what this thread holds.
  if (host_function_elsewhere()) return cudaSuccess;
  if (mode == Mode::eager)
    drain(s);
  else
    go_ahead();
  return sticky != cudaSuccess ? fail(sticky) : cudaSuccess;
}

}  // namespace software_gpu

using namespace software_gpu;

// How many operations have not run yet, events included.
API unsigned long long software_gpu_pending() {
  Guard g(lock);
  unsigned long long count = 0;
  for (Stream* s : in_order()) count += s->submitted - s->executed;
  return count;
}
// The host begins (1) or ends (-1) what may take long, such as a compilation.
API void software_gpu_busy(int change) {
  last_call = now();
  busy += change;
}
// Change the schedule, once everything submitted so far has run. Returns whether the name is one.
API int software_gpu_set_schedule(const char* name) {
  static const std::map<std::string, Mode> modes{{"eager", Mode::eager},
                                                 {"lazy", Mode::lazy},
                                                 {"lazy-forwards", Mode::lazy_forwards},
                                                 {"early-copies", Mode::early_copies},
                                                 {"early-kernels", Mode::early_kernels},
                                                 {"random", Mode::random}};
  Guard g(lock);
  std::string word(name), seed;
  if (word.rfind("random:", 0) == 0) {
    seed = word.substr(7);
    word = "random";
    if (seed.empty() || seed.find_first_not_of("0123456789") != std::string::npos) return 0;
  } else if (word == "random") {
    return 0;
  }
  auto found = modes.find(word);
  if (found == modes.end()) return 0;
  drain_all();
  mode = found->second;
  if (mode == Mode::random) turns.seed((unsigned)strtoul(seed.c_str(), nullptr, 10));
  return 1;
}
