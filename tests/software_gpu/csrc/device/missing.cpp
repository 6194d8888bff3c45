// The functions of other libraries (cuBLAS, cuSOLVER ...) that are not there: their statuses cannot say which one it was.
#include "device.hpp"

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
