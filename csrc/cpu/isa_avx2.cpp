// Kernels for AVX2 with fused multiply-add and half-precision conversion: vectors of 32 bytes.
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/cpu_kernels.h"

// Clang ignores the pragma, so it gets the portable kernels alone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c")
#define INSTRUCTRL_ISA avx2
#define INSTRUCTRL_VECTOR_BYTES 32
#include "cpu/isa_table.h"

namespace instructrl {
const CpuKernels* avx2_kernels() { return &avx2::kTable; }
}  // namespace instructrl
#else
namespace instructrl {
const CpuKernels* avx2_kernels() { return nullptr; }
}  // namespace instructrl
#endif
