// The Python module `instructrl._C`, of builds in place: loads the library of ops beside it and says how both were built.
//
// It is bound to one version of Python, and nothing of the package needs it; wheels have the library alone.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

extern "C" const char* instructrl_build_info(const char* name);

namespace {

pybind11::dict build_info() {
  const std::string refusal = instructrl_build_info("refusal");
  if (!refusal.empty()) throw std::runtime_error(refusal);
  pybind11::dict info;
  for (const char* name : {"compiler", "torch", "torch_target", "instruction_set", "cuda_compiler", "cuda_architectures"}) {
    info[name] = instructrl_build_info(name);
  }
  info["instruction_sets"] = pybind11::str(instructrl_build_info("instruction_sets")).attr("split")();
  info["python"] = PY_VERSION;
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The compiled ops of instructrl, which are called through torch.ops; import torch before it.";
  module.def("build_info", &build_info,
             "compiler, torch (built with), torch_target (oldest it loads in), instruction_sets (compiled), "
             "instruction_set (in use), cuda_compiler and cuda_architectures (empty without CUDA); python and pybind11 "
             "of this module.");
}
