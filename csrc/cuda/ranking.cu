// All pairs of a prompt's responses: loss, counts and gradient in one launch.
//
// K <= 64: a group of 8, 16 or 32 lanes per prompt, one score a lane (two for K > 32), in registers. Every lane visits
// all partners j by shuffles and adds up what its own score contributes to and gets from each pair, so each pair is
// computed by both of its ends, and no gradient is summed across lanes. K > 64: a block per prompt, partners' scores
// in tiles of shared memory, a thread per score. Blocks of 128 threads: 4 to 16 prompts a block keeps the grid large.
//
// Bytes: K scores and K^2 flags of the matrix read once per side (row and column; the second comes from L1/L2), 4 K of
// gradient and 20 per prompt written. Sums of a prompt are made in the order of j, then by a fixed tree of lanes.
// Margins, weights, ties and choices: ranking_models.cu.
#include "cuda/block.h"

namespace instructrl {
namespace {

constexpr int kThreads = 128;

template <class T>
struct Arguments {
  const T* scores;
  int64_t prompt_stride;
  int64_t response_stride;
  const bool* preferred;
  int64_t num_prompts;
  int64_t num_responses;
  float* loss_sum;
  int64_t* num_pairs;
  int64_t* num_correct;
  float* gradient;
};

// What one response collects over its partners. A pair's loss and counts are its winner's, so each enters once.
struct Tally {
  float loss = 0.0f;
  float gradient = 0.0f;
  int num_pairs = 0;
  int num_correct = 0;

