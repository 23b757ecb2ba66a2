// Kernels for any machine: vectors of 16 bytes, which every compiler target has (SSE2, NEON).
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/cpu_kernels.h"

#define INSTRUCTRL_ISA portable
#define INSTRUCTRL_VECTOR_BYTES 16
#include "cpu/isa_table.h"

namespace instructrl {
const CpuKernels* portable_kernels() { return &portable::kTable; }
}  // namespace instructrl
