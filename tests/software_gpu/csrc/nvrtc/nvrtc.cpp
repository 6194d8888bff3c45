// A stand-in for NVRTC: g++ compiles CUDA C++ behind the emulator's header, or what was PTX; a "cubin" is a shared library.
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "program.hpp"
#include "source.hpp"

namespace fs = std::filesystem;
using namespace software_gpu;
#define API extern "C" __attribute__((visibility("default")))

typedef Program* P;

namespace {

fs::path here() {
  Dl_info info;
  dladdr((void*)&here, &info);
  return fs::path(info.dli_fname).parent_path();
}

std::string read(const fs::path& path) {
  std::stringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}
void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

struct Folder {  // removed with all that is in it, unless $SOFTWARE_GPU_KEEP is set and the compilation failed
  std::string path = (fs::temp_directory_path() / "software_gpu_nvrtcXXXXXX").string();
  bool made = mkdtemp(path.data()) != nullptr, keep = false;
  ~Folder() {
    std::error_code ignored;
    if (made && !keep) fs::remove_all(path, ignored);
  }
};

// Run g++ without a shell; what it says goes to the file `log`. Return its status, -1 where it cannot be started.
int compiler(const std::vector<std::string>& arguments, const std::string& log) {
  std::vector<char*> argv{const_cast<char*>("g++")};
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addopen(&files, 2, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  pid_t child;
  int failed = posix_spawnp(&child, "g++", &files, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  if (failed) return -1;
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

struct Options {
  std::vector<fs::path> folders;
  std::vector<std::string> macros, before;  // -D and -U as they are; headers in front of the program
  std::string standard, wrong;
  int architecture = 75;
  bool flush = false;
};

// The options that say nothing to g++: how to optimise, debug or report.
const std::set<std::string> ignored{
    "prec-sqrt", "prec-div", "fmad", "extra-device-vectorization", "modify-stack-limit", "default-device",
    "device-as-default-execution-space", "lineinfo", "generate-line-info", "G", "device-debug", "w", "disable-warnings",
    "restrict", "maxrregcount", "opt-info", "optimization-info", "Ofast-compile", "split-compile", "minimal", "rdc", "dc", "dw",
    "relocatable-device-code", "device-c", "device-w", "ptxas-options", "Xptxas", "builtin-move-forward",
    "builtin-initializer-list", "version-ident", "display-error-number", "no-display-error-number", "diag-error",
    "diag-suppress", "diag-warn", "err-no", "pch", "pch-dir", "create-pch", "use-pch", "pch-verbose", "pch-messages",
    "instantiate-templates-in-pch", "brief-diagnostics", "time", "fdevice-time-trace", "no-source-include", "device-int128",
    "device-float128", "device-stack-protector", "dopt", "ewp", "extensible-whole-program", "no-cache", "fdevice-syntax-only",
    "frandom-seed", "jump-table-density", "arch-specific"};

bool yes(const std::string& value) { return value.empty() || value == "true" || value == "1"; }

Options parsed(int count, const char** list) {
  Options o;
  for (int i = 0; i < count && o.wrong.empty(); ++i) {
    std::string text(list[i]);
    if (text.empty()) continue;
    if (text[0] != '-') {
      o.wrong = text;
      break;
    }
    std::string name = text.substr(text.rfind("--", 0) == 0 ? 2 : 1), value;
    bool attached = false;
    auto next = [&] { return attached || !value.empty() ? value : i + 1 < count ? std::string(list[++i]) : std::string(); };
    if (text[1] != '-' && strchr("IDU", text[1])) {
      value = text.substr(2), attached = !value.empty(), name = text[1];
    } else if (size_t at = name.find('='); at != std::string::npos) {
      value = name.substr(at + 1), name.resize(at), attached = true;
    }
    if (name == "I" || name == "include-path") {
      o.folders.push_back(next());
    } else if (name == "D" || name == "define-macro") {
      o.macros.push_back("-D" + next());
    } else if (name == "U" || name == "undefine-macro") {
      o.macros.push_back("-U" + next());
    } else if (name == "include" || name == "pre-include") {
      o.before.push_back(next());
    } else if (name == "std") {
      o.standard = next();
    } else if (name == "arch" || name == "gpu-architecture") {
      std::string a = next();
      size_t digits = a.find_first_of("0123456789");
      o.architecture = digits == std::string::npos || a.find('_') == std::string::npos ? 0 : atoi(a.c_str() + digits);
      if (o.architecture < 50) o.wrong = text;
    } else if (name == "ftz") {
      o.flush = yes(value);
    } else if (name == "use_fast_math") {
      o.flush = o.flush || yes(value);
    } else if (!ignored.count(name)) {
      o.wrong = text;  // among them -dlto: there is no link-time optimisation
    }
  }
  return o;
}

// NVIDIA's headers are for NVIDIA's compilers; the folder `include` beside this library has what is there of them.
bool nvidias(const fs::path& folder) {
  for (const char* sign : {"cuda_runtime.h", "cuda/std", "thrust/version.h", "cub/cub.cuh"})
    if (fs::exists(folder / sign)) return true;
  return folder.string().find("/_cccl/") != std::string::npos;
}

// Headers in the program's own folders that declare dynamic shared memory are copied, with all that leads to them.
class Closure {
 public:
  Closure(const std::vector<fs::path>& folders) : folders_(folders) {}
  // Return the headers that `text` includes, by the name that they are found under.
  const std::map<std::string, std::string>& of(const std::string& text) {
    visit(text, "");
    if (!dynamic_) found_.clear();
    return found_;
  }

 private:
  void visit(const std::string& text, const fs::path& from) {
    for (const std::string& name : included(text)) {
      std::vector<std::pair<fs::path, std::string>> places;  // (file, name of the copy)
      for (const fs::path& folder : folders_) {
        if (!from.empty()) places.push_back({folder / from.parent_path() / name, (from.parent_path() / name).lexically_normal()});
        places.push_back({folder / name, fs::path(name).lexically_normal()});
      }
      for (auto& [file, copy] : places) {
        if (!fs::is_regular_file(file)) continue;
        if (fs::path(copy).is_absolute() || copy.rfind("..", 0) == 0 || found_.count(copy)) break;
        std::string content = read(file);
        std::string changed = found_[copy] = with_dynamic_memory(content);
        dynamic_ = dynamic_ || changed != content;
        visit(content, copy);
        break;
      }
    }
  }
  const std::vector<fs::path>& folders_;
  std::map<std::string, std::string> found_;
  bool dynamic_ = false;
};

std::string escaped(const std::string& text) {
  std::string out;
  for (char c : text)
    if (c != '\n') out += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
  return out;
}

std::string stripped(const std::string& expression) {  // "&kernel" and "(kernel)" are kernels too
  size_t at = expression.find_first_not_of(" \t\n&");
  return at == std::string::npos ? "" : expression.substr(at);
}

// A kernel or a variable may have the name of a function of the C library, which NVRTC does not declare (`round`, `gamma`).
// Return macros that rename those which g++ complains about, in lines of their own.
std::string renames(const Symbols& symbols, const std::string& log) {
  std::string complaints, out;
  std::stringstream lines(log);
  for (std::string line; std::getline(lines, line);)
    if (line.find("error: ") != std::string::npos) complaints += line + "\n";
  auto rename = [&](const std::string& name) {
    if (std::regex_search(complaints, std::regex("\\b" + name + "\\b|no matching function for call to .run<")))
      out += "#define " + name + " software_gpu_own_" + name + "\n";
  };
  for (const std::string& name : symbols.kernels) rename(name);
  for (const std::string& name : symbols.variables) rename(name);
  return out;
}

// Take what g++ has made of a program, or has said of it.
int finished(Program& p, Folder& folder, int status, const std::string& log, const std::string& made) {
  p.log += status == -1 ? "the software GPU compiles kernels with g++, which does not start: is it installed?\n" : read(log);
  if (status) {
    if (const char* keep = getenv("SOFTWARE_GPU_KEEP"); keep && atoi(keep)) {
      folder.keep = true;
      p.log += "kept in " + folder.path + "\n";
    }
    return kCompilation;
  }
  p.code = read(made);
  return kSuccess;
}

// By way of PTX.
int compile_translated(Program& p, const std::vector<std::string>& options) {
  std::string text;
  if (int failed = translated(p, options, text)) return failed;
  Folder folder;
  if (!folder.made) return kInternal;
  const std::string unit = folder.path + "/main.cpp", made = folder.path + "/main.so", log = folder.path + "/log";
  write(unit, text);
  std::vector<std::string> arguments{"-I" + (here() / "include").string(), "-shared", unit, "-o", made};
  std::stringstream flags(SOFTWARE_GPU_FLAGS);
  for (std::string flag; flags >> flag;) arguments.push_back(flag);
  return finished(p, folder, compiler(arguments, log), log, made);
}

int compile(Program& p, const Options& o) {
  Folder folder;
  if (!folder.made) return kInternal;
  fs::path dir = folder.path;
  for (size_t i = 0; i < p.headers.size(); ++i) {
    fs::path name = fs::path(p.names[i]).lexically_normal();
    if (name.is_absolute() || *name.begin() == "..") {
      p.log = "the header's name \"" + p.names[i] + "\" leads out of the program\n";
      return kInvalidInput;
    }
    write(dir / name, with_dynamic_memory(p.headers[i]));
  }
  std::vector<fs::path> folders;
  for (const fs::path& f : o.folders)
    if (!nvidias(f)) folders.push_back(f);
  std::string before;
  for (const std::string& header : o.before) before += "#include \"" + escaped(header) + "\"\n";
  std::vector<fs::path> own;
  for (const fs::path& f : folders)
    if (!fs::exists(f / "cupy" / "carray.cuh")) own.push_back(f);  // CuPy's headers are many, and have no such memory
  Closure closure(own);
  for (auto& [name, text] : closure.of(before + p.source))
    if (!fs::exists(dir / name)) write(dir / name, text);

  std::vector<std::string> common{"-w", "-I" + (here() / "include").string(), "-I" + dir.string()};
  for (const fs::path& f : folders) common.push_back("-I" + f.string());
  common.insert(common.end(), o.macros.begin(), o.macros.end());
  common.push_back("-D__CUDA_ARCH__=" + std::to_string(o.architecture * 10));
  std::stringstream flags(SOFTWARE_GPU_FLAGS);
  for (std::string flag; flags >> flag;) {
    if (flag.rfind("-std=", 0) == 0 && (o.standard == "c++20" || o.standard == "c++23")) flag = "-std=" + o.standard;
    common.push_back(flag);
  }
  std::string log = (dir / "log").string(), unit = (dir / "main.cpp").string(), made = (dir / "main.so").string();

  std::string plain = before + p.source;
  if (needs_preprocessor(plain)) {  // kernels within macros, other files and conditions
    write(dir / "plain.cpp", plain);
    std::vector<std::string> arguments = common;
    arguments.insert(arguments.end(), {"-E", "-P", (dir / "plain.cpp").string(), "-o", (dir / "plain.ii").string()});
    if (compiler(arguments, log) == 0) plain = read(dir / "plain.ii");
  }
  Symbols symbols = exported(plain);
  const std::map<std::string, std::string> bounds = launch_bounds(plain);
  auto bound = [&](const std::string& expression) {  // of the kernel with this name, or of all instances of the template
    std::string name = expression.substr(0, expression.find('<'));
    name = name.substr(0, name.find_last_not_of(" \t\n)") + 1);
    auto found = bounds.find(name.substr(name.find_last_of(": \t\n&(") + 1));
    return found == bounds.end() ? "0" : found->second;
  };

  const std::string prelude = "#include \"kernel_prelude.hpp\"\n";
  std::string text = before + "#line 1 \"" + escaped(p.name) + "\"\n" +
                     with_dynamic_memory(p.source) + "\n#line 1 \"<the name expressions>\"\n";
  text += std::string("static constexpr bool software_gpu_flush = ") + (o.flush ? "true" : "false") + ";\n";
  text += "#ifdef SOFTWARE_GPU_LEAVING_ARRIVES\nstatic constexpr bool software_gpu_leaving = true;\n"
          "#else\nstatic constexpr bool software_gpu_leaving = false;\n#endif\n";
  for (const std::string& kernel : symbols.kernels) text += "SOFTWARE_GPU_KERNEL(" + kernel + ", " + bound(kernel) + ", " + kernel + ")\n";
  for (const std::string& variable : symbols.variables) text += "SOFTWARE_GPU_VARIABLE(" + variable + ", " + variable + ")\n";
  for (size_t i = 0; i < p.expressions.size(); ++i) {
    std::string symbol = "_Z_software_gpu_" + std::to_string(i), expression = stripped(p.expressions[i]);
    text += "SOFTWARE_GPU_NAMED(" + symbol + ", " + bound(expression) + ", " + expression + ")\n";
    p.lowered[p.expressions[i]] = symbol;
  }
  write(unit, prelude + text);

  std::vector<std::string> arguments = common;
  arguments.insert(arguments.end(), {"-shared", unit, "-o", made});
  int status = compiler(arguments, log);
  if (std::string renamed = status > 0 ? renames(symbols, read(log)) : ""; !renamed.empty()) {
    write(unit, prelude + renamed + text);
    const std::string second = (dir / "second log").string();
    if (compiler(arguments, second) == 0) status = 0, log = second;
  }
  return finished(p, folder, status, log, made);
}

int give(const std::string& text, char* to) {
  memcpy(to, text.data(), text.size());
  return kSuccess;
}

}  // namespace

API const char* nvrtcGetErrorString(int e) {
  switch (e) {
    case kSuccess: return "NVRTC_SUCCESS";
    case kOutOfMemory: return "NVRTC_ERROR_OUT_OF_MEMORY";
    case kInvalidInput: return "NVRTC_ERROR_INVALID_INPUT";
    case kInvalidProgram: return "NVRTC_ERROR_INVALID_PROGRAM";
    case kInvalidOption: return "NVRTC_ERROR_INVALID_OPTION";
    case kCompilation: return "NVRTC_ERROR_COMPILATION";
    case kNoLoweredNames: return "NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION";
    case kNameNotValid: return "NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID";
    default: return "NVRTC_ERROR_INTERNAL_ERROR";
  }
}
API int nvrtcVersion(int* major, int* minor) {
  *major = SOFTWARE_GPU_CUDA, *minor = SOFTWARE_GPU_CUDA == 12 ? 9 : 0;
  return kSuccess;
}
static const int architectures[] = {75, 80, 86, 87, 89, 90, 100, 120};
API int nvrtcGetNumSupportedArchs(int* n) {
  *n = sizeof architectures / sizeof *architectures;
  return kSuccess;
}
API int nvrtcGetSupportedArchs(int* a) {
  memcpy(a, architectures, sizeof architectures);
  return kSuccess;
}
API int nvrtcCreateProgram(P* p, const char* source, const char* name, int n, const char** headers, const char** names) {
  if (!p || !source || n < 0 || (n && (!headers || !names))) return kInvalidInput;
  *p = new Program{source, name && *name ? name : "default_program", "", "", {}, {}, {}, {}, false};
  for (int i = 0; i < n; ++i) (*p)->headers.push_back(headers[i]), (*p)->names.push_back(names[i]);
  return kSuccess;
}
API int nvrtcDestroyProgram(P* p) {
  if (!p || !*p) return kInvalidProgram;
  delete *p;
  *p = nullptr;
  return kSuccess;
}
API int nvrtcAddNameExpression(P p, const char* e) {
  if (!p) return kInvalidProgram;
  p->expressions.push_back(e);
  return kSuccess;
}
API int nvrtcGetLoweredName(P p, const char* e, const char** out) {
  if (!p) return kInvalidProgram;
  if (!p->compiled) return kNoLoweredNames;
  auto i = p->lowered.find(e);
  if (i == p->lowered.end()) return kNameNotValid;
  *out = i->second.c_str();
  return kSuccess;
}
// Tell the device, where it is loaded, that the host does not wait for it.
static void busy(int change) {
  if (auto tell = (void (*)(int))dlsym(RTLD_DEFAULT, "software_gpu_busy")) tell(change);
}
API int nvrtcCompileProgram(P p, int n, const char** options) {
  struct Busy {
    Busy() { busy(1); }
    ~Busy() { busy(-1); }
  } compiles;
  if (!p) return kInvalidProgram;
  p->log.clear(), p->code.clear(), p->lowered.clear();
  Options o = parsed(n, options);
  if (!o.wrong.empty()) {
    p->log = "the software GPU's NVRTC does not know the option " + o.wrong + "\n";
    fprintf(stderr, "[software GPU] %s", p->log.c_str());
    return kInvalidOption;
  }
  // CuPy compiles an empty program to learn the compiler's version.
  int status = kSuccess;
  try {
    if (!p->source.empty()) status = nvidias_front_end() ? compile_translated(*p, {options, options + n}) : compile(*p, o);
  } catch (const std::exception& error) {  // a full disk, a folder that cannot be written
    p->log = error.what();
    return kInternal;
  }
  char head[33];
  snprintf(head, sizeof head, "//CUDASIM\n%-21zu\n", p->code.size());
  p->code.insert(0, head, 32);
  p->compiled = status == kSuccess;
  return status;
}
API int nvrtcGetProgramLogSize(P p, size_t* n) {
  *n = p->log.size() + 1;
  return kSuccess;
}
API int nvrtcGetProgramLog(P p, char* s) {
  s[p->log.size()] = 0;
  return give(p->log, s);
}
API int nvrtcGetCUBINSize(P p, size_t* n) {
  *n = p->code.size();
  return kSuccess;
}
API int nvrtcGetCUBIN(P p, char* s) { return give(p->code, s); }
API int nvrtcGetPTXSize(P p, size_t* n) {
  *n = p->code.size();
  return kSuccess;
}
API int nvrtcGetPTX(P p, char* s) { return give(p->code, s); }
API int nvrtcGetLTOIRSize(P, size_t* n) {
  *n = 0;
  return kInvalidProgram;
}
API int nvrtcGetLTOIR(P, char*) { return kInvalidProgram; }
