// The mathematics of one token, one pair, one class: each formula once, for the CPU's vectors and the GPU's threads.
//
// Templates over the lane type F: float and double on both, and classes of SIMD lanes on the CPU. A lane type needs the
// operators + - * / and unary -, comparisons whose results take & and |, construction from a number, and the functions
// exp, expm1, log1p, abs, select, maximum, minimum. Definitions are those of `instructrl/ops/ppo_terms.py` and its
// neighbours, decisions at kinks included: there, products and differences must stay separate roundings, so that a
// comparison comes out as PyTorch's does. No product below feeds an addition whose result is compared.
//
// A file that compiles for a target of its own defines INSTRUCTRL_ISA, includes its lane types first, and gets all of
// this in `instructrl::INSTRUCTRL_ISA`: instantiations of two targets must not be merged by the linker.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define INSTRUCTRL_HD __host__ __device__ __forceinline__
#else
#define INSTRUCTRL_HD inline __attribute__((always_inline))
#endif

namespace instructrl {
#ifdef INSTRUCTRL_ISA
namespace INSTRUCTRL_ISA {
#endif

using std::abs;
using std::exp;
using std::expm1;
using std::log1p;

INSTRUCTRL_HD float select(bool condition, float a, float b) { return condition ? a : b; }
INSTRUCTRL_HD double select(bool condition, double a, double b) { return condition ? a : b; }

// NaN where one of the two is, like torch.maximum and torch.clamp.
INSTRUCTRL_HD float maximum(float a, float b) { return a > b || a != a ? a : b; }
INSTRUCTRL_HD double maximum(double a, double b) { return a > b || a != a ? a : b; }
INSTRUCTRL_HD float minimum(float a, float b) { return a < b || a != a ? a : b; }
INSTRUCTRL_HD double minimum(double a, double b) { return a < b || a != a ? a : b; }

// The largest finite number of a lane; a class of lanes specialises it.
template <class F>
struct Largest;

template <>
struct Largest<float> {
  static INSTRUCTRL_HD float value() { return FLT_MAX; }
};

template <>
struct Largest<double> {
  static INSTRUCTRL_HD double value() { return DBL_MAX; }
};

template <class F>
struct PolicyTerm {
  F loss;
  F derivative;  // By the new log-probability.
  F clipped;     // 1 where the loss is the clipped branch's, else 0.
  F approx_kl;
  F ratio;
};

// max(-A r, -A clip(r, low, high)), r = exp(new - old). `low` and `high` are 1 - clip_low and 1 + clip_high, computed
// in double and rounded once, as PyTorch does with Python's numbers.
template <class F>
INSTRUCTRL_HD PolicyTerm<F> policy_term(F new_logprob, F old_logprob, F advantage, F low, F high) {
  const F zero(0.0), half(0.5);
  const F log_ratio = new_logprob - old_logprob;
  // An infinite ratio would turn advantage 0 into NaN.
  const F ratio = minimum(exp(log_ratio), Largest<F>::value());
  const F unclipped = -advantage * ratio;
  const F clipped = -advantage * minimum(maximum(ratio, low), high);
  const auto clipped_wins = clipped > unclipped;
  // torch.maximum halves the gradient at ties and clamp passes it at its bounds; inside the bounds the branches are the
  // same number.
  const auto tie_outside = (unclipped == clipped) & ((ratio < low) | (ratio > high));
  const F derivative = select(clipped_wins, zero, select(tie_outside, half * unclipped, unclipped));
  return {maximum(unclipped, clipped), derivative, select(clipped_wins, F(1.0), zero), half * (log_ratio * log_ratio),
          ratio};
}

template <class F>
struct ValueTerm {
  F loss;
  F derivative;  // By the value.
  F clipped;     // 1 where the loss is the clipped branch's, else 0.
  F squared_error;
};

// 0.5 max((v - R)^2, (clip(v, old - range, old + range) - R)^2).
template <class F>
INSTRUCTRL_HD ValueTerm<F> value_term(F value, F old_value, F target, F range) {
  const F zero(0.0), half(0.5);
  const F low = old_value - range, high = old_value + range;
  const F error = value - target;
  const F squared = error * error;
  const F clipped_error = maximum(minimum(value, high), low) - target;
  const F clipped_squared = clipped_error * clipped_error;
  const auto clipped_wins = clipped_squared > squared;
  const auto tie_outside = (squared == clipped_squared) & ((value < low) | (value > high));
  const F derivative = select(clipped_wins, zero, select(tie_outside, half * error, error));
  return {half * maximum(squared, clipped_squared), derivative, select(clipped_wins, F(1.0), zero), squared};
}

template <class F>
struct LossTerm {
  F loss;
  F derivative;
};

// k3: exp(d) - 1 - d with d = ref - new; the derivative is by `new`.
template <class F>
INSTRUCTRL_HD LossTerm<F> reference_kl_term(F new_logprob, F ref_logprob) {
  const F difference = ref_logprob - new_logprob;
  const F growth = expm1(difference);
  return {growth - difference, -growth};
}

// Rows of the tables of `instructrl/ops/ppo_settings.py`, in their order.
enum class Surrogate { kClip, kCispo, kReinforce, kSapo };
enum class KlEstimator { kK1, kK2, kK3, kAbs };
enum class Importance { kNone, kConstant, kFull, kScore };

// The settings of PPO's losses in the numbers of a lane type; infinity for what is not bounded.
template <class F>
struct PpoOptions {
  Surrogate surrogate;
  bool has_dual_clip;
  F low, high, dual_clip, log_ratio_clamp, positive_temperature, negative_temperature;
  KlEstimator estimator;
  bool straight_through;
  Importance importance;
  F input_clamp, output_clamp;
};

// `settings`: the numbers of `ppo_settings.Flat`.
template <class F>
INSTRUCTRL_HD PpoOptions<F> ppo_options(const double* settings) {
  return {static_cast<Surrogate>(static_cast<int>(settings[0])),
          settings[3] <= DBL_MAX,
          F(1.0 - settings[1]),
          F(1.0 + settings[2]),
          F(settings[3]),
          F(settings[4]),
          F(settings[5]),
          F(settings[6]),
          static_cast<KlEstimator>(static_cast<int>(settings[9])),
          settings[13] != 0.0,
          static_cast<Importance>(static_cast<int>(settings[14])),
          F(settings[11]),
          F(settings[12])};
}

template <class F>
INSTRUCTRL_HD F clamped(F x, F limit) {
  return minimum(maximum(x, -limit), limit);
}

// A derivative through `clamped(x, limit)`.
template <class F>
INSTRUCTRL_HD F within(F x, F limit, F derivative) {
  return select(abs(x) > limit, F(0.0), derivative);
}

template <class F>
struct Ratio {
  F value;
  F slope;  // By the new log-probability.
};

template <class F>
INSTRUCTRL_HD Ratio<F> ratio_of(F log_ratio, F clamp) {
  const F value = minimum(exp(clamped(log_ratio, clamp)), Largest<F>::value());
  return {value, within(log_ratio, clamp, value)};
}

template <class F>
struct SurrogateTerm {
  F loss;
  F derivative;    // By the new log-probability.
  F clipped;       // 1 where the clipped branch or ratio is taken, else 0.
  F dual_clipped;  // 1 where the loss is the bound of the dual clip, else 0.
};

// max(-A r, -A clip(r, low, high)), at most -A dual_clip where A is negative.
template <class F>
INSTRUCTRL_HD SurrogateTerm<F> clip_term(Ratio<F> ratio, F advantage, const PpoOptions<F>& options) {
  const F zero(0.0), half(0.5), one(1.0);
  const F unclipped = -advantage * ratio.value;
  const F clipped = -advantage * minimum(maximum(ratio.value, options.low), options.high);
  const auto clipped_wins = clipped > unclipped;
  const auto tie_outside = (unclipped == clipped) & ((ratio.value < options.low) | (ratio.value > options.high));
  const F slope = -advantage * ratio.slope;
  SurrogateTerm<F> term = {maximum(unclipped, clipped),
                           select(clipped_wins, zero, select(tie_outside, half * slope, slope)),
                           select(clipped_wins, one, zero), zero};
  if (options.has_dual_clip) {
    const F bound = -advantage * options.dual_clip;
    const auto negative = advantage < zero;
    const auto bounded = negative & (term.loss > bound), tie = negative & (term.loss == bound);
    term.derivative = select(bounded, zero, select(tie, half * term.derivative, term.derivative));
    term.loss = select(bounded, bound, term.loss);
    term.dual_clipped = select(bounded, one, zero);
  }
  return term;
}

// -A sigmoid(t (r - 1)) 4 / t. Both sides of the sigmoid by one exponential, never of a positive number.
template <class F>
INSTRUCTRL_HD SurrogateTerm<F> sapo_term(Ratio<F> ratio, F advantage, const PpoOptions<F>& options) {
  const F zero(0.0), one(1.0), four(4.0);
  const F temperature = select(advantage > zero, options.positive_temperature, options.negative_temperature);
  const F gate = temperature * (ratio.value - one);
  const F small = exp(-abs(gate));
  const F large_share = one / (one + small), small_share = small * large_share;
  const F share = select(gate < zero, small_share, large_share);
  return {-advantage * (share * (four / temperature)), -advantage * (four * large_share * small_share * ratio.slope),
          zero, zero};
}

// A row of `ppo_terms.SURROGATE_LOSSES`.
template <class F>
INSTRUCTRL_HD SurrogateTerm<F> surrogate_term(F new_logprob, Ratio<F> ratio, F advantage, const PpoOptions<F>& options) {
  const F zero(0.0);
  switch (options.surrogate) {
    case Surrogate::kCispo: {
      const F derivative = -advantage * minimum(maximum(ratio.value, options.low), options.high);
      const auto outside = (ratio.value < options.low) | (ratio.value > options.high);
      return {derivative * new_logprob, derivative, select(outside, F(1.0), zero), zero};
    }
    case Surrogate::kReinforce:
      return {-advantage * new_logprob, -advantage, zero, zero};
    case Surrogate::kSapo:
      return sapo_term(ratio, advantage, options);
    default:
      return clip_term(ratio, advantage, options);
  }
}

// A row of `ppo_terms.KL_ESTIMATES`; the derivative is by d = new - ref.
template <class F>
INSTRUCTRL_HD LossTerm<F> kl_estimate(F d, KlEstimator estimator) {
  const F zero(0.0), half(0.5), one(1.0);
  switch (estimator) {
    case KlEstimator::kK1:
      return {d, one};
    case KlEstimator::kK2:
      return {half * (d * d), d};
    case KlEstimator::kAbs:
      return {abs(d), select(d > zero, one, select(d < zero, -one, zero))};
    default: {
      const F growth = expm1(-d);
      return {growth + d, -growth};
    }
  }
}

// The KL to a reference as a loss, before its coefficient: `ppo_terms.kl_terms`. ratio: of the token.
template <class F>
INSTRUCTRL_HD LossTerm<F> kl_term(F d, Ratio<F> ratio, const PpoOptions<F>& options) {
  const F half(0.5);
  LossTerm<F> term = kl_estimate(clamped(d, options.input_clamp), options.estimator);
  term.derivative = options.straight_through ? d : within(d, options.input_clamp, term.derivative);
  if (options.importance == Importance::kScore) ratio = {F(1.0), F(1.0)};
  if (options.importance != Importance::kNone) {
    term.derivative = ratio.value * term.derivative;
    if (options.importance != Importance::kConstant) {
      term.derivative = term.derivative + ratio.slope * (options.straight_through ? half * (d * d) : term.loss);
    }
    term.loss = ratio.value * term.loss;
  }
  if (!options.straight_through) term.derivative = within(term.loss, options.output_clamp, term.derivative);
  term.loss = clamped(term.loss, options.output_clamp);
  return term;
}

// A weight of 0 leaves a token out, whatever its loss is.
template <class F>
INSTRUCTRL_HD F weighted(F x, F weight) {
  return select(weight == F(0.0), F(0.0), weight * x);
}

template <class F>
struct RankingTerm {
  F loss;
  F derivative;          // By the margin.
  F reverse_derivative;  // By the margin, of the loss that the pair has where the loser was preferred.
};

// softplus(-margin), margin = score of the winner - score of the loser, with its derivative -sigmoid(-margin) and that
// of softplus(margin). One exponential, never of a positive number.
template <class F>
INSTRUCTRL_HD RankingTerm<F> ranking_term(F margin) {
  const F zero(0.0), one(1.0);
  const F small = exp(-abs(margin));
  const F share = one / (one + small), rest = small * share;
  const auto ahead = margin >= zero;
  return {maximum(-margin, zero) + log1p(small), -select(ahead, rest, share), select(ahead, share, rest)};
}

// -m / (2 + m) with m = expm1(-2 |x|): nothing cancels near 0.
template <class F>
INSTRUCTRL_HD F tanh_of(F x) {
  const F m = expm1(F(-2.0) * abs(x));
  const F size = -m / (F(2.0) + m);
  return select(x < F(0.0), -size, size);
}

// 1 - tanh(x)^2 as 4 e / (1 + e)^2 with e = exp(-2 |x|): nothing cancels far out.
template <class F>
INSTRUCTRL_HD F tanh_derivative(F x) {
  const F e = exp(F(-2.0) * abs(x)), sum = F(1.0) + e;
  return F(4.0) * e / (sum * sum);
}

// L(x) = log(1 + exp(-x) + tie exp(-x / 2)) and its derivative by x: softplus(-x) where `tie` is 0, else Davidson's
// (1970) model of a win, of which `tie` is the parameter. One exponential, never of a positive number.
template <class F>
INSTRUCTRL_HD LossTerm<F> comparison_term(F x, F tie) {
  const F zero(0.0), half(0.5), one(1.0);
  const F root = exp(-(half * abs(x)));
  const F small = root * root, middle = tie * root;
  const F rest = small + middle;
  const F numerator = select(x >= zero, small, one) + half * middle;
  return {maximum(-x, zero) + log1p(rest), -(numerator / (one + rest))};
}

// The gradient of one logit that is not the token's: -p (g + h (log p + H)), p = exp(log p), with the gradients g of
// the log-probability and h of the entropy already divided by the temperature. A class of probability 0 gets 0. The
// token's own logit gets g (1 - p) - h p (log p + H) instead.
template <class F>
INSTRUCTRL_HD F class_gradient(F probability, F log_probability, F grad_logprob, F grad_entropy, F entropy) {
  const F zero(0.0);
  const auto possible = probability > zero;
  // log p may be -inf where p is 0.
  const F surprise = select(possible, log_probability, zero) + entropy;
  return select(possible, -(probability * (grad_logprob + grad_entropy * surprise)), zero);
}

// x -> term + factor * x.
template <class F>
struct Affine {
  F factor;
  F term;
};

// `first(second(x))`: in a scan from the right, `first` is the position on the left.
template <class F>
INSTRUCTRL_HD Affine<F> composed(Affine<F> first, Affine<F> second) {
  return {first.factor * second.factor, first.term + first.factor * second.term};
}

// GAE's residual of one counted position.
template <class F>
INSTRUCTRL_HD F residual(F reward, F value, F next_value, F gamma) {
  return reward + gamma * next_value - value;
}

// What a reward is taken for: `ppo_terms.kl_term`. A clamp that is none is infinite.
struct KlRule {
  KlEstimator estimator;
  double input_clamp;
  double output_clamp;
};

template <class F>
INSTRUCTRL_HD F kl_of(F log_ratio, const KlRule& rule) {
  const F estimate = kl_estimate(clamped(log_ratio, F(rule.input_clamp)), rule.estimator).loss;
  return clamped(estimate, F(rule.output_clamp));
}

// Whether the mean is taken away for good, what a count is reduced by, and where a small number keeps the scale finite:
// added to the variance, its lower bound, or added to the deviation.
struct WhiteningRule {
  bool center;
  int64_t ddof;
  double epsilon;
  int64_t epsilon_at;
};

INSTRUCTRL_HD double variance_of(double sum_of_squared_deviations, double count, int64_t ddof) {
  const double divisor = count - static_cast<double>(ddof);
  return divisor > 0 ? sum_of_squared_deviations / divisor : 0.0;
}

// (x - mean) * scale is x whitened.
struct Whitening {
  double mean;
  double scale;
};

INSTRUCTRL_HD Whitening whitening(double mean, double sum_of_squared_deviations, double count,
                                  const WhiteningRule& rule) {
  const double variance = variance_of(sum_of_squared_deviations, count, rule.ddof);
  double deviation = std::sqrt(variance) + rule.epsilon;
  if (rule.epsilon_at == 0) deviation = std::sqrt(variance + rule.epsilon);
  if (rule.epsilon_at == 1) deviation = std::sqrt(maximum(variance, rule.epsilon));
  // The mean put back is another mean taken away: (x - mean) / d + mean = (x - (mean - mean d)) / d.
  return {rule.center ? mean : mean - mean * deviation, 1.0 / deviation};
}

// From sums that were added up elsewhere; rounding may leave a negative sum of squared deviations.
INSTRUCTRL_HD Whitening whitening_from_sums(double sum, double sum_of_squares, double count,
                                            const WhiteningRule& rule) {
  const double mean = sum / (count > 1 ? count : 1);
  return whitening(mean, maximum(sum_of_squares - sum * mean, 0.0), count, rule);
}

// What is taken from a score, and whether the rest is divided by the deviation of its group. Baselines are in the order
// of `BASELINES` in `instructrl/ops/advantage_settings.py`.
enum class Baseline { kMean, kLeaveOneOut, kNone };

struct GroupRule {
  Baseline baseline;
  bool scaled;
  int64_t ddof;
  double epsilon;
};

INSTRUCTRL_HD double group_advantage(double score, double mean, double sum_of_squared_deviations, double count,
                                     const GroupRule& rule) {
  double advantage = score;
  if (rule.baseline == Baseline::kMean) advantage = score - mean;
  // The mean of the others is count / (count - 1) times as far away as the mean of all.
  if (rule.baseline == Baseline::kLeaveOneOut) advantage = count > 1 ? (score - mean) * (count / (count - 1)) : 0.0;
  if (!rule.scaled) return advantage;
  return advantage / (std::sqrt(variance_of(sum_of_squared_deviations, count, rule.ddof)) + rule.epsilon);
}

// The count to divide by: 1 in place of 0. It may be a fraction.
INSTRUCTRL_HD double denominator(double count) { return count > 0 ? count : 1.0; }

#ifdef INSTRUCTRL_ISA
}  // namespace INSTRUCTRL_ISA
#endif
}  // namespace instructrl
