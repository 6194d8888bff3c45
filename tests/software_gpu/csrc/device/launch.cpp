// Launches: their limits, and what a kernel may be given.
#include "device.hpp"

namespace software_gpu {

struct Slot {
  alignas(16) char bytes[16];
};
struct Launch {
  Function* function;
  unsigned grid[3], block[3], shared;
  std::vector<Slot> values;  // the arguments, copied when the launch is submitted
  std::vector<void*> pointers;
};

// Return why a launch is refused, or an empty string. Not seen: a wrong number of arguments, as the driver is only given the
// address of an array, and reads as many pointers from it as the kernel has parameters.
static std::string beyond_limits(const Function& f, const unsigned* grid, const unsigned* block, unsigned shared) {
  static const unsigned most_blocks[3] = {0x7fffffff, 65535, 65535}, most_threads[3] = {1024, 1024, 64};
  for (int i = 0; i < 3; ++i) {
    if (!grid[i] || grid[i] > most_blocks[i]) return "a grid of " + std::to_string(grid[i]) + " blocks in dimension " + "xyz"[i];
    if (!block[i] || block[i] > most_threads[i]) return "a block of " + std::to_string(block[i]) + " threads in dimension " + "xyz"[i];
  }
  if (block[0] * block[1] * block[2] > 1024) return "a block of " + std::to_string(block[0] * block[1] * block[2]) + " threads";
  if (shared > f.most_dynamic)
    return std::to_string(shared) + " bytes of dynamic shared memory, " + std::to_string(f.most_dynamic) +
           " are allowed by the function's attribute";
  return "";
}

// Find pointers that the kernel's device cannot follow. The processor cannot: all memory is the host's. Looked at are
// parameters that are pointers, which must not lead to memory of the host that is not pinned; and for another device's memory
// the first word of every parameter, which is where structures such as CuPy's arrays have theirs. Pointers that a kernel
// reads from memory are not seen.
static std::string foreign(const Launch& launch) {
  const Function& f = *launch.function;
  for (size_t i = 0; i < f.arguments.size(); ++i) {
    if (f.arguments[i].size < sizeof(void*)) continue;
    void* p;
    memcpy(&p, launch.pointers[i], sizeof p);
    int device = address_space(p);
    char text[40];
    snprintf(text, sizeof text, "argument %zu is %p, ", i, p);
    if (device >= 0 && !peer_access(f.device, device) && !where(p, 1).managed)
      return text + std::string("memory of device ") + std::to_string(device) + ", which device " + std::to_string(f.device) +
             " has no access to";
    if (device < 0 && f.arguments[i].pointer && p && where(p, 1).place == Place::kPageable)
      return text + std::string("which is no memory of the device");
  }
  return "";
}

static void run_kernel(const Launch& launch) {
  Function& f = *launch.function;
  running = {f.name.c_str(), nullptr, nullptr, 0};
  std::string wrong = foreign(launch);
  if (!wrong.empty()) return fault(cudaErrorIllegalAddress, f.name + ": illegal access, " + wrong);
  if (counts_only) return;
  set_shared(launch.shared);
  const char* failed = f.run(launch.grid, launch.block, launch.shared, const_cast<void**>(launch.pointers.data()));
  if (failed) return fault(cudaErrorLaunchFailure, f.name + ": " + failed);
  if (shared_overrun())
    fault(cudaErrorIllegalAddress, f.name + ": illegal write past the end of the " + std::to_string(launch.shared) +
                                       " bytes of dynamic shared memory of the launch");
}

}  // namespace software_gpu

using namespace software_gpu;

API CUresult cuLaunchKernel(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                            unsigned shared, CUstream st, void** args, void** extra) {
  Guard g(lock);
  if (CUresult e = driver_refused()) return e;
  Function* f = find(handle);
  Stream* s = find((cudaStream_t)st);
  if (!f) return driver_error(cudaErrorInvalidResourceHandle, "no such function; was its module unloaded?");
  if (!s) return driver_error(cudaErrorInvalidResourceHandle, "no such stream; was it destroyed?");
  if (s->device != current_device) return driver_error(cudaErrorInvalidResourceHandle, "a stream of another device");
  if (f->device != current_device) return driver_error(cudaErrorInvalidResourceHandle, "a function of another device's module");
  auto launch = std::make_shared<Launch>(Launch{f, {gx, gy, gz}, {bx, by, bz}, shared});
  std::string wrong = beyond_limits(*f, launch->grid, launch->block, shared);
  if (!wrong.empty()) return driver_error(cudaErrorInvalidValue, f->name + ": " + wrong);
  if (bx * by * bz > (unsigned)f->most_threads)
    return driver_error(cudaErrorLaunchOutOfResources, f->name + ": a block of " + std::to_string(bx * by * bz) +
                                                           " threads, its __launch_bounds__ are " + std::to_string(f->most_threads));
  if (extra) return driver_error(cudaErrorNotSupported, "arguments in a buffer (extra)");
  if (!args && !f->arguments.empty()) return driver_error(cudaErrorInvalidValue, f->name + ": no arguments");
  size_t slots = 0;
  for (const Argument& a : f->arguments) slots += (a.size + 15) / 16;
  launch->values.resize(slots + 1);
  Slot* to = launch->values.data();
  for (size_t i = 0; i < f->arguments.size(); ++i) {
    memcpy(to->bytes, args[i], f->arguments[i].size);
    launch->pointers.push_back(to->bytes);
    to += (f->arguments[i].size + 15) / 16;
  }
  if (s->capture) {
    auto size = [](unsigned x, unsigned y, unsigned z) {
      return std::to_string(x) + "," + std::to_string(y) + "," + std::to_string(z);
    };
    label = "kernel " + size(gx, gy, gz) + " " + size(bx, by, bz) + " " + std::to_string(shared) + " " + f->name;
  }
  cudaError_t before = last_error, e = submit(s, [launch] { run_kernel(*launch); });
  last_error = before;  // the runtime's
  return (CUresult)e;
}
API CUresult cuLaunchCooperativeKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream,
                                       void**) {
  return driver_error(cudaErrorNotSupported, "cooperative launches");
}
