// What NVRTC's stand-in has to know of a program's text: its kernels, its variables, its dynamic shared memory.
#pragma once
#include <map>
#include <string>
#include <vector>

namespace software_gpu {

struct Token {
  char kind;  // 'i' identifier or number, 's' string or character, 'p' one character of punctuation
  size_t at, length;
  bool directive;  // within a line that starts with #
};

// Split C++ into tokens, without comments.
std::vector<Token> tokens(const std::string& text);

struct Symbols {
  std::vector<std::string> kernels;    // defined with C linkage: found by their own name
  std::vector<std::string> variables;  // __device__, __constant__ or __managed__, outside functions
};

// Find what a module exports under names that are not mangled, in text that is preprocessed.
Symbols exported(const std::string& text);

// The kernels that have __launch_bounds__, and its first argument where that is a number. g++ has no attribute that outlasts
// the compilation with a number in it, so a bound that is an expression is not enforced.
std::map<std::string, std::string> launch_bounds(const std::string& text);

// Replace every declaration `extern __shared__ T name[]` by a pointer to the launch's dynamic shared memory.
std::string with_dynamic_memory(const std::string& text);

// Return the names in `#include "name"` and `#include <name>`.
std::vector<std::string> included(const std::string& text);

// Whether the text has directives that may change what it declares: a condition, a macro, another file.
bool needs_preprocessor(const std::string& text);

}  // namespace software_gpu
