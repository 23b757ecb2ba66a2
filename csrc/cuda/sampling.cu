// The first token whose cumulative probability exceeds a uniform number: a block per row.
//
// Weights exp((x - max) / T) are rounded to integers of up to 61 bits less the width of the vocabulary, so their sums
// are exact in any order: a row's sample depends neither on where the row lies in memory nor on the rows beside it, and
// what is summed and what is searched later agree to the last bit. A weight below V / 2^62 of the largest (2^-46 for
// 50,257 tokens) becomes 0; a token of weight 0 is never taken.
//
// The row is read twice, for the maximum and for the sum of each warp's sixteenth (from L2 the second time), then the
// sixteenth that holds the token once more, split over the warps again, and one warp walks through 1/256 of the row.
// Bytes from DRAM: V elements a row. 512 threads: rows are few in a decoding step, and a multiprocessor holds four.
#include "cuda/online_softmax.h"

namespace instructrl {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarpSize;
using Weight = unsigned long long;

template <class T>
struct Arguments {
  const T* logits;
  int64_t row_stride;
  int64_t num_classes;
  const void* uniforms;
  bool uniforms_are_double;
  float inverse_temperature;
  float weight_scale;  // A power of two; num_classes weights of at most this fit in 61 bits.
  LogitMap map;        // Of the first row.
  int64_t allowed_stride;
  int64_t* tokens;
};

// The lanes of a warp visit source[0 .. size), by 16 bytes where aligned: function(value, index).
template <class T, class Function>
__device__ __forceinline__ void for_each(const T* source, int64_t size, Function&& function) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(source) % 16 / sizeof(T));
  int64_t head = misaligned == 0 ? 0 : Vector<T>::kSize - misaligned;
  head = head < size ? head : size;
  if (lane < head) function(static_cast<float>(source[lane]), lane);
  const int64_t num_vectors = (size - head) / Vector<T>::kSize;
#pragma unroll 4
  for (int64_t v = lane; v < num_vectors; v += kWarpSize) {
    const int64_t first = head + v * Vector<T>::kSize;
    const Vector<T> vector = load_vector(source + first);
#pragma unroll
    for (int k = 0; k < Vector<T>::kSize; ++k) function(static_cast<float>(vector.lane[k]), first + k);
  }
  const int64_t tail = head + num_vectors * Vector<T>::kSize + lane;
  if (tail < size) function(static_cast<float>(source[tail]), tail);
}

template <bool kMapped>
struct Scale {
  float largest;
  float inverse_temperature;
  float weight_scale;
  LogitMap map;

  // Of class k, whose logit is x.
  __device__ __forceinline__ Weight weight(float x, int64_t k) const {
    const float probability = expf((mapped_class<kMapped>(x, k, map) - largest) * inverse_temperature);
    // NaN gives 0 as well: rows without a finite maximum have no weight anywhere.
    return probability > 0.0f ? static_cast<Weight>(probability * weight_scale + 0.5f) : 0;
  }
};

struct Segment {
  int64_t begin;
  int64_t size;
  Weight before;  // The weight of everything in front of it, in the row.
};

// One of the equal parts of a segment, for one warp.
__device__ __forceinline__ Segment part_of(const Segment& segment, int index) {
  const int64_t part = (segment.size + kWarps - 1) / kWarps;
  const int64_t begin = part * index < segment.size ? part * index : segment.size;
  const int64_t size = segment.size - begin < part ? segment.size - begin : part;
  return {segment.begin + begin, size, segment.before};
}

// The weight of each warp's part, in sums[0 .. kWarps), for all threads.
template <class T, bool kMapped>
__device__ __forceinline__ void sum_parts(const T* row, const Segment& segment, const Scale<kMapped>& scale,
                                          Weight* sums) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const Segment part = part_of(segment, warp);
  Weight sum = 0;
  for_each(row + part.begin, part.size, [&](float x, int64_t i) { sum += scale.weight(x, part.begin + i); });
  sum = warp_sum(sum);
  if (threadIdx.x % kWarpSize == 0) sums[warp] = sum;
  __syncthreads();
}

// The first part whose end lies above `target`. There is one: `target` is below the sum of all.
__device__ __forceinline__ Segment part_with(const Segment& segment, const Weight* sums, Weight target) {
  Weight before = segment.before;
  int index = 0;
  while (index < kWarps - 1 && before + sums[index] <= target) before += sums[index++];
  Segment part = part_of(segment, index);
  part.before = before;
  return part;
}

