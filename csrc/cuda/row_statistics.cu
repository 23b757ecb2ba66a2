// What is logged of rows of logits beside log-probabilities, from the normalizers that those left: a block is a row, which
// is read once, an element at a time (V elements in, 12 bytes out). Sums are in double: they go into no gradient, and are
// made as rarely as somebody looks at them.
#include "cuda/online_softmax.h"

namespace instructrl {
namespace {

constexpr int kStatisticsThreads = 256;

struct StatisticsArgs {
  RowLayout layout;
  LogitMap map;
  const int64_t* tokens;
  const bool* mask;  // nullptr: every row counts.
  const float* normalizers;
  float inverse_temperature;
  float* statistics;
};

template <class T>
__global__ void __launch_bounds__(kStatisticsThreads) row_statistics_kernel(const T* logits, StatisticsArgs args) {
  __shared__ double shared[kStatisticsThreads / kWarpSize];
  const int64_t n = blockIdx.x;
  const int num_classes = static_cast<int>(args.layout.num_classes);
  const bool counted = args.mask == nullptr || args.mask[n];
  const int64_t token = counted ? args.tokens[n] : 0;
  float* statistics = args.statistics + 3 * n;
  if (!counted || token < 0 || token >= num_classes) {
    if (threadIdx.x < 3) statistics[threadIdx.x] = counted ? NAN : 0.0f;
    return;
  }
  const T* row = row_start(logits, args.layout, n);
  const float chosen = static_cast<float>(row[token]), max = args.normalizers[2 * n];
  double z_sum = 0.0, squares = 0.0, num_possible = 0.0, num_larger = 0.0;
  for (int k = static_cast<int>(threadIdx.x); k < num_classes; k += kStatisticsThreads) {
    const float x = static_cast<float>(row[k]), z = mapped_class<true>(x, k, args.map);
    if (z == -INFINITY) continue;
    const float p = expf((z - max) * args.inverse_temperature);
    z_sum += z;
    squares += static_cast<double>(p) * p;
    num_possible += 1.0;
    num_larger += x > chosen ? 1.0 : 0.0;
  }
  z_sum = block_sum<kStatisticsThreads>(z_sum, shared);
  squares = block_sum<kStatisticsThreads>(squares, shared);
  num_possible = block_sum<kStatisticsThreads>(num_possible, shared);
  num_larger = block_sum<kStatisticsThreads>(num_larger, shared);
  if (threadIdx.x != 0) return;
  const bool possible = mapped_class<true>(chosen, token, args.map) != -INFINITY;
  statistics[0] = static_cast<float>(z_sum / num_possible);
  statistics[1] = static_cast<float>(squares * exp(-2.0 * args.normalizers[2 * n + 1]));
  statistics[2] = possible && num_larger == 0.0 ? 1.0f : 0.0f;
}

Tensor row_statistics(const Tensor& logits, const Tensor& tokens, std::optional<Tensor> mask,
                      std::optional<Tensor> allowed, const Tensor& normalizers, double temperature, double tanh_slope) {
  const Tensor rows = row_layout(logits) ? logits : dense(logits);
  const RowLayout layout = *row_layout(rows);
  STD_TORCH_CHECK(layout.num_classes < (int64_t{1} << 30), "logits: more than 2^30 classes");
  const Tensor dense_tokens = dense(tokens), dense_normalizers = dense(normalizers);
  const std::optional<Tensor> dense_mask = dense(mask), dense_allowed = dense(allowed);
  std::vector<int64_t> shape(tokens.sizes().begin(), tokens.sizes().end());
  shape.push_back(3);
  const Tensor statistics = empty(logits, shape.data(), static_cast<int64_t>(shape.size()), ScalarType::Float);
  if (layout.num_rows == 0) return statistics;
  const OnDevice device(logits);
  const StatisticsArgs args = {layout,
                               {static_cast<float>(tanh_slope), data<bool>(dense_allowed)},
                               data<int64_t>(dense_tokens),
                               data<bool>(dense_mask),
                               data<float>(dense_normalizers),
                               static_cast<float>(1.0 / temperature),
                               mutable_data<float>(statistics)};
  dispatch_floating(logits.scalar_type(), "logits", [&](auto tag) {
    using T = typename decltype(tag)::type;
    INSTRUCTRL_LAUNCH(row_statistics_kernel<T>, layout.num_rows, kStatisticsThreads, 0, device.stream(), data<T>(rows),
                      args);
  });
  return statistics;
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m) {
  INSTRUCTRL_REGISTER(m, "row_statistics", instructrl::row_statistics);
}
