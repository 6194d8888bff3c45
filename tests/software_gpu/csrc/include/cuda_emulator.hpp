// An emulator for CUDA kernels on a CPU: enough of the language for xpnet's and CuPy's kernels.
//
// Blocks run one after another on one OS thread; every CUDA thread of a block is a fibre that runs until it
// reaches a barrier. Warps have 32 lanes; a shuffle is a write, a barrier of the warp and a read. What would hang or be
// undefined on a GPU (a barrier that not every thread reaches, a shuffle with lanes that have left) is reported.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __shared__ static
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

// The stacks of a block's threads, which all kernels of the process share; a guard page lies below each.
extern "C" char* software_gpu_stacks(size_t count, size_t size);
// End a kernel with an error of the runtime's, such as cudaErrorAssert.
extern "C" [[noreturn]] void software_gpu_stop(int error, const char* text);

namespace emulator {

const int kWarp = 32, kMaxThreads = 1024;
// More than the 512 KiB of local memory that CUDA gives a thread, as g++ makes larger frames; and the guard page. An odd number
// of pages, so that the stacks' tops do not share their places in the caches.
const size_t kStack = 1024 * 1024 + 4096;

enum Waiting { kRunning, kBlock, kWarpBarrier, kConverge, kDone };

struct Fibre {
  void* context;  // the stack pointer where it was left
  Waiting state;
  bool waited;              // it has met a barrier, so the stack that it runs on is its own
  unsigned mask;            // of the barrier of its warp: the lanes that have to reach it
  int from;                 // the thread whose operand a shuffle takes, or -1
  unsigned long long in, out;  // the operand of a shuffle or a vote, and what a shuffle takes
  unsigned ballot;          // the lanes with an operand that is not zero
  int parity;               // of instructions of a whole warp
};

struct Copy {
  void* to;
  const void* from;
  int bytes, given;  // the bytes behind the given ones are cleared
  int group;
};
struct Copies {  // asynchronous copies of one thread
  std::vector<Copy> pending;
  int groups;
};

static Fibre fibres[kMaxThreads];
static Copies copies[kMaxThreads];
static char* stacks = nullptr;
static void* scheduler;

// Save the registers that a call preserves, and continue where `to` was left. ucontext makes system calls: 17 times slower.
__attribute__((naked, noinline)) static void switch_stack(void** save, void* to) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
static int current = 0, threads = 0;
static int next_thread = 0;  // the first one of the block that has not begun
static bool touched_barrier = false;
static int block_votes = 0, block_voters = 0;  // of the block's last barrier: operands that are not zero; threads
// Whether threads that have left count as arrived at a block's barrier. Hardware does so, and CuPy's own kernels rely on it;
// CUDA's manual does not allow it, so other kernels fail, unless they are compiled with -DSOFTWARE_GPU_LEAVING_ARRIVES.
static bool leaving_is_arriving = false;
static char message[256];

static void (*body)(void*);
static void* body_argument;

inline void fail(const char* text) {
  if (!message[0]) std::snprintf(message, sizeof message, "%s (block %u, thread %d)", text, blockIdx.x, current);
}

inline void set_thread(int t) {
  current = t;
  threadIdx.x = t % blockDim.x;
  threadIdx.y = t / blockDim.x % blockDim.y;
  threadIdx.z = t / (blockDim.x * blockDim.y);
}

inline void wait(Waiting how, unsigned mask = 0xffffffffu, int from = -1) {
  touched_barrier = true;
  Fibre& me = fibres[current];
  if (how == kWarpBarrier && !(mask >> current % kWarp & 1)) fail("a thread that is not in the mask of its own instruction");
  me.state = how, me.mask = mask, me.from = from, me.waited = true;
  switch_stack(&me.context, scheduler);
}

// Let the other threads of the block go on, without a barrier.
inline void yield() {
  touched_barrier = true;
  Fibre& me = fibres[current];
  me.state = kRunning, me.waited = true;
  switch_stack(&me.context, scheduler);
}

// What a fresh stack runs: one thread after another, as plain calls. The first one that meets a barrier keeps the stack, and
// the threads behind it begin on another one.
inline void entry() {
  while (next_thread < threads) {
    const int t = next_thread++;
    Fibre& f = fibres[t];
    f.waited = false, f.parity = 0;
    if (!copies[t].pending.empty()) copies[t].pending.clear();
    copies[t].groups = 0;
    set_thread(t);
    body(body_argument);
    f.state = kDone;
    if (f.waited) break;
  }
  void* never;
  switch_stack(&never, scheduler);
}

inline void begin() {
  void** words = reinterpret_cast<void**>(stacks + static_cast<size_t>(next_thread + 1) * kStack);
  words[-1] = nullptr, words[-2] = reinterpret_cast<void*>(&entry);  // where the first switch returns to
  for (int i = 3; i <= 8; ++i) words[-i] = nullptr;
  switch_stack(&scheduler, words - 8);
}

inline void resume(int t) {
  set_thread(t);
  switch_stack(&scheduler, fibres[t].context);
}

inline bool arrived(const Fibre& f, Waiting how) { return f.state == how || (leaving_is_arriving && f.state == kDone); }

[[noreturn]] inline void assertion(const char* expression, const char* file, int line, const char* function) {
  static char text[1024];
  std::snprintf(text, sizeof text, "%s:%d: %s: block: [%u,%u,%u], thread: [%u,%u,%u] Assertion `%s` failed", file, line, function,
                blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, expression);
  software_gpu_stop(710, text);
}

// Release the threads of a block if all of them wait at its barrier.
inline bool release_block() {
  int waiting = 0, votes = 0;
  for (int t = 0; t < threads; ++t) {
    if (!arrived(fibres[t], kBlock)) return false;
    if (fibres[t].state == kBlock) ++waiting, votes += fibres[t].in != 0;
  }
  if (!waiting) return false;
  block_votes = votes, block_voters = waiting;
  for (int t = 0; t < threads; ++t)
    if (fibres[t].state == kBlock) fibres[t].state = kRunning;
  return true;
}

// Release those lanes of the warp from thread w on that wait for each other: all that a mask names, with the same mask.
inline bool release_warp(int w) {
  const int lanes = w + kWarp < threads ? kWarp : threads - w;
  const unsigned present = lanes == kWarp ? 0xffffffffu : (1u << lanes) - 1;
  bool released = false;
  unsigned together = 0;  // they asked which lanes are: all that wait at the same time
  for (unsigned left = present; left;) {
    const int first = __builtin_ctz(left);
    left &= left - 1;
    if (fibres[w + first].state == kConverge) together |= 1u << first;
    if (fibres[w + first].state != kWarpBarrier) continue;
    const unsigned mask = fibres[w + first].mask, group = mask & present;
    bool all = true;
    unsigned ballot = 0, waiting = 0;
    for (unsigned rest = group; rest && all; rest &= rest - 1) {
      const int l = __builtin_ctz(rest);
      const Fibre& f = fibres[w + l];
      all = arrived(f, kWarpBarrier) && (f.state == kDone || f.mask == mask);
      if (f.state == kWarpBarrier) waiting |= 1u << l, ballot |= (f.in != 0 ? 1u : 0u) << l;
    }
    if (!all) continue;
    for (unsigned rest = waiting; rest; rest &= rest - 1) {
      Fibre& f = fibres[w + __builtin_ctz(rest)];
      if (f.from >= 0) f.out = mask >> (f.from - w) & 1 ? fibres[f.from].in : ~0ull;  // undefined: no lane of the mask
      f.ballot = ballot;
    }
    for (unsigned rest = waiting; rest; rest &= rest - 1) fibres[w + __builtin_ctz(rest)].state = kRunning;
    left &= ~group;
    released = true;
  }
  for (unsigned rest = together; rest; rest &= rest - 1) {
    Fibre& f = fibres[w + __builtin_ctz(rest)];
    f.ballot = together, f.state = kRunning;
    released = true;
  }
  return released;
}

inline void run_block() {
  touched_barrier = false;
  for (next_thread = 0; next_thread < threads;) begin();
  if (!touched_barrier) return;
  for (bool backwards = true;; backwards = !backwards) {  // both directions, to expose a missing barrier
    bool progress = false;
    int done = 0;
    for (int t = 0; t < threads; ++t) done += fibres[t].state == kDone, progress |= fibres[t].state == kRunning;
    if (done == threads) return;
    for (int w = 0; w < threads; w += kWarp) progress |= release_warp(w);
    progress |= release_block();
    if (!progress) {
      fail(done ? "a barrier that threads which have left will never reach" : "threads wait at different barriers");
      return;
    }
    for (int i = 0; i < threads; ++i) {
      int t = backwards ? threads - 1 - i : i;
      if (fibres[t].state == kRunning) resume(t);
    }
    if (message[0]) return;
  }
}

template <typename F, size_t... I>
inline void launch_with(F function, void** arguments, std::index_sequence<I...>);

template <typename... A, size_t... I>
inline void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::decay_t<A>*>(arguments[I])...);
}

