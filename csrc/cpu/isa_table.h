// Compiles every kernel for one instruction set. Included once by each isa_*.cpp, after `#pragma GCC target` and
// INSTRUCTRL_ISA, the name of the namespace; headers of the standard library are included before that pragma, because the
// linker merges their inline functions with those of the rest of the library.
//
// For the same reason everything here is in the namespace of the instruction set, and calls nothing of `std::`.

#define INSTRUCTRL_STRINGIFY_(x) #x
#define INSTRUCTRL_STRINGIFY(x) INSTRUCTRL_STRINGIFY_(x)

namespace instructrl {
namespace INSTRUCTRL_ISA {
#include "cpu/vec.h"
#include "cpu/vec_memory.h"
#include "cpu/vec_math.h"
}  // namespace INSTRUCTRL_ISA
}  // namespace instructrl

#include "formulas.h"

namespace instructrl {
namespace INSTRUCTRL_ISA {

template <>
struct Largest<F> {
  static INSTRUCTRL_HD F value() { return F(std::numeric_limits<float>::max()); }
};
template <>
struct Largest<D> {
  static INSTRUCTRL_HD D value() { return D(std::numeric_limits<double>::max()); }
};

#include "cpu/kernels/sums.h"
#include "cpu/kernels/softmax.h"
#include "cpu/kernels/logit_map.h"
#include "cpu/kernels/logprobs.h"
#include "cpu/kernels/row_statistics.h"
#include "cpu/kernels/sampling.h"
#include "cpu/kernels/ranking.h"
#include "cpu/kernels/ranking_models.h"
#include "cpu/kernels/advantages.h"
#include "cpu/kernels/general_advantages.h"
#include "cpu/kernels/whitening.h"
#include "cpu/kernels/ppo.h"
#include "cpu/kernels/general_ppo.h"

// One instantiation for each input dtype, in the order of Dtype.
#define INSTRUCTRL_BY_DTYPE(kernel) {&kernel<float>, &kernel<BFloat16>, &kernel<Half>, &kernel<double>}

static const CpuKernels kTable = {
    INSTRUCTRL_STRINGIFY(INSTRUCTRL_ISA),
    INSTRUCTRL_BY_DTYPE(token_logprobs),
    INSTRUCTRL_BY_DTYPE(token_logprobs_backward),
    INSTRUCTRL_BY_DTYPE(row_statistics),
    INSTRUCTRL_BY_DTYPE(sample_tokens),
    INSTRUCTRL_BY_DTYPE(pairwise_ranking_loss),
    INSTRUCTRL_BY_DTYPE(paired_comparison_loss),
    INSTRUCTRL_BY_DTYPE(plackett_luce_loss),
    INSTRUCTRL_BY_DTYPE(generalized_advantages),
    INSTRUCTRL_BY_DTYPE(ppo_advantages),
    INSTRUCTRL_BY_DTYPE(general_advantages),
    INSTRUCTRL_BY_DTYPE(masked_moments),
    INSTRUCTRL_BY_DTYPE(masked_whiten),
    INSTRUCTRL_BY_DTYPE(clipped_policy_loss),
    INSTRUCTRL_BY_DTYPE(clipped_value_loss),
    INSTRUCTRL_BY_DTYPE(ppo_loss),
    INSTRUCTRL_BY_DTYPE(general_ppo_loss),
};

}  // namespace INSTRUCTRL_ISA
}  // namespace instructrl
