// Modules, and the functions in them.
#include "device.hpp"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <unistd.h>
#include <filesystem>

namespace software_gpu {

struct Module {
  void* handle;
  int device;
  std::map<std::string, size_t> statics;  // the local static variables that are not initialised, by symbol: bytes
  std::map<uintptr_t, std::string> names;  // the functions' symbols, by address
  std::vector<Function*> functions;
};
static std::set<Module*> modules;
static std::set<Function*> functions;  // never deleted: they may be queued, or in graphs

Function* find(CUfunction handle) { return functions.count((Function*)handle) ? (Function*)handle : nullptr; }

// Read the symbols of a library. Shared memory is a static variable of its kernel here, so its size is in their table.
static void read_symbols(Module& m, const char* image, uintptr_t base) {
  auto header = (const Elf64_Ehdr*)image;
  auto sections = (const Elf64_Shdr*)(image + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const char* strings = image + sections[sections[i].sh_link].sh_offset;
    auto symbols = (const Elf64_Sym*)(image + sections[i].sh_offset);
    for (size_t k = 0; k < sections[i].sh_size / sizeof(Elf64_Sym); ++k) {
      const Elf64_Sym& s = symbols[k];
      int type = ELF64_ST_TYPE(s.st_info);
      if (type == STT_FUNC && s.st_shndx) m.names[base + s.st_value] = strings + s.st_name;
      if (type == STT_OBJECT && s.st_shndx && s.st_shndx < header->e_shnum && sections[s.st_shndx].sh_type == SHT_NOBITS)
        m.statics[strings + s.st_name] = s.st_size;
    }
  }
}
// A kernel's name as in its source, without its arguments.
static std::string readable(const std::string& symbol) {
  if (symbol.rfind("_Z", 0) != 0) return symbol;  // else "g" would be the type that it stands for in mangled names
  int status = 0;
  char* text = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
  std::string out = text ? text : symbol;
  free(text);
  size_t end = out.rfind('(');
  if (text && end != std::string::npos) out.resize(end);
  return out.rfind("void ", 0) == 0 ? out.substr(5) : out;
}
// The bytes of a kernel's own __shared__ variables; those of functions that it calls are not counted.
static size_t static_shared(const Module& m, const void* entry) {
  auto found = m.names.find((uintptr_t)entry);
  if (found == m.names.end()) return 0;
  const std::string& name = found->second;  // _Z<f>, or f with C linkage; its variable x is _ZZ<f>E1x
  bool mangled = name.rfind("_Z", 0) == 0;
  std::string prefix = "_ZZ" + (mangled ? name.substr(2) : std::to_string(name.size()) + name) + "E";
  size_t sum = 0;
  for (auto i = m.statics.lower_bound(prefix); i != m.statics.end() && i->first.rfind(prefix, 0) == 0; ++i) sum += i->second;
  return sum;
}

}  // namespace software_gpu

using namespace software_gpu;

