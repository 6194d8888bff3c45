// Device memory and pinned memory.
//
// Each device has an address space of its own, in which no page is accessible but those of live allocations. An allocation
// ends right before pages that nobody may access, and its addresses are not given out again soon: so a kernel or a copy that
// runs past the end, or that uses freed memory, is caught by the processor. What lies between the end and the next page,
// as allocations are aligned to 512 bytes, is filled with a pattern: a write there is found later, a read is not.
#include "device.hpp"

#include <sys/mman.h>

namespace software_gpu {

static const size_t kPage = 4096, kAlignment = 512, kGap = 64 << 10, kSpace = size_t(1) << 40;
static const int kCanary = 0xfb, kUnwritten = 0xff;  // unwritten memory is NaN
static const size_t kRemembered = 10000;             // freed allocations, for descriptions

struct Allocation {
  size_t size;
  bool managed;
  char* pages;  // the accessible pages, from here
  size_t room;  // so many bytes
};
struct Space {
  char* base = nullptr;
  char* next = nullptr;
  size_t used = 0;
  std::map<char*, Allocation> live, freed;
};
struct Host {
  size_t size;
  bool registered;
};
struct Variable {
  size_t size;
  int device;
};
static std::map<int, Space> spaces;
static std::map<char*, Host> pinned;
static std::map<char*, Variable> variables;

template <typename T>
static typename std::map<char*, T>::const_iterator at_or_before(const std::map<char*, T>& ranges, const void* p) {
  auto i = ranges.upper_bound((char*)p);
  return i == ranges.begin() ? ranges.end() : --i;
}
// Whether [p, p+n) is within the range at i.
template <typename I>
static bool holds(I i, const void* p, size_t n) {
  size_t from = (const char*)p - i->first;
  return from <= i->second.size && n <= i->second.size - from;
}

int address_space(const void* p) {
  for (auto& [device, space] : spaces)
    if ((const char*)p >= space.base && (const char*)p < space.base + kSpace) return device;
  return -1;
}

Where where(const void* p, size_t n) {
  int device = address_space(p);
  if (device >= 0) {
    const Space& space = spaces[device];
    auto i = at_or_before(space.live, p);
    if (i == space.live.end() || !holds(i, p, n)) return {Place::kNowhere, device, false};
    return {Place::kDevice, device, i->second.managed};
  }
  auto variable = at_or_before(variables, p);
  if (variable != variables.end() && holds(variable, p, n)) return {Place::kDevice, variable->second.device, false};
  auto host = at_or_before(pinned, p);
  if (host == pinned.end() || (const char*)p >= host->first + host->second.size) return {Place::kPageable, -1, false};
  return {holds(host, p, n) ? Place::kPinned : Place::kNowhere, -1, false};
}
void add_variable(void* p, size_t n, int device) { variables[(char*)p] = {n, device}; }

static std::string describe_allocation(const char* base, size_t size) {
  char text[100];
  snprintf(text, sizeof text, "the allocation of %zu bytes at %p", size, (const void*)base);
  return text;
}
std::string describe_memory(const void* at) {
  const char* p = (const char*)at;
  if (p < (const char*)kPage) return "a null pointer";
  int device = address_space(p);
  if (device < 0) return "which is no memory of the device";
  const Space& space = spaces[device];
  auto gone = at_or_before(space.freed, p);
  if (gone != space.freed.end() && p < gone->first + gone->second.size)
    return std::to_string(p - gone->first) + " bytes into " + describe_allocation(gone->first, gone->second.size) +
           ", which was freed";
  auto before = at_or_before(space.live, p);
  auto after = space.live.upper_bound((char*)p);
  if (before != space.live.end() && p < before->first + before->second.size)
    return std::to_string(p - before->first) + " bytes into " + describe_allocation(before->first, before->second.size);
  const char* end = before == space.live.end() ? nullptr : before->first + before->second.size;
  if (end && (after == space.live.end() || p - end <= after->first - p))
    return std::to_string(p - end) + " bytes past the end of " + describe_allocation(before->first, before->second.size);
  if (after != space.live.end())
    return std::to_string(after->first - p) + " bytes before " + describe_allocation(after->first, after->second.size);
  return "where the device has no memory";
}

static const char* touched(const char* from, const char* to) {
  for (; from < to; ++from)
    if (*from != (char)kCanary) return from;
  return nullptr;
}
// Return where something was written next to an allocation, or nullptr.
static const char* written_beside(const char* base, const Allocation& a) {
  const char* found = touched(base + a.size, a.pages + a.room);
  return found ? found : touched(a.pages, base);
}
static void check_canary(const char* base, const Allocation& a) {
  const char* found = written_beside(base, a);
  if (!found || sticky) return;
  std::string place = found < base ? std::to_string(base - found) + " bytes before "
                                   : std::to_string(found - base - a.size) + " bytes past the end of ";
  fault(cudaErrorIllegalAddress, "illegal write " + place + describe_allocation(base, a.size) +
                                     ", found later; what ran last is " + running.what);
}
void check_canaries() {
  for (auto& [device, space] : spaces)
    for (auto& [base, allocation] : space.live) check_canary(base, allocation);
}

static Space& space_of(int device) {
  Space& space = spaces[device];
  if (!space.base) {
    void* p = mmap(nullptr, kSpace, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      fprintf(stderr, "[software GPU] no address space for the device's memory: ulimit -v?\n");
      abort();
    }
    space.base = (char*)p;
    space.next = space.base + kGap;
  }
  return space;
}
// Find `room` bytes of free addresses, from where the last ones ended on, so that none come back soon; or nullptr.
static char* place(Space& space, size_t room) {
  for (int round = 0; round < 2; ++round) {
    char* at = space.next;
    for (auto i = space.live.lower_bound(at); at + room + kGap <= space.base + kSpace; ++i) {
      if (i == space.live.end() || at + room + kGap <= i->second.pages) return at;
      at = i->second.pages + i->second.room + kGap;
    }
    space.next = space.base + kGap;
  }
  return nullptr;
}
static cudaError_t allocate(void** out, size_t n, bool managed) {
  *out = nullptr;
  if (!n) return cudaSuccess;
  Space& space = space_of(current_device);
  if (n > total_memory || space.used + n > total_memory)
    return fail(cudaErrorMemoryAllocation, std::to_string(n) + " bytes asked for, " +
                                               std::to_string(total_memory - space.used) + " of " +
                                               std::to_string(total_memory) + " free");
  size_t aligned = (n + kAlignment - 1) / kAlignment * kAlignment, room = (n + kPage - 1) / kPage * kPage;
  char* pages = place(space, room);
  if (!pages || mprotect(pages, room, PROT_READ | PROT_WRITE)) return fail(cudaErrorMemoryAllocation, "of the host");
  char* base = pages + room - aligned;
  memset(pages, kCanary, base - pages);
  memset(base, kUnwritten, n);
  memset(base + n, kCanary, aligned - n);
  space.next = pages + room + kGap;
  space.used += n;
  space.live[base] = {n, managed, pages, room};
  // Addresses come back after a terabyte.
  auto old = space.freed.lower_bound(pages - kGap);
  while (old != space.freed.end() && old->first < pages + room + kGap) old = space.freed.erase(old);
  *out = base;
  return cudaSuccess;
}
static cudaError_t release(Space& space, std::map<char*, Allocation>::iterator i) {
  check_canary(i->first, i->second);
  Allocation& a = i->second;
  // The pages go back to the system; their addresses stay, and are not accessible.
  mmap(a.pages, a.room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  space.used -= a.size;
  if (space.freed.size() >= kRemembered) space.freed.erase(space.freed.begin());
  space.freed[i->first] = a;
  space.live.erase(i);
  return sticky ? fail(sticky) : cudaSuccess;
}

}  // namespace software_gpu

using namespace software_gpu;

API cudaError_t cudaMalloc(void** p, size_t n) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  if (cudaError_t e = capture_refuses("cudaMalloc")) return e;
  return allocate(p, n, false);
}
API cudaError_t cudaMallocManaged(void** p, size_t n, unsigned) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  if (cudaError_t e = capture_refuses("cudaMallocManaged")) return e;
  return allocate(p, n, true);
}
API cudaError_t cudaFree(void* p) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  if (!p) return cudaSuccess;
  if (cudaError_t e = capture_refuses("cudaFree")) return e;
  int device = address_space(p);
  if (device < 0) return fail(cudaErrorInvalidValue, "cudaFree of " + describe(p));
  Space& space = spaces[device];
  if (!space.live.count((char*)p)) return fail(cudaErrorInvalidValue, "cudaFree of an address " + describe(p));
  drain_all();  // freeing waits for the device
  auto i = space.live.find((char*)p);  // a host function may have run meanwhile
  if (i == space.live.end()) return fail(cudaErrorInvalidValue, "cudaFree of memory that another thread freed");
  return release(space, i);
}
API cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
API cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }

