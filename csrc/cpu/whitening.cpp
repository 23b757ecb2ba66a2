// Whitening on the CPU, of everything and by group; the kernels are in kernels/whitening.h.
#include <cmath>
#include <optional>
#include <vector>

#include "cpu/groups.h"
#include "cpu/run.h"
#include "formulas.h"
#include "schemas.h"

namespace instructrl {
namespace {

// The moments of two sets of numbers together.
Moments joined(const Moments& a, const Moments& b) {
  const double count = a.count + b.count, distance = b.mean - a.mean;
  if (b.count == 0 || a.count == 0) return a.count == 0 ? b : a;
  const double share = b.count / count;
  return {count, a.mean + distance * share, a.squared_deviations + b.squared_deviations + distance * distance * a.count * share};
}

Moments all_moments(WhitenArgs args, Kernel<WhitenArgs> kernel) {
  std::vector<Moments> blocks(num_blocks(args.num_elements, kWhitenBlock));
  args.moments = blocks.data();
  run_items(kernel, args, static_cast<int64_t>(blocks.size()), grain(kWhitenBlock));
  Moments total{0, 0, 0};
  for (const Moments& block : blocks) total = joined(total, block);
  return total;
}

Whitening whitening_of(const Moments& moments, const WhiteningRule& rule) {
  return whitening(moments.mean, moments.squared_deviations, moments.count, rule);
}

Whitening given_whitening(const Tensor& stats, const WhiteningRule& rule) {
  const bool in_double = stats.scalar_type() == ScalarType::Double;
  const Tensor sums = dense(in_double ? stats : torch::stable::to(stats, ScalarType::Double));
  const double* values = data<double>(sums);
  return whitening_from_sums(values[0], values[1], values[2], rule);
}

Tensor masked_whiten(const Tensor& x, const Tensor& mask, std::optional<Tensor> stats, bool center, int64_t ddof,
                     double epsilon, int64_t epsilon_at) {
  const Tensor dense_x = dense(x), dense_mask = dense(mask);
  const Dtype dtype = dtype_of(x);
  const WhiteningRule rule = {center, ddof, epsilon, epsilon_at};
  Tensor whitened = empty_shaped(x, accumulation_dtype(x));
  WhitenArgs args{dense_x.data_ptr(), data<bool>(dense_mask), x.numel(), nullptr, 0.0, 0.0, whitened.data_ptr()};
  const Whitening by = stats ? given_whitening(*stats, rule)
                             : whitening_of(all_moments(args, cpu_kernels().masked_moments[dtype]), rule);
  args.mean = by.mean;
  args.scale = by.scale;
  run_items(cpu_kernels().masked_whiten[dtype], args, num_blocks(x.numel(), kWhitenBlock), grain(kWhitenBlock));
  return whitened;
}

// Row `row` of [num_rows, num_elements].
WhitenArgs row_of(WhitenArgs args, int64_t row, Dtype dtype) {
  const int64_t in = dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2, out = dtype == kFloat64 ? 8 : 4;
  args.x = static_cast<const char*>(args.x) + row * args.num_elements * in;
  args.mask += row * args.num_elements;
  args.whitened = static_cast<char*>(args.whitened) + row * args.num_elements * out;
  return args;
}

// Threads make the moments of rows, one joins them by group in the order of rows, threads write rows.
Tensor group_whiten(const Tensor& x, const Tensor& mask, const Tensor& groups, int64_t num_groups, bool center,
                    int64_t ddof, double epsilon, int64_t epsilon_at) {
  const Tensor dense_x = dense(x), dense_mask = dense(mask);
  const Dtype dtype = dtype_of(x);
  const WhiteningRule rule = {center, ddof, epsilon, epsilon_at};
  Tensor whitened = empty_shaped(x, accumulation_dtype(x));
  if (x.numel() == 0) return whitened;
  const int64_t num_rows = x.size(0), length = x.numel() / num_rows;
  const WhitenArgs args{dense_x.data_ptr(), data<bool>(dense_mask), length, nullptr, 0.0, 0.0, whitened.data_ptr()};
  std::vector<Moments> rows(num_rows);
  run_items(num_rows, grain(length), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      rows[row] = all_moments(row_of(args, row, dtype), cpu_kernels().masked_moments[dtype]);
    }
  });
  const std::vector<int64_t> ids = ids_of(groups);
  std::vector<Moments> totals(num_groups, Moments{0, 0, 0});
  for (int64_t row = 0; row < num_rows; ++row) {
    if (is_group(ids[row], num_groups)) totals[ids[row]] = joined(totals[ids[row]], rows[row]);
  }
  run_items(num_rows, grain(length), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      WhitenArgs of_row = row_of(args, row, dtype);
      const Whitening by = is_group(ids[row], num_groups) ? whitening_of(totals[ids[row]], rule) : Whitening{NAN, NAN};
      of_row.mean = by.mean;
      of_row.scale = by.scale;
      cpu_kernels().masked_whiten[dtype](of_row, 0, num_blocks(length, kWhitenBlock));
    }
  });
  return whitened;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(instructrl, CPU, m) {
  m.impl(INSTRUCTRL_PREFIX "masked_whiten", TORCH_BOX(&masked_whiten));
  m.impl(INSTRUCTRL_PREFIX "group_whiten", TORCH_BOX(&group_whiten));
}

}  // namespace instructrl