  // Scores are looked at only where something is preferred: an absent response may have any.
  __device__ __forceinline__ void add(float mine, float other, bool wins, bool loses) {
    if (!(wins || loses)) return;
    const float margin = mine - other;
    const RankingTerm<float> term = ranking_term(margin);
    if (wins) {
      loss += term.loss;
      gradient += term.derivative;
      num_pairs += 1;
      num_correct += margin > 0.0f ? 1 : 0;
    }
    if (loses) gradient += term.reverse_derivative;
  }
};

// Lanes of one group, `kGroup` wide, with `kOwn` responses a lane: response `lane + kGroup * o`.
template <class T, int kGroup, int kOwn>
__global__ void __launch_bounds__(kThreads) small_kernel(const Arguments<T> a) {
  const int lane = static_cast<int>(threadIdx.x) % kGroup;
  const int64_t prompt = static_cast<int64_t>(blockIdx.x) * (kThreads / kGroup) + threadIdx.x / kGroup;
  const bool in_range = prompt < a.num_prompts;  // A group without a prompt still takes part in its warp's shuffles.
  const int num_responses = in_range ? static_cast<int>(a.num_responses) : 0;
  const bool* const preferred = a.preferred + prompt * a.num_responses * a.num_responses;

  float mine[kOwn];
  Tally tally[kOwn];
#pragma unroll
  for (int o = 0; o < kOwn; ++o) {
    const int i = lane + kGroup * o;
    mine[o] = 0.0f;
    if (i < num_responses) {
      mine[o] = static_cast<float>(a.scores[prompt * a.prompt_stride + i * a.response_stride]);
    }
  }
  // The trip count is one for all groups of the warp.
  const int last = static_cast<int>(a.num_responses);
  for (int j = 0; j < last; ++j) {
    float other = mine[0];
    if constexpr (kOwn == 2) other = j < kGroup ? mine[0] : mine[1];
    other = __shfl_sync(kFullWarp, other, j % kGroup, kGroup);
#pragma unroll
    for (int o = 0; o < kOwn; ++o) {
      const int i = lane + kGroup * o;
      if (i >= num_responses || i == j) continue;
      tally[o].add(mine[o], other, preferred[i * num_responses + j], preferred[j * num_responses + i]);
    }
  }
  float loss = 0.0f;
  int num_pairs = 0, num_correct = 0;
#pragma unroll
  for (int o = 0; o < kOwn; ++o) {
    const int i = lane + kGroup * o;
    if (i < num_responses) a.gradient[prompt * a.num_responses + i] = tally[o].gradient;
    loss += tally[o].loss;
    num_pairs += tally[o].num_pairs;
    num_correct += tally[o].num_correct;
  }
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) {
    loss += __shfl_xor_sync(kFullWarp, loss, offset, kGroup);
    num_pairs += __shfl_xor_sync(kFullWarp, num_pairs, offset, kGroup);
    num_correct += __shfl_xor_sync(kFullWarp, num_correct, offset, kGroup);
  }
  if (in_range && lane == 0) {
    a.loss_sum[prompt] = loss;
    a.num_pairs[prompt] = num_pairs;
    a.num_correct[prompt] = num_correct;
  }
}

// A block per prompt. Rows i go by kThreads, partners j by tiles of as many.
template <class T>
__global__ void __launch_bounds__(kThreads) large_kernel(const Arguments<T> a) {
  __shared__ float tile[kThreads];
  __shared__ double loss_of_warp[kThreads / kWarpSize];
  __shared__ long long count_of_warp[kThreads / kWarpSize];
  const int64_t prompt = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t num_responses = a.num_responses;
  const T* const scores = a.scores + prompt * a.prompt_stride;
  const bool* const preferred = a.preferred + prompt * num_responses * num_responses;

  double loss = 0.0;  // One addition a row and tile: K^2 terms in float32 would show.
  long long num_pairs = 0, num_correct = 0;
  for (int64_t first_row = 0; first_row < num_responses; first_row += kThreads) {
    const int64_t i = first_row + thread;
    const float mine = i < num_responses ? static_cast<float>(scores[i * a.response_stride]) : 0.0f;
    float gradient = 0.0f;
    for (int64_t first = 0; first < num_responses; first += kThreads) {
      const int64_t left = num_responses - first;
      const int size = left < kThreads ? static_cast<int>(left) : kThreads;
      if (thread < size) tile[thread] = static_cast<float>(scores[(first + thread) * a.response_stride]);
      __syncthreads();
      if (i < num_responses) {
        Tally tally;
        for (int j = 0; j < size; ++j) {
          if (i == first + j) continue;
          const int64_t partner = first + j;
          tally.add(mine, tile[j], preferred[i * num_responses + partner], preferred[partner * num_responses + i]);
        }
        loss += tally.loss;
        gradient += tally.gradient;
        num_pairs += tally.num_pairs;
        num_correct += tally.num_correct;
      }
      __syncthreads();
    }
    if (i < num_responses) a.gradient[prompt * num_responses + i] = gradient;
  }
  loss = block_sum<kThreads>(loss, loss_of_warp);
  num_pairs = block_sum<kThreads>(num_pairs, count_of_warp);
  num_correct = block_sum<kThreads>(num_correct, count_of_warp);
  if (threadIdx.x == 0) {
    a.loss_sum[prompt] = static_cast<float>(loss);
    a.num_pairs[prompt] = num_pairs;
    a.num_correct[prompt] = num_correct;
  }
}

template <class T>
void launch_ranking(const Arguments<T>& a, cudaStream_t stream) {
  const int64_t k = a.num_responses;
  const auto blocks = [&](int group) { return ceil_div(a.num_prompts, kThreads / group); };
  if (k <= 8) {
    INSTRUCTRL_LAUNCH((small_kernel<T, 8, 1>), blocks(8), kThreads, 0, stream, a);
  } else if (k <= 16) {
    INSTRUCTRL_LAUNCH((small_kernel<T, 16, 1>), blocks(16), kThreads, 0, stream, a);
  } else if (k <= 32) {
    INSTRUCTRL_LAUNCH((small_kernel<T, 32, 1>), blocks(32), kThreads, 0, stream, a);
  } else if (k <= 64) {
    INSTRUCTRL_LAUNCH((small_kernel<T, 32, 2>), blocks(32), kThreads, 0, stream, a);
  } else {
    INSTRUCTRL_LAUNCH(large_kernel<T>, a.num_prompts, kThreads, 0, stream, a);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pairwise_ranking_loss(Tensor scores, Tensor preferred) {
  const OnDevice on(scores);
  const int64_t num_prompts = scores.size(0), num_responses = scores.size(1);
  const Tensor matrix = dense(preferred);
  Tensor loss_sum = empty(scores, {num_prompts}, ScalarType::Float);
  Tensor num_pairs = empty(scores, {num_prompts}, ScalarType::Long);
  Tensor num_correct = empty(scores, {num_prompts}, ScalarType::Long);
  Tensor gradient = empty(scores, {num_prompts, num_responses}, ScalarType::Float);
  if (num_prompts > 0) {
    dispatch_floating(scores.scalar_type(), "scores", [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch_ranking(Arguments<T>{data<T>(scores), scores.stride(0), scores.stride(1), data<bool>(matrix), num_prompts,
                                  num_responses, mutable_data<float>(loss_sum), mutable_data<int64_t>(num_pairs),
                                  mutable_data<int64_t>(num_correct), mutable_data<float>(gradient)},
                     on.stream());
    });
  }
  return {loss_sum, num_pairs, num_correct, gradient};
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m) {
  INSTRUCTRL_REGISTER(m, "pairwise_ranking_loss", instructrl::pairwise_ranking_loss);
}
