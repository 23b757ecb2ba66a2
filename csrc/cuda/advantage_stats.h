// Sums over the counted tokens beside their advantages: each block leaves partial sums, which one block adds up.
#pragma once

#include "cuda/advantage_scan.h"

namespace instructrl {
namespace {

constexpr int kWarps = kAdvantageThreads / kWarpSize;
constexpr int64_t kMaxAdvantageBlocks = 4096;
constexpr int kNumStats = 4;

struct Stats {
  double sum = 0.0;
  double sum_of_squares = 0.0;
  double count = 0.0;
  double log_ratio = 0.0;
};

// In lane 0 of each warp its sum, then over the warps in order; thread 0 writes the block's.
__device__ __forceinline__ void write_block_stats(Stats stats, double* output) {
  __shared__ double shared[kNumStats][kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  double* const parts[kNumStats] = {&stats.sum, &stats.sum_of_squares, &stats.count, &stats.log_ratio};
#pragma unroll
  for (int s = 0; s < kNumStats; ++s) {
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      *parts[s] += __shfl_down_sync(kFullWarp, *parts[s], offset);
    }
    if (thread % kWarpSize == 0) shared[s][thread / kWarpSize] = *parts[s];
  }
  __syncthreads();
  if (thread >= kNumStats) return;
  double sum = 0.0;
  for (int w = 0; w < kWarps; ++w) sum += shared[thread][w];
  output[thread] = sum;
}

// One block: a thread adds every 256th partial sum, in order.
__global__ void __launch_bounds__(kAdvantageThreads) sum_of_stats(const double* partial_stats, int64_t num_blocks,
                                                                  double* stats) {
  Stats sum;
  for (int64_t i = threadIdx.x; i < num_blocks; i += kAdvantageThreads) {
    sum.sum += partial_stats[kNumStats * i];
    sum.sum_of_squares += partial_stats[kNumStats * i + 1];
    sum.count += partial_stats[kNumStats * i + 2];
    sum.log_ratio += partial_stats[kNumStats * i + 3];
  }
  write_block_stats(sum, stats);
}

}  // namespace
}  // namespace instructrl
