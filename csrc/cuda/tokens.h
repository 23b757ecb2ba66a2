// Reading and writing of masked per-token arrays by groups of 16 bytes, and the split of tokens over blocks.
//
// The split depends on the number of tokens alone, not on the GPU and not on the alignment of the arrays, so the order
// of every sum, and with it every bit, is the same everywhere.
#pragma once

#include "cuda/block.h"

namespace instructrl {

inline constexpr int kTokenThreads = 256;
// As many blocks of 256 threads as the largest GPUs run at once. Beyond that blocks take several turns; more partial
// sums would only take the last block longer to add up.
inline constexpr int64_t kMaxTokenBlocks = 1024;

template <class T>
struct Tokens {
  static constexpr int kGroup = Vector<T>::kSize;
  static constexpr int64_t kPerBlock = static_cast<int64_t>(kTokenThreads) * kGroup;  // In one turn.

  static int64_t num_blocks(int64_t num_tokens) {
    const int64_t turns = ceil_div(num_tokens, kPerBlock);
    return turns < kMaxTokenBlocks ? turns : kMaxTokenBlocks;
  }

  // Whether a mask and the arrays beside it can be read by groups.
  static bool mask_is_aligned(const bool* mask) { return is_aligned(mask, kGroup); }
};

// Bit k: token `first + k` exists and counts. `whole`: all of the group exists, and the mask is aligned.
template <int kGroup>
__device__ __forceinline__ unsigned load_mask(const bool* mask, int64_t first, int64_t num_tokens, bool whole) {
  unsigned counted = 0;
  if (whole) {
    unsigned words[kGroup / 4];
    if constexpr (kGroup == 8) {
      const uint2 both = *reinterpret_cast<const uint2*>(mask + first);
      words[0] = both.x, words[1] = both.y;
    } else {
      words[0] = *reinterpret_cast<const unsigned*>(mask + first);
    }
#pragma unroll
    for (int k = 0; k < kGroup; ++k) counted |= ((words[k / 4] >> (8 * (k % 4))) & 0xffu) != 0 ? 1u << k : 0u;
  } else {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (first + k < num_tokens && mask[first + k]) counted |= 1u << k;
    }
  }
  return counted;
}

// The counted tokens' elements; the others are of no meaning. Not to be called where none counts.
template <class T>
__device__ __forceinline__ Vector<T> load_group(const T* source, int64_t first, unsigned counted, bool whole) {
  if (whole) return load_vector(source + first);
  Vector<T> group;
#pragma unroll
  for (int k = 0; k < Vector<T>::kSize; ++k) {
    if (counted >> k & 1) group.lane[k] = source[first + k];
  }
  return group;
}

template <int kGroup>
__device__ __forceinline__ void store_group(float* target, int64_t first, int64_t num_tokens, bool whole,
                                            const float (&group)[kGroup]) {
  if (whole) {
#pragma unroll
    for (int k = 0; k < kGroup; k += 4) {
      *reinterpret_cast<float4*>(target + first + k) = {group[k], group[k + 1], group[k + 2], group[k + 3]};
    }
  } else {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (first + k < num_tokens) target[first + k] = group[k];
    }
  }
}

}  // namespace instructrl
