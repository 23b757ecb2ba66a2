// The pieces of the reverse scan of advantages: what a thread reads of a sequence, and how threads combine.
//
// The recurrence is written in one number, C[t] = gamma V[t] + gamma lam A[t], what a position passes to the left:
//   A[t] = r[t] + C[next] - V[t],   C[t] = gamma (1 - lam) V[t] + gamma lam (r[t] + C[next]).
// A masked position passes C on as it is, so gaps need no second operator for the value behind them. At the end of a
// sequence C is 0; where there is a score it is the score, which then lands in the last counted position's advantage
// and, being still unchanged there, can be added to its reward. In exact arithmetic this is GAE; with gamma = lam = 1
// the values drop out of C, which is then a plain sum of rewards.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/block.h"
#include "cuda/launch.h"
#include "formulas.h"
#include "stable.h"

namespace instructrl {

// Consecutive tokens of a thread: 16 bytes of float32. Groups start at multiples of this in the flat arrays, whatever
// the sequences' starts, so that all but the first and last of a sequence are read and written by vectors.
inline constexpr int kGroup = 4;
inline constexpr int kAdvantageThreads = 256;

// What positions do to "a counted token has been seen to the right, in this sequence".
inline constexpr unsigned kPass = 0, kSeen = 1, kReset = 2;

// What a range of positions does to C (and to `seen`), read from the right.
struct Carry {
  Affine<float> map;
  unsigned state;
};

__device__ __forceinline__ Carry identity_carry() { return {{1.0f, 0.0f}, kPass}; }

// The end of a sequence: nothing of what is to the right passes.
__device__ __forceinline__ Carry sequence_end(float start) { return {{0.0f, start}, kReset}; }

// A factor of 0 ends a sequence, and 0 * NaN from beyond must not come through.
__device__ __forceinline__ Carry joined(Carry left, Carry right) {
  if (left.map.factor != 0.0f) left.map = composed(left.map, right.map);
  left.state = left.state != kPass ? left.state : right.state;
  return left;
}

struct Offsets {
  const void* data;  // nullptr: rows of one length.
  bool is_int64;
  int64_t num_sequences;

  __device__ __forceinline__ int64_t operator[](int64_t i) const {
    return is_int64 ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }

  // The first i from `first` with an offset above `position`; num_sequences + 1 where there is none. In range and done
  // in logarithmic time whatever the offsets are.
  __device__ __forceinline__ int64_t first_above(int64_t position, int64_t first) const {
    int64_t last = num_sequences + 1;
    while (first < last) {
      const int64_t middle = first + (last - first) / 2;
      if ((*this)[middle] > position) {
        last = middle;
      } else {
        first = middle + 1;
      }
    }
    return first;
  }
};

struct Scores {
  const void* data;  // nullptr: 0.
  ScalarType dtype;

