// Several sums and one maximum over all tokens of a launch, in one launch.
//
// Every thread keeps its numbers in registers. A block's go to global memory as doubles; the block that comes last adds
// up those of all blocks in the order of their index. No second launch, no atomics but the integer ticket.
#pragma once

#include "cuda/tokens.h"

namespace instructrl {

// Joins `count` rows of numbers, in their order. The last column is a maximum of numbers that are not negative.
template <int kColumns, class Row>
__device__ __forceinline__ double joined(int column, int64_t count, Row&& row) {
  double total = row(0);
  for (int64_t r = 1; r < count; ++r) {
    if (column == kColumns - 1) {
      total = maximum(total, row(r));
    } else {
      total += row(r);
    }
  }
  return total;
}

// From each thread's numbers to those of the block: thread c < kColumns returns column c's.
template <class A, int kColumns>
__device__ __forceinline__ double block_columns(const A (&numbers)[kColumns]) {
  __shared__ double of_warp[kTokenThreads / kWarpSize][kColumns];
  __syncthreads();  // The array may still be in use by an earlier call.
#pragma unroll
  for (int column = 0; column < kColumns; ++column) {
    const A total = column == kColumns - 1 ? warp_maximum(numbers[column]) : warp_sum(numbers[column]);
    if (threadIdx.x % kWarpSize == 0) of_warp[threadIdx.x / kWarpSize][column] = static_cast<double>(total);
  }
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  if (column >= kColumns) return 0.0;
  return joined<kColumns>(column, kTokenThreads / kWarpSize, [&](int64_t warp) { return of_warp[warp][column]; });
}

// Whether this is the block that came last; it finds the numbers of all blocks in `total`. a: the kernel's arguments,
// whose pointers take registers where they are used and not before; `partials` is [number of blocks, kColumns].
template <class A, class Arguments, int kColumns>
__device__ __forceinline__ bool all_columns(const A (&numbers)[kColumns], const Arguments& a,
                                            double (&total)[kColumns], bool* last) {
  const int thread = static_cast<int>(threadIdx.x);
  const double column = block_columns(numbers);
  if (thread < kColumns) a.partials[static_cast<int64_t>(blockIdx.x) * kColumns + thread] = column;
  if (!is_last_block(a.ticket, last)) return false;

  // Every thread joins its share of the blocks, then the block its threads.
  double joint[kColumns] = {};
  const int64_t num_blocks = gridDim.x, share = (num_blocks + kTokenThreads - 1) / kTokenThreads;
  for (int64_t b = thread * share; b < (thread + 1) * share && b < num_blocks; ++b) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const double x = __ldcg(a.partials + b * kColumns + c);
      joint[c] = c == kColumns - 1 ? maximum(joint[c], x) : joint[c] + x;
    }
  }
  const double found = block_columns(joint);
  if (thread < kColumns) total[thread] = found;
  __syncthreads();
  return true;
}

// Memory of one launch alone, as streams may run the op at once: the blocks' numbers, and the ticket behind them.
struct ColumnMemory {
  ColumnMemory(const Tensor& on, int64_t num_blocks, int num_columns, cudaStream_t stream)
      : tensor(empty(on, {num_blocks * num_columns + 1}, ScalarType::Double)),
        partials(mutable_data<double>(tensor)),
        ticket(reinterpret_cast<unsigned*>(partials + num_blocks * num_columns)) {
    if (num_blocks > 1) check_cuda(cudaMemsetAsync(ticket, 0, sizeof(unsigned), stream), "memset of the ticket");
  }

  Tensor tensor;
  double* partials;
  unsigned* ticket;
};

}  // namespace instructrl
