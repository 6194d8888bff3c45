#include "source.hpp"

#include <algorithm>
#include <cctype>
#include <set>

namespace software_gpu {

static bool word(char c) { return isalnum((unsigned char)c) || c == '_' || c == '$'; }

// The end of a string or character that starts at `i` with a quote.
static size_t quoted(const std::string& t, size_t i) {
  char quote = t[i++];
  while (i < t.size() && t[i] != quote && t[i] != '\n') i += t[i] == '\\' ? 2 : 1;
  return std::min(i + 1, t.size());
}

std::vector<Token> tokens(const std::string& t) {
  std::vector<Token> found;
  bool directive = false, line_start = true;
  for (size_t i = 0; i < t.size();) {
    char c = t[i];
    if (c == '\\' && i + 1 < t.size() && t[i + 1] == '\n') {
      i += 2;  // a line that goes on
    } else if (c == '\n') {
      directive = false, line_start = true, ++i;
    } else if (isspace((unsigned char)c)) {
      ++i;
    } else if (t.compare(i, 2, "//") == 0) {
      while (i < t.size() && t[i] != '\n') i += t[i] == '\\' && i + 1 < t.size() ? 2 : 1;
    } else if (t.compare(i, 2, "/*") == 0) {
      size_t end = t.find("*/", i + 2);
      i = end == std::string::npos ? t.size() : end + 2;
    } else {
      size_t start = i;
      if (line_start && c == '#') directive = true;
      line_start = false;
      char kind = 'p';
      if (word(c)) {
        kind = 'i';
        while (i < t.size() && (word(t[i]) || (isdigit((unsigned char)c) && (t[i] == '.' || t[i] == '\'')))) ++i;
        if (i < t.size() && t[i] == '"' && t[i - 1] == 'R' && i - start <= 3) {  // R"mark(...)mark"
          size_t open = t.find('(', i);
          std::string end = ")" + t.substr(i + 1, open == std::string::npos ? 0 : open - i - 1) + "\"";
          size_t at = open == std::string::npos ? open : t.find(end, open);
          i = at == std::string::npos ? t.size() : at + end.size();
          kind = 's';
        }
      } else if (c == '"' || c == '\'') {
        kind = 's', i = quoted(t, i);
      } else {
        ++i;
      }
      found.push_back({kind, start, i - start, directive});
    }
  }
  return found;
}

namespace {

struct Text {
  const std::string& text;
  std::vector<Token> list;