  __device__ __forceinline__ float operator[](int64_t i) const {
    if (data == nullptr) return 0.0f;
    switch (dtype) {
      case ScalarType::BFloat16:
        return static_cast<const torch::headeronly::BFloat16*>(data)[i];
      case ScalarType::Half:
        return static_cast<const torch::headeronly::Half*>(data)[i];
      case ScalarType::Double:
        return static_cast<float>(static_cast<const double*>(data)[i]);
      default:
        return static_cast<const float*>(data)[i];
    }
  }
};

template <class T>
struct AdvantageArgs {
  const T* rewards;  // Of ppo_advantages: the log-probabilities.
  const T* ref_logprobs;
  const T* values;
  const bool* mask;
  Scores scores;
  Offsets offsets;
  // [num_rows, length] tokens; packed sequences are one row. A row is cut into chunks of `chunk_groups` groups.
  int64_t num_rows;
  int64_t length;
  int64_t chunk_groups;
  int64_t chunks_per_row;
  float decay;         // gamma lam
  float value_weight;  // gamma (1 - lam)
  float kl_coef;
  bool aligned;  // All arrays start at a multiple of 16 bytes.
  float* advantages;
  float* returns;
  float* kl_rewards;
  double* partial_stats;  // [blocks, 4]
  Carry* carries;         // [num_rows, chunks_per_row]
};

// Positions [begin, end) of one row.
struct Range {
  int64_t row;
  int64_t chunk;
  int64_t begin;
  int64_t end;
  bool ends_row;
};

template <class T>
__device__ __forceinline__ Range range_of(const AdvantageArgs<T>& args, int64_t item) {
  Range range = {item / args.chunks_per_row, item % args.chunks_per_row, 0, 0, false};
  const int64_t row_begin = range.row * args.length, row_end = row_begin + args.length;
  const int64_t first_group = row_begin / kGroup + range.chunk * args.chunk_groups;
  const int64_t begin = first_group * kGroup, end = (first_group + args.chunk_groups) * kGroup;
  range.begin = begin > row_begin ? begin : row_begin;
  range.end = end < row_end ? end : row_end;
  range.ends_row = range.chunk == args.chunks_per_row - 1;
  // The last chunk of a row that starts between two groups may be empty.
  if (range.begin >= range.end) range.begin = range.end = row_end;
  return range;
}

// What a thread holds of its kGroup positions.
struct Group {
  float reward[kGroup];
  float value[kGroup];
  float start[kGroup];  // C to the right of positions that end a sequence inside the range.
  unsigned counted;     // A bit a position.
  unsigned ends;        // A bit a position.
};

// Elements `base` to `base + kGroup`, read one by one and only where they count when there is no whole vector.
template <class T>
__device__ __forceinline__ void load_group(const T* from, int64_t base, bool whole, unsigned counted,
                                           float (&x)[kGroup]) {
  if (whole) {
    using Raw = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
    const Raw raw = *reinterpret_cast<const Raw*>(from + base);
    T lanes[kGroup];
    memcpy(lanes, &raw, sizeof(raw));
#pragma unroll
    for (int i = 0; i < kGroup; ++i) x[i] = static_cast<float>(lanes[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) x[i] = counted >> i & 1 ? static_cast<float>(from[base + i]) : 0.0f;
}

template <class T>
__device__ __forceinline__ unsigned counted_positions(const AdvantageArgs<T>& args, const Range& range, int64_t base,
                                                      bool whole) {
  unsigned counted = 0;
  if (whole) {
    const unsigned raw = *reinterpret_cast<const unsigned*>(args.mask + base);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) counted |= (raw >> (8 * i) & 0xff) != 0 ? 1u << i : 0u;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const bool inside = base + i >= range.begin && base + i < range.end;
    if (!inside) counted &= ~(1u << i);
    if (!whole && inside && args.mask[base + i]) counted |= 1u << i;
  }
  return counted;
}

// Sequences that end within the group; an empty sequence ends where one before it did.
template <class T>
__device__ __forceinline__ void find_ends(const AdvantageArgs<T>& args, const Range& range, int64_t base,
                                          Group& group) {
  if (args.offsets.data == nullptr || base >= range.end) return;
  int64_t next = args.offsets.first_above(base, 1);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const int64_t position = base + i;
    if (next <= args.offsets.num_sequences && position < range.end && args.offsets[next] == position + 1) {
      group.ends |= 1u << i;
      group.start[i] = args.scores[next - 1];
      next = args.offsets.first_above(position + 1, next + 1);
    }
  }
}

// Returns the sum of log-ratios of the counted positions (0 without kPpo).
template <class T, bool kPpo>
__device__ __forceinline__ double read_group(const AdvantageArgs<T>& args, const Range& range, int64_t index,
                                             Group& group) {
  const int64_t base = index * kGroup;
  group.counted = group.ends = 0;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) group.reward[i] = group.value[i] = group.start[i] = 0.0f;
  if (base >= range.end) return 0.0;
  const bool whole = args.aligned && base + kGroup <= args.num_rows * args.length;
  group.counted = counted_positions(args, range, base, whole);
  if (group.counted == 0) return 0.0;
  load_group(args.rewards, base, whole, group.counted, group.reward);
  load_group(args.values, base, whole, group.counted, group.value);
  double sum = 0.0;
  if constexpr (kPpo) {
    float ref[kGroup];
    load_group(args.ref_logprobs, base, whole, group.counted, ref);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const float log_ratio = group.reward[i] - ref[i];
      if (group.counted >> i & 1) sum += log_ratio;
      group.reward[i] = -args.kl_coef * log_ratio;
    }
  }
  return sum;
}

// C of a counted position, from C to its right.
template <class T>
__device__ __forceinline__ float passed_on(const AdvantageArgs<T>& args, float reward, float value, float carry) {
  return args.value_weight * value + args.decay * (reward + carry);
}

template <class T>
__device__ __forceinline__ Carry carry_of(const AdvantageArgs<T>& args, const Group& group) {
  Carry carry = identity_carry();
#pragma unroll
  for (int i = kGroup - 1; i >= 0; --i) {
    if (group.ends >> i & 1) carry = sequence_end(group.start[i]);
    if (group.counted >> i & 1) {
      carry.map = {args.decay * carry.map.factor, passed_on(args, group.reward[i], group.value[i], carry.map.term)};
      carry.state = kSeen;
    }
  }
  return carry;
}

template <bool kPpo>
__device__ __forceinline__ Carry shuffled_down(const Carry& carry, int offset) {
  Carry other = {{__shfl_down_sync(kFullWarp, carry.map.factor, offset),
                  __shfl_down_sync(kFullWarp, carry.map.term, offset)},
                 kPass};
  if constexpr (kPpo) other.state = __shfl_down_sync(kFullWarp, carry.state, offset);
  return other;
}

// Each lane gets the carry of itself and all lanes to its right.
template <bool kPpo>
__device__ __forceinline__ void scan_warp(Carry& carry) {
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const Carry other = shuffled_down<kPpo>(carry, offset);
    if (lane + offset < kWarpSize) carry = joined(carry, other);
  }
}

// What arrives from the right: C, and whether a counted token was seen since the end of the sequence.
struct Arriving {
  float carry;
  bool seen;
};

__device__ __forceinline__ Arriving passed_through(const Carry& carry, Arriving from) {
  from.carry = carry.map.factor == 0.0f ? carry.map.term : carry.map.term + carry.map.factor * from.carry;
  if (carry.state != kPass) from.seen = carry.state == kSeen;
  return from;
}

}  // namespace instructrl
