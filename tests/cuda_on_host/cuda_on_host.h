// Enough of CUDA to execute the kernels of csrc/cuda on the CPU: a block's threads are fibres, blocks run one by one.
//
// Included before a .cu file that is compiled as C++ (build.py). A fibre runs until a barrier, a warp intrinsic or the
// end of its kernel; which one runs next is INSTRUCTRL_HOST_SCHEDULE's:
//   round         in the order of thread indices (the default)
//   random:SEED   warps in random priorities that change at every barrier, lanes at random, blocks in random order
//   ahead:WARP    one warp runs as far as it can before any other does; blocks in reverse order
// Shared memory is filled with 0xff (NaN as a float) before each block. What a real GPU leaves undefined is an error
// here, thrown with kernel, block and thread: a barrier that not all live threads reach, a warp intrinsic whose mask
// names a lane that never arrives or leaves out the caller, a shuffle from a lane outside of the mask.
#pragma once

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <type_traits>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// As aligned as CUDA's, so that the undefined-behaviour sanitizer sees a misaligned vector access.
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) longlong2 {
  long long x, y;
};
struct alignas(4) uchar4 {
  unsigned char x, y, z, w;
};

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __constant__ static
// In a section of its own, so that all of it can be filled before each block. Functions that have such a variable need
// internal linkage (an anonymous namespace): the compiler refuses to mix the other kind into the section.
#define __shared__ static __attribute__((section("cuda_shared")))

namespace cuda_on_host {

struct Indices {
  uint3 thread;
  uint3 block;
  dim3 block_dim;
  dim3 grid_dim;
};

// Of the fibre that runs.
extern const Indices* current_indices;

void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);
void* dynamic_shared();

enum class Barrier { kPlain, kOr, kAnd, kCount };
int block_barrier(Barrier kind, int predicate, const char* file, int line);

enum class Collective {
  kSync,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kReduceOr,
  kReduceAnd
};

// What the collective gives this lane. `value` holds up to eight bytes.
uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int argument, int width, const char* file,
                         int line);

template <class T>
T shuffle(Collective kind, unsigned mask, T value, int argument, int width, const char* file, int line) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(kind, mask, bits, argument, width, file, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

struct Here {
  const char* file;
  int line;

  template <class T>
  T operator()(Collective kind, unsigned mask, T value, int argument, int width = 32) const {
    return shuffle(kind, mask, value, argument, width, file, line);
  }
};

}  // namespace cuda_on_host

#define threadIdx (::cuda_on_host::current_indices->thread)
#define blockIdx (::cuda_on_host::current_indices->block)
#define blockDim (::cuda_on_host::current_indices->block_dim)
#define gridDim (::cuda_on_host::current_indices->grid_dim)
#define warpSize 32

#define __syncthreads() \
  static_cast<void>(::cuda_on_host::block_barrier(::cuda_on_host::Barrier::kPlain, 0, __FILE__, __LINE__))
#define __syncthreads_or(p) ::cuda_on_host::block_barrier(::cuda_on_host::Barrier::kOr, (p), __FILE__, __LINE__)
#define __syncthreads_and(p) ::cuda_on_host::block_barrier(::cuda_on_host::Barrier::kAnd, (p), __FILE__, __LINE__)
#define __syncthreads_count(p) ::cuda_on_host::block_barrier(::cuda_on_host::Barrier::kCount, (p), __FILE__, __LINE__)

#define INSTRUCTRL_HERE ::cuda_on_host::Here{__FILE__, __LINE__}
#define __shfl_sync(mask, value, ...) INSTRUCTRL_HERE(::cuda_on_host::Collective::kShuffle, mask, value, __VA_ARGS__)
#define __shfl_up_sync(mask, value, ...) \
  INSTRUCTRL_HERE(::cuda_on_host::Collective::kShuffleUp, mask, value, __VA_ARGS__)
#define __shfl_down_sync(mask, value, ...) \
  INSTRUCTRL_HERE(::cuda_on_host::Collective::kShuffleDown, mask, value, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, ...) \
  INSTRUCTRL_HERE(::cuda_on_host::Collective::kShuffleXor, mask, value, __VA_ARGS__)
#define INSTRUCTRL_VOTE(type, kind, mask, value)                                                               \
  static_cast<type>(::cuda_on_host::warp_collective(::cuda_on_host::Collective::kind, (mask),                  \
                                                    static_cast<uint64_t>(value), 0, 32, __FILE__, __LINE__))
#define __ballot_sync(mask, p) INSTRUCTRL_VOTE(unsigned, kBallot, mask, (p) ? 1 : 0)
#define __any_sync(mask, p) INSTRUCTRL_VOTE(int, kAny, mask, (p) ? 1 : 0)
#define __all_sync(mask, p) INSTRUCTRL_VOTE(int, kAll, mask, (p) ? 1 : 0)
#define __reduce_add_sync(mask, v) INSTRUCTRL_VOTE(decltype(v), kReduceAdd, mask, static_cast<unsigned>(v))
#define __reduce_or_sync(mask, v) INSTRUCTRL_VOTE(unsigned, kReduceOr, mask, v)
#define __reduce_and_sync(mask, v) INSTRUCTRL_VOTE(unsigned, kReduceAnd, mask, v)
#define __reduce_min_sync(mask, v) INSTRUCTRL_VOTE(unsigned, kReduceMin, mask, v)
#define __reduce_max_sync(mask, v) INSTRUCTRL_VOTE(unsigned, kReduceMax, mask, v)
#define __syncwarp(...) ::cuda_on_host::sync_warp(INSTRUCTRL_HERE, ##__VA_ARGS__)

namespace cuda_on_host {
inline void sync_warp(Here here, unsigned mask = 0xffffffffu) {
  warp_collective(Collective::kSync, mask, 0, 0, 32, here.file, here.line);
}
}  // namespace cuda_on_host

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldcs(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldcg(const T* pointer) {
  return *pointer;
}
template <class T>
void __stcs(T* pointer, T value) {
  *pointer = value;
}

// Of integers only: a sum of floats in an order of chance is not allowed in a kernel.
template <class T, class U>
T atomicAdd(T* address, U value) {
  static_assert(std::is_integral<T>::value);
  const T before = *address;
  *address = before + static_cast<T>(value);
  return before;
}
template <class T, class U>
T atomicMax(T* address, U value) {
  static_assert(std::is_integral<T>::value);
  const T before = *address;
  if (static_cast<T>(value) > before) *address = static_cast<T>(value);
  return before;
}

template <class T>
T bits_as(const void* source) {
  T target;
  std::memcpy(&target, source, sizeof(T));
  return target;
}
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(&x); }
inline int __float_as_int(float x) { return bits_as<int>(&x); }
inline float __uint_as_float(unsigned x) { return bits_as<float>(&x); }
inline float __int_as_float(int x) { return bits_as<float>(&x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline const char* cudaGetErrorString(cudaError_t status) { return status == cudaSuccess ? "success" : "failure"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// Three multiprocessors: loops over the grid then take several rounds on small inputs.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 3 : 227 * 1024;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
