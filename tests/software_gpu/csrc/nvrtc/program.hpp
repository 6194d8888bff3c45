// What a program is that NVRTC's stand-in compiles, and the two ways: by g++, or by NVIDIA's compiler to PTX first.
#pragma once
#include <map>
#include <string>
#include <vector>

namespace software_gpu {

enum Status {
  kSuccess = 0,
  kOutOfMemory = 1,
  kInvalidInput = 3,
  kInvalidProgram = 4,
  kInvalidOption = 5,
  kCompilation = 6,
  kNoLoweredNames = 9,
  kNameNotValid = 10,
  kInternal = 11,
};

struct Program {
  std::string source, name, log, code;
  std::vector<std::string> headers, names, expressions;
  std::map<std::string, std::string> lowered;
  bool compiled = false;
};

// Whether NVIDIA's NVRTC is in use.
bool nvidias_front_end();
// Let it compile a program to PTX, and have that translated into the text of C++. Return NVRTC's status.
int translated(Program& program, const std::vector<std::string>& options, std::string& text);

}  // namespace software_gpu
