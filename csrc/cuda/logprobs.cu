// Log-probabilities of given tokens and entropies from rows of logits, and the gradient of the logits.
//
// Forward: a block is a row, which is read once: V elements in, 16 bytes out. A thread keeps the largest logit, the sum
// of exponentials below it and, for the entropy, their sum weighted by the logits; it holds 4 vectors of 16 bytes at a
// time, rescales once for all of them, and merges with its block at the end, in a fixed order. Several blocks a row
// would fill the GPU where there are few rows, but a row's bits would then depend on how many rows there are.
// Backward: a block is a tile of a row, 16 KiB at most: the gradient is elementwise given the row's normalizers, V
// elements in and V out. Tiles follow the output's alignment; load_straddling reads a row that is aligned otherwise.
// Blocks are as large as the row needs, up to 512 threads (2 to 3 on an SM, 64 to 96 KiB of loads in flight there).
#include <algorithm>
#include <tuple>

#include "cuda/online_softmax.h"
#include "cuda/rows.h"
#include "formulas.h"

namespace instructrl {
namespace {

constexpr int kMaxForwardThreads = 512;
constexpr int kBackwardThreads = 256;

struct ForwardArgs {
  RowLayout layout;
  const int64_t* tokens;
  const bool* mask;  // nullptr: every row counts.
  float temperature;
  float* logprobs;
  float* entropy;
  float* normalizers;
  float scale;  // kBasePerLog / temperature.
  LogitMap map;
};

template <class T, bool kWithEntropy, bool kMapped>
__global__ void __launch_bounds__(kMaxForwardThreads, 2) logprobs_forward(const T* logits, ForwardArgs args) {
  __shared__ float max[32], sum[32], weighted[32];
  const int64_t n = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const int num_classes = static_cast<int>(args.layout.num_classes);
  const bool counted = args.mask == nullptr || args.mask[n];
  const int64_t token = counted ? args.tokens[n] : 0;
  if (!counted || token < 0 || token >= num_classes) {
    if (thread == 0) {
      const float result = counted ? NAN : 0.0f;
      args.logprobs[n] = result;
      if constexpr (kWithEntropy) args.entropy[n] = result;
      args.normalizers[2 * n] = 0.0f;
      args.normalizers[2 * n + 1] = 0.0f;
    }
    return;
  }
  const T* row = row_start(logits, args.layout, n);
  Running running;
  if constexpr (kMapped) {
    running = read_mapped_row<T, kWithEntropy>(row, num_classes, args.scale, args.map);
  } else {
    running = read_row<T, kWithEntropy>(row, num_classes, args.scale);
  }
  merge_warp<T>(running, args.scale);
  if (thread % 32 == 0) {
    max[thread / 32] = running.max;
    sum[thread / 32] = running.sum;
    weighted[thread / 32] = running.weighted;
  }
  __syncthreads();
  if (thread >= 32) return;
  running = {-FLT_MAX, 0.0f, 0.0f};
  if (thread < static_cast<int>(blockDim.x) / 32) running = {max[thread], sum[thread], weighted[thread]};
  merge_warp<T>(running, args.scale);
  if (thread != 0) return;
  const float log_sum = logf(running.sum);
  const float chosen = mapped_class<kMapped>(static_cast<float>(row[token]), token, args.map);
  args.logprobs[n] = (chosen - running.max) / args.temperature - log_sum;
  if constexpr (kWithEntropy) args.entropy[n] = log_sum - kLogOfBase<T> * (running.weighted / running.sum);
  args.normalizers[2 * n] = running.max;
  args.normalizers[2 * n + 1] = log_sum;
}

struct BackwardArgs {
  RowLayout layout;
  RowLayout output_layout;
  const int64_t* tokens;
  const bool* mask;            // nullptr: every row counts.
  const float* normalizers;    // [N, 2]
  const float* entropy;        // These three are nullptr where there is none.
  const float* grad_logprobs;
  const float* grad_entropy;
  float temperature;
  unsigned tiles_per_row;
  int64_t first_row;
  LogitMap map;
};

// What a row's gradient needs, the same in all its elements. `grad_*` are divided by the temperature.
struct RowTerms {
  float max;
  float log_sum;
  float inverse_temperature;
  float grad_logprob;
  float grad_entropy;
  float entropy;
};

template <class T, bool kMapped>
__device__ __forceinline__ float other_class_gradient(float x, int k, const RowTerms& terms, const LogitMap& map) {
  const float log_probability =
      (mapped_class<kMapped>(x, k, map) - terms.max) * terms.inverse_temperature - terms.log_sum;
  const float probability = power_of_base<T>(log_probability * kBasePerLog<T>);
  const float gradient =
      class_gradient(probability, log_probability, terms.grad_logprob, terms.grad_entropy, terms.entropy);
  return kMapped ? gradient * map_slope<kMapped>(x, k, map) : gradient;
}

// The token's own class: `1 - p` by expm1, because p may be so close to 1 that the difference would be rounding alone.
__device__ __forceinline__ float token_gradient(float z, const RowTerms& terms, float temperature) {
  const float log_probability = (z - terms.max) / temperature - terms.log_sum;
  const float probability = expf(log_probability);
  const float by_entropy = class_gradient(probability, log_probability, 0.0f, terms.grad_entropy, terms.entropy);
  return terms.grad_logprob * -expm1f(log_probability) + by_entropy;
}

// The token's own logit, in the thread that holds it.
struct OwnLogit {
  float x;
  bool held;
};

// Element k of a row, for those before the first and after the last vector.
template <class T, bool kMapped>
__device__ __forceinline__ void write_element(const T* row, T* output, int k, int token, const RowTerms& terms,
                                              const LogitMap& map, OwnLogit& own) {
  const float x = static_cast<float>(row[k]);
  if (k == token) own = {x, true};
  output[k] = static_cast<T>(other_class_gradient<T, kMapped>(x, k, terms, map));
}

// One tile: vectors `first_vector` to `first_vector + kUnrolled * kBackwardThreads` of the row.
template <class T, bool kMapped>
__device__ __forceinline__ void write_vectors(const T* row, T* output, int num_classes, Alignment aligned,
                                              int first_vector, int token, const RowTerms& terms, const LogitMap& map,
                                              OwnLogit& own) {
  const int first = first_vector + static_cast<int>(threadIdx.x);
  uint4 raw[kUnrolled];
#pragma unroll
  for (int u = 0; u < kUnrolled; ++u) {
    const int v = first + u * kBackwardThreads;
    if (v < aligned.num_vectors) raw[u] = load_straddling(row + aligned.head + v * kLanes<T>, row, row + num_classes);
  }
#pragma unroll
  for (int u = 0; u < kUnrolled; ++u) {
    const int v = first + u * kBackwardThreads;
    if (v >= aligned.num_vectors) break;
    float x[kLanes<T>];
    unpack<T>(raw[u], x);
    const int first_class = aligned.head + v * kLanes<T>;
    const int lane = token - first_class;
    if (lane >= 0 && lane < kLanes<T>) {
      own.held = true;
#pragma unroll
      for (int i = 0; i < kLanes<T>; ++i) own.x = i == lane ? x[i] : own.x;
    }
#pragma unroll
    for (int i = 0; i < kLanes<T>; ++i) x[i] = other_class_gradient<T, kMapped>(x[i], first_class + i, terms, map);
    reinterpret_cast<uint4*>(output + aligned.head)[v] = pack<T>(x);
  }
}

// `logits` and `output` may be the same memory: each element is read and then written by one thread.
template <class T, bool kMapped>
__global__ void __launch_bounds__(kBackwardThreads, 4)
    logprobs_backward(const T* logits, T* gradient, BackwardArgs args) {
  const int64_t n = args.first_row + blockIdx.x / args.tiles_per_row;
  const int tile = static_cast<int>(blockIdx.x % args.tiles_per_row);
  const int thread = static_cast<int>(threadIdx.x);
  const int num_classes = static_cast<int>(args.layout.num_classes);
  T* output = row_start(gradient, args.output_layout, n);
  const Alignment aligned = alignment(output, num_classes);
  const int first_vector = tile * kUnrolled * kBackwardThreads;
  const int tail = aligned.head + aligned.num_vectors * kLanes<T>;
  const bool counted = args.mask == nullptr || args.mask[n];
  const int64_t token = counted ? args.tokens[n] : -1;
  if (token < 0 || token >= num_classes) {
    for (int u = 0; u < kUnrolled; ++u) {
      const int v = first_vector + thread + u * kBackwardThreads;
      if (v < aligned.num_vectors) reinterpret_cast<uint4*>(output + aligned.head)[v] = uint4{0, 0, 0, 0};
    }
    if (tile == 0 && thread < aligned.head) output[thread] = static_cast<T>(0.0f);
    if (tile == 0 && thread < num_classes - tail) output[tail + thread] = static_cast<T>(0.0f);
    return;
  }
  const RowTerms terms = {args.normalizers[2 * n],
                          args.normalizers[2 * n + 1],
                          1.0f / args.temperature,
                          args.grad_logprobs == nullptr ? 0.0f : args.grad_logprobs[n] / args.temperature,
                          args.grad_entropy == nullptr ? 0.0f : args.grad_entropy[n] / args.temperature,
                          args.entropy == nullptr ? 0.0f : args.entropy[n]};
  const T* row = row_start(logits, args.layout, n);
  const int own_class = static_cast<int>(token);
  OwnLogit own = {0.0f, false};
  write_vectors<T, kMapped>(row, output, num_classes, aligned, first_vector, own_class, terms, args.map, own);
  if (tile == 0 && thread < aligned.head) {
    write_element<T, kMapped>(row, output, thread, own_class, terms, args.map, own);
  }
  if (tile == 0 && thread < num_classes - tail) {
    write_element<T, kMapped>(row, output, tail + thread, own_class, terms, args.map, own);
  }
  if (!own.held) return;
  // Over what the same thread wrote there as if it were any class.
  const float by_class = token_gradient(mapped_class<kMapped>(own.x, own_class, args.map), terms, args.temperature);
  output[own_class] = static_cast<T>(kMapped ? by_class * map_slope<kMapped>(own.x, own_class, args.map) : by_class);
}

RowLayout readable_layout(Tensor& logits) {
  STD_TORCH_CHECK(logits.size(logits.dim() - 1) < (int64_t{1} << 30), "logits: more than 2^30 classes");
  std::optional<RowLayout> layout = row_layout(logits);
  if (!layout) {
    logits = dense(logits);
    layout = row_layout(logits);
  }
  return *layout;
}

LogitMap logit_map(double tanh_slope, const std::optional<Tensor>& allowed) {
  return {static_cast<float>(tanh_slope), data<bool>(allowed)};
}

bool is_plain(const LogitMap& map) { return map.tanh_slope == 0.0f && map.allowed == nullptr; }

// Depends on the row alone, so that a row's bits do not depend on its batch.
int forward_threads(int64_t row_bytes) {
  if (row_bytes <= 8 * 1024) return 128;
  return row_bytes <= 32 * 1024 ? 256 : kMaxForwardThreads;
}

template <class T>
void launch_forward(const Tensor& logits, ForwardArgs args, bool with_entropy, cudaStream_t stream) {
  args.scale = static_cast<float>(kBasePerLog<T> / static_cast<double>(args.temperature));
  const auto plain = with_entropy ? &logprobs_forward<T, true, false> : &logprobs_forward<T, false, false>;
  const auto mapped = with_entropy ? &logprobs_forward<T, true, true> : &logprobs_forward<T, false, true>;
  const auto kernel = is_plain(args.map) ? plain : mapped;
  const int64_t row_bytes = args.layout.num_classes * static_cast<int64_t>(sizeof(T));
  INSTRUCTRL_LAUNCH(kernel, args.layout.num_rows, forward_threads(row_bytes), 0, stream, data<T>(logits), args);
}

std::tuple<Tensor, Tensor, Tensor> token_logprobs(const Tensor& logits, const Tensor& tokens,
                                                  std::optional<Tensor> mask, std::optional<Tensor> allowed,
                                                  double temperature, double tanh_slope, bool with_entropy) {
  Tensor rows = logits;
  const RowLayout layout = readable_layout(rows);
  const Tensor dense_tokens = dense(tokens);
  const std::optional<Tensor> dense_mask = dense(mask), dense_allowed = dense(allowed);
  const Tensor logprobs = empty_shaped(tokens, ScalarType::Float);
  const Tensor entropy = with_entropy ? empty_shaped(tokens, ScalarType::Float) : empty(logits, {0}, ScalarType::Float);
  std::vector<int64_t> shape(tokens.sizes().begin(), tokens.sizes().end());
  shape.push_back(2);
  const Tensor normalizers = empty(logits, shape.data(), static_cast<int64_t>(shape.size()), ScalarType::Float);
  if (layout.num_rows > 0) {
    const OnDevice device(logits);
    const ForwardArgs args = {layout,
                              data<int64_t>(dense_tokens),
                              data<bool>(dense_mask),
                              static_cast<float>(temperature),
                              mutable_data<float>(logprobs),
                              mutable_data<float>(entropy),
                              mutable_data<float>(normalizers),
                              0.0f,
                              logit_map(tanh_slope, dense_allowed)};
    dispatch_floating(logits.scalar_type(), "logits", [&](auto tag) {
      launch_forward<typename decltype(tag)::type>(rows, args, with_entropy, device.stream());
    });
  }
  return {logprobs, entropy, normalizers};
}

struct Upstream {
  std::optional<Tensor> entropy, grad_logprobs, grad_entropy;
};

// What is done to the logits.
struct Shape {
  std::optional<Tensor> allowed;
  double temperature, tanh_slope;
};

// `rows` and `gradient` are laid out as `layout` and `output_layout` say.
void write_gradient(const Tensor& rows, const RowLayout& layout, const Tensor& gradient, const RowLayout& output_layout,
                    const Tensor& tokens, const std::optional<Tensor>& mask, const Tensor& normalizers,
                    const Upstream& upstream, const Shape& shape) {
  if (layout.num_rows == 0) return;
  const Tensor dense_tokens = dense(tokens), dense_normalizers = dense(normalizers);
  const std::optional<Tensor> dense_mask = dense(mask), dense_allowed = dense(shape.allowed);
  const LogitMap map = logit_map(shape.tanh_slope, dense_allowed);
  const std::optional<Tensor> entropy = dense(upstream.entropy), grad_logprobs = dense(upstream.grad_logprobs),
                              grad_entropy = dense(upstream.grad_entropy);
  const OnDevice device(rows);
  dispatch_floating(rows.scalar_type(), "logits", [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int64_t kTile = int64_t{kUnrolled} * kBackwardThreads * kLanes<T>;
    const int64_t tiles = (layout.num_classes + kTile - 1) / kTile;
    const int64_t rows_per_launch = kMaxBlocks / tiles;
    for (int64_t first = 0; first < layout.num_rows; first += rows_per_launch) {
      const BackwardArgs args = {layout,
                                 output_layout,
                                 data<int64_t>(dense_tokens),
                                 data<bool>(dense_mask),
                                 data<float>(dense_normalizers),
                                 data<float>(entropy),
                                 data<float>(grad_logprobs),
                                 data<float>(grad_entropy),
                                 static_cast<float>(shape.temperature),
                                 static_cast<unsigned>(tiles),
                                 first,
                                 map};
      const int64_t num_rows = std::min(rows_per_launch, layout.num_rows - first);
      const auto kernel = is_plain(map) ? &logprobs_backward<T, false> : &logprobs_backward<T, true>;
      INSTRUCTRL_LAUNCH(kernel, num_rows * tiles, kBackwardThreads, 0, device.stream(), data<T>(rows),
                        mutable_data<T>(gradient), args);
    }
  });
}

Tensor token_logprobs_backward(const Tensor& logits, const Tensor& tokens, std::optional<Tensor> mask,
                               std::optional<Tensor> allowed, const Tensor& normalizers, std::optional<Tensor> entropy,
                               std::optional<Tensor> grad_logprobs, std::optional<Tensor> grad_entropy,
                               double temperature, double tanh_slope) {
  Tensor rows = logits;
  const RowLayout layout = readable_layout(rows);
  const Tensor gradient = empty_shaped(logits, logits.scalar_type());
  write_gradient(rows, layout, gradient, *row_layout(gradient), tokens, mask, normalizers,
                 {entropy, grad_logprobs, grad_entropy}, {allowed, temperature, tanh_slope});
  return gradient;
}

void token_logprobs_backward_(Tensor logits, const Tensor& tokens, std::optional<Tensor> mask,
                              std::optional<Tensor> allowed, const Tensor& normalizers, std::optional<Tensor> entropy,
                              std::optional<Tensor> grad_logprobs, std::optional<Tensor> grad_entropy,
                              double temperature, double tanh_slope) {
  const std::optional<RowLayout> layout = row_layout(logits);
  STD_TORCH_CHECK(layout.has_value(), "logits: two strides do not describe its rows");
  write_gradient(logits, *layout, logits, *layout, tokens, mask, normalizers, {entropy, grad_logprobs, grad_entropy},
                 {allowed, temperature, tanh_slope});
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m) {
  INSTRUCTRL_REGISTER(m, "token_logprobs", instructrl::token_logprobs);
  INSTRUCTRL_REGISTER(m, "token_logprobs_backward", instructrl::token_logprobs_backward);
  INSTRUCTRL_REGISTER(m, "token_logprobs_backward_", instructrl::token_logprobs_backward_);
}
