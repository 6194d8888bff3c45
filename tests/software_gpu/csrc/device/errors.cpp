// Settings, the last error and the sticky one, names of errors.
#include "device.hpp"

#include <pthread.h>

#include <new>

namespace software_gpu {

void Lock::lock() {
  if (owner.load() == std::this_thread::get_id()) {
    ++depth;
    return;
  }
  mutex.lock();
  owner = std::this_thread::get_id();
  depth = 1;
}
void Lock::unlock() {
  if (--depth) return;
  owner = std::thread::id();
  mutex.unlock();
}
unsigned Lock::leave() {
  unsigned before = depth;
  depth = 1;
  unlock();
  return before;
}
void Lock::enter(unsigned before) {
  lock();
  depth = before;
}
Lock lock;

static int setting(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text && *text ? atoi(text) : otherwise;
}
const bool debug = setting("SOFTWARE_GPU_DEBUG", 0);
const int device_count = setting("SOFTWARE_GPU_COUNT", 1);
const int arch = setting("SOFTWARE_GPU_ARCH", 80);
const int multiprocessors = setting("SOFTWARE_GPU_MULTIPROCESSORS", 2);
const bool counts_only = setting("SOFTWARE_GPU_COUNTS_ONLY", 0);
const size_t total_memory = (size_t)setting("SOFTWARE_GPU_MIB", 4096) << 20;
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
cudaError_t sticky = cudaSuccess;
std::string problem;

// The reason of this thread's last failure, for the description of that error; that of its last error.
static thread_local cudaError_t explained = cudaSuccess;
static thread_local std::string explanation, last_explanation;

// A process that is forked from one that has used CUDA cannot use it.
static std::atomic<bool> used{false}, child{false};
static const int at_fork = pthread_atfork(nullptr, nullptr, [] {
  child = child || used;
  new (&lock) Lock;  // a thread that is not here may hold it
});

static cudaError_t explain(cudaError_t e, const std::string& why) {
  if (debug && e != cudaErrorNotReady) fprintf(stderr, "[software GPU] error %d%s%s\n", e, why.empty() ? "" : ": ", why.c_str());
  explained = e;
  explanation = why;
  return e;
}
cudaError_t fail(cudaError_t e, const std::string& why) {
  if (e != cudaErrorNotReady) last_error = e, last_explanation = why;
  return explain(e, why);
}
CUresult driver_error(cudaError_t e, const std::string& why) {
  if (e == sticky) last_error = e;
  return (CUresult)explain(e, why);
}
void fault(cudaError_t e, const std::string& description) {
  if (sticky != cudaSuccess) return;
  sticky = e;
  problem = description;
  fprintf(stderr, "[software GPU] %s\n", description.c_str());
}
cudaError_t forked() {
  used = true;
  explained = cudaSuccess;  // what a call says is about that call
  return child ? fail(cudaErrorInitializationError, "the process was forked from one that had used CUDA: start it anew (spawn)")
               : cudaSuccess;
}
CUresult driver_refused() {
  used = true;
  explained = cudaSuccess;
  if (child) return driver_error(cudaErrorInitializationError, "the process was forked from one that had used CUDA");
  return sticky ? driver_error(sticky) : CUDA_SUCCESS;
}
cudaError_t refused() {
  if (cudaError_t e = forked()) return e;
  if (sticky != cudaSuccess) return fail(sticky);
  return within_host_function ? fail(cudaErrorNotPermitted, "a host function calls CUDA") : cudaSuccess;
}

struct Name {
  const char *runtime, *driver, *text;
};
// CUDA's names and descriptions, by number. The driver and the runtime share the numbers.
static const std::map<int, Name> names = {
    {0, {"cudaSuccess", "CUDA_SUCCESS", "no error"}},
    {1, {"cudaErrorInvalidValue", "CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {2, {"cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {3, {"cudaErrorInitializationError", "CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
    {4, {"cudaErrorCudartUnloading", "CUDA_ERROR_DEINITIALIZED", "driver shutting down"}},
    {9, {"cudaErrorInvalidConfiguration", "CUDA_ERROR_UNKNOWN", "invalid configuration argument"}},
    {12, {"cudaErrorInvalidPitchValue", "CUDA_ERROR_UNKNOWN", "invalid pitch argument"}},
    {21, {"cudaErrorInvalidMemcpyDirection", "CUDA_ERROR_UNKNOWN", "invalid copy direction for memcpy"}},
    {98, {"cudaErrorInvalidDeviceFunction", "CUDA_ERROR_UNKNOWN", "invalid device function"}},
    {100, {"cudaErrorNoDevice", "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
    {101, {"cudaErrorInvalidDevice", "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
    {200, {"cudaErrorInvalidKernelImage", "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}},
    {201, {"cudaErrorDeviceUninitialized", "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {215, {"cudaErrorUnsupportedLimit", "CUDA_ERROR_UNSUPPORTED_LIMIT", "limit is not supported on this architecture"}},
    {217, {"cudaErrorPeerAccessUnsupported", "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
           "peer access is not supported between these two devices"}},
    {301, {"cudaErrorFileNotFound", "CUDA_ERROR_FILE_NOT_FOUND", "file not found"}},
    {400, {"cudaErrorInvalidResourceHandle", "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
    {401, {"cudaErrorIllegalState", "CUDA_ERROR_ILLEGAL_STATE",
           "the operation cannot be performed in the present state"}},
    {500, {"cudaErrorSymbolNotFound", "CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
    {600, {"cudaErrorNotReady", "CUDA_ERROR_NOT_READY", "device not ready"}},
    {700, {"cudaErrorIllegalAddress", "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
    {701, {"cudaErrorLaunchOutOfResources", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
           "too many resources requested for launch"}},
    {704, {"cudaErrorPeerAccessAlreadyEnabled", "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED",
           "peer access is already enabled"}},
    {705, {"cudaErrorPeerAccessNotEnabled", "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access has not been enabled"}},
    {710, {"cudaErrorAssert", "CUDA_ERROR_ASSERT", "device-side assert triggered"}},
    {712, {"cudaErrorHostMemoryAlreadyRegistered", "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
           "part or all of the requested memory range is already mapped"}},
    {713, {"cudaErrorHostMemoryNotRegistered", "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
           "pointer does not correspond to a registered memory region"}},
    {716, {"cudaErrorMisalignedAddress", "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"}},
    {719, {"cudaErrorLaunchFailure", "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}},
    {800, {"cudaErrorNotPermitted", "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"}},
    {801, {"cudaErrorNotSupported", "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"}},
    {900, {"cudaErrorStreamCaptureUnsupported", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
           "operation not permitted when stream is capturing"}},
    {901, {"cudaErrorStreamCaptureInvalidated", "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
           "operation failed due to a previous error during capture"}},
    {902, {"cudaErrorStreamCaptureMerge", "CUDA_ERROR_STREAM_CAPTURE_MERGE",
           "operation would result in a merge of separate capture sequences"}},
    {903, {"cudaErrorStreamCaptureUnmatched", "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
           "capture was not ended in the same stream as it began"}},
    {904, {"cudaErrorStreamCaptureUnjoined", "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
           "capturing stream has unjoined work"}},
    {905, {"cudaErrorStreamCaptureIsolation", "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
           "dependency created on uncaptured work in another stream"}},
    {906, {"cudaErrorStreamCaptureImplicit", "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
           "operation would make the legacy stream depend on a capturing blocking stream"}},
    {907, {"cudaErrorCapturedEvent", "CUDA_ERROR_CAPTURED_EVENT",
           "operation not permitted on an event last recorded in a capturing stream"}},
    {908, {"cudaErrorStreamCaptureWrongThread", "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
           "attempt to terminate a thread-local capture sequence from another thread"}},
    {999, {"cudaErrorUnknown", "CUDA_ERROR_UNKNOWN", "unknown error"}},
};

// The description of an error; of a fault, what happened; of this thread's last failure, the reason too.
static const char* text(int e) {
  static thread_local std::string out;
  auto known = names.find(e);
  if (known == names.end()) return "unrecognized error code";
  out = known->second.text;
  if (e == sticky && !problem.empty())
    out += ": " + problem;
  else if (e == explained && !explanation.empty())
    out += ": " + explanation;
  return out.c_str();
}

}  // namespace software_gpu

using namespace software_gpu;

// Every function of the runtime that is not there ends here. It is the last error too: CUB and Thrust ask for that only.
API int software_gpu_unsupported(const char* name) {
  fprintf(stderr, "[software GPU] %s is not there\n", name);
  return fail(cudaErrorNotSupported, name);
}

API const char* cudaGetErrorName(cudaError_t e) {
  auto known = names.find(e);
  return known == names.end() ? "unrecognized error code" : known->second.runtime;
}
API const char* cudaGetErrorString(cudaError_t e) { return text(e); }
// For a number that is not here CUDA gives no text, and CuPy reads it all the same.
API CUresult cuGetErrorName(CUresult e, const char** s) {
  auto known = names.find(e);
  *s = known == names.end() ? "unrecognized error code" : known->second.driver;
  return known == names.end() ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
API CUresult cuGetErrorString(CUresult e, const char** s) {
  *s = text(e);
  return names.count(e) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// A fault stays the last error.
API cudaError_t cudaGetLastError() {
  cudaError_t e = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return e;
}
API cudaError_t cudaPeekAtLastError() {
  if (last_error) explained = last_error, explanation = last_explanation;
  return sticky ? sticky : last_error;
}
