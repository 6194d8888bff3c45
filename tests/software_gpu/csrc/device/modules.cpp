// Modules, functions and launches.
#include "device.hpp"

#include <dlfcn.h>
#include <unistd.h>
#include <filesystem>

namespace software_gpu {

struct Module {
  void* handle;
  std::string path;
};
typedef const char* (*Runner)(const unsigned*, const unsigned*, unsigned, void**);
struct Function {
  Runner run;
  std::vector<size_t> sizes;
  std::string name;
  int shared_limit = 48 << 10;
};

}  // namespace software_gpu

using namespace software_gpu;

API CUresult cuModuleLoadData(CUmodule* m, const void* image) {
  Guard g(lock);
  const char* p = (const char*)image;
  if (memcmp(p, "//CUDASIM\n", 10)) return CUDA_ERROR_INVALID_IMAGE;
  size_t n = strtoull(p + 10, nullptr, 10);
  std::string path = (std::filesystem::temp_directory_path() / "software_gpuXXXXXX").string();
  int f = mkstemp(path.data());
  const char* body = p + 32;
  while (n) {
    ssize_t w = write(f, body, n);
    if (w <= 0) return CUDA_ERROR_OUT_OF_MEMORY;
    body += w, n -= w;
  }
  close(f);
  void* h = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!h) fprintf(stderr, "[software GPU] %s\n", dlerror());
  unlink(path.c_str());
  if (!h) return CUDA_ERROR_INVALID_IMAGE;
  *m = (CUmodule) new Module{h, path};
  return CUDA_SUCCESS;
}
API CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }  // functions of it may be queued or in graphs: kept
API CUresult cuModuleGetFunction(CUfunction* f, CUmodule m, const char* name) {
  Guard g(lock);
  void* h = ((Module*)m)->handle;
  std::string n(name);
  Runner run = (Runner)dlsym(h, ("software_gpu_run_" + n).c_str());
  typedef int (*Sizes)(const size_t**);
  Sizes sizes = (Sizes)dlsym(h, ("software_gpu_sizes_" + n).c_str());
  if (!run || !sizes) return CUDA_ERROR_NOT_FOUND;
  const size_t* list;
  int count = sizes(&list);
  *f = (CUfunction) new Function{run, std::vector<size_t>(list, list + count), n};
  return CUDA_SUCCESS;
}
API CUresult cuModuleGetGlobal_v2(CUdeviceptr* p, size_t* n, CUmodule m, const char* name) {
  Guard g(lock);
  typedef void* (*Variable)(size_t*);
  Variable variable = (Variable)dlsym(((Module*)m)->handle, (std::string("software_gpu_variable_") + name).c_str());
  size_t bytes = 0;
  void* at = variable ? variable(&bytes) : nullptr;
  if (!at) return CUDA_ERROR_NOT_FOUND;
  if (p) *p = (CUdeviceptr)at;
  if (n) *n = bytes;
  return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
  if (a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    int most;
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    if (v > most) return CUDA_ERROR_INVALID_VALUE;
    ((Function*)f)->shared_limit = v;
  }
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction f) {
  *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK           ? 1024
       : a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? ((Function*)f)->shared_limit
                                                              : 32;
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction, int, size_t) {
  *n = 2;
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxPotentialBlockSize(int* g, int* b, CUfunction, CUoccupancyB2DSize, size_t, int) {
  *g = 2, *b = 256;
  return CUDA_SUCCESS;
}
API CUresult cuLaunchKernel(CUfunction cf, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                     CUstream st, void** args, void** extra) {
  Guard g(lock);
  Function* f = (Function*)cf;
  Stream* s = find((cudaStream_t)st);
  if (!s) return CUDA_ERROR_INVALID_HANDLE;
  if (!gx || !gy || !gz || !bx || !by || !bz || gx > 0x7fffffffu || gy > 65535 || gz > 65535 || bx > 1024 || by > 1024 ||
      bz > 64 || bx * by * bz > 1024 || shared > (unsigned)f->shared_limit || extra)
    return CUDA_ERROR_INVALID_VALUE;
  size_t slots = 0;
  for (size_t n : f->sizes) slots += (n + 15) / 16;
  struct Slot {
    alignas(16) char bytes[16];
  };
  auto packed = std::make_shared<std::vector<Slot>>(slots + 1);
  auto pointers = std::make_shared<std::vector<void*>>();
  size_t at = 0;
  for (size_t i = 0; i < f->sizes.size(); ++i) {
    char* to = (*packed)[at].bytes;
    memcpy(to, args[i], f->sizes[i]);
    pointers->push_back(to);
    at += (f->sizes[i] + 15) / 16;
  }
  cudaError_t e = submit(s, [=] {
    unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    (void)packed;
    if (const char* wrong = f->run(grid, block, shared, pointers->data())) {
      problem = f->name + ": " + wrong;
      fprintf(stderr, "[software GPU] %s\n", problem.c_str());
      sticky = cudaErrorLaunchFailure;
    }
  });
  return (CUresult)e;
}
API CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                unsigned sh, CUstream st, void** a) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
