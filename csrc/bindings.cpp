// Declares the private ops, and says how the library was built.
//
// The kernels register themselves (`STABLE_TORCH_LIBRARY_IMPL` in cpu/ and cuda/); whoever loads the library has them. It
// holds nothing of Python, so that one file serves every version of it.
#include <exception>
#include <map>
#include <string>

#include "cpu/cpu_kernels.h"
#include "schemas.h"
#include "stable.h"

STABLE_TORCH_LIBRARY_FRAGMENT(instructrl, m) {
  for (const auto& [name, signature] : instructrl::kSchemas) {
    m.def((std::string(INSTRUCTRL_PREFIX) + name + signature).c_str());
  }
}

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

std::map<std::string, std::string> facts() {
  std::string sets;
  for (const std::string& name : instructrl::compiled_instruction_sets()) sets += (sets.empty() ? "" : " ") + name;
  std::map<std::string, std::string> found{
      {"compiler", compiler()},
      {"torch", INSTRUCTRL_TORCH_VERSION},
      {"torch_target", "2.10"},
      {"instruction_sets", sets},
      {"instruction_set", ""},
      {"refusal", ""},
      {"cuda_compiler", INSTRUCTRL_CUDA_COMPILER},
      {"cuda_architectures", INSTRUCTRL_CUDA_ARCHITECTURES},
  };
  // Who asks may be C, which an exception must not reach.
  try {
    found["instruction_set"] = instructrl::cpu_kernels().name;
  } catch (const std::exception& error) {
    found["refusal"] = error.what();
  }
  return found;
}

}  // namespace

// A fact by its name, nullptr for a name that is none: compiler, torch (built with), torch_target (the oldest it loads in),
// instruction_sets (compiled, the best first), instruction_set (in use, "" where `refusal` says why there is none),
// cuda_compiler and cuda_architectures ("" where the CUDA library was not built with it).
extern "C" __attribute__((visibility("default"))) const char* instructrl_build_info(const char* name) {
  static const std::map<std::string, std::string> known = facts();
  const auto found = known.find(name);
  return found == known.end() ? nullptr : found->second.c_str();
}
