// Declares the private ops, and makes the Python module `instructrl._C`, which says how it was built.
//
// The kernels register themselves (`STABLE_TORCH_LIBRARY_IMPL` in cpu/ and cuda/); importing the module loads them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/cpu_kernels.h"
#include "schemas.h"
#include "stable.h"

#define INSTRUCTRL_TEXT_(x) #x
#define INSTRUCTRL_TEXT(x) INSTRUCTRL_TEXT_(x)

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

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = compiler();
  info["torch"] = INSTRUCTRL_TORCH_VERSION;
  info["torch_target"] = "2.10";
  info["instruction_sets"] = instructrl::compiled_instruction_sets();
  info["instruction_set"] = instructrl::cpu_kernels().name;
  info["cuda_compiler"] = INSTRUCTRL_CUDA_COMPILER;
  info["cuda_architectures"] = INSTRUCTRL_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled ops of instructrl; they are called through torch.ops.";
  module.def("build_info", &build_info,
             "compiler, torch (built with), torch_target (oldest it loads in), instruction_sets (compiled), "
             "instruction_set (in use), cuda_compiler and cuda_architectures (empty without CUDA).");
}
