// Running work such that an illegal access within it is an error of the device, not the end of the process;
// and the memory that all kernels share: stacks of threads, and dynamic shared memory.
#include "device.hpp"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <xmmintrin.h>

#include <utility>

namespace software_gpu {

Running running{"nothing", nullptr, nullptr, 0};

// ---- illegal accesses ----

// Work runs on one thread at a time, so there is one of each. The handlers stand only while it runs: a crash outside of a
// kernel or a copy stays what it is, also for those who replace the handlers later (Python's faulthandler).
static const int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
static const int kCount = sizeof kSignals / sizeof *kSignals;
static struct sigaction others[kCount];
static sigjmp_buf* landing = nullptr;  // of the innermost `perform`
static pthread_t worker;
static volatile bool active = false;
static int caught;
static void* address;
static cudaError_t stopped = cudaSuccess;  // the kernel has found an error itself
static std::string reason;

// ---- division ----

// A GPU's division of integers never traps; x86's does by zero, and for the least number by -1. Finish such a division: decode
// `div` or `idiv` (F6 /6, F6 /7, F7 /6, F7 /7) with its operand, set the quotient and the remainder, and step over it.
static bool finish_division(ucontext_t* context) {
  greg_t* r = context->uc_mcontext.gregs;
  static const int registers[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  auto p = (const unsigned char*)r[REG_RIP];
  bool narrow = false, short_address = false, thread_local_memory = false;
  for (;; ++p) {  // prefixes
    if (*p == 0x66) narrow = true;
    else if (*p == 0x67) short_address = true;
    else if (*p == 0x64) thread_local_memory = true;
    else if (*p == 0x65) return false;  // its base is the system's
    else if (*p != 0x26 && *p != 0x2e && *p != 0x36 && *p != 0x3e && *p != 0xf2 && *p != 0xf3) break;
  }
  const unsigned rex = (*p & 0xf0) == 0x40 ? *p++ : 0;
  const unsigned code = *p++;
  if (code != 0xf6 && code != 0xf7) return false;
  const unsigned mode = *p >> 6, kind = *p >> 3 & 7, rm = *p & 7;
  ++p;
  if (kind != 6 && kind != 7) return false;
  const int bits = code == 0xf6 ? 8 : rex & 8 ? 64 : narrow ? 16 : 32;
  uint64_t divisor = 0;
  if (mode == 3) {
    const bool high = bits == 8 && !rex && rm >= 4;  // ah, ch, dh, bh
    divisor = high ? (uint64_t)r[registers[rm - 4]] >> 8 : (uint64_t)r[registers[rm | (rex & 1) << 3]];
  } else {
    int64_t at = 0;
    bool relative = false, wide = mode == 2;  // a displacement of 32 bits
    if (rm == 4) {
      const unsigned scale = *p >> 6, index = (*p >> 3 & 7) | (rex & 2) << 2, base = *p & 7;
      ++p;
      if (index != 4) at += r[registers[index]] << scale;
      if (base == 5 && mode == 0)
        wide = true;
      else
        at += r[registers[base | (rex & 1) << 3]];
    } else if (rm == 5 && mode == 0) {
      relative = wide = true;
    } else {
      at += r[registers[rm | (rex & 1) << 3]];
    }
    if (wide) {
      int32_t displacement;
      memcpy(&displacement, p, 4);
      at += displacement, p += 4;
    } else if (mode == 1) {
      at += (int8_t)*p++;
    }
    if (relative) at += (int64_t)p;
    if (short_address) at &= 0xffffffff;
    if (thread_local_memory) at += (int64_t)__builtin_thread_pointer();
    memcpy(&divisor, (const void*)at, bits / 8);
  }
  const uint64_t mask = bits == 64 ? ~0ull : (1ull << bits) - 1, dividend = r[REG_RAX] & mask;
  const bool by_zero = !(divisor & mask);
  const uint64_t quotient = by_zero ? mask : dividend, remainder = by_zero ? dividend : 0;
  auto set = [&](int which, uint64_t v) { r[which] = bits == 16 ? (greg_t)((r[which] & ~0xffffull) | v) : (greg_t)v; };
  if (bits == 8) {  // ax holds both
    r[REG_RAX] = (greg_t)((r[REG_RAX] & ~0xffffull) | remainder << 8 | quotient);
  } else {
    set(REG_RAX, quotient), set(REG_RDX, remainder);
  }
  r[REG_RIP] = (greg_t)p;
  return true;
}

static void handler(int signal, siginfo_t* info, void* context) {
  if (active && pthread_equal(pthread_self(), worker)) {
    if (signal == SIGFPE && info->si_code == FPE_INTDIV && finish_division((ucontext_t*)context)) return;
    caught = signal;
    address = info->si_addr;
    siglongjmp(*landing, 1);  // from the kernel's stack to the one of `perform`
  }
  for (int i = 0; i < kCount; ++i)  // not ours: the instruction runs again, and faults for the handler from before
    if (kSignals[i] == signal) sigaction(signal, &others[i], nullptr);
}

// Each thread that runs work needs a second stack, as the first may be what overflowed.
struct SignalStack {
  static const size_t kSize = 64 << 10;
  void* memory = nullptr;
  SignalStack() {
    stack_t now;
    sigaltstack(nullptr, &now);
    if (!(now.ss_flags & SS_DISABLE)) return;  // this thread has one
    memory = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t mine{memory, 0, kSize};
    sigaltstack(&mine, nullptr);
  }
  ~SignalStack() {
    if (!memory) return;
    stack_t none{nullptr, SS_DISABLE, 0};
    sigaltstack(&none, nullptr);
    munmap(memory, kSize);
  }
};

static void start_catching() {
  static thread_local SignalStack stack;
  struct sigaction mine {};
  mine.sa_sigaction = handler;
  mine.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // not blocked afterwards: siglongjmp leaves the mask alone
  for (int i = 0; i < kCount; ++i) sigaction(kSignals[i], &mine, &others[i]);
  worker = pthread_self();
  active = true;
}
static void stop_catching() {
  active = false;
  for (int i = 0; i < kCount; ++i) sigaction(kSignals[i], &others[i], nullptr);
}

static std::string hex(const void* p) {
  char text[32];
  snprintf(text, sizeof text, "%p", p);
  return text;
}
static void report() {
  std::string what = running.what;
  if (running.bytes) {
    what += " of " + std::to_string(running.bytes) + " bytes to " + hex(running.to);
    if (running.from) what += " from " + hex(running.from);
  }
  if (stopped != cudaSuccess) return fault(std::exchange(stopped, cudaSuccess), what + ": " + reason);
  if (caught == SIGILL) return fault(cudaErrorLaunchFailure, what + ": it ends itself (__trap)");
  if (caught == SIGABRT) return fault(cudaErrorLaunchFailure, what + ": it ends itself (abort)");
  if (caught == SIGFPE) return fault(cudaErrorLaunchFailure, what + ": a floating-point exception");
  fault(cudaErrorIllegalAddress, what + ": illegal access to " + hex(address) + ", " + describe(address));
}

void perform(const Work& work) {
  volatile unsigned control = _mm_getcsr();  // a kernel may have changed it: flushing subnormal numbers
  sigjmp_buf here, *volatile outer = landing;
  start_catching();
  landing = &here;
  if (!sigsetjmp(here, 0)) {
    work();
    stop_catching();
    landing = outer;
  } else {
    stop_catching();
    landing = outer;
    _mm_setcsr(control);
    report();
  }
}

// ---- stacks and shared memory ----

static const size_t kPage = 4096, kMostShared = 256 << 10;
static char* stacks = nullptr;
static size_t stack_count = 0, stack_size = 0, shared_bytes = 0, shared_open = 0;

}  // namespace software_gpu

// What kernels know by this name. No page of it is accessible but those of a launch.
extern "C" {
__attribute__((visibility("default"))) alignas(4096) char software_gpu_dynamic[(256 << 10) + 4096];
}

namespace software_gpu {

static char* const shared = software_gpu_dynamic;
static_assert(sizeof software_gpu_dynamic == kMostShared + kPage);
static const int closed = mprotect(software_gpu_dynamic, sizeof software_gpu_dynamic, PROT_NONE);

static char* reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    fprintf(stderr, "[software GPU] no address space for %zu bytes\n", bytes);
    abort();
  }
  return (char*)p;
}
static size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

