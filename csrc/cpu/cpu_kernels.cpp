// The choice of the instruction set, once in a process.
#include "cpu/cpu_kernels.h"

#include <cstdlib>
#include <stdexcept>

namespace instructrl {
namespace {

bool machine_has_avx2() {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool machine_has_avx512() {
#if defined(__x86_64__) && defined(__GNUC__)
  return machine_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

struct InstructionSet {
  const CpuKernels* kernels;  // nullptr: not compiled.
  bool on_this_machine;
};

// The best first.
std::vector<InstructionSet> instruction_sets() {
  return {{avx512_kernels(), machine_has_avx512()}, {avx2_kernels(), machine_has_avx2()}, {portable_kernels(), true}};
}

const CpuKernels& choose() {
  const char* wanted = std::getenv("INSTRUCTRL_CPU_ISA");
  std::string usable;
  for (const auto& [kernels, on_this_machine] : instruction_sets()) {
    if (kernels == nullptr || !on_this_machine) continue;
    if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == kernels->name) return *kernels;
    usable += (usable.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw std::runtime_error("INSTRUCTRL_CPU_ISA: found '" + std::string(wanted) + "', this machine can run " + usable);
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

std::vector<std::string> compiled_instruction_sets() {
  std::vector<std::string> names;
  for (const auto& set : instruction_sets()) {
    if (set.kernels != nullptr) names.emplace_back(set.kernels->name);
  }
  return names;
}

}  // namespace instructrl
