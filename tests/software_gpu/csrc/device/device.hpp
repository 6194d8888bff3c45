// The software device's inside: what its files share. The driver's (cu*) and the runtime's (cuda*) functions are in them.
//
// errors.cpp      settings, the last error and the sticky one, names of errors
// properties.cpp  devices, contexts, versions, attributes
// memory.cpp      device memory and pinned memory
// copies.cpp      copies and fills
// faults.cpp      running work such that an illegal access within it is an error, not the end of the process
// streams.cpp     streams and events
// schedule.cpp    when submitted work runs
// host.cpp        host functions
// capture.cpp     recording streams into graphs, and running these
// modules.cpp     modules and functions
// launch.cpp      launches: their limits, and what a kernel may be given
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
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
#include <thread>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace software_gpu {

// One lock for all state. A thread may take it again, and leaves it altogether while it waits for a host function: that one
// may need another lock (Python's) whose owner waits for this one. No host function is called with it.
class Lock {
 public:
  void lock();
  void unlock();
  unsigned leave();  // returns the depth for `enter`
  void enter(unsigned depth);

 private:
  std::mutex mutex;
  std::atomic<std::thread::id> owner{};
  unsigned depth = 0;
};
extern Lock lock;
using Guard = std::lock_guard<Lock>;

// ---- errors.cpp: settings and errors ----

extern const bool debug;           // $SOFTWARE_GPU_DEBUG: every error to stderr
extern const int device_count;     // $SOFTWARE_GPU_COUNT
extern const int arch;             // $SOFTWARE_GPU_ARCH: compute capability, 80 for 8.0
extern const int multiprocessors;  // $SOFTWARE_GPU_MULTIPROCESSORS
extern const bool counts_only;     // $SOFTWARE_GPU_COUNTS_ONLY: kernels and products do nothing
extern const size_t total_memory;  // of each device: $SOFTWARE_GPU_MIB

extern thread_local int current_device;
extern thread_local cudaError_t last_error;
extern cudaError_t sticky;   // a fault within a kernel: every later call fails with it, as on a GPU
extern std::string problem;  // its description

// Make `e` this thread's last error and return it. `why` is appended to the error's description.
cudaError_t fail(cudaError_t e, const std::string& why = "");
// Make `e` the sticky error.
void fault(cudaError_t e, const std::string& description);
// Refuse a call after a fault, within a host function, or in a process that was forked from one that used the device.
cudaError_t refused();
// The same for what needs no device yet: refuse it only in such a process.
cudaError_t forked();
// An error of the driver's: it is not the runtime's last error, unless it is the sticky one.
CUresult driver_error(cudaError_t e, const std::string& why = "");
// Refuse a call of the driver's after a fault, or in such a process.
CUresult driver_refused();

// ---- properties.cpp ----

const size_t kShared = 48 << 10;  // shared memory of a block without opting in to more
size_t most_shared();             // with
bool peer_access(int from, int to);

// ---- memory.cpp ----

enum class Place { kDevice, kPinned, kPageable, kNowhere };
struct Where {
  Place place;
  int device;
  bool managed;
};
// Tell where the n bytes at p are. Nowhere: device memory that is freed, or not in one piece; past the end of pinned memory.
Where where(const void* p, size_t n);
// The device whose address space p is in, allocated or not; or -1.
int address_space(const void* p);
// Describe an address that a kernel or a copy must not use: next to or in which allocation it is.
std::string describe(const void* p);
// Look for writes next to allocations; found ones are a fault.
void check_canaries();
// A variable of a module: memory of the device, too.
void add_variable(void* p, size_t n, int device);

// ---- faults.cpp ----

using Work = std::function<void()>;

struct Running {  // what runs, for the description of a fault
  const char* what;
  const void* to;
  const void* from;
  size_t bytes;
};
extern Running running;

// Run work on this thread; an illegal access within it is a fault of the device.
void perform(const Work& work);
// The dynamic shared memory of the next kernel; afterwards, whether it stayed within.
void set_shared(size_t bytes);
bool shared_overrun();

// ---- streams.cpp: streams and events ----

struct Capture;
struct Stream;

struct Point {  // in a stream: the end of its operation of that number, counted from 1
  Stream* stream;
  unsigned long long number;
};
enum class Kind { kernel, copy, mark, host };  // mark: an event, the begin or the end of a graph; host: a host function.
                                               // Copies within the device are kernels
