// Generalised advantages, and PPO's rewards with advantages: a scan from the right over the tokens of each sequence
// (advantage_scan.h), 4 consecutive tokens a thread, which keeps them in registers between its two passes.
//
// Bytes per token: 9 in and 8 out in float32 (13 and 12 for PPO, 16-bit inputs half). How a sequence meets the GPU
// follows from the shape alone:
//   up to 256 tokens             a warp a row, tiles of 128 tokens from the right, no barrier
//   many rows, or up to 2,048    a block of 256 threads a row, tiles of 1,024 tokens from the right, one barrier each
//   few long rows, and packed    a block a chunk: one launch reads what each chunk does to the carry (20 bytes a chunk
//                                out), the next folds the chunks to its right in order and scans its own, whose inputs
//                                are still in L2 at the sizes of rollouts
// Packed sequences are one row in which the carry starts anew at each end, so their lengths do not matter.
// 256 threads at 40 to 60 registers leave 4 to 6 blocks on an SM: 36 bytes a thread in flight are enough there.
#include <algorithm>
#include <tuple>

#include "cuda/advantage_scan.h"
#include "cuda/advantage_stats.h"

namespace instructrl {
namespace {

constexpr int64_t kTile = int64_t{kGroup} * kAdvantageThreads;
constexpr int64_t kWarpRow = 256;            // Rows up to this length are a warp's.
constexpr int64_t kBlockRow = 2 * kTile;     // Rows up to this length are a block's,
constexpr int64_t kManyRows = 512;           // and longer ones where there are this many.
constexpr int64_t kMaxChunks = 1024;         // A row has no more: each block folds those to its right.

template <class T, bool kPpo>
__device__ __forceinline__ void write_group(const AdvantageArgs<T>& args, const Range& range, int64_t index,
                                            const Group& group, Arriving arriving, Stats& stats) {
  const int64_t base = index * kGroup;
  if (base >= range.end) return;
  float advantages[kGroup], returns[kGroup], rewards[kGroup];
#pragma unroll
  for (int i = kGroup - 1; i >= 0; --i) {
    advantages[i] = returns[i] = rewards[i] = 0.0f;
    if (group.ends >> i & 1) arriving = {group.start[i], false};
    if (group.counted >> i & 1) {
      advantages[i] = group.reward[i] + arriving.carry - group.value[i];
      returns[i] = advantages[i] + group.value[i];
      if constexpr (kPpo) {
        // Up to the last counted position the carry is the score itself.
        rewards[i] = arriving.seen ? group.reward[i] : group.reward[i] + arriving.carry;
        stats.sum += advantages[i];
        stats.sum_of_squares += static_cast<double>(advantages[i]) * advantages[i];
        stats.count += 1.0;
      }
      arriving = {passed_on(args, group.reward[i], group.value[i], arriving.carry), true};
    }
  }
  if (args.aligned && base >= range.begin && base + kGroup <= range.end) {
    *reinterpret_cast<float4*>(args.advantages + base) = {advantages[0], advantages[1], advantages[2], advantages[3]};
    *reinterpret_cast<float4*>(args.returns + base) = {returns[0], returns[1], returns[2], returns[3]};
    if constexpr (kPpo) {
      *reinterpret_cast<float4*>(args.kl_rewards + base) = {rewards[0], rewards[1], rewards[2], rewards[3]};
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    if (base + i < range.begin || base + i >= range.end) continue;
    args.advantages[base + i] = advantages[i];
    args.returns[base + i] = returns[i];
    if constexpr (kPpo) args.kl_rewards[base + i] = rewards[i];
  }
}

// The carries of a block's warps, twice: a tile writes one copy while slower warps still read the other.
struct WarpCarries {
  Carry of[2][kWarps];
};

// From the carries of single threads to those of everything to the right of each in its warp; `whole` is the warp's.
template <bool kPpo>
__device__ __forceinline__ Carry to_the_right(Carry carry, Carry& whole) {
  scan_warp<kPpo>(carry);
  whole = carry;  // In lane 0.
  const Carry right = shuffled_down<kPpo>(carry, 1);
  return threadIdx.x % kWarpSize == kWarpSize - 1 ? identity_carry() : right;
}

// Writes a row's range from the right, and takes `arriving` to its left end.
template <class T, bool kPpo, bool kWarpRows>
__device__ __forceinline__ void scan_range(const AdvantageArgs<T>& args, const Range& range, Arriving arriving,
                                           WarpCarries* shared, int& buffer, Stats& stats) {
  constexpr int kTeam = kWarpRows ? kWarpSize : kAdvantageThreads;
  const int rank = static_cast<int>(threadIdx.x) % kTeam, warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t first_group = range.begin / kGroup, last_group = (range.end - 1) / kGroup;
  for (int64_t tile = (last_group - first_group) / kTeam; tile >= 0; --tile) {
    const int64_t index = first_group + tile * kTeam + rank;
    Group group;
    stats.log_ratio += read_group<T, kPpo>(args, range, index, group);
    find_ends(args, range, index * kGroup, group);
    Carry whole;
    const Carry right = to_the_right<kPpo>(carry_of(args, group), whole);
    Arriving here = arriving;
    if constexpr (kWarpRows) {
      whole = {{__shfl_sync(kFullWarp, whole.map.factor, 0), __shfl_sync(kFullWarp, whole.map.term, 0)},
               __shfl_sync(kFullWarp, whole.state, 0)};
      arriving = passed_through(whole, arriving);
    } else {
      if (rank % kWarpSize == 0) shared->of[buffer][warp] = whole;
      __syncthreads();
#pragma unroll
      for (int w = kWarps - 1; w >= 0; --w) {
        if (w == warp) here = arriving;
        arriving = passed_through(shared->of[buffer][w], arriving);
      }
      buffer ^= 1;
    }
    write_group<T, kPpo>(args, range, index, group, passed_through(right, here), stats);
  }
}

// What chunks `first` to the end of a row do to the carry, nearest first.
__device__ __forceinline__ Carry folded_chunks(const Carry* carries, int64_t first, int64_t num_chunks, Carry* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  Carry all = identity_carry();
  for (int64_t begin = first; begin < num_chunks; begin += kAdvantageThreads) {
    Carry carry = begin + thread < num_chunks ? carries[begin + thread] : identity_carry();
    scan_warp<true>(carry);
    if (thread % kWarpSize == 0) shared[thread / kWarpSize] = carry;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all = joined(all, shared[w]);
    __syncthreads();
    if (all.map.factor == 0.0f) break;  // Nothing from further right comes through.
  }
  return all;
}

// A warp a row.
template <class T, bool kPpo>
__global__ void __launch_bounds__(kAdvantageThreads, 4) advantages_of_short_rows(AdvantageArgs<T> args) {
  Stats stats;
  int buffer = 0;
  for (int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize; row < args.num_rows;
       row += int64_t{gridDim.x} * kWarps) {
    const Arriving arriving = {args.scores[row], false};
    scan_range<T, kPpo, true>(args, range_of(args, row), arriving, nullptr, buffer, stats);
  }
  if constexpr (kPpo) write_block_stats(stats, args.partial_stats + int64_t{blockIdx.x} * kNumStats);
}

// A block a chunk, which may be the whole row.
template <class T, bool kPpo>
__global__ void __launch_bounds__(kAdvantageThreads, kPpo ? 3 : 4) advantages_of_chunks(AdvantageArgs<T> args) {
  __shared__ WarpCarries shared;
  __shared__ Carry folded[kWarps];
  Stats stats;
  int buffer = 0;
  for (int64_t item = blockIdx.x; item < args.num_rows * args.chunks_per_row; item += gridDim.x) {
    const Range range = range_of(args, item);
    if (range.begin == range.end) continue;
    Arriving arriving = {0.0f, false};
    if (!range.ends_row) {
      const Carry* carries = args.carries + range.row * args.chunks_per_row;
      arriving = passed_through(folded_chunks(carries, range.chunk + 1, args.chunks_per_row, folded), arriving);
    } else if (args.offsets.data == nullptr) {
      arriving.carry = args.scores[range.row];
    }
    scan_range<T, kPpo, false>(args, range, arriving, &shared, buffer, stats);
  }
  if constexpr (kPpo) write_block_stats(stats, args.partial_stats + int64_t{blockIdx.x} * kNumStats);
}

// What each chunk does to the carry. Of packed sequences only the one that the chunk begins in is read.
template <class T, bool kPpo>
__global__ void __launch_bounds__(kAdvantageThreads) carries_of_chunks(AdvantageArgs<T> args) {
  __shared__ WarpCarries shared;
  Range range = range_of(args, blockIdx.x);
  if (range.chunk == 0) return;  // Nobody is to its left.
  Carry all = identity_carry();
  if (args.offsets.data == nullptr) {
    if (range.ends_row) all = sequence_end(args.scores[range.row]);
  } else {
    const int64_t next = args.offsets.first_above(range.begin, 1);
    const int64_t end = next <= args.offsets.num_sequences ? args.offsets[next] : range.end + 1;
    if (end <= range.end) {
      all = sequence_end(args.scores[next - 1]);
      range.end = end;
    }
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  int buffer = 0;
  const int64_t first_group = range.begin / kGroup, last_group = (range.end - 1) / kGroup;
  for (int64_t tile = (last_group - first_group) / kAdvantageThreads; tile >= 0 && range.begin < range.end; --tile) {
    Group group;
    read_group<T, kPpo>(args, range, first_group + tile * kAdvantageThreads + threadIdx.x, group);
    Carry carry = carry_of(args, group);
    scan_warp<kPpo>(carry);
    if (threadIdx.x % kWarpSize == 0) shared.of[buffer][warp] = carry;
    __syncthreads();
#pragma unroll
    for (int w = kWarps - 1; w >= 0; --w) all = joined(shared.of[buffer][w], all);
    buffer ^= 1;
  }
  if (threadIdx.x == 0) args.carries[blockIdx.x] = all;
}

struct Discount {
  double gamma;
  double lam;
};

// The sequences: rows of `mask`, or, with offsets, parts of it. Sizes follow from the shape alone.
template <class T>
AdvantageArgs<T> described(const Tensor& mask, const std::optional<Tensor>& offsets, Discount discount) {
  AdvantageArgs<T> args = {};
  args.mask = data<bool>(mask);
  args.num_rows = offsets ? 1 : mask.size(0);
  args.length = offsets ? mask.size(0) : mask.size(1);
  args.chunk_groups = std::max<int64_t>(args.length, 1);
  args.chunks_per_row = 1;
  if (offsets || (args.length > kBlockRow && args.num_rows < kManyRows)) {
    // Of a row that starts between two groups, one group more than it fills.
    const int64_t num_groups = args.length % kGroup == 0 ? args.length / kGroup : (args.length + 2) / kGroup + 1;
    args.chunk_groups = kAdvantageThreads;
    while (args.chunk_groups * kMaxChunks < num_groups) args.chunk_groups *= 2;
    args.chunks_per_row = ceil_div(num_groups, args.chunk_groups);
  }
  if (offsets) {
    const bool is_int64 = offsets->scalar_type() == ScalarType::Long;
    args.offsets = {offsets->data_ptr(), is_int64, offsets->size(0) - 1};
  }
  args.decay = static_cast<float>(discount.gamma * discount.lam);
  args.value_weight = static_cast<float>(discount.gamma * (1.0 - discount.lam));
  return args;
}

template <class T, bool kPpo>
void launch_scan(AdvantageArgs<T>& args, const Tensor& mask, const Tensor& stats, const OnDevice& device) {
  const bool short_rows = args.offsets.data == nullptr && args.length <= kWarpRow;
  const int64_t num_items = args.num_rows * args.chunks_per_row;
  const int64_t num_blocks = std::min(short_rows ? ceil_div(args.num_rows, kWarps) : num_items, kMaxAdvantageBlocks);
  args.aligned = true;
  for (const void* pointer : {static_cast<const void*>(args.rewards), static_cast<const void*>(args.ref_logprobs),
                              static_cast<const void*>(args.values), static_cast<const void*>(args.mask)}) {
    args.aligned = args.aligned && is_aligned(pointer, 16);
  }
  // Both stay alive until the launches are queued; torch's allocator then keeps their memory for this stream's order.
  std::optional<Tensor> partial_stats, carries;
  if constexpr (kPpo) {
    partial_stats = empty(mask, {num_blocks, kNumStats}, ScalarType::Double);
    args.partial_stats = mutable_data<double>(*partial_stats);
  }
  if (args.chunks_per_row > 1) {
    carries = empty(mask, {num_items * static_cast<int64_t>(sizeof(Carry))}, ScalarType::Byte);
    args.carries = static_cast<Carry*>(carries->data_ptr());
    INSTRUCTRL_LAUNCH((carries_of_chunks<T, kPpo>), num_items, kAdvantageThreads, 0, device.stream(), args);
  }
  const auto kernel = short_rows ? &advantages_of_short_rows<T, kPpo> : &advantages_of_chunks<T, kPpo>;
  INSTRUCTRL_LAUNCH(kernel, num_blocks, kAdvantageThreads, 0, device.stream(), args);
  if constexpr (kPpo) {
    INSTRUCTRL_LAUNCH(sum_of_stats, 1, kAdvantageThreads, 0, device.stream(), args.partial_stats, num_blocks,
                      mutable_data<double>(stats));
  }
}

std::tuple<Tensor, Tensor> generalized_advantages(const Tensor& rewards, const Tensor& values, const Tensor& mask,
                                                  double gamma, double lam, std::optional<Tensor> cu_seqlens) {
  const Tensor advantages = empty_shaped(mask, ScalarType::Float), returns = empty_shaped(mask, ScalarType::Float);
  if (mask.numel() == 0) return {advantages, returns};
  const Tensor dense_rewards = dense(rewards), dense_values = dense(values), dense_mask = dense(mask);
  const std::optional<Tensor> offsets = dense(cu_seqlens);
  const OnDevice device(mask);
  dispatch_floating(rewards.scalar_type(), "rewards", [&](auto tag) {
    using T = typename decltype(tag)::type;
    AdvantageArgs<T> args = described<T>(dense_mask, offsets, {gamma, lam});
    args.rewards = data<T>(dense_rewards);
    args.values = data<T>(dense_values);
    args.advantages = mutable_data<float>(advantages);
    args.returns = mutable_data<float>(returns);
    launch_scan<T, false>(args, mask, mask, device);
  });
  return {advantages, returns};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ppo_advantages(const Tensor& logprobs, const Tensor& ref_logprobs,
                                                          const Tensor& values, const Tensor& scores,
                                                          const Tensor& mask, double kl_coef, double gamma, double lam,
                                                          std::optional<Tensor> cu_seqlens) {
  const Tensor advantages = empty_shaped(mask, ScalarType::Float), returns = empty_shaped(mask, ScalarType::Float),
               rewards = empty_shaped(mask, ScalarType::Float), stats = empty(mask, {kNumStats}, ScalarType::Double);
  const OnDevice device(mask);
  if (mask.numel() == 0) {
    INSTRUCTRL_LAUNCH(sum_of_stats, 1, kAdvantageThreads, 0, device.stream(), static_cast<const double*>(nullptr),
                      int64_t{0}, mutable_data<double>(stats));
    return {advantages, returns, rewards, stats};
  }
  const Tensor dense_logprobs = dense(logprobs), dense_ref = dense(ref_logprobs), dense_values = dense(values),
               dense_scores = dense(scores), dense_mask = dense(mask);
  const std::optional<Tensor> offsets = dense(cu_seqlens);
  dispatch_floating(logprobs.scalar_type(), "logprobs", [&](auto tag) {
    using T = typename decltype(tag)::type;
    AdvantageArgs<T> args = described<T>(dense_mask, offsets, {gamma, lam});
    STD_TORCH_CHECK(scores.numel() == (offsets ? args.offsets.num_sequences : args.num_rows), "scores: one a sequence");
    args.rewards = data<T>(dense_logprobs);
    args.ref_logprobs = data<T>(dense_ref);
    args.values = data<T>(dense_values);
    args.scores = {dense_scores.data_ptr(), scores.scalar_type()};
    args.kl_coef = static_cast<float>(kl_coef);
    args.advantages = mutable_data<float>(advantages);
    args.returns = mutable_data<float>(returns);
    args.kl_rewards = mutable_data<float>(rewards);
    launch_scan<T, true>(args, mask, stats, device);
  });
  return {advantages, returns, rewards, stats};
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m) {
  INSTRUCTRL_REGISTER(m, "generalized_advantages", instructrl::generalized_advantages);
  INSTRUCTRL_REGISTER(m, "ppo_advantages", instructrl::ppo_advantages);
}
