// What is not there. The statuses of other libraries (cuBLAS, cuSOLVER ...) cannot say which function it was.
#include "device.hpp"

using namespace software_gpu;

static thread_local std::string missing;

API void software_gpu_missing(const char* name) {
  fprintf(stderr, "[software GPU] %s is not there\n", name);
  missing = name;
}
// The function that was called last in this thread and is not there; "" the next time.
API const char* software_gpu_take_missing() {
  static thread_local std::string out;
  out = std::move(missing);
  missing.clear();
  return out.c_str();
}

extern "C" int software_gpu_refuse(const char* name) {  // for functions of the driver
  fprintf(stderr, "[software GPU] %s is not there\n", name);
  return driver_error(cudaErrorNotSupported, std::string("the software GPU has no ") + name);
}
