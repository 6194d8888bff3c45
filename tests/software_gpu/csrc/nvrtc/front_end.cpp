// NVIDIA's own NVRTC as the front end: it compiles to PTX, and a translator that the device registers makes C++ of that.
#include <dlfcn.h>

#include "program.hpp"

namespace software_gpu {

// What the translator makes of PTX: C++, or the reason why not.
struct Translation {
  std::string text, refused;
};
typedef void (*Translator)(const char* ptx, int leaving_arrives, Translation* to);

typedef struct Opaque* Handle;
static struct {
  Translator translator;
  int (*create)(Handle*, const char*, const char*, int, const char**, const char**);
  int (*destroy)(Handle*);
  int (*expression)(Handle, const char*);
  int (*compile)(Handle, int, const char**);
  int (*lowered)(Handle, const char*, const char**);
  int (*log_size)(Handle, size_t*);
  int (*log)(Handle, char*);
  int (*ptx_size)(Handle, size_t*);
  int (*ptx)(Handle, char*);
} nvidia;

bool nvidias_front_end() { return nvidia.translator != nullptr; }

static std::string text_of(Handle program, int (*size)(Handle, size_t*), int (*get)(Handle, char*)) {
  size_t bytes = 0;
  if (size(program, &bytes) || !bytes) return "";
  std::string text(bytes, '\0');
  get(program, text.data());
  return text.c_str();
}
static std::vector<const char*> pointers(const std::vector<std::string>& texts) {
  std::vector<const char*> all;
  for (const std::string& text : texts) all.push_back(text.c_str());
  return all;
}
// PTX is wanted, not machine code, and without lines of a debugger.
static std::vector<std::string> for_ptx(const std::vector<std::string>& options) {
  std::vector<std::string> all;
  for (std::string option : options) {
    if (option.empty() || option.find("line") != std::string::npos || option == "-G" || option == "--device-debug") continue;
    const size_t at = option.find("sm_");
    if (at == 0 || (at != std::string::npos && option.find("arch") < at)) option.replace(at, 2, "compute");
    all.push_back(option);
  }
  return all;
}

int translated(Program& p, const std::vector<std::string>& options, std::string& text) {
  Handle program;
  if (int e = nvidia.create(&program, p.source.c_str(), p.name.c_str(), (int)p.headers.size(), pointers(p.headers).data(),
                            pointers(p.names).data()))
    return e;
  struct Destroyed {
    Handle program;
    ~Destroyed() { nvidia.destroy(&program); }
  } at_the_end{program};
  bool leaving = false;
  for (const std::string& option : options) leaving = leaving || option == "-DSOFTWARE_GPU_LEAVING_ARRIVES";
  for (const std::string& e : p.expressions)
    if (int failed = nvidia.expression(program, e.c_str())) return failed;
  const std::vector<std::string> passed = for_ptx(options);
  int status = nvidia.compile(program, (int)passed.size(), pointers(passed).data());
  p.log = text_of(program, nvidia.log_size, nvidia.log);
  if (status) return status;
  for (const std::string& e : p.expressions) {
    const char* name = nullptr;
    if (int failed = nvidia.lowered(program, e.c_str(), &name)) return failed;
    p.lowered[e] = name;
  }
  Translation made;
  nvidia.translator(text_of(program, nvidia.ptx_size, nvidia.ptx).c_str(), leaving, &made);
  text = made.text;
  if (!text.empty()) return kSuccess;
  p.log += made.refused + "\n";
  return kCompilation;
}

}  // namespace software_gpu

using namespace software_gpu;
#define API extern "C" __attribute__((visibility("default")))

// Use NVIDIA's library at a path, and a translator. Return what is wrong with the library, or nullptr.
API const char* software_gpu_front_end(const char* path, Translator translator) {
  // Deep binding: its calls of its own functions must not meet those of the same names in this library.
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
  if (!library) return dlerror();
  const std::pair<const char*, void*> functions[] = {
      {"nvrtcCreateProgram", &nvidia.create},        {"nvrtcDestroyProgram", &nvidia.destroy},
      {"nvrtcAddNameExpression", &nvidia.expression}, {"nvrtcCompileProgram", &nvidia.compile},
      {"nvrtcGetLoweredName", &nvidia.lowered},      {"nvrtcGetProgramLogSize", &nvidia.log_size},
      {"nvrtcGetProgramLog", &nvidia.log},           {"nvrtcGetPTXSize", &nvidia.ptx_size},
      {"nvrtcGetPTX", &nvidia.ptx}};
  for (auto [name, place] : functions)
    if (!(*(void**)place = dlsym(library, name))) return dlerror();
  nvidia.translator = translator;
  return nullptr;
}
// For the translator: take what it has made.
API void software_gpu_translated(Translation* to, const char* text, const char* refused) { to->text = text, to->refused = refused; }