// Called by one warp: the index of the element at which the running sum first exceeds `target`.
template <class T, bool kMapped>
__device__ __forceinline__ int64_t walk(const T* row, const Segment& segment, const Scale<kMapped>& scale,
                                        Weight target) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  Weight before = segment.before;
  for (int64_t first = 0; first < segment.size; first += kWarpSize) {
    const int64_t k = segment.begin + first + lane;
    Weight up_to_here = first + lane < segment.size ? scale.weight(static_cast<float>(row[k]), k) : 0;
#pragma unroll
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const Weight left = __shfl_up_sync(kFullWarp, up_to_here, offset);
      if (lane >= offset) up_to_here += left;
    }
    const unsigned above = __ballot_sync(kFullWarp, before + up_to_here > target);
    if (above != 0) return segment.begin + first + __ffs(static_cast<int>(above)) - 1;
    before += __shfl_sync(kFullWarp, up_to_here, kWarpSize - 1);
  }
  return segment.begin;
}

// With a map ptxas would leave 40 registers on sm_100 and spill, where it is not told that one block is enough.
template <class T, bool kMapped>
__global__ void __launch_bounds__(kThreads, kMapped ? 1 : 0) sample_kernel(const Arguments<T> a) {
  __shared__ float largest_of_warp[kWarps];
  __shared__ Weight sums[kWarps];
  __shared__ Weight part_sums[kWarps];
  const int64_t index = blockIdx.x;
  const T* const row = a.logits + index * a.row_stride;
  const Segment whole = {0, a.num_classes, 0};
  LogitMap map = a.map;
  if (map.allowed != nullptr) map.allowed += index * a.allowed_stride;

  float largest = -INFINITY;
  const Segment mine = part_of(whole, static_cast<int>(threadIdx.x) / kWarpSize);
  for_each(row + mine.begin, mine.size, [&](float x, int64_t i) {
    largest = maximum(largest, mapped_class<kMapped>(x, mine.begin + i, map));
  });
  largest = block_maximum<kThreads>(largest, largest_of_warp);
  const Scale<kMapped> scale = {largest, a.inverse_temperature, a.weight_scale, map};

  sum_parts(row, whole, scale, sums);
  Weight total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += sums[warp];
  if (total == 0) {
    // NaN somewhere, or nothing finite: nobody's sample, but inside of the vocabulary.
    if (threadIdx.x == 0) a.tokens[index] = 0;
    return;
  }
  const double uniform = a.uniforms_are_double ? static_cast<const double*>(a.uniforms)[index]
                                               : static_cast<double>(static_cast<const float*>(a.uniforms)[index]);
  // A double rounds the total, so the product may reach it.
  const double product = uniform * static_cast<double>(total);
  Weight target = product > 0.0 ? static_cast<Weight>(product) : 0;
  target = target < total ? target : total - 1;

  const Segment part = part_with(whole, sums, target);
  sum_parts(row, part, scale, part_sums);
  if (threadIdx.x >= kWarpSize) return;
  const int64_t token = walk(row, part_with(part, part_sums, target), scale, target);
  if (threadIdx.x == 0) a.tokens[index] = token;
}

float weight_scale(int64_t num_classes) {
  float scale = 2305843009213693952.0f;  // 2^61
  for (int64_t classes = 1; classes < num_classes; classes *= 2) scale *= 0.5f;
  return scale;
}

Tensor sample_tokens(Tensor logits, Tensor uniforms, std::optional<Tensor> allowed, double temperature,
                     double tanh_slope) {
  const OnDevice on(logits);
  const int64_t num_rows = logits.size(0), num_classes = logits.size(1);
  Tensor tokens = empty(logits, {num_rows}, ScalarType::Long);
  if (num_rows == 0) return tokens;
  const Tensor rows = num_classes == 1 || logits.stride(1) == 1 ? logits : dense(logits);
  const Tensor numbers = dense(uniforms);
  const std::optional<Tensor> dense_allowed = dense(allowed);
  const bool plain = tanh_slope == 0.0 && !allowed;
  dispatch_floating(rows.scalar_type(), "logits", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Arguments<T> a = {data<T>(rows),
                            rows.stride(0),
                            num_classes,
                            numbers.data_ptr(),
                            numbers.scalar_type() == ScalarType::Double,
                            static_cast<float>(1.0 / (temperature > 1e-38 ? temperature : 1e-38)),
                            weight_scale(num_classes),
                            {static_cast<float>(tanh_slope), data<bool>(dense_allowed)},
                            allowed && allowed->dim() == 2 ? num_classes : 0,
                            mutable_data<int64_t>(tokens)};
    const auto kernel = plain ? &sample_kernel<T, false> : &sample_kernel<T, true>;
    INSTRUCTRL_LAUNCH(kernel, num_rows, kThreads, 0, on.stream(), a);
  });
  return tokens;
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m) {
  INSTRUCTRL_REGISTER(m, "sample_tokens", instructrl::sample_tokens);
}
