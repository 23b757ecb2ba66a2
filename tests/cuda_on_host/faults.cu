// Kernels with one fault each, for the test that the host execution finds them. One block of 64 threads reverses 64
// numbers through shared memory; fault "none" does so correctly.
#include <string>

#include "cuda/launch.h"

namespace instructrl {
namespace {

constexpr int kThreads = 64;

__global__ void reverse(const float* x, float* y, bool with_barrier) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = x[threadIdx.x];
  if (with_barrier) __syncthreads();
  y[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// The warp is in step by shuffles, so the fault shows only where one warp runs ahead of the other.
__global__ void reverse_behind_shuffle(const float* x, float* y) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = x[threadIdx.x];
  const float same = __shfl_sync(0xffffffffu, 1.0f, 0);
  y[threadIdx.x] = same * tile[kThreads - 1 - threadIdx.x];
}

__global__ void barrier_in_branch(float* y) {
  if (threadIdx.x < 40) __syncthreads();
  y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void different_barriers(float* y) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 0.0f;
}

__global__ void shuffle_after_return(float* y) {
  if (threadIdx.x == 63) return;
  y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void mask_without_caller(float* y) { y[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1); }

__global__ void source_outside_of_mask(float* y) {
  if (threadIdx.x % 32 < 16) y[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}

__global__ void unwritten_shared(float* y) {
  __shared__ float tile[kThreads];
  if (threadIdx.x != 5) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

__global__ void behind_shared(float* y, int shift) {
  INSTRUCTRL_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x + shift] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

__global__ void behind_static_shared(float* y, int shift) {
  __shared__ float tile[kThreads];
  float* volatile start = tile;  // What the compiler cannot see through is for the address sanitizer to find.
  start[threadIdx.x + shift] = 1.0f;
  y[threadIdx.x] = start[threadIdx.x + shift];
}

__global__ void behind_output(float* y) { y[threadIdx.x + 1] = 1.0f; }

__global__ void misaligned_vector(const float* x, float* y) {
  y[threadIdx.x] = reinterpret_cast<const float4*>(x + 1)->x;
}

Tensor fault(Tensor x, std::string kind) {
  const OnDevice on(x);
  Tensor result = empty_shaped(x, ScalarType::Float);
  const float* const in = data<float>(x);
  float* const y = mutable_data<float>(result);
  const auto stream = on.stream();
  if (kind == "none") INSTRUCTRL_LAUNCH(reverse, 1, kThreads, 0, stream, in, y, true);
  if (kind == "no barrier") INSTRUCTRL_LAUNCH(reverse, 1, kThreads, 0, stream, in, y, false);
  if (kind == "no barrier behind a shuffle") INSTRUCTRL_LAUNCH(reverse_behind_shuffle, 1, kThreads, 0, stream, in, y);
  if (kind == "barrier in a branch") INSTRUCTRL_LAUNCH(barrier_in_branch, 1, kThreads, 0, stream, y);
  if (kind == "different barriers") INSTRUCTRL_LAUNCH(different_barriers, 1, kThreads, 0, stream, y);
  if (kind == "shuffle after return") INSTRUCTRL_LAUNCH(shuffle_after_return, 1, kThreads, 0, stream, y);
  if (kind == "mask without caller") INSTRUCTRL_LAUNCH(mask_without_caller, 1, kThreads, 0, stream, y);
  if (kind == "source outside of mask") INSTRUCTRL_LAUNCH(source_outside_of_mask, 1, kThreads, 0, stream, y);
  if (kind == "unwritten shared") INSTRUCTRL_LAUNCH(unwritten_shared, 1, kThreads, 0, stream, y);
  if (kind == "behind shared") INSTRUCTRL_LAUNCH(behind_shared, 1, kThreads, kThreads * 4, stream, y, 1);
  if (kind == "behind static shared") INSTRUCTRL_LAUNCH(behind_static_shared, 1, kThreads, 0, stream, y, 1);
  if (kind == "behind output") INSTRUCTRL_LAUNCH(behind_output, 1, kThreads, 0, stream, y);
  if (kind == "misaligned vector") INSTRUCTRL_LAUNCH(misaligned_vector, 1, kThreads, 0, stream, in, y);
  return result;
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_FRAGMENT(instructrl, m) { m.def(INSTRUCTRL_PREFIX "fault(Tensor x, str kind) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m) { INSTRUCTRL_REGISTER(m, "fault", instructrl::fault); }
