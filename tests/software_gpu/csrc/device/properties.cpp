// Devices, contexts, versions and attributes.
#include "device.hpp"

namespace software_gpu {

// Of one block, by CUDA's table of technical specifications for each compute capability.
size_t most_shared() {
  switch (arch) {
    case 70: case 72: return 96 << 10;
    case 75: return 64 << 10;
    case 80: case 87: return 163 << 10;
    case 86: case 89: case 120: case 121: return 99 << 10;
    default: return arch < 70 ? kShared : 227 << 10;
  }
}

static std::set<std::pair<int, int>> peers;

bool peer_access(int from, int to) { return from == to || peers.count({from, to}); }

static cudaError_t no_device(int d) {
  if (cudaError_t e = forked()) return e;
  return d < 0 || d >= device_count ? fail(cudaErrorInvalidDevice) : cudaSuccess;
}

}  // namespace software_gpu

using namespace software_gpu;

API cudaError_t cudaDriverGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
API cudaError_t cudaRuntimeGetVersion(int* v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
API cudaError_t cudaGetDevice(int* d) {
  if (cudaError_t e = forked()) return e;
  *d = current_device;
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceCount(int* n) {
  if (cudaError_t e = forked()) return e;
  *n = device_count;
  return device_count ? cudaSuccess : fail(cudaErrorNoDevice);
}
API cudaError_t cudaSetDevice(int d) {
  if (cudaError_t e = no_device(d)) return e;
  current_device = d;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int d) {
  if (cudaError_t e = no_device(d)) return e;
  switch (a) {
    case cudaDevAttrComputeCapabilityMajor: *v = arch / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *v = arch % 10; break;
    case cudaDevAttrMultiProcessorCount: *v = multiprocessors; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = kShared; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = (int)most_shared(); break;
    case cudaDevAttrL2CacheSize: *v = 1 << 20; break;
    case cudaDevAttrMaxGridDimX: *v = 0x7fffffff; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: *v = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *v = 64; break;
    case cudaDevAttrMemoryPoolsSupported: *v = 0; break;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrManagedMemory: *v = 1; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrClockRate: *v = 1000000; break;
    case cudaDevAttrMemoryClockRate: *v = 1000000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *v = 256; break;
    default: *v = 0;
  }
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int d) {
  if (cudaError_t e = no_device(d)) return e;
  memset(p, 0, sizeof *p);
  strcpy(p->name, "software GPU");
  p->totalGlobalMem = total_memory;
  p->sharedMemPerBlock = kShared;
  p->regsPerBlock = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = arch / 10;
  p->minor = arch % 10;
  p->multiProcessorCount = multiprocessors;
  p->l2CacheSize = 1 << 20;
  p->maxThreadsPerMultiProcessor = 2048;
#if CUDART_VERSION < 13000
  p->clockRate = 1000000;
  p->memoryClockRate = 1000000;
#endif
  p->memoryBusWidth = 256;
  p->unifiedAddressing = p->managedMemory = 1;
  p->sharedMemPerBlockOptin = most_shared();
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetPCIBusId(char* s, int n, int d) {
  if (cudaError_t e = no_device(d)) return e;
  snprintf(s, n, "0000:%02x:00.0", d + 1);
  return cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int* v, int from, int to) {
  if (cudaError_t e = no_device(from)) return e;
  if (cudaError_t e = no_device(to)) return e;
  *v = from != to;
  return cudaSuccess;
}
API cudaError_t cudaDeviceEnablePeerAccess(int to, unsigned flags) {
  Guard g(lock);
  if (cudaError_t e = no_device(to)) return e;
  if (flags) return fail(cudaErrorInvalidValue);
  if (to == current_device) return fail(cudaErrorInvalidDevice, "a device is no peer of its own");
  return peers.insert({current_device, to}).second ? cudaSuccess : fail(cudaErrorPeerAccessAlreadyEnabled);
}
API cudaError_t cudaDeviceDisablePeerAccess(int to) {
  Guard g(lock);
  if (cudaError_t e = no_device(to)) return e;
  return peers.erase({current_device, to}) ? cudaSuccess : fail(cudaErrorPeerAccessNotEnabled);
}
// What is set is kept, and changes nothing: a thread's stack always has its 1 MiB, kernels print and allocate without bounds.
static std::map<int, size_t>& limits() {
  static std::map<int, std::map<int, size_t>> all;
  auto made = all.try_emplace(current_device);
  if (made.second)
    made.first->second = {{cudaLimitStackSize, 1024}, {cudaLimitPrintfFifoSize, 1 << 20}, {cudaLimitMallocHeapSize, 8 << 20}};
  return made.first->second;
}
API cudaError_t cudaDeviceGetLimit(size_t* v, cudaLimit which) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  auto found = limits().find(which);
  if (found == limits().end()) return fail(cudaErrorUnsupportedLimit);
  *v = found->second;
  return cudaSuccess;
}
API cudaError_t cudaDeviceSetLimit(cudaLimit which, size_t v) {
  Guard g(lock);
  if (cudaError_t e = refused()) return e;
  auto found = limits().find(which);
  if (found == limits().end()) return fail(cudaErrorUnsupportedLimit);
  if (which == cudaLimitStackSize && v > 512 << 10)
    return fail(cudaErrorInvalidValue, std::to_string(v) + " bytes of stack for a thread, 512 KiB are the most");
  found->second = v;
  return cudaSuccess;
}
API cudaError_t cudaProfilerStart() { return cudaSuccess; }
API cudaError_t cudaProfilerStop() { return cudaSuccess; }

API CUresult cuInit(unsigned) { return driver_refused(); }
// NVIDIA's NVRTC asks for one, and does without.
API CUresult cuGetExportTable(const void**, const CUuuid*) { return CUDA_ERROR_NOT_SUPPORTED; }
API CUresult cuDriverGetVersion(int* v) {
  *v = CUDART_VERSION;
  return CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
API CUresult cuCtxGetCurrent(CUcontext* c) {
  *c = (CUcontext)(intptr_t)(0x1000 + current_device);
  return CUDA_SUCCESS;
}
API CUresult cuCtxSetCurrent(CUcontext c) {
  int device = (int)((intptr_t)c - 0x1000);
  if (!c) return CUDA_SUCCESS;
  if (device < 0 || device >= device_count) return driver_error(cudaErrorDeviceUninitialized);
  current_device = device;
  return CUDA_SUCCESS;
}
API CUresult cuCtxGetDevice(CUdevice* d) {
  *d = current_device;
  return CUDA_SUCCESS;
}
API CUresult cuStreamGetCtx(CUstream st, CUcontext* c) {
  Guard g(lock);
  Stream* s = find((cudaStream_t)st);
  if (!s) return driver_error(cudaErrorInvalidResourceHandle, "no such stream");
  *c = (CUcontext)(intptr_t)(0x1000 + s->device);
  return CUDA_SUCCESS;
}