struct Op {
  Work work;
  std::vector<Point> after;
  Kind kind;
  unsigned long long tick;  // of the watch, when it was submitted
};
struct Stream {
  bool blocking;  // waits for the legacy stream, and that one for it
  int device;
  unsigned flags;
  int priority;
  bool legacy = false;
  std::deque<Op> queue;
  unsigned long long submitted = 0, executed = 0;
  bool calling = false;  // its operation after the executed ones is a host function that has begun
  std::vector<Point> pending;  // what the next operation has to wait for
  std::shared_ptr<Capture> capture;
  std::set<size_t> tail;  // in a capture: the graph's nodes that the next one comes after
  int asked = 0;  // whether its work is done, since it last ran something
  double asked_since = 0;  // milliseconds
  unsigned long long serial = ++made;
  inline static unsigned long long made = 0;
};
struct Event {
  unsigned flags;
  int device;
  bool recorded = false;
  Stream* stream = nullptr;
  unsigned long long number = 0;
  std::shared_ptr<double> time = std::make_shared<double>(0);
  std::shared_ptr<Capture> capture;  // recorded within this capture
  std::set<size_t> tail;             // after these nodes of it
};

extern std::set<Stream*> streams;
extern std::vector<Stream*> leftover;  // destroyed ones; those whose work has run are dropped some time

// The stream 0 of a device.
Stream* legacy_stream(int device);
// Return the stream of a handle, or nullptr.
Stream* find(cudaStream_t handle);

// ---- schedule.cpp: when work runs ----

// Put work at the end of a stream, or into the graph that it records.
cudaError_t submit(Stream* stream, Work work, Kind kind = Kind::kernel);
// Likewise; it waits for all that these devices' streams have, and whatever they get from now on waits for it.
cudaError_t submit_across(Stream* stream, Work work, const std::set<int>& devices);
// Put the nodes of a graph into a stream, after `last` too; each may run as soon as its own edges allow.
struct Nodes;
cudaError_t submit_nodes(Stream* stream, const std::shared_ptr<const Nodes>& nodes, Point last);
// Run what a stream has up to an operation's number; everything that it has; everything that all have. Unless it `waits` for
// host functions, run what may run without their end, and return whether that was all.
bool run(Stream* stream, unsigned long long upto, bool waits = true);
void drain(Stream* stream);
void drain_all();
// Run everything that a device's streams have.
void drain_device(int device);
// Run what a stream's synchronisation waits for: for the legacy stream, the blocking ones too, also destroyed ones.
void synchronise(Stream* stream);
// Return whether a stream's synchronisation would wait for nothing. As for `done`.
bool idle(Stream* stream);
// Milliseconds of a clock.
double now();
// Return whether a stream has run up to an operation's number. Does not run it, unless asked very often.
bool done(Stream* stream, unsigned long long upto);

// A host function of a stream has ended: go on.
void host_function_ended(Stream* stream);

// ---- host.cpp ----

extern thread_local bool within_host_function;
// Have a host function called by another thread, without the lock; the caller goes on. Then `host_function_ended` is called.
void call_host(Stream* stream, Work function);
// Wait for the end of a stream's host function that has begun.
void wait_for_host_function(const Stream* stream);

// ---- capture.cpp ----

// What the work is that is submitted next, for the list of a graph's nodes: set where a stream records.
extern thread_local std::string label;
struct Graph {
  std::vector<Work> work;
  std::vector<std::string> labels;
  std::vector<Kind> kinds;
  std::vector<std::set<size_t>> after;  // for each: the nodes that it comes right after
};
// A graph's nodes as they are launched, in chains: each node of one comes right after the one before it. So a chain is a queue
// that forbids no order which the edges allow.
struct Nodes {
  struct Place {
    size_t chain, number;  // counted from 1
  };
  std::vector<Work> work;  // in the order of recording
  std::vector<Kind> kinds;
  std::vector<std::vector<size_t>> chains;   // by their last nodes' order of recording
  std::vector<std::vector<Place>> after;     // for each node: those of other chains that it comes right after
  explicit Nodes(const Graph& graph);
};
struct Capture {
  Graph graph;
  cudaStreamCaptureMode mode;
  Stream* origin;
  std::thread::id thread;
  std::set<Stream*> members;
  bool invalid = false;
  bool ended = false;
};

bool any_blocking_capture(int device);
// Invalidate a capture because of a call that it does not permit.
cudaError_t invalidate(Capture& capture, cudaError_t e, const std::string& why);
// Refuse a call that is unsafe while some stream records, and invalidate that capture.
cudaError_t capture_refuses(const char* call);
// Put work into the graph that a stream records.
cudaError_t record(Stream* stream, Work work, Kind kind);

// ---- modules.cpp ----

struct Argument {  // as in kernel_prelude.hpp
  size_t size;
  bool pointer;
};
typedef const char* (*Runner)(const unsigned* grid, const unsigned* block, unsigned shared, void** arguments);
struct Function {
  Runner run;
  std::vector<Argument> arguments;
  std::string name;
  int device;
  int most_threads;      // of a block
  size_t static_shared;  // bytes
  size_t most_dynamic;   // the attribute CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
};
// Return the function of a handle, or nullptr.
Function* find(CUfunction handle);

}  // namespace software_gpu