void set_shared(size_t bytes) {
  if (!bytes && !shared_open) return;
  size_t open = pages(bytes);
  if (open > shared_open) mprotect(shared, open, PROT_READ | PROT_WRITE);
  if (open < shared_open) mprotect(shared + open, shared_open - open, PROT_NONE);
  shared_open = open;
  shared_bytes = bytes;
  memset(shared, 0xff, bytes);  // NaN, as all memory that nobody wrote
  memset(shared + bytes, 0xfb, open - bytes);
}
bool shared_overrun() {
  for (size_t i = shared_bytes; i < shared_open; ++i)
    if (shared[i] != (char)0xfb) return true;
  return false;
}
static std::string describe_own(const char* p) {
  if (stacks && p >= stacks && p < stacks + stack_count * stack_size)
    return "below the stack of a thread of the block: its local memory is more than " + std::to_string((stack_size - kPage) >> 10) +
           " KiB (on a GPU 512 KiB are the most)";
  if (p >= shared && p < shared + kMostShared + kPage)
    return std::to_string(p - shared - shared_bytes) + " bytes past the end of the " + std::to_string(shared_bytes) +
           " bytes of dynamic shared memory of the launch";
  return "";
}
std::string describe_memory(const void* p);  // memory.cpp
std::string describe(const void* p) {
  std::string own = describe_own((const char*)p);
  return own.empty() ? describe_memory(p) : own;
}

}  // namespace software_gpu

using namespace software_gpu;

// For the libraries of kernels. A library's first kernel asks while it runs, which only one does at a time.
API char* software_gpu_stacks(size_t count, size_t size) {
  if (!stacks) {
    stacks = reserve(count * size);
    stack_count = count, stack_size = size;
    for (size_t i = 0; i < count; ++i) mprotect(stacks + i * size + kPage, size - kPage, PROT_READ | PROT_WRITE);
  }
  return stacks;
}
// A kernel ends itself, because of an assertion for example. The trap is caught as every fault is, on the stack for signals.
API void software_gpu_stop(int error, const char* text) {
  stopped = (cudaError_t)error, reason = text;
  __builtin_trap();
}
