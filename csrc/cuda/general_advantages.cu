// Advantages under any settings: a block a sequence, tiles of 256 tokens from the right, a token a thread.
//
// The recurrence is that of advantage_scan.h in C, what a position passes to the left, once for the advantages and once for
// the returns, whose lambda may be another:
//   a step      A = r + C - V,  C' = (gamma - gamma lam) V + gamma lam (r + C); r has gamma times a value behind that is given,
//               and then V passes nothing to the left
//   done        the same with C = 0
//   a gap that counts   a step with r = V = 0
//   any other   C' = C
// Bytes a token: those of advantages.cu, and what else is given. Two barriers a tile; the tiles of other blocks run meanwhile.
#include <algorithm>
#include <tuple>

#include "cuda/advantage_scan.h"
#include "cuda/advantage_stats.h"

namespace instructrl {
namespace {

template <class T>
struct GeneralArgs {
  const T* values;
  const bool* mask;
  const T* rewards;  // nullptr: made of the next three, and written to `made`.
  const T* logprobs;
  const T* ref_logprobs;
  const float* scores;
  const bool* dones;       // nullptr: none.
  const T* next_values;    // nullptr: the next counted token's.
  const float* bootstrap;  // nullptr: 0.
  const double* rates;     // gamma, lam and value_lam of each sequence; nullptr: the numbers.
  Offsets offsets;
  int64_t num_sequences;
  int64_t length;  // Of a row, or of all packed tokens.
  double gamma, lam, value_lam;
  float kl_coef;
  KlRule kl_rule;
  bool count_gaps;
  bool score_behind;
  float* advantages;
  float* returns;
  float* made;
  double* partial_stats;  // [blocks, 4]
};

struct Discounts {
  float gamma;
  float decay;
  float value_decay;
};

// What positions do to C, for the advantages and for the returns.
struct Maps {
  Affine<float> advantage;
  Affine<float> value;
};

__device__ __forceinline__ Affine<float> guarded(Affine<float> left, Affine<float> right) {
  // Where nothing passes, infinity and NaN do not either.
  return left.factor != 0.0f ? composed(left, right) : left;
}

__device__ __forceinline__ float applied(const Affine<float>& map, float x) {
  return map.factor != 0.0f ? map.term + map.factor * x : map.term;
}

__device__ __forceinline__ Maps shuffled(const Maps& maps, int offset) {
  return {{__shfl_down_sync(kFullWarp, maps.advantage.factor, offset),
           __shfl_down_sync(kFullWarp, maps.advantage.term, offset)},
          {__shfl_down_sync(kFullWarp, maps.value.factor, offset),
           __shfl_down_sync(kFullWarp, maps.value.term, offset)}};
}

struct Bounds {
  int64_t begin;
  int64_t end;
};

// Inside of the tensor whatever the offsets are.
template <class T>
__device__ __forceinline__ Bounds bounds_of(const GeneralArgs<T>& a, int64_t sequence) {
  if (a.offsets.data == nullptr) return {sequence * a.length, (sequence + 1) * a.length};
  const auto within = [&](int64_t offset, int64_t low) { return offset < low ? low : offset < a.length ? offset : a.length; };
  const int64_t begin = within(a.offsets[sequence], 0);
  return {begin, within(a.offsets[sequence + 1], begin)};
}

template <class T>
__device__ __forceinline__ Discounts discounts_of(const GeneralArgs<T>& a, int64_t sequence) {
  double gamma = a.gamma, lam = a.lam, value_lam = a.value_lam;
  if (a.rates != nullptr) gamma = a.rates[3 * sequence], lam = a.rates[3 * sequence + 1], value_lam = a.rates[3 * sequence + 2];
  return {static_cast<float>(gamma), static_cast<float>(gamma * lam), static_cast<float>(gamma * value_lam)};
}

// What a thread holds of its position.
struct Position {
  bool counted = false;  // Reward and advantage.
  bool valued = false;   // Value and return.
  bool taken = false;    // A step.
  bool done = false;
  float reward = 0.0f;  // With gamma times the value behind, where that is given.
  float paid = 0.0f;    // Without.
  float value = 0.0f;
};

// counted_right: a token counts further right in the sequence.
template <class T>
__device__ __forceinline__ Position read_position(const GeneralArgs<T>& a, const Bounds& bounds, int64_t place,
                                                  bool counted, bool counted_right, float score, float gamma,
                                                  Stats& stats) {
  Position position;
  const bool inside = place < bounds.end;
  position.counted = counted;
  position.valued = counted;
  bool valued_right = counted_right;
  if (a.score_behind) {
    const bool behind = inside && !counted && !counted_right && place > bounds.begin && a.mask[place - 1];
    position.valued = counted || behind;
    valued_right = counted_right || (counted && place + 1 < bounds.end);
  }
  position.taken = position.valued || (a.count_gaps && inside && counted_right);
  if (position.valued) position.value = static_cast<float>(a.values[place]);
  if (counted) {
    position.done = a.dones != nullptr && a.dones[place];
    if (a.rewards != nullptr) {
      position.paid = static_cast<float>(a.rewards[place]);
    } else {
      const float log_ratio = static_cast<float>(a.logprobs[place]) - static_cast<float>(a.ref_logprobs[place]);
      position.paid = -a.kl_coef * kl_of(log_ratio, a.kl_rule);
      stats.log_ratio += log_ratio;
    }
  }
  if (position.valued && !valued_right) position.paid += score;
  position.reward = position.paid;
  if (counted && a.next_values != nullptr) position.reward += gamma * static_cast<float>(a.next_values[place]);
  return position;
}

// kept: what of gamma V goes to the left.
__device__ __forceinline__ Affine<float> map_of(const Position& position, float kept, float decay) {
  if (!position.taken) return {1.0f, 0.0f};
  return {position.done ? 0.0f : decay, (kept - decay) * position.value + decay * position.reward};
}

template <class T>
__device__ __forceinline__ void write_position(const GeneralArgs<T>& a, int64_t place, const Position& position,
                                               float carry, float value_carry, Stats& stats) {
  float advantage = 0.0f, target = 0.0f;
  if (position.valued) {
    const float base = position.reward - position.value;
    target = (position.done ? base : position.reward + value_carry - position.value) + position.value;
    if (position.counted) {
      advantage = position.done ? base : position.reward + carry - position.value;
      stats.sum += advantage;
      stats.sum_of_squares += static_cast<double>(advantage) * advantage;
      stats.count += 1.0;
    }
  }
  a.advantages[place] = advantage;
  a.returns[place] = target;
  if (a.rewards == nullptr) a.made[place] = position.paid;
}

template <class T>
__global__ void __launch_bounds__(kAdvantageThreads) general_advantages_kernel(GeneralArgs<T> a) {
  __shared__ unsigned counted_of[kWarps];
  __shared__ Maps maps_of[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  Stats stats;
  for (int64_t sequence = blockIdx.x; sequence < a.num_sequences; sequence += gridDim.x) {
    const Bounds bounds = bounds_of(a, sequence);
    const Discounts by = discounts_of(a, sequence);
    const float score = a.scores == nullptr ? 0.0f : a.scores[sequence];
    const float kept = a.next_values == nullptr ? by.gamma : 0.0f;
    float carry = a.bootstrap == nullptr ? 0.0f : by.gamma * a.bootstrap[sequence], value_carry = carry;
    bool counted_right = false;
    const int64_t length = bounds.end - bounds.begin;
    for (int64_t tile = length > 0 ? (length - 1) / kAdvantageThreads : -1; tile >= 0; --tile) {
      const int64_t place = bounds.begin + tile * kAdvantageThreads + threadIdx.x;
      const bool counted = place < bounds.end && a.mask[place];
      const unsigned counted_here = __ballot_sync(kFullWarp, counted);
      if (lane == 0) counted_of[warp] = counted_here;
      __syncthreads();
      bool to_the_right = counted_right || (lane < kWarpSize - 1 && counted_here >> (lane + 1) != 0);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        to_the_right = to_the_right || (w > warp && counted_of[w] != 0);
        counted_right = counted_right || counted_of[w] != 0;
      }
      const Position position = read_position(a, bounds, place, counted, to_the_right, score, by.gamma, stats);
      Maps maps = {map_of(position, kept, by.decay), map_of(position, kept, by.value_decay)};
#pragma unroll
      for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const Maps other = shuffled(maps, offset);
        if (lane + offset < kWarpSize) {
          maps = {guarded(maps.advantage, other.advantage), guarded(maps.value, other.value)};
        }
      }
      if (lane == 0) maps_of[warp] = maps;
      Maps right = shuffled(maps, 1);
      if (lane == kWarpSize - 1) right = {{1.0f, 0.0f}, {1.0f, 0.0f}};
      __syncthreads();
      float here = carry, value_here = value_carry;
#pragma unroll
      for (int w = kWarps - 1; w >= 0; --w) {
        if (w == warp) here = carry, value_here = value_carry;
        carry = applied(maps_of[w].advantage, carry);
        value_carry = applied(maps_of[w].value, value_carry);
      }
      if (place < bounds.end) {
        write_position(a, place, position, applied(right.advantage, here), applied(right.value, value_here), stats);
      }
    }
  }
  write_block_stats(stats, a.partial_stats + int64_t{blockIdx.x} * kNumStats);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> general_advantages(
    const Tensor& values, const Tensor& mask, std::optional<Tensor> rewards, std::optional<Tensor> logprobs,
    std::optional<Tensor> ref_logprobs, std::optional<Tensor> scores, std::optional<Tensor> dones,
    std::optional<Tensor> next_values, std::optional<Tensor> bootstrap, std::optional<Tensor> rates,
    std::optional<Tensor> cu_seqlens, double kl_coef, int64_t kl_estimator, double kl_input_clamp,
    double kl_output_clamp, double gamma, double lam, double value_lam, bool count_gaps, bool score_behind) {
  const OnDevice device(values);
  const Tensor advantages = empty_shaped(values, ScalarType::Float), returns = empty_shaped(values, ScalarType::Float);
  const Tensor made = rewards ? empty(values, {0}, ScalarType::Float) : empty_shaped(values, ScalarType::Float);
  const Tensor stats = empty(values, {kNumStats}, ScalarType::Double);
  const Tensor dense_values = dense(values), dense_mask = dense(mask);
  rewards = dense(rewards), logprobs = dense(logprobs), ref_logprobs = dense(ref_logprobs), scores = dense(scores);
  dones = dense(dones), next_values = dense(next_values), bootstrap = dense(bootstrap), rates = dense(rates);
  const std::optional<Tensor> offsets = dense(cu_seqlens);
  const int64_t num_sequences = offsets ? offsets->size(0) - 1 : values.size(0);
  const int64_t num_blocks = values.numel() == 0 ? 0 : std::min(num_sequences, kMaxAdvantageBlocks);
  const Tensor partial_stats = empty(values, {num_blocks, kNumStats}, ScalarType::Double);
  dispatch_floating(values.scalar_type(), "values", [&](auto tag) {
    using T = typename decltype(tag)::type;
    GeneralArgs<T> args = {};
    args.values = data<T>(dense_values);
    args.mask = data<bool>(dense_mask);
    args.rewards = data<T>(rewards);
    args.logprobs = data<T>(logprobs);
    args.ref_logprobs = data<T>(ref_logprobs);
    args.scores = data<float>(scores);
    args.dones = data<bool>(dones);
    args.next_values = data<T>(next_values);
    args.bootstrap = data<float>(bootstrap);
    args.rates = data<double>(rates);
    if (offsets) args.offsets = {offsets->data_ptr(), offsets->scalar_type() == ScalarType::Long, num_sequences};
    args.num_sequences = num_sequences;
    args.length = offsets ? values.size(0) : values.size(1);
    args.gamma = gamma, args.lam = lam, args.value_lam = value_lam;
    args.kl_coef = static_cast<float>(kl_coef);
    args.kl_rule = {static_cast<KlEstimator>(kl_estimator), kl_input_clamp, kl_output_clamp};
    args.count_gaps = count_gaps, args.score_behind = score_behind;
    args.advantages = mutable_data<float>(advantages);
    args.returns = mutable_data<float>(returns);
    args.made = mutable_data<float>(made);
    args.partial_stats = mutable_data<double>(partial_stats);
    if (num_blocks > 0) {
      INSTRUCTRL_LAUNCH(general_advantages_kernel<T>, num_blocks, kAdvantageThreads, 0, device.stream(), args);
    }
  });
  INSTRUCTRL_LAUNCH(sum_of_stats, 1, kAdvantageThreads, 0, device.stream(), data<double>(partial_stats), num_blocks,
                    mutable_data<double>(stats));
  return {advantages, returns, made, stats};
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m) {
  INSTRUCTRL_REGISTER(m, "general_advantages", instructrl::general_advantages);
}
