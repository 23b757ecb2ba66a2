// The table of CPU kernels: plain functions over plain structs, one table for each instruction set.
//
// Nothing here may be an inline function or a template: the files of the instruction sets include it, and the linker
// keeps one copy of an inline function, which may be the one with instructions that this machine lacks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace instructrl {

// The bits of a lower-precision number; kernels widen them in registers.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Index of an input's dtype in the arrays of kernels. Outputs are double for kFloat64 and float for the others.
enum Dtype : int { kFloat32, kBFloat16, kFloat16, kFloat64, kNumDtypes };

// A kernel does the items (rows, sequences, blocks) from `begin` to `end`; what an item yields depends on nothing else,
// so it has the same bits whatever the number of threads.
template <class Args>
using Kernel = void (*)(const Args& args, int64_t begin, int64_t end);

template <class Args>
using KernelByDtype = Kernel<Args>[kNumDtypes];

// Rows of logits: row n starts `(n / inner) * outer_stride + (n % inner) * inner_stride` elements behind the first.
struct LogitRows {
  const void* data;
  int64_t num_classes;
  int64_t inner;
  int64_t outer_stride;
  int64_t inner_stride;
};

// What becomes of the classes of a row before their softmax: tanh(tanh_slope * x), and -inf where not allowed.
struct LogitMap {
  double tanh_slope;       // 0: they stay as they are.
  const bool* allowed;     // A number for each class; nullptr: all are.
  int64_t allowed_stride;  // From row to row; 0 where they share one mask.
};

struct LogprobsArgs {
  LogitRows logits;
  LogitMap map;
  const int64_t* tokens;
  const bool* mask;  // nullptr: every row counts.
  double temperature;
  void* logprobs;
  void* entropy;  // nullptr: not wanted.
  void* normalizers;
};

struct RowStatisticsArgs {
  LogitRows logits;
  LogitMap map;
  const int64_t* tokens;
  const bool* mask;  // nullptr: every row counts.
  double temperature;
  const void* normalizers;
  void* statistics;  // Three a row.
};

struct LogprobsBackwardArgs {
  LogitRows logits;
  LogitMap map;
  const int64_t* tokens;
  const bool* mask;  // nullptr: every row counts.
  double temperature;
  const void* normalizers;
  const void* entropy;        // nullptr without grad_entropy.
  const void* grad_logprobs;  // nullptr: zeros.
  const void* grad_entropy;   // nullptr: zeros.
  void* gradient;             // nullptr: over the logits.
  bool streaming;             // Write around the cache.
};

// Rows of logits are taken in blocks that stay in the first-level cache between their maximum and their exponentials.
constexpr int64_t kBlockClasses = 1024;

struct SamplingArgs {
  LogitRows logits;
  LogitMap map;
  const double* uniforms;
  double temperature;
  void* block_maxima;  // Scratch of one thread, as is the next: a number for each kBlockClasses of a row.
  double* block_sums;
  int64_t* tokens;
};

// Prompts of one item.
constexpr int64_t kRankingGroup = 16;

struct RankingArgs {
  const void* scores;  // [P, K], strides in elements.
  int64_t prompt_stride;
  int64_t response_stride;
  const bool* preferred;  // [P, K, K], dense.
  int64_t num_prompts;
  int64_t num_responses;
  void* scratch;  // kRankingGroup * K * (K + 16) bytes of each thread, aligned for double.
  void* loss_sum;
  int64_t* num_pairs;
  int64_t* num_correct;
  void* gradient;
};

// A number for each ordered pair of responses; strides in elements, 0 where one serves many.
struct PairNumbers {
  const void* data;  // In the dtype of the outputs; nullptr: none.
  int64_t prompt_stride;
  int64_t winner_stride;
  int64_t loser_stride;
};

// What a pair's loss is made of, as `instructrl/ops/ranking_settings.py` has it.
struct ComparisonTerms {
  double margin;
  double label_smoothing;
  double davidson;
  double tie_weight;
  double tie_constant;
};

struct ComparisonArgs {
  RankingArgs ranking;  // Its scratch: kRankingGroup * K * (2 * K + 16) bytes.
  const bool* tied;     // [P, K, K], dense; nullptr: none.
  PairNumbers margins;
  PairNumbers weights;
  ComparisonTerms terms;
  int64_t* num_ties;
};

struct PlackettLuceArgs {
  RankingArgs ranking;   // Its pairs are choices. Its scratch: kRankingGroup * K * (K + 24) bytes.
  const int64_t* ranks;  // [P, K], dense.
};