template <typename... A>
struct Call {
  void (*kernel)(A...);
  void** arguments;
  static void run(void* self) {
    Call* c = static_cast<Call*>(self);
    call(c->kernel, c->arguments, std::index_sequence_for<A...>());
  }
};

// Return nullptr, or an error message.
template <typename... A>
inline const char* launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block, void** arguments) {
  if (!stacks) stacks = software_gpu_stacks(kMaxThreads, kStack);
  message[0] = 0;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {block[0], block[1], block[2]};
  threads = static_cast<int>(block[0] * block[1] * block[2]);
  if (threads < 1 || threads > kMaxThreads) return "a block has 1 to 1024 threads";
  Call<A...> one{kernel, arguments};
  body = Call<A...>::run, body_argument = &one;
  for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x) {
        run_block();
        if (message[0]) return message;
      }
  return nullptr;
}

template <typename T>
inline T shuffle(unsigned mask, T v, int from_lane) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  Fibre& me = fibres[current];
  const int source = current / kWarp * kWarp + from_lane;
  const bool there = from_lane >= 0 && from_lane < kWarp && source < threads;
  me.in = 0;
  std::memcpy(&me.in, &v, sizeof v);
  wait(kWarpBarrier, mask, there ? source : current);
  std::memcpy(&v, &me.out, sizeof v);
  return v;
}