API CUresult cuModuleLoadData(CUmodule* m, const void* image) {
  Guard g(lock);
  if (CUresult e = driver_refused()) return e;
  const char* p = (const char*)image;
  if (memcmp(p, "//CUDASIM\n", 10)) return driver_error(cudaErrorInvalidKernelImage, "not compiled for the software GPU");
  size_t left = strtoull(p + 10, nullptr, 10);
  if (!left) return driver_error(cudaErrorInvalidKernelImage, "empty");
  std::string path = (std::filesystem::temp_directory_path() / "software_gpuXXXXXX").string();
  int f = mkstemp(path.data());
  for (const char* body = p + 32; left;) {
    ssize_t written = write(f, body, left);
    if (written <= 0) {
      close(f);
      unlink(path.c_str());
      return driver_error(cudaErrorMemoryAllocation, "no place for a module in " + path);
    }
    body += written, left -= written;
  }
  close(f);
  void* h = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  std::string wrong = h ? "" : dlerror();
  unlink(path.c_str());
  if (!h) return driver_error(cudaErrorInvalidKernelImage, wrong);
  Module* made = new Module{h, current_device};
  read_symbols(*made, p + 32, ((link_map*)h)->l_addr);
  modules.insert(made);
  *m = (CUmodule)made;
  return CUDA_SUCCESS;
}
// The code stays: it may be queued, or in graphs. The handles end.
API CUresult cuModuleUnload(CUmodule m) {
  Guard g(lock);
  if (!modules.erase((Module*)m)) return driver_error(cudaErrorInvalidResourceHandle, "no such module; was it unloaded?");
  for (Function* f : ((Module*)m)->functions) functions.erase(f);
  delete (Module*)m;
  return CUDA_SUCCESS;
}
API CUresult cuModuleGetFunction(CUfunction* f, CUmodule handle, const char* name) {
  Guard g(lock);
  Module* m = (Module*)handle;
  if (!modules.count(m)) return driver_error(cudaErrorInvalidResourceHandle, "no such module; was it unloaded?");
  std::string n(name);
  auto symbol = [&](const char* prefix) { return dlsym(m->handle, (prefix + n).c_str()); };
  auto run = (Runner)symbol("software_gpu_run_");
  auto arguments = (int (*)(const Argument**))symbol("software_gpu_arguments_");
  auto entry = (const void* (*)(int*))symbol("software_gpu_entry_");
  const Argument* list = nullptr;
  int count = run && arguments && entry ? arguments(&list) : -1;
  if (count < 0) return driver_error(cudaErrorSymbolNotFound, n);
  int bound = 0;
  size_t fixed = static_shared(*m, entry(&bound));
  if (fixed > kShared)  // NVIDIA's assembler refuses it
    return driver_error(cudaErrorInvalidKernelImage, n + " uses too much shared data: " + std::to_string(fixed) + " bytes");
  Function* made = new Function{run, {list, list + count}, n, m->device, bound ? bound : 1024, fixed, fixed < kShared ? kShared - fixed : 0};
  auto mangled = m->names.find((uintptr_t)entry(&bound));
  if (mangled != m->names.end()) made->name = readable(mangled->second);
  functions.insert(made);
  m->functions.push_back(made);
  *f = (CUfunction)made;
  return CUDA_SUCCESS;
}
API CUresult cuModuleGetGlobal_v2(CUdeviceptr* p, size_t* n, CUmodule m, const char* name) {
  Guard g(lock);
  if (!modules.count((Module*)m)) return driver_error(cudaErrorInvalidResourceHandle, "no such module; was it unloaded?");
  typedef void* (*Variable)(size_t*);
  Variable variable = (Variable)dlsym(((Module*)m)->handle, (std::string("software_gpu_variable_") + name).c_str());
  size_t bytes = 0;
  void* at = variable ? variable(&bytes) : nullptr;
  if (!at) return driver_error(cudaErrorSymbolNotFound, name);
  add_variable(at, bytes, ((Module*)m)->device);
  if (p) *p = (CUdeviceptr)at;
  if (n) *n = bytes;
  return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute a, int v) {
  Guard g(lock);
  Function* f = find(handle);
  if (!f) return driver_error(cudaErrorInvalidResourceHandle, "no such function; was its module unloaded?");
  if (a != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  if (v < 0 || v + f->static_shared > most_shared())
    return driver_error(cudaErrorInvalidValue, std::to_string(v) + " bytes of dynamic shared memory and " +
                                                   std::to_string(f->static_shared) + " static ones are more than " +
                                                   std::to_string(most_shared()));
  f->most_dynamic = v;
  return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction handle) {
  Guard g(lock);
  Function* f = find(handle);
  if (!f) return driver_error(cudaErrorInvalidResourceHandle, "no such function; was its module unloaded?");
  switch (a) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *v = f->most_threads; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *v = (int)f->static_shared; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *v = (int)f->most_dynamic; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *v = 32; break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *v = arch; break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: *v = -1; break;
    default: *v = 0;
  }
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction, int, size_t) {
  *n = 2;
  return CUDA_SUCCESS;
}
API CUresult cuOccupancyMaxPotentialBlockSize(int* g, int* b, CUfunction handle, CUoccupancyB2DSize, size_t, int) {
  Guard g_(lock);
  Function* f = find(handle);
  if (!f) return driver_error(cudaErrorInvalidResourceHandle, "no such function; was its module unloaded?");
  *g = 2, *b = f->most_threads < 256 ? f->most_threads : 256;
  return CUDA_SUCCESS;
}