  std::string at(size_t i) const { return i < list.size() ? text.substr(list[i].at, list[i].length) : std::string(); }
  bool is(size_t i, const char* what) const {
    return i < list.size() && text.compare(list[i].at, list[i].length, what) == 0;
  }
  bool name(size_t i) const {
    return i < list.size() && list[i].kind == 'i' && !isdigit((unsigned char)text[list[i].at]);
  }
  // The token behind the bracket that closes the one at `i`.
  size_t behind(size_t i) const {
    int depth = 0;
    for (; i < list.size(); ++i) {
      if (is(i, "(") || is(i, "[") || is(i, "{")) ++depth;
      if ((is(i, ")") || is(i, "]") || is(i, "}")) && --depth == 0) return i + 1;
    }
    return i;
  }
};

const std::set<std::string> with_arguments{"__launch_bounds__", "__attribute__", "__align__",     "alignas",
                                           "__cluster_dims__",  "__maxnreg__",   "__block_size__", "__grid_constant__"};

// The name of the function that the declaration from `i` on declares: an identifier in front of a parenthesis.
std::string function_name(const Text& t, size_t i, bool& defined) {
  for (; i < t.list.size() && !t.is(i, ";") && !t.is(i, "{"); ++i) {
    if (!t.name(i) || !t.is(i + 1, "(")) continue;
    size_t end = t.behind(i + 1);
    if (with_arguments.count(t.at(i))) {
      i = end - 1;
      continue;
    }
    std::string name = t.at(i);
    while (end < t.list.size() && !t.is(end, "{") && !t.is(end, ";")) ++end;
    defined = t.is(end, "{");
    return name;
  }
  return "";
}

// The name of a variable whose declaration starts at `i`, or "" where it declares a function or another variable's type.
std::string variable_name(const Text& t, size_t i) {
  std::string last;
  bool type = false;
  for (; i < t.list.size(); ++i) {
    if (t.is(i, "struct") || t.is(i, "class") || t.is(i, "union") || t.is(i, "enum")) type = true;
    if (t.is(i, "operator") || (type && t.is(i, "{"))) return "";
    if (with_arguments.count(t.at(i)) && t.is(i + 1, "(")) {
      i = t.behind(i + 1) - 1;
    } else if (t.is(i, "<")) {
      for (int depth = 0; i < t.list.size(); ++i) {
        depth += t.is(i, "<") - t.is(i, ">");
        if (!depth) break;
      }
    } else if (t.is(i, "[") || t.is(i, "=") || t.is(i, ";") || t.is(i, "{") || t.is(i, ",")) {
      return last;
    } else if (t.is(i, "(")) {
      return "";
    } else if (t.name(i)) {
      last = t.at(i);
    }
  }
  return "";
}

}  // namespace

Symbols exported(const std::string& text) {
  Text t{text, tokens(text)};
  t.list.erase(std::remove_if(t.list.begin(), t.list.end(), [](const Token& x) { return x.directive; }), t.list.end());
  Symbols found;
  std::vector<char> blocks;  // 'c' extern "C" { ... }, 'n' a namespace without a name; nothing is looked for in others
  bool c_linkage = false, is_template = false, is_extern = false, kernel = false, variable = false;
  size_t start = 0;
  auto fresh = [&](size_t next) { c_linkage = is_template = is_extern = kernel = variable = false, start = next; };
  for (size_t i = 0; i < t.list.size(); ++i) {
    if (t.is(i, ";")) {
      fresh(i + 1);
    } else if (t.is(i, "{")) {
      bool linkage = i >= 2 && t.is(i - 1, "\"C\"") && t.is(i - 2, "extern");
      if (linkage) {
        blocks.push_back('c');
      } else if (i && t.is(i - 1, "namespace")) {
        blocks.push_back('n');
      } else {
        i = t.behind(i) - 1;  // a body: what is in it is not exported
        // An initialiser or a class ends with a semicolon, which comes next.
      }
      fresh(i + 1);
    } else if (t.is(i, "}")) {
      if (!blocks.empty()) blocks.pop_back();
      fresh(i + 1);
    } else if (t.is(i, "template")) {
      is_template = true;
    } else if (t.is(i, "extern")) {
      is_extern = true;
      if (t.is(i + 1, "\"C\"")) c_linkage = true;
    } else if (t.is(i, "__global__") && !kernel) {
      kernel = true;
      if (is_template || !(c_linkage || (!blocks.empty() && blocks.back() == 'c'))) continue;
      bool defined = false;
      std::string name = function_name(t, start, defined);
      if (defined && std::find(found.kernels.begin(), found.kernels.end(), name) == found.kernels.end())
        found.kernels.push_back(name);
    } else if ((t.is(i, "__device__") || t.is(i, "__constant__") || t.is(i, "__managed__")) && !variable) {
      variable = true;
      if (is_template || is_extern) continue;
      std::string name = variable_name(t, start);
      if (!name.empty() && name != "__device__" && name != "__constant__" && name != "__managed__") found.variables.push_back(name);
    }
  }
  return found;
}

std::map<std::string, std::string> launch_bounds(const std::string& text) {
  Text t{text, tokens(text)};
  std::map<std::string, std::string> found;
  for (size_t i = 0; i < t.list.size(); ++i) {
    bool number = t.is(i, "__launch_bounds__") && t.is(i + 1, "(") && i + 2 < t.list.size() && isdigit((unsigned char)t.at(i + 2)[0]);
    if (!number || !(t.is(i + 3, ")") || t.is(i + 3, ","))) continue;
    bool defined = false;
    found[function_name(t, i, defined)] = t.at(i + 2);
  }
  return found;
}

std::string with_dynamic_memory(const std::string& text) {
  if (text.find("__shared__") == std::string::npos || text.find("extern") == std::string::npos) return text;
  Text t{text, tokens(text)};
  std::string out;
  size_t copied = 0;
  for (size_t i = 0; i < t.list.size(); ++i) {
    // A declaration starts behind the token that ends another one; in a macro, also behind its name.
    if (!(t.is(i, "extern") || t.is(i, "__shared__") || t.is(i, "alignas") || t.is(i, "__align__") || t.is(i, "volatile"))) continue;
    bool is_extern = false, is_shared = false;
    std::string type;
    size_t j = i, name = 0;
    for (; j < t.list.size() && t.list[j].directive == t.list[i].directive; ++j) {
      if (t.is(j, "extern")) {
        is_extern = true;
      } else if (t.is(j, "__shared__")) {
        is_shared = true;
      } else if (with_arguments.count(t.at(j)) && t.is(j + 1, "(")) {
        j = t.behind(j + 1) - 1;  // the memory is aligned to 1024 bytes
      } else if (t.name(j) && t.is(j + 1, "[") && t.is(j + 2, "]")) {
        name = j;
        break;
      } else if (t.name(j) || t.list[j].kind == 'i' || t.is(j, ":") || t.is(j, "<") || t.is(j, ">") || t.is(j, ",") || t.is(j, "*")) {
        type += (type.empty() || t.is(j, ":") || (!type.empty() && type.back() == ':') ? "" : " ") + t.at(j);
      } else {
        break;
      }
    }
    if (!name || !is_extern || !is_shared) continue;
    size_t end = name + 3;
    std::string rest;  // the further dimensions
    while (t.is(end, "[")) {
      size_t next = t.behind(end);
      rest += text.substr(t.list[end].at, t.list[next - 1].at + 1 - t.list[end].at);
      end = next;
    }
    out.append(text, copied, t.list[i].at - copied);
    std::string variable = t.at(name);
    // A reference to an array: what takes its elements, its address or its size is C++'s to judge.
    out += rest.empty() ? "static " + type + "* const " + variable + " = reinterpret_cast<" + type + "*>(software_gpu_dynamic)"
                        : "static " + type + " (* const " + variable + ")" + rest + " = reinterpret_cast<" + type + " (*)" + rest +
                              ">(software_gpu_dynamic)";
    size_t stop = t.list[end - 1].at + t.list[end - 1].length;
    for (size_t k = t.list[i].at; k < stop; ++k)
      if (text[k] == '\n') out += t.list[i].directive ? "\\\n" : "\n";  // the lines keep their numbers
    copied = stop;
    i = end - 1;
  }
  return out + text.substr(copied);
}

std::vector<std::string> included(const std::string& text) {
  std::vector<std::string> found;
  Text t{text, tokens(text)};
  for (size_t i = 0; i + 2 < t.list.size(); ++i) {
    if (!t.list[i].directive || !t.is(i, "#") || !t.is(i + 1, "include")) continue;
    std::string next = t.at(i + 2);
    if (t.list[i + 2].kind == 's' && next.size() > 2) {
      found.push_back(next.substr(1, next.size() - 2));
    } else if (next == "<") {
      size_t begin = t.list[i + 2].at + 1, end = text.find('>', begin);
      if (end != std::string::npos) found.push_back(text.substr(begin, end - begin));
    }
  }
  return found;
}

bool needs_preprocessor(const std::string& text) {
  Text t{text, tokens(text)};
  for (size_t i = 0; i + 1 < t.list.size(); ++i)
    if (t.list[i].directive && t.is(i, "#") && !t.is(i + 1, "pragma") && !t.is(i + 1, "line")) return true;
  return false;
}

}  // namespace software_gpu
