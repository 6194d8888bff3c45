// Modules from files.
#include "device.hpp"

#include <fstream>
#include <iterator>

using namespace software_gpu;

API CUresult cuModuleLoad(CUmodule* module, const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return driver_error(cudaErrorFileNotFound, path);
  std::string image((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (image.size() < 33) return driver_error(cudaErrorInvalidKernelImage, std::string(path) + " holds no module");
  return cuModuleLoadData(module, image.c_str());
}
