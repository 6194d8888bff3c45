// The driver's functions that CuPy looks up and that cannot work say so by name. Here are none of CUDA's headers: they declare
// the same names with parameters.
extern "C" int software_gpu_refuse(const char* name);

#define REFUSED(NAME) \
  extern "C" __attribute__((visibility("default"))) int NAME() { return software_gpu_refuse(#NAME); }
REFUSED(cuLinkCreate_v2)
REFUSED(cuLinkAddData_v2)
REFUSED(cuLinkAddFile_v2)
REFUSED(cuLinkComplete)
REFUSED(cuLinkDestroy)
REFUSED(cuCtxCreate_v2)
REFUSED(cuCtxCreate_v4)
REFUSED(cuCtxDestroy_v2)