// Return the lanes of a mask whose predicate is true.
inline unsigned vote(unsigned mask, bool predicate) {
  fibres[current].in = predicate;
  wait(kWarpBarrier, mask);
  return fibres[current].ballot;
}

inline void block_vote(bool predicate) {
  fibres[current].in = predicate;
  wait(kBlock);
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::kBlock); }
inline int __syncthreads_count(int predicate) {
  emulator::block_vote(predicate);
  return emulator::block_votes;
}
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0; }
inline int __syncthreads_and(int predicate) {
  emulator::block_vote(predicate);
  return emulator::block_votes == emulator::block_voters;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::wait(emulator::kWarpBarrier, mask); }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulator::vote(mask, predicate); }
inline int __any_sync(unsigned mask, int predicate) { return emulator::vote(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return emulator::vote(mask, !predicate) == 0; }
inline unsigned __activemask() {
  emulator::wait(emulator::kConverge);
  return emulator::fibres[emulator::current].ballot;
}
inline void __threadfence() {}

template <typename T>
inline T __shfl_xor_sync(unsigned lanes, T v, int mask) {
  return emulator::shuffle(lanes, v, (emulator::current % 32) ^ mask);
}
template <typename T>
inline T __shfl_sync(unsigned lanes, T v, int lane) {
  return emulator::shuffle(lanes, v, lane & 31);
}
template <typename T>
inline T __shfl_down_sync(unsigned lanes, T v, int delta) {
  return emulator::shuffle(lanes, v, emulator::current % 32 + delta);
}

inline unsigned atomicAdd(unsigned* p, unsigned v) {
  unsigned before = *p;
  *p += v;
  return before;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline float __uint_as_float(unsigned bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline unsigned __float_as_uint(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}
inline float emulator_half_to_float(uint16_t bits) {
  _Float16 h;
  std::memcpy(&h, &bits, 2);
  return static_cast<float>(h);
}
inline uint16_t emulator_float_to_half(float v) {
  _Float16 h = static_cast<_Float16>(v);
  uint16_t bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}

// ---- tensor cores ----------------------------------------------------------------------------------------------------
//
// The instructions of kernels/cuda/mma.cuh as NVIDIA's PTX manual defines them: which lane holds which element. The arithmetic
// is float32 in index order; a GPU may add in another order.

namespace emulator {

struct Operands {  // the operands of a lane for an instruction of the whole warp
  const void* row;
  unsigned a[4], b[2];
};
static Operands operands[2][kMaxThreads];

// Exchange operands within the warp. As for shuffles, two sets make one barrier enough.
inline const Operands* exchange(const Operands& mine) {
  Fibre& me = fibres[current];
  int parity = me.parity, warp = current / kWarp * kWarp;
  me.parity ^= 1;
  operands[parity][current] = mine;
  if (warp + kWarp > threads) fail("an instruction of a whole warp in a warp with fewer than 32 lanes");
  wait(kWarpBarrier);
  return operands[parity] + warp;
}

}  // namespace emulator

// Copies are executed as late as allowed: when waited for.
inline void emulator_cp_async(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16)
    emulator::fail("an asynchronous copy of 16 bytes is not aligned");
  emulator::Copies& mine = emulator::copies[emulator::current];
  mine.pending.push_back({to, from, 16, from ? 16 : 0, mine.groups});
}
inline void emulator_cp_async_commit() { ++emulator::copies[emulator::current].groups; }
inline void emulator_cp_async_wait(int but) {
  emulator::Copies& mine = emulator::copies[emulator::current];
  size_t done = 0;
  for (; done < mine.pending.size() && mine.pending[done].group < mine.groups - but; ++done) {
    const emulator::Copy& c = mine.pending[done];
    if (c.given) std::memcpy(c.to, c.from, c.given);
    std::memset(static_cast<char*>(c.to) + c.given, 0, c.bytes - c.given);
  }
  mine.pending.erase(mine.pending.begin(), mine.pending.begin() + done);
}

template <int N>
inline void emulator_ldmatrix(unsigned (&r)[N], const void* row, bool transposed) {
  emulator::Operands mine = {row, {}, {}};
  const emulator::Operands* warp = emulator::exchange(mine);
  int lane = emulator::current % 32, g = lane / 4, t = lane % 4;
  for (int j = 0; j < N; ++j) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      int from = transposed ? 2 * t + i : g, at = transposed ? g : 2 * t + i;
      std::memcpy(&pair[i], static_cast<const char*>(warp[8 * j + from].row) + 2 * at, 2);
    }
    r[j] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
  }
}

inline unsigned emulator_to_tf32(unsigned bits) {  // to nearest, ties away from zero
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

// PACKED elements of each register; `read(bits, i)` is the i-th of them as a float.
template <typename Read>
inline void emulator_mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], int packed, Read read) {
  emulator::Operands mine = {nullptr, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const emulator::Operands* warp = emulator::exchange(mine);
  int lane = emulator::current % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    int row = g + i / 2 * 8, column = 2 * t + i % 2;
    for (int k = 0; k < 8 * packed; ++k) {
      int high = k / (4 * packed), owner = k % (4 * packed) / packed, element = k % packed;
      float left = read(warp[row % 8 * 4 + owner].a[row / 8 + 2 * high], element);
      c[i] += left * read(warp[column * 4 + owner].b[high], element);
    }
  }
}
