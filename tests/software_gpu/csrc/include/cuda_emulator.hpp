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
typedef uint3 dim3;
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

// The stacks of a block's threads, which all kernels of the process share; a guard page lies below each.
extern "C" char* software_gpu_stacks(size_t count, size_t size);

namespace emulator {

const int kWarp = 32, kMaxThreads = 1024;
const size_t kStack = 64 * 1024;

enum Waiting { kRunning, kBlock, kWarpBarrier, kDone };

struct Fibre {
  void* context;  // the stack pointer where it was left
  Waiting state;
  unsigned long long slot[2];  // the operand of a shuffle; two slots, so that one barrier a shuffle is enough
  int parity;
};

struct Copy {
  void* to;
  const void* from;  // nullptr: clear
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
static bool direct = false;  // in a plain call, which cannot wait for a barrier
static bool touched_barrier = false;
// Whether threads that have left count as arrived at a block's barrier. Hardware does so, and CuPy's own kernels rely on it;
// CUDA's manual does not allow it, so other kernels fail.
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

inline void wait(Waiting how) {
  if (direct) {
    fail("a thread reaches a barrier that thread 0 does not reach");
    return;
  }
  touched_barrier = true;
  Fibre& me = fibres[current];
  me.state = how;
  switch_stack(&me.context, scheduler);
}

inline void entry() {
  body(body_argument);
  fibres[current].state = kDone;
  switch_stack(&fibres[current].context, scheduler);
}

inline void start(int t) {
  Fibre& f = fibres[t];
  void** words = reinterpret_cast<void**>(stacks + static_cast<size_t>(t + 1) * kStack);
  words[-1] = nullptr, words[-2] = reinterpret_cast<void*>(&entry);  // where the first switch returns to
  for (int i = 3; i <= 8; ++i) words[-i] = nullptr;
  f.context = words - 8;
  f.state = kRunning;
  f.parity = 0;
  copies[t].pending.clear(), copies[t].groups = 0;
}

inline void resume(int t) {
  set_thread(t);
  switch_stack(&scheduler, fibres[t].context);
}

// Release the threads [from, end) if all of them wait at the same kind of barrier.
inline bool release(int from, int end, Waiting how) {
  int waiting = 0;
  for (int t = from; t < end; ++t) {
    waiting += fibres[t].state == how;
    if (fibres[t].state != how && !(leaving_is_arriving && fibres[t].state == kDone)) return false;
  }
  if (!waiting) return false;
  for (int t = from; t < end; ++t)
    if (fibres[t].state == how) fibres[t].state = kRunning;
  return true;
}

inline void run_block() {
  touched_barrier = false;
  start(0);
  resume(0);
  if (!touched_barrier) {  // thread 0 met no barrier, so no other may: plain calls
    direct = true;
    for (int t = 1; t < threads; ++t) set_thread(t), body(body_argument);
    direct = false;
    return;
  }
  for (int t = 1; t < threads; ++t) start(t);
  for (bool backwards = true;; backwards = !backwards) {  // both directions, to expose a missing barrier
    bool progress = false;
    int done = 0;
    for (int i = 0; i < threads; ++i) {
      int t = backwards ? threads - 1 - i : i;
      if (fibres[t].state == kRunning) resume(t), progress = true;
    }
    for (int t = 0; t < threads; ++t) done += fibres[t].state == kDone;
    if (done == threads) return;
    for (int w = 0; w < threads; w += kWarp)
      progress |= release(w, w + kWarp < threads ? w + kWarp : threads, kWarpBarrier);
    progress |= release(0, threads, kBlock);
    if (!progress) {
      fail(done ? "a barrier that threads which have left will never reach" : "threads wait at different barriers");
      return;
    }
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
inline T shuffle(T v, int from_lane) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  Fibre& me = fibres[current];
  int parity = me.parity;
  me.parity ^= 1;
  std::memcpy(&me.slot[parity], &v, sizeof v);
  wait(kWarpBarrier);
  int warp = current / kWarp * kWarp, source = warp + from_lane;
  if (from_lane < 0 || from_lane >= kWarp || source >= threads) return v;
  std::memcpy(&v, &fibres[source].slot[parity], sizeof v);
  return v;
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::kBlock); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::wait(emulator::kWarpBarrier); }
inline void __threadfence() {}

template <typename T>
inline T __shfl_xor_sync(unsigned, T v, int mask) {
  return emulator::shuffle(v, (emulator::current % 32) ^ mask);
}
template <typename T>
inline T __shfl_sync(unsigned, T v, int lane) {
  return emulator::shuffle(v, lane);
}
template <typename T>
inline T __shfl_down_sync(unsigned, T v, int delta) {
  return emulator::shuffle(v, emulator::current % 32 + delta);
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
  mine.pending.push_back({to, from, mine.groups});
}
inline void emulator_cp_async_commit() { ++emulator::copies[emulator::current].groups; }
inline void emulator_cp_async_wait(int but) {
  emulator::Copies& mine = emulator::copies[emulator::current];
  size_t done = 0;
  for (; done < mine.pending.size() && mine.pending[done].group < mine.groups - but; ++done) {
    const emulator::Copy& c = mine.pending[done];
    if (c.from)
      std::memcpy(c.to, c.from, 16);
    else
      std::memset(c.to, 0, 16);
  }
  mine.pending.erase(mine.pending.begin(), mine.pending.begin() + done);
}

inline void emulator_ldmatrix(unsigned (&r)[4], const void* row, bool transposed) {
  emulator::Operands mine = {row, {}, {}};
  const emulator::Operands* warp = emulator::exchange(mine);
  int lane = emulator::current % 32, g = lane / 4, t = lane % 4;
  for (int j = 0; j < 4; ++j) {
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
