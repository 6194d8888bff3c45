// The software device's inside: what its files share. The driver's (cu*) and the runtime's (cuda*) functions are in them.
//
// errors.cpp      settings, the last error and the sticky one, names of errors
// properties.cpp  devices, versions, attributes
// memory.cpp      device memory and pinned memory, copies
// streams.cpp     streams and events
// schedule.cpp    when submitted work runs
// capture.cpp     recording streams into graphs, and running these
// modules.cpp     modules, functions, launches
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace software_gpu {

// One lock for everything: a host function that a stream runs may call the device again.
extern std::recursive_mutex lock;
using Guard = std::lock_guard<std::recursive_mutex>;

// ---- errors.cpp: settings and errors ----

extern const bool debug;          // $SOFTWARE_GPU_DEBUG: every error to stderr
extern const int device_count;    // $SOFTWARE_GPU_COUNT
extern const int arch;            // $SOFTWARE_GPU_ARCH: compute capability, 80 for 8.0
extern const size_t total_memory;  // of each device: $SOFTWARE_GPU_MIB

extern thread_local int current_device;
extern thread_local cudaError_t last_error;
extern cudaError_t sticky;   // a fault within a kernel: every later call fails with it, as on a GPU
extern std::string problem;  // its description

// Make `e` this thread's last error and return it.
cudaError_t fail(cudaError_t e);

// ---- streams.cpp: streams and events ----

using Work = std::function<void()>;
struct Capture;
struct Stream;

struct Point {  // in a stream: the end of its operation of that number, counted from 1
  Stream* stream;
  unsigned long long number;
};
enum class Kind { kernel, copy, mark };  // mark: an event. Graphs, host functions and copies within the device are kernels
struct Op {
  Work work;
  std::vector<Point> after;
  Kind kind;
};
struct Stream {
  bool blocking;  // waits for the legacy stream, and that one for it
  int device;
  unsigned flags;
  int priority;
  std::deque<Op> queue;
  unsigned long long submitted = 0, executed = 0;
  std::vector<Point> pending;  // what the next operation has to wait for
  Capture* capture = nullptr;
  int asked = 0;  // whether its work is done, since it last ran something
  unsigned long long serial = ++made;
  inline static unsigned long long made = 0;
};
struct Event {
  unsigned flags;
  bool recorded = false;
  Stream* stream = nullptr;
  unsigned long long number = 0;
  std::shared_ptr<double> time = std::make_shared<double>(0);
  Capture* capture = nullptr;  // recorded within this capture
};

extern Stream legacy;
extern std::set<Stream*> streams;
extern std::vector<Stream*> leftover;  // destroyed ones; those whose work has run are dropped some time

// Return the stream of a handle, or nullptr.
Stream* find(cudaStream_t handle);

// ---- schedule.cpp: when work runs ----

// Put work at the end of a stream, or into the graph that it records.
cudaError_t submit(Stream* stream, Work work, Kind kind = Kind::kernel);
// Run what a stream has up to an operation's number; everything that it has; everything that all have.
void run(Stream* stream, unsigned long long upto);
void drain(Stream* stream);
void drain_all();
// Return whether a stream has run up to an operation's number. Does not run it, unless asked very often.
bool done(Stream* stream, unsigned long long upto);

// ---- capture.cpp ----

struct Graph {
  std::vector<Work> work;
};
struct Capture {
  Graph* graph;
  bool invalid = false;
  cudaStreamCaptureMode mode;
  std::set<Stream*> members;
  Stream* origin;
};

bool any_blocking_capture();
// Refuse a call that is unsafe while some stream records, and end that recording.
cudaError_t capture_refuses();

}  // namespace software_gpu
