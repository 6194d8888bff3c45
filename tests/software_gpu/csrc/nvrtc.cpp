// A stand-in for NVRTC: "compiles" CUDA C++ with g++ and the emulator's header; a "cubin" is a shared library.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>
#include <unistd.h>
#include <dlfcn.h>
struct Program {
  std::string source, name, log, code;
  std::vector<std::string> headers, names, expressions;
  std::map<std::string, std::string> lowered;
};
typedef Program* P;
#define API extern "C" __attribute__((visibility("default")))
static std::string here() {
  Dl_info i;
  dladdr((void*)&here, &i);
  std::string p(i.dli_fname);
  return p.substr(0, p.rfind('/'));
}
API const char* nvrtcGetErrorString(int e) {
  return e == 6 ? "NVRTC_ERROR_COMPILATION" : e == 0 ? "NVRTC_SUCCESS" : "NVRTC_ERROR_INVALID_INPUT";
}
API int nvrtcVersion(int* a, int* b) {
  *a = SOFTWARE_GPU_CUDA, *b = SOFTWARE_GPU_CUDA == 12 ? 9 : 0;
  return 0;
}
API int nvrtcGetNumSupportedArchs(int* n) {
  *n = 8;
  return 0;
}
API int nvrtcGetSupportedArchs(int* a) {
  int l[] = {75, 80, 86, 87, 89, 90, 100, 120};
  memcpy(a, l, sizeof l);
  return 0;
}
API int nvrtcCreateProgram(P* p, const char* src, const char* name, int n, const char** headers, const char** names) {
  *p = new Program{src, name ? name : "default_program"};
  for (int i = 0; i < n; ++i) (*p)->headers.push_back(headers[i]), (*p)->names.push_back(names[i]);
  return 0;
}
API int nvrtcDestroyProgram(P* p) {
  delete *p;
  *p = nullptr;
  return 0;
}
API int nvrtcAddNameExpression(P p, const char* e) {
  p->expressions.push_back(e);
  return 0;
}
API int nvrtcGetLoweredName(P p, const char* e, const char** out) {
  auto i = p->lowered.find(e);
  if (i == p->lowered.end()) return 10;
  *out = i->second.c_str();
  return 0;
}
static std::string blanked(const std::string& text) {
  return std::regex_replace(
      text, std::regex(R"(extern\s+__shared__\s+(?:__align__\(\d+\)\s*)?([A-Za-z_][\w:<> ]*?)\s+(\w+)\s*\[\s*\]\s*;)"),
      "$1* $2 = reinterpret_cast<$1*>(software_gpu_dynamic);");
}
static void write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }
API int nvrtcCompileProgram(P p, int n, const char** options) {
  std::string dir = (std::filesystem::temp_directory_path() / "software_gpu_nvrtcXXXXXX").string(), arguments, architecture = "800";
  if (!mkdtemp(dir.data())) return 1;
  for (int i = 0; i < n; ++i) {
    std::string o(options[i]);
    std::smatch m;
    if (o.rfind("-I", 0) == 0 || o.rfind("-D", 0) == 0) {
      if (o.find("/_cccl/") == std::string::npos && o.find("cuda_runtime/include") == std::string::npos)
        arguments += " '" + o + "'";
    } else if (std::regex_search(o, m, std::regex("(?:sm|compute)_(\\d+)")))
      architecture = m[1].str() + "0";
  }
  for (size_t i = 0; i < p->headers.size(); ++i) write(dir + "/" + p->names[i], blanked(p->headers[i]));
  std::string text = "#include \"kernel_prelude.hpp\"\n#line 1 \"" + p->name + "\"\n" + blanked(p->source) + "\n";
  std::string plain = std::regex_replace(p->source, std::regex("//[^\n]*"), "");
  std::regex kernel(R"(extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\()");
  for (std::sregex_iterator i(plain.begin(), plain.end(), kernel), end; i != end; ++i)
    text += "SOFTWARE_GPU_KERNEL(" + (*i)[1].str() + ", " + (*i)[1].str() + ")\n";
  for (size_t i = 0; i < p->expressions.size(); ++i) {
    std::string symbol = "x" + std::to_string(i);
    text += "SOFTWARE_GPU_KERNEL(" + symbol + ", " + p->expressions[i] + ")\n";
    p->lowered[p->expressions[i]] = symbol;
  }
  // static + extern "C" do not go together: the wrappers are what is exported
  text = std::regex_replace(text, std::regex(R"(extern\s+"C"\s+__global__)"), "__global__");
  write(dir + "/main.cpp", text);
  std::string command = "g++ " SOFTWARE_GPU_FLAGS " -shared -I" +
                        here() + "/include -I" + dir + arguments + " " + dir + "/main.cpp -o " + dir + "/main.so 2> " + dir +
                        "/log";
  int failed = p->source.empty() ? 0 : system(command.c_str());
  std::stringstream log;
  log << std::ifstream(dir + "/log").rdbuf();
  p->log = log.str();
  std::stringstream code;
  if (!p->source.empty()) code << std::ifstream(dir + "/main.so", std::ios::binary).rdbuf();
  char head[33];
  snprintf(head, sizeof head, "//CUDASIM\n%-21zu\n", code.str().size());
  p->code = std::string(head, 32) + code.str();
  if (failed && getenv("SOFTWARE_GPU_KEEP"))
    fprintf(stderr, "[software GPU] kept %s\n", dir.c_str());
  else if (system(("rm -r " + dir).c_str())) {
  }
  return failed ? 6 : 0;
}
API int nvrtcGetProgramLogSize(P p, size_t* n) {
  *n = p->log.size() + 1;
  return 0;
}
API int nvrtcGetProgramLog(P p, char* s) {
  memcpy(s, p->log.c_str(), p->log.size() + 1);
  return 0;
}
API int nvrtcGetCUBINSize(P p, size_t* n) {
  *n = p->code.size();
  return 0;
}
API int nvrtcGetCUBIN(P p, char* s) {
  memcpy(s, p->code.data(), p->code.size());
  return 0;
}
API int nvrtcGetPTXSize(P p, size_t* n) {
  *n = p->code.size();
  return 0;
}
API int nvrtcGetPTX(P p, char* s) {
  memcpy(s, p->code.data(), p->code.size());
  return 0;
}
API int nvrtcGetLTOIRSize(P, size_t* n) {
  *n = 0;
  return 4;
}
API int nvrtcGetLTOIR(P, char*) { return 4; }
