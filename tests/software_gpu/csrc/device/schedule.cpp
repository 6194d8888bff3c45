// When submitted work runs: any order is allowed that the streams, the events and the host's waiting leave open.
//
//   eager          at once
//   lazy           when something waits for it: shows work that relies on other work without waiting for it
//   lazy-forwards  likewise; where something waits for all streams, the ones that were made first run first, not last
//   others-first   likewise; where one stream is awaited, all that others may do runs first: shows work of another stream that is
//                  not waited for, where the host awaits the streams in the order in which it gave them work
//   early-copies   copies to and from the host and memsets as soon as their stream and its events allow, everything else when
//                  something waits for it: shows a copy that overwrites what is still read, or reads what is not yet written
//   early-kernels  the converse
//   random:SEED    by turns, drawn anew at each call; the same for the same calls in one thread
#include "device.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>

namespace software_gpu {

enum class Mode { eager, lazy, lazy_forwards, others_first, early_copies, early_kernels, random };
static Mode mode = Mode::eager;
static std::mt19937 turns;

// So many questions whether work is done are answered with no before it is run, but none so many milliseconds after the first.
static const int PATIENCE = 100;
static const double PATIENCE_MS = 300;
// After so many milliseconds in which the host submits and awaits nothing, everything runs: it may wait for a host function,
// or for memory that a kernel writes. Long enough for a busy machine, so that a wait that is missing still shows. It may submit
// other work while it does so: an operation runs after so many ticks of the watch, too. These are 50 ms apart or more, and
// none comes while the host compiles, or the device is at work.
static const double IDLE_MS = 1000;
static const unsigned long long OLD_TICKS = 80;
static unsigned long long ticks = 0;
static std::atomic<double> last_call{0};
static std::atomic<int> busy{0};

static std::vector<Stream*> in_order();
static bool step(Stream* s, bool waits);
// Run everything that may run without the end of a host function.
static void advance_all() {
  for (Stream* s : in_order()) run(s, s->submitted, false);
}
static std::atomic<bool> ending{false};
static pid_t watched;  // the process that has the thread

static void at_exit() {
  ending = true;
  if (getpid() != watched) return;
  Guard g(lock);  // once it is free, the thread runs nothing, and will not
}
static void watch_host() {
  for (;;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (busy) continue;
    Guard g(lock);
    if (ending) return;
    ++ticks;
    const double before = last_call;
    if (now() - before >= IDLE_MS) {
      advance_all();
    } else {
      for (Stream* s : in_order())
        while (!s->queue.empty() && ticks - s->queue.front().tick > OLD_TICKS && step(s, false)) {
        }
    }
    last_call = before;  // the host has not called
  }
}
static void watch() {
  static bool started = false;
  if (started) return;
  started = true;
  watched = getpid();
  atexit(at_exit);
  std::thread(watch_host).detach();
}

static bool runnable(const Stream* s) {
  if (s->queue.empty() || s->calling) return false;
  for (const Point& p : s->queue.front().after)
    if (p.stream->executed < p.number) return false;
  return true;
}
// Run a stream's next operation, and before it what that comes after. A host function begins, and ends some time later: here
// it is awaited only where another operation has to come after it, and not unless the caller `waits`. Return whether
// something was done.
static bool step(Stream* s, bool waits) {
  if (s->calling) {
    if (waits) wait_for_host_function(s);
    return waits;
  }
  if (s->queue.empty()) return true;  // another thread was faster
  const unsigned long long number = s->executed;
  while (!runnable(s)) {
    const std::vector<Point>& after = s->queue.front().after;
    const Point next = *std::find_if(after.begin(), after.end(), [](const Point& p) { return p.stream->executed < p.number; });
    if (!run(next.stream, next.number, waits)) return false;
    if (s->executed != number || s->calling) return true;  // another thread was faster
  }
  Op op = std::move(s->queue.front());
  s->queue.pop_front();
  s->asked = 0;
  if (op.kind == Kind::host && !sticky) {
    watch();
    s->calling = true;
    call_host(s, std::move(op.work));
    return true;
  }
  ++s->executed;
  if (sticky == cudaSuccess) perform(op.work);
  return true;
}
// Every stream, in the order in which they were made; of the destroyed ones those whose work has not run.
static std::vector<Stream*> in_order() {
  for (auto i = leftover.begin(); i != leftover.end();) i = (*i)->executed == (*i)->submitted ? leftover.erase(i) : std::next(i);
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
  return step(ready[turns() % ready.size()], false);
}
// Run one operation that may run now, of any other stream; return whether there was one. Marks come before: an event that is
// recorded lets others go on, and then it is the choice between them that shows what is missing.
static bool other_step(const Stream* than) {
  std::vector<Stream*> all = in_order();
  for (bool moved = true; moved;) {
    moved = false;
    for (Stream* s : all)
      while (runnable(s) && s->queue.front().kind == Kind::mark) moved = step(s, false);
  }
  for (size_t i = all.size(); i-- > 0;)
    if (all[i] != than && runnable(all[i])) return step(all[i], false);
  return false;
}
// Run what the schedule lets run ahead.
static void go_ahead() {
  if (mode == Mode::random) {
    for (unsigned count = turns() % 3; count && any_step(); --count) {
    }
    return;
  }
  if (mode != Mode::early_copies && mode != Mode::early_kernels) return;
  auto early = [](Kind kind) { return kind == Kind::mark || (mode == Mode::early_copies) == (kind == Kind::copy); };
  std::vector<Stream*> all = in_order();
  for (bool moved = true; moved;) {
    moved = false;
    for (Stream* s : all)
      while (runnable(s) && early(s->queue.front().kind)) moved = step(s, false);
  }
}

bool run(Stream* s, unsigned long long upto, bool waits) {
  last_call = now();
  while (s->executed < upto) {
    const bool another = mode == Mode::random ? any_step() : mode == Mode::others_first && other_step(s);
    if (!another && s->executed < upto && !step(s, waits)) return false;
  }
  return true;
}
void host_function_ended(Stream* s) {
  if (ending) return;
  ++s->executed;
  s->calling = false;
  s->asked = 0;
  if (mode == Mode::eager)
    advance_all();
  else if (mode != Mode::random)
    go_ahead();
}
void drain(Stream* s) {
  run(s, s->submitted);
  for (const Point& p : std::vector<Point>(s->pending)) run(p.stream, p.number);  // another thread may add to them meanwhile
  auto& left = s->pending;
  left.erase(std::remove_if(left.begin(), left.end(), [](const Point& p) { return p.stream->executed >= p.number; }), left.end());
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
  if (s->executed >= upto) return true;
  if (mode == Mode::random) go_ahead();
  else if (patience_ends(s)) run(s, upto, false);
  return false;
}
bool idle(Stream* s) {
  const std::vector<Point> points = awaited(s);
  bool all = true;
  for (const Point& p : points) all = all && p.stream->executed >= p.number;
  if (all) return true;
  if (mode == Mode::random) {
    go_ahead();
  } else if (patience_ends(s)) {
    for (const Point& p : points) run(p.stream, p.number, false);
  }
  return false;
}
// For each device: its last operation that all others wait for.
static std::map<int, Point> fences;

// What a stream's next operation has to wait for.
static std::vector<Point> before_next(Stream* s) {
  std::vector<Point> after = std::move(s->pending);
  s->pending.clear();
  if (fences.count(s->device)) after.push_back(fences[s->device]);
  if (s->legacy) {
    for (Stream* x : in_order())
      if (x != s && x->blocking && x->device == s->device) {
        after.push_back({x, x->submitted});
        after.insert(after.end(), x->pending.begin(), x->pending.end());
      }
  } else if (s->blocking) {
    Stream* first = legacy_stream(s->device);
    after.push_back({first, first->submitted});
    after.insert(after.end(), first->pending.begin(), first->pending.end());
  }
  return after;
}
static void enqueue(Stream* s, Work work, std::vector<Point> after, Kind kind) {
  s->queue.push_back({std::move(work), std::move(after), kind, ticks});
  ++s->submitted;
}
static cudaError_t refuses(Stream* s) {
  last_call = now();
  if (cudaError_t e = refused()) return e;
  if (s->capture || !s->legacy || !any_blocking_capture(s->device)) return cudaSuccess;
  for (Stream* x : streams)
    if (x->capture && x->blocking && x->device == s->device) x->capture->invalid = true;
  return fail(cudaErrorStreamCaptureImplicit, "work in the legacy stream");
}
// The end of a submission. It never waits for a host function: that one may need what this thread holds.
static cudaError_t submitted(Stream* s) {
  if (mode == Mode::eager) {
    run(s, s->submitted, false);
  } else {
    watch();
    go_ahead();
  }
  return sticky != cudaSuccess ? fail(sticky) : cudaSuccess;
}

cudaError_t submit(Stream* s, Work work, Kind kind) {
  if (cudaError_t e = refuses(s)) return e;
  if (s->capture) return record(s, std::move(work), kind);
  enqueue(s, std::move(work), before_next(s), kind);
  return submitted(s);
}
cudaError_t submit_across(Stream* s, Work work, const std::set<int>& devices) {
  if (cudaError_t e = refuses(s)) return e;
  if (s->capture) return record(s, std::move(work), Kind::kernel);
  std::vector<Point> after = before_next(s);
  for (Stream* x : in_order())
    if (x != s && devices.count(x->device)) {
      after.push_back({x, x->submitted});
      after.insert(after.end(), x->pending.begin(), x->pending.end());
    }
  enqueue(s, std::move(work), std::move(after), Kind::kernel);
  for (int device : devices)
    if (fences.count(device)) s->queue.back().after.push_back(fences[device]);
  for (int device : devices) fences[device] = {s, s->submitted};
  return submitted(s);
}

// Streams for the chains of graphs: no program knows them. They are used again once their work has run, and never deleted.
static Stream* chain_stream(int device, std::set<Stream*>& taken) {
  static std::vector<Stream*> made;
  for (Stream* s : made)
    if (s->device == device && s->executed == s->submitted && taken.insert(s).second) return s;
  made.push_back(new Stream{false, device, 0, 0});
  taken.insert(made.back());
  return made.back();
}
// A graph of one chain goes into the stream itself. Others' chains go into streams of their own, between two marks in it.
cudaError_t submit_nodes(Stream* s, const std::shared_ptr<const Nodes>& nodes, Point last) {
  if (cudaError_t e = refuses(s)) return e;
  std::vector<Point> after = before_next(s);
  if (last.stream && last.stream->executed < last.number) after.push_back(last);
  auto one = [&](size_t i) { return [nodes, i] { nodes->work[i](); }; };
  if (mode == Mode::eager) {  // at once, in the order of recording
    for (size_t i = 0; i < nodes->work.size(); ++i) enqueue(s, one(i), std::exchange(after, {}), nodes->kinds[i]);
    if (nodes->work.empty()) enqueue(s, [] {}, std::move(after), Kind::mark);
  } else if (nodes->chains.size() == 1) {
    for (size_t i : nodes->chains[0]) enqueue(s, one(i), std::exchange(after, {}), nodes->kinds[i]);
  } else {
    enqueue(s, [] {}, std::move(after), Kind::mark);
    const Point begin{s, s->submitted};
    std::set<Stream*> taken;
    std::vector<Stream*> chains;
    std::vector<unsigned long long> base;
    for (size_t c = 0; c < nodes->chains.size(); ++c) {
      chains.push_back(chain_stream(s->device, taken));
      base.push_back(chains[c]->submitted);
    }
    std::vector<Point> end;
    for (size_t c = 0; c < chains.size(); ++c) {
      for (size_t i : nodes->chains[c]) {
        std::vector<Point> edges;
        if (i == nodes->chains[c][0]) edges.push_back(begin);
        for (const Nodes::Place& p : nodes->after[i]) edges.push_back({chains[p.chain], base[p.chain] + p.number});
        enqueue(chains[c], one(i), std::move(edges), nodes->kinds[i]);
      }
      end.push_back({chains[c], chains[c]->submitted});
      if (std::find(leftover.begin(), leftover.end(), chains[c]) == leftover.end()) leftover.push_back(chains[c]);
    }
    if (mode != Mode::lazy_forwards) std::reverse(end.begin(), end.end());
    enqueue(s, [] {}, std::move(end), Kind::mark);
  }
  return submitted(s);
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
                                                 {"others-first", Mode::others_first},
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