struct AdvantageSums {
  double sum;
  double sum_of_squares;
  double count;
  double kl;
};

struct AdvantagesArgs {
  const void* rewards;  // nullptr: made of the three that follow, and written to `shaped_rewards`.
  const void* logprobs;
  const void* ref_logprobs;
  const void* scores;  // In the dtype of the outputs.
  const void* values;
  const bool* mask;
  const int64_t* offsets;  // Of packed sequences in `length` tokens; nullptr: rows of `length`.
  int64_t length;
  double minus_kl_coef;
  double gamma;
  double lam;
  void* advantages;
  void* returns;
  void* shaped_rewards;
  AdvantageSums* sums;  // One a sequence.
};

// With any settings; `plain` as above.
struct GeneralAdvantagesArgs {
  AdvantagesArgs plain;
  const bool* dones;        // nullptr: none.
  const void* next_values;  // nullptr: the next counted token's.
  const void* bootstrap;    // One a sequence, in the dtype of the outputs; nullptr: 0.
  const double* rates;      // gamma, lam and value_lam of each sequence; nullptr: the numbers.
  double value_lam;
  int64_t kl_estimator;
  double kl_input_clamp;
  double kl_output_clamp;
  bool count_gaps;
  bool score_behind;
};

// Elements of one item.
constexpr int64_t kWhitenBlock = 4096;

struct Moments {
  double count;
  double mean;
  double squared_deviations;
};

struct WhitenArgs {
  const void* x;
  const bool* mask;
  int64_t num_elements;
  Moments* moments;  // One a block.
  double mean;
  double scale;
  void* whitened;
};

// Tokens of one item.
constexpr int64_t kPpoBlockTokens = 4096;

// Sums over the counted tokens of a block, and the largest ratio.
struct PpoSums {
  double policy_loss;
  double value_loss;
  double kl;
  double num_tokens;
  double num_policy_clipped;
  double approx_kl;
  double ratio;
  double num_value_clipped;
  double squared_error;
  double ratio_max;
  double kl_loss;  // Under general settings alone, as is the next: the KL as the loss takes it, `kl` is as it is.
  double num_dual_clipped;
};

struct PpoArgs {
  const void* logprobs;
  const void* old_logprobs;
  const void* advantages;
  const void* ref_logprobs;  // nullptr: none.
  const void* values;
  const void* old_values;
  const void* returns;
  const bool* mask;
  int64_t num_tokens;
  double low;  // Of the ratio.
  double high;
  double range;  // Of the value.
  double vf_coef;
  double kl_coef;
  void* grad_logprobs;
  void* grad_values;
  PpoSums* blocks;
  // Under general settings alone. Then every array but the mask may be nullptr.
  const double* settings;  // The numbers of `ppo_settings.Flat`.
  const void* log_ratios;  // In the dtype of the outputs, as are the weights.
  const void* weights;
  void* token_losses;
};

struct CpuKernels {
  const char* name;
  KernelByDtype<LogprobsArgs> token_logprobs;
  KernelByDtype<LogprobsBackwardArgs> token_logprobs_backward;
  KernelByDtype<RowStatisticsArgs> row_statistics;
  KernelByDtype<SamplingArgs> sample_tokens;
  KernelByDtype<RankingArgs> pairwise_ranking_loss;
  KernelByDtype<ComparisonArgs> paired_comparison_loss;
  KernelByDtype<PlackettLuceArgs> plackett_luce_loss;
  KernelByDtype<AdvantagesArgs> generalized_advantages;
  KernelByDtype<AdvantagesArgs> ppo_advantages;
  KernelByDtype<GeneralAdvantagesArgs> general_advantages;
  KernelByDtype<WhitenArgs> masked_moments;
  KernelByDtype<WhitenArgs> masked_whiten;
  KernelByDtype<PpoArgs> clipped_policy_loss;
  KernelByDtype<PpoArgs> clipped_value_loss;
  KernelByDtype<PpoArgs> ppo_loss;
  KernelByDtype<PpoArgs> general_ppo_loss;
};

// What each file of an instruction set exports; nullptr where this compiler or machine cannot have it.
const CpuKernels* portable_kernels();
const CpuKernels* avx2_kernels();
const CpuKernels* avx512_kernels();

// The table of the best instruction set of this machine, chosen at the first call. INSTRUCTRL_CPU_ISA (portable, avx2 or
// avx512) asks for another; a name that is unknown, or that this machine cannot run, raises.
const CpuKernels& cpu_kernels();

// Names of the instruction sets that this library was compiled for.
std::vector<std::string> compiled_instruction_sets();

}  // namespace instructrl
