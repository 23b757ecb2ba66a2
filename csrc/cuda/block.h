// What threads of a warp and of a block do together, and 16-byte loads. Device code; no kernel of its own.
#pragma once

#include "cuda/launch.h"
#include "formulas.h"

namespace instructrl {

inline constexpr unsigned kFullWarp = 0xffffffffu;

// 16 bytes of T at once. As aligned as the hardware asks for: form a pointer to one only where is_aligned() says so.
template <class T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T lane[kSize];
};

template <class T>
__device__ __forceinline__ Vector<T> load_vector(const T* source) {
  const uint4 bits = *reinterpret_cast<const uint4*>(source);
  Vector<T> vector;
  memcpy(&vector, &bits, 16);
  return vector;
}

template <class T>
__device__ __forceinline__ void store_vector(T* target, const Vector<T>& vector) {
  uint4 bits;
  memcpy(&bits, &vector, 16);
  *reinterpret_cast<uint4*>(target) = bits;
}

template <class A>
__device__ __forceinline__ A warp_sum(A x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}

template <class A>
__device__ __forceinline__ A warp_maximum(A x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x = maximum(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}

// A sum over the block in a fixed order, in every thread. All threads of the block call it; num_threads is a multiple
// of the warp size. `shared`: [num_threads / kWarpSize], free when the function returns.
template <int num_threads, class A>
__device__ __forceinline__ A block_sum(A x, A* shared) {
  constexpr int kWarps = num_threads / kWarpSize;
  static_assert(kWarps * kWarpSize == num_threads);
  x = warp_sum(x);
  if (threadIdx.x % kWarpSize == 0) shared[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  A total = shared[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) total += shared[warp];
  __syncthreads();
  return total;
}

template <int num_threads, class A>
__device__ __forceinline__ A block_maximum(A x, A* shared) {
  constexpr int kWarps = num_threads / kWarpSize;
  static_assert(kWarps * kWarpSize == num_threads);
  x = warp_maximum(x);
  if (threadIdx.x % kWarpSize == 0) shared[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  A largest = shared[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) largest = maximum(largest, shared[warp]);
  __syncthreads();
  return largest;
}

// True in all threads of the block that comes last to this, once its own results are written: it sees those of all
// others. Written results are read back with __ldcg, past L1. `ticket` is 0 before the launch and belongs to it alone;
// `shared` is one variable of the block.
__device__ __forceinline__ bool is_last_block(unsigned* ticket, bool* shared) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *shared = gridDim.x == 1 || atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (*shared) __threadfence();
  return *shared;
}

}  // namespace instructrl
