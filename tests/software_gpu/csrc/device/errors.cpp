// Settings, the last error and the sticky one, names of errors.
#include "device.hpp"

namespace software_gpu {

std::recursive_mutex lock;

static int setting(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text && *text ? atoi(text) : otherwise;
}
const bool debug = setting("SOFTWARE_GPU_DEBUG", 0);
const int device_count = setting("SOFTWARE_GPU_COUNT", 1);
const int arch = setting("SOFTWARE_GPU_ARCH", 80);
const size_t total_memory = (size_t)setting("SOFTWARE_GPU_MIB", 4096) << 20;
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
cudaError_t sticky = cudaSuccess;
std::string problem;

cudaError_t fail(cudaError_t e) {
  if (debug && e != cudaErrorNotReady) fprintf(stderr, "[software GPU] error %d\n", e);
  if (e != cudaErrorNotReady) last_error = e;
  return e;
}

}  // namespace software_gpu

using namespace software_gpu;

// Every function of the runtime that is not below ends here. It is the last error too: CUB and Thrust ask for that only.
API int software_gpu_unsupported(const char* name) {
  fprintf(stderr, "[software GPU] %s is not there\n", name);
  return fail(cudaErrorNotSupported);
}
API const char* software_gpu_problem() { return problem.c_str(); }
API void software_gpu_reset() {
  sticky = cudaSuccess;
  problem.clear();
}

API const char* cudaGetErrorName(cudaError_t e) {
  switch (e) {
    case 0: return "cudaSuccess";
    case 1: return "cudaErrorInvalidValue";
    case 2: return "cudaErrorMemoryAllocation";
    case 101: return "cudaErrorInvalidDevice";
    case 400: return "cudaErrorInvalidResourceHandle";
    case 600: return "cudaErrorNotReady";
    case 719: return "cudaErrorLaunchFailure";
    case 801: return "cudaErrorNotSupported";
    case 900: return "cudaErrorStreamCaptureUnsupported";
    case 901: return "cudaErrorStreamCaptureInvalidated";
    case 904: return "cudaErrorStreamCaptureUnjoined";
    case 906: return "cudaErrorStreamCaptureImplicit";
    case 905: return "cudaErrorStreamCaptureIsolation";
    default: return "cudaErrorOther";
  }
}
API const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorLaunchFailure && !problem.empty() ? problem.c_str()
         : e == cudaErrorMemoryAllocation                ? "out of memory"
         : e == cudaErrorInvalidDevice                   ? "invalid device ordinal"
         : e == 900                                      ? "operation not permitted when stream is capturing"
                                                         : "software GPU error";
}
API cudaError_t cudaGetLastError() {
  cudaError_t e = last_error;
  last_error = cudaSuccess;
  return e;
}
API cudaError_t cudaPeekAtLastError() { return last_error; }

API CUresult cuGetErrorName(CUresult e, const char** s) {
  *s = e == CUDA_ERROR_LAUNCH_FAILED   ? "CUDA_ERROR_LAUNCH_FAILED"
       : e == CUDA_ERROR_INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE"
       : e == CUDA_ERROR_NOT_FOUND     ? "CUDA_ERROR_NOT_FOUND"
       : e == CUDA_ERROR_INVALID_IMAGE ? "CUDA_ERROR_INVALID_IMAGE"
                                       : "CUDA_ERROR_UNKNOWN";
  return CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult e, const char** s) {
  *s = e == CUDA_ERROR_LAUNCH_FAILED ? problem.c_str() : "software GPU error";
  return CUDA_SUCCESS;
}
