// Log-probabilities of tokens and entropies from logits, on the CPU.
#include <sys/mman.h>

#include <tuple>

#include "cpu/run.h"
#include "schemas.h"

namespace instructrl {
namespace {

// Gradients of at least this size do not fit the caches, so they are written around them.
constexpr int64_t kStreamedBytes = 4 << 20;

LogitRows rows_at(const RowLayout& layout, const Tensor& logits) {
  return {logits.data_ptr(), layout.num_classes, layout.inner, layout.outer_stride, layout.inner_stride};
}

const void* pointer(const std::optional<Tensor>& tensor) { return tensor ? tensor->data_ptr() : nullptr; }

// Asks for pages of 2 MiB behind a large new tensor: that its pages appear one by one costs more than writing it.
void expect_large_pages(const Tensor& tensor, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kLargePage = 2 << 20;
  const auto start = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t first = (start + kLargePage - 1) & ~(kLargePage - 1), last = (start + bytes) & ~(kLargePage - 1);
  // Advice: where it cannot be followed nothing changes.
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

std::tuple<Tensor, Tensor, Tensor> token_logprobs(const Tensor& given_logits, const Tensor& given_tokens,
                                                  std::optional<Tensor> given_mask,
                                                  std::optional<Tensor> given_allowed, double temperature,
                                                  double tanh_slope, bool with_entropy) {
  const Tensor logits = row_layout(given_logits) ? given_logits : dense(given_logits);
  const Tensor tokens = dense(given_tokens);
  const std::optional<Tensor> mask = dense(given_mask), allowed = dense(given_allowed);
  const ScalarType dtype = accumulation_dtype(logits);
  const Tensor logprobs = empty_shaped(tokens, dtype);
  const Tensor entropy = with_entropy ? empty_shaped(tokens, dtype) : empty(tokens, {0}, dtype);
  std::vector<int64_t> sizes(tokens.sizes().begin(), tokens.sizes().end());
  sizes.push_back(2);
  const Tensor normalizers = empty(tokens, sizes.data(), static_cast<int64_t>(sizes.size()), dtype);

  const RowLayout layout = *row_layout(logits);
  const LogprobsArgs args = {rows_at(layout, logits),
                             {tanh_slope, data<bool>(allowed), 0},
                             data<int64_t>(tokens),
                             data<bool>(mask),
                             temperature,
                             logprobs.data_ptr(),
                             with_entropy ? entropy.data_ptr() : nullptr,
                             normalizers.data_ptr()};
  run_items(cpu_kernels().token_logprobs[dtype_of(logits)], args, layout.num_rows, grain(layout.num_classes));
  return {logprobs, entropy, normalizers};
}

// gradient: contiguous, or nullptr for over the logits.
void backward(const Tensor& logits, const RowLayout& layout, const Tensor& given_tokens,
              const std::optional<Tensor>& given_mask, const std::optional<Tensor>& given_allowed,
              const Tensor& given_normalizers, const std::optional<Tensor>& given_entropy,
              const std::optional<Tensor>& given_grad_logprobs, const std::optional<Tensor>& given_grad_entropy,
              double temperature, double tanh_slope, void* gradient, bool streaming) {
  const Tensor tokens = dense(given_tokens), normalizers = dense(given_normalizers);
  const std::optional<Tensor> mask = dense(given_mask), allowed = dense(given_allowed), entropy = dense(given_entropy),
                              grad_logprobs = dense(given_grad_logprobs), grad_entropy = dense(given_grad_entropy);
  const LogprobsBackwardArgs args = {rows_at(layout, logits),
                                     {tanh_slope, data<bool>(allowed), 0},
                                     data<int64_t>(tokens),
                                     data<bool>(mask),
                                     temperature,
                                     normalizers.data_ptr(),
                                     pointer(entropy),
                                     pointer(grad_logprobs),
                                     pointer(grad_entropy),
                                     gradient,
                                     streaming};
  run_items(cpu_kernels().token_logprobs_backward[dtype_of(logits)], args, layout.num_rows, grain(layout.num_classes));
}

Tensor token_logprobs_backward(const Tensor& given_logits, const Tensor& tokens, std::optional<Tensor> mask,
                               std::optional<Tensor> allowed, const Tensor& normalizers, std::optional<Tensor> entropy,
                               std::optional<Tensor> grad_logprobs, std::optional<Tensor> grad_entropy,
                               double temperature, double tanh_slope) {
  const Tensor logits = row_layout(given_logits) ? given_logits : dense(given_logits);
  const Tensor gradient = empty_shaped(logits, logits.scalar_type());
  const int64_t bytes = logits.numel() * static_cast<int64_t>(logits.element_size());
  const bool large = bytes >= kStreamedBytes;
  if (large) expect_large_pages(gradient, bytes);
  backward(logits, *row_layout(logits), tokens, mask, allowed, normalizers, entropy, grad_logprobs, grad_entropy,
           temperature, tanh_slope, gradient.data_ptr(), large);
  return gradient;
}

void token_logprobs_backward_(const Tensor& logits, const Tensor& tokens, std::optional<Tensor> mask,
                              std::optional<Tensor> allowed, const Tensor& normalizers, std::optional<Tensor> entropy,
                              std::optional<Tensor> grad_logprobs, std::optional<Tensor> grad_entropy,
                              double temperature, double tanh_slope) {
  const std::optional<RowLayout> layout = row_layout(logits);
  STD_TORCH_CHECK(layout.has_value(), "logits: found strides that are not those of rows");
  backward(logits, *layout, tokens, mask, allowed, normalizers, entropy, grad_logprobs, grad_entropy, temperature,
           tanh_slope, nullptr, false);
}

Tensor row_statistics(const Tensor& given_logits, const Tensor& given_tokens, std::optional<Tensor> given_mask,
                      std::optional<Tensor> given_allowed, const Tensor& given_normalizers, double temperature,
                      double tanh_slope) {
  const Tensor logits = row_layout(given_logits) ? given_logits : dense(given_logits);
  const Tensor tokens = dense(given_tokens), normalizers = dense(given_normalizers);
  const std::optional<Tensor> mask = dense(given_mask), allowed = dense(given_allowed);
  std::vector<int64_t> sizes(tokens.sizes().begin(), tokens.sizes().end());
  sizes.push_back(3);
  const Tensor statistics =
      empty(tokens, sizes.data(), static_cast<int64_t>(sizes.size()), accumulation_dtype(logits));
  const RowLayout layout = *row_layout(logits);
  const RowStatisticsArgs args = {rows_at(layout, logits),  {tanh_slope, data<bool>(allowed), 0},
                                  data<int64_t>(tokens),    data<bool>(mask),
                                  temperature,              normalizers.data_ptr(),
                                  statistics.data_ptr()};
  run_items(cpu_kernels().row_statistics[dtype_of(logits)], args, layout.num_rows, grain(layout.num_classes));
  return statistics;
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, CPU, m) {
  m.impl(INSTRUCTRL_PREFIX "token_logprobs", TORCH_BOX(&instructrl::token_logprobs));
  m.impl(INSTRUCTRL_PREFIX "token_logprobs_backward", TORCH_BOX(&instructrl::token_logprobs_backward));
  m.impl(INSTRUCTRL_PREFIX "token_logprobs_backward_", TORCH_BOX(&instructrl::token_logprobs_backward_));
  m.impl(INSTRUCTRL_PREFIX "row_statistics", TORCH_BOX(&instructrl::row_statistics));
}
