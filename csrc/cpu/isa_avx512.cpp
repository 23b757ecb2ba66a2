// Kernels for AVX-512 (F, BW, DQ, VL: servers since 2017, AMD since Zen 4): vectors of 64 bytes.
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/cpu_kernels.h"

// Clang ignores the pragma, so it gets the portable kernels alone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define INSTRUCTRL_ISA avx512
#define INSTRUCTRL_VECTOR_BYTES 64
#include "cpu/isa_table.h"

namespace instructrl {
const CpuKernels* avx512_kernels() { return &avx512::kTable; }
}  // namespace instructrl
#else
namespace instructrl {
const CpuKernels* avx512_kernels() { return nullptr; }
}  // namespace instructrl
#endif