// Whether some of the n bytes at p are pinned.
static bool overlaps_pinned(const void* p, size_t n) {
  auto i = at_or_before(pinned, p);
  if (i != pinned.end() && (const char*)p < i->first + i->second.size) return true;
  auto after = pinned.upper_bound((char*)p);
  return after != pinned.end() && after->first < (const char*)p + n;
}
API cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  if (cudaError_t e = capture_refuses("cudaHostAlloc")) return e;
  *p = nullptr;
  if (!n) return cudaSuccess;
  void* made = aligned_alloc(kPage, (n + kPage - 1) / kPage * kPage);
  if (!made) return fail(cudaErrorMemoryAllocation, "of the host");
  memset(made, kUnwritten, n);
  pinned[(char*)made] = {n, false};
  *p = made;
  return cudaSuccess;
}
API cudaError_t cudaMallocHost(void** p, size_t n) { return cudaHostAlloc(p, n, 0); }
API cudaError_t cudaFreeHost(void* p) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  if (!p) return cudaSuccess;
  if (cudaError_t e = capture_refuses("cudaFreeHost")) return e;
  auto i = pinned.find((char*)p);
  if (i == pinned.end() || i->second.registered)
    return fail(cudaErrorInvalidValue, "cudaFreeHost of memory that cudaHostAlloc did not give out");
  drain_all();
  if (!pinned.erase((char*)p)) return fail(cudaErrorInvalidValue, "cudaFreeHost of memory that another thread freed");
  free(p);
  return cudaSuccess;
}
API cudaError_t cudaHostRegister(void* p, size_t n, unsigned) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  if (cudaError_t e = capture_refuses("cudaHostRegister")) return e;
  if (!p || !n || address_space(p) >= 0) return fail(cudaErrorInvalidValue, "cudaHostRegister of no host memory");
  if (overlaps_pinned(p, n)) return fail(cudaErrorHostMemoryAlreadyRegistered);
  pinned[(char*)p] = {n, true};
  return cudaSuccess;
}
API cudaError_t cudaHostUnregister(void* p) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  if (cudaError_t e = capture_refuses("cudaHostUnregister")) return e;
  auto i = pinned.find((char*)p);
  if (i == pinned.end() || !i->second.registered) return fail(cudaErrorHostMemoryNotRegistered);
  drain_all();
  pinned.erase((char*)p);
  return cudaSuccess;
}
API cudaError_t cudaMemGetInfo(size_t* f, size_t* t) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  *f = total_memory - spaces[current_device].used;
  *t = total_memory;
  return cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  memset(a, 0, sizeof *a);
  Where w = where(p, 1);
  bool device = w.place == Place::kDevice, host = w.place == Place::kPinned;
  a->type = w.managed ? cudaMemoryTypeManaged : device ? cudaMemoryTypeDevice : host ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  a->device = device ? w.device : host ? current_device : cudaInvalidDeviceId;
  if (device || host) a->devicePointer = (void*)p;
  if (host || w.managed) a->hostPointer = (void*)p;
  return cudaSuccess;
}
