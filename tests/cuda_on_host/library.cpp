// Declares the ops of csrc/schemas.h under the prefix of the test; the kernels register themselves for the CPU.
#include "schemas.h"
#include "stable.h"

#include <string>

STABLE_TORCH_LIBRARY_FRAGMENT(instructrl, m) {
  for (const auto& [name, signature] : instructrl::kSchemas) {
    m.def((std::string(INSTRUCTRL_PREFIX) + name + signature).c_str());
  }
}
