// Sampling of tokens from given uniform numbers, on the CPU.
#include <vector>

#include "cpu/run.h"
#include "schemas.h"

namespace instructrl {
namespace {

Tensor sample_tokens(const Tensor& given_logits, const Tensor& given_uniforms, std::optional<Tensor> given_allowed,
                     double temperature, double tanh_slope) {
  const Tensor logits = row_layout(given_logits) ? given_logits : dense(given_logits);
  const Tensor tokens = empty_shaped(given_uniforms, ScalarType::Long);
  const RowLayout layout = *row_layout(logits);
  const bool precise = given_uniforms.scalar_type() == ScalarType::Double;
  const Tensor uniforms = dense(precise ? given_uniforms : torch::stable::to(given_uniforms, ScalarType::Double));
  const std::optional<Tensor> allowed = dense(given_allowed);
  const int64_t allowed_stride = allowed && allowed->dim() == 2 ? layout.num_classes : 0;
  const Kernel<SamplingArgs> kernel = cpu_kernels().sample_tokens[dtype_of(logits)];
  const int64_t blocks_per_row = num_blocks(layout.num_classes, kBlockClasses);
  run_items(layout.num_rows, grain(layout.num_classes), [&](int64_t begin, int64_t end) {
    std::vector<double> maxima(blocks_per_row), sums(blocks_per_row);  // Of float logits, the maxima are floats.
    const LogitRows rows = {logits.data_ptr(), layout.num_classes, layout.inner, layout.outer_stride,
                            layout.inner_stride};
    const LogitMap map = {tanh_slope, data<bool>(allowed), allowed_stride};
    kernel({rows, map, data<double>(uniforms), temperature, maxima.data(), sums.data(), mutable_data<int64_t>(tokens)},
           begin, end);
  });
  return tokens;
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, CPU, m) {
  m.impl(INSTRUCTRL_PREFIX "sample_tokens", TORCH_BOX(&instructrl::sample_tokens));
}
