// Zero mean and unit variance over the counted elements: moments in one launch, their application in another.
//
// Bytes: 1 + sizeof(T) per element for the moments, the same again and 4 written for the application (the second read
// comes from L2 up to some ten million elements). Given stats: the second launch alone.
//
// Moments are double. A thread adds up differences from the first element it counts, so that a large mean costs no
// digits: the element is one of the data, hence the error is at most that of as many additions of the variance itself.
// Threads, warps and blocks are merged by Chan's formula, blocks in the order of their index by the one that ends last.
//
// By group: moments of rows, merged by group in the order of rows, applied to rows; three launches.
#include <algorithm>

#include "cuda/group_ids.h"
#include "cuda/tokens.h"

namespace instructrl {
namespace {

constexpr int64_t kMaxRowBlocks = 65536;  // Beyond that blocks take several rows.

struct Moments {
  double count = 0.0;
  double mean = 0.0;
  double deviations = 0.0;  // Sum of the squared deviations from the mean.

  __device__ __forceinline__ void merge(const Moments& other) {
    const double total = count + other.count;
    if (other.count == 0.0) return;
    const double difference = other.mean - mean, share = other.count / total;
    deviations += other.deviations + difference * difference * count * share;
    mean += difference * share;
    count = total;
  }
};

// Of the block, in thread 0.
__device__ __forceinline__ Moments block_moments(Moments mine) {
  __shared__ double of_warp[kTokenThreads / kWarpSize][3];
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    Moments other;
    other.count = __shfl_down_sync(kFullWarp, mine.count, offset);
    other.mean = __shfl_down_sync(kFullWarp, mine.mean, offset);
    other.deviations = __shfl_down_sync(kFullWarp, mine.deviations, offset);
    mine.merge(other);
  }
  __syncthreads();  // The array may still be in use by an earlier call.
  if (threadIdx.x % kWarpSize == 0) {
    double* const row = of_warp[threadIdx.x / kWarpSize];
    row[0] = mine.count, row[1] = mine.mean, row[2] = mine.deviations;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kTokenThreads / kWarpSize; ++warp) {
      Moments other;
      other.count = of_warp[warp][0], other.mean = of_warp[warp][1], other.deviations = of_warp[warp][2];
      mine.merge(other);
    }
  }
  return mine;
}

template <class T>
struct Arguments {
  const T* x;
  const bool* mask;
  int64_t num_elements;
  bool aligned;
  WhiteningRule rule;
};

// Numbers of one thread, added up as differences from the first.
struct Pivoted {
  double pivot = 0.0, sum = 0.0, squares = 0.0;
  int64_t count = 0;

  __device__ __forceinline__ void add(double x) {
    if (count == 0) pivot = x;
    count += 1;
    sum += x - pivot;
    squares += (x - pivot) * (x - pivot);
  }

  __device__ __forceinline__ Moments moments() const {
    Moments found;
    if (count == 0) return found;
    found.count = static_cast<double>(count);
    found.mean = pivot + sum / found.count;
    found.deviations = maximum(squares - sum * (sum / found.count), 0.0);
    return found;
  }
};

// `partials`: [number of blocks, 3]. `result`: mean and scale.
template <class T>
__global__ void __launch_bounds__(kTokenThreads)
    moments_kernel(const Arguments<T> a, double* partials, unsigned* ticket, double* result) {
  constexpr int kGroup = Vector<T>::kSize;
  Pivoted mine;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTokenThreads * kGroup;
  int64_t first = (static_cast<int64_t>(blockIdx.x) * kTokenThreads + threadIdx.x) * kGroup;
  for (; first < a.num_elements; first += step) {
    const bool whole = a.aligned && first + kGroup <= a.num_elements;
    const unsigned counted = load_mask<kGroup>(a.mask, first, a.num_elements, whole);
    if (counted == 0) continue;
    const Vector<T> group = load_group(a.x, first, counted, whole);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (!(counted >> k & 1)) continue;
      mine.add(static_cast<double>(static_cast<float>(group.lane[k])));
    }
  }
  const Moments moments = block_moments(mine.moments());
  if (threadIdx.x == 0) {
    double* const row = partials + 3 * static_cast<int64_t>(blockIdx.x);
    row[0] = moments.count, row[1] = moments.mean, row[2] = moments.deviations;
  }
  __shared__ bool last;
  if (!is_last_block(ticket, &last)) return;
  // Neighbouring blocks' moments to one thread, so that the merges are in the order of the blocks.
  const int64_t num_blocks = gridDim.x, per_thread = (num_blocks + kTokenThreads - 1) / kTokenThreads;
  Moments total;
  for (int64_t b = threadIdx.x * per_thread; b < (threadIdx.x + 1) * per_thread && b < num_blocks; ++b) {
    Moments other;
    other.count = __ldcg(partials + 3 * b), other.mean = __ldcg(partials + 3 * b + 1);
    other.deviations = __ldcg(partials + 3 * b + 2);
    total.merge(other);
  }
  total = block_moments(total);
  if (threadIdx.x == 0) {
    const Whitening found = whitening(total.mean, total.deviations, total.count, a.rule);
    result[0] = found.mean;
    result[1] = found.scale;
  }
}

enum class Source { kMoments, kFloatSums, kDoubleSums };

// What to whiten by: mean and scale of the launch before, or sums given by the caller.
template <Source kSource>
__device__ __forceinline__ Whitening whitening_of(const void* source, const WhiteningRule& rule) {
  if constexpr (kSource == Source::kMoments) {
    const double* const moments = static_cast<const double*>(source);
    return {moments[0], moments[1]};
  } else if constexpr (kSource == Source::kDoubleSums) {
    const double* const sums = static_cast<const double*>(source);
    return whitening_from_sums(sums[0], sums[1], sums[2], rule);
  } else {
    const float* const sums = static_cast<const float*>(source);
    return whitening_from_sums(sums[0], sums[1], sums[2], rule);
  }
}

template <class T, Source kSource>
__global__ void __launch_bounds__(kTokenThreads) apply_kernel(const Arguments<T> a, const void* source, float* result) {
  constexpr int kGroup = Vector<T>::kSize;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kTokenThreads + threadIdx.x) * kGroup;
  if (first >= a.num_elements) return;
  const Whitening by = whitening_of<kSource>(source, a.rule);
  const bool whole = a.aligned && first + kGroup <= a.num_elements;
  const unsigned counted = load_mask<kGroup>(a.mask, first, a.num_elements, whole);
  float whitened[kGroup] = {};
  if (counted != 0) {
    const Vector<T> group = load_group(a.x, first, counted, whole);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (!(counted >> k & 1)) continue;
      whitened[k] = static_cast<float>((static_cast<double>(static_cast<float>(group.lane[k])) - by.mean) * by.scale);
    }
  }
  store_group(result, first, a.num_elements, whole, whitened);
}

// [num_blocks, 3] partials, mean, scale, and the ticket: of this call alone, since streams may run at once.
Tensor moments_of(const Tensor& x, int64_t num_blocks) {
  return empty(x, {3 * num_blocks + 3}, ScalarType::Double);
}

Tensor masked_whiten(Tensor x, Tensor mask, std::optional<Tensor> stats, bool center, int64_t ddof, double epsilon,
                     int64_t epsilon_at) {
  const OnDevice on(x);
  Tensor result = empty_shaped(x, ScalarType::Float);
  const int64_t num_elements = x.numel();
  if (num_elements == 0) return result;
  const Tensor dense_x = dense(x), dense_mask = dense(mask);
  const std::optional<Tensor> sums = dense(stats);
  dispatch_floating(x.scalar_type(), "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const bool aligned =
        is_aligned(dense_x.data_ptr(), 16) && Tokens<T>::mask_is_aligned(data<bool>(dense_mask));
    const Arguments<T> a = {data<T>(dense_x), data<bool>(dense_mask), num_elements, aligned,
                            {center, ddof, epsilon, epsilon_at}};
    const int64_t apply_blocks = ceil_div(num_elements, Tokens<T>::kPerBlock);
    float* const target = mutable_data<float>(result);
    if (sums && sums->scalar_type() == ScalarType::Double) {
      INSTRUCTRL_LAUNCH((apply_kernel<T, Source::kDoubleSums>), apply_blocks, kTokenThreads, 0, on.stream(), a,
                        sums->data_ptr(), target);
      return;
    }
    if (sums) {
      STD_TORCH_CHECK(sums->scalar_type() == ScalarType::Float, "stats: a dtype that the CUDA kernels do not read");
      INSTRUCTRL_LAUNCH((apply_kernel<T, Source::kFloatSums>), apply_blocks, kTokenThreads, 0, on.stream(), a,
                        sums->data_ptr(), target);
      return;
    }
    const int64_t num_blocks = Tokens<T>::num_blocks(num_elements);
    const Tensor scratch = moments_of(x, num_blocks);
    double* const partials = mutable_data<double>(scratch);
    double* const found = partials + 3 * num_blocks;
    unsigned* const ticket = reinterpret_cast<unsigned*>(found + 2);
    if (num_blocks > 1) check_cuda(cudaMemsetAsync(ticket, 0, sizeof(unsigned), on.stream()), "memset of the ticket");
    INSTRUCTRL_LAUNCH(moments_kernel<T>, num_blocks, kTokenThreads, 0, on.stream(), a, partials, ticket, found);
    INSTRUCTRL_LAUNCH((apply_kernel<T, Source::kMoments>), apply_blocks, kTokenThreads, 0, on.stream(), a, found,
                      target);
  });
  return result;
}

// Rows of x, and the groups that they are of.
template <class T>
struct GroupArguments {
  const T* x;
  const bool* mask;
  int64_t num_rows;
  int64_t length;
  GroupIds groups;
  WhiteningRule rule;
};

// A block a row. `rows`: [num_rows, 3].
template <class T>
__global__ void __launch_bounds__(kTokenThreads) row_moments_kernel(const GroupArguments<T> a, double* rows) {
  for (int64_t row = blockIdx.x; row < a.num_rows; row += gridDim.x) {
    Pivoted mine;
    for (int64_t i = threadIdx.x; i < a.length; i += kTokenThreads) {
      const int64_t place = row * a.length + i;
      if (a.mask[place]) mine.add(static_cast<double>(static_cast<float>(a.x[place])));
    }
    const Moments moments = block_moments(mine.moments());
    if (threadIdx.x == 0) {
      double* const found = rows + 3 * row;
      found[0] = moments.count, found[1] = moments.mean, found[2] = moments.deviations;
    }
  }
}

// A block a group, which looks at every row: neighbouring rows by one thread, so that merges are in the order of rows.
// `by`: [num_groups, 2], mean and scale.
template <class T>
__global__ void __launch_bounds__(kTokenThreads)
    group_moments_kernel(const GroupArguments<T> a, const double* rows, double* by) {
  const int64_t per_thread = (a.num_rows + kTokenThreads - 1) / kTokenThreads;
  for (int64_t group = blockIdx.x; group < a.groups.num_groups; group += gridDim.x) {
    Moments total;
    for (int64_t row = threadIdx.x * per_thread; row < (threadIdx.x + 1) * per_thread && row < a.num_rows; ++row) {
      if (a.groups[row] != group) continue;
      Moments other;
      other.count = rows[3 * row], other.mean = rows[3 * row + 1], other.deviations = rows[3 * row + 2];
      total.merge(other);
    }
    total = block_moments(total);
    if (threadIdx.x == 0) {
      const Whitening found = whitening(total.mean, total.deviations, total.count, a.rule);
      by[2 * group] = found.mean, by[2 * group + 1] = found.scale;
    }
  }
}

// A block a row; NaN in rows without a group.
template <class T>
__global__ void __launch_bounds__(kTokenThreads)
    apply_by_group_kernel(const GroupArguments<T> a, const double* by, float* result) {
  for (int64_t row = blockIdx.x; row < a.num_rows; row += gridDim.x) {
    const int64_t group = a.groups[row];
    const bool known = group >= 0 && group < a.groups.num_groups;
    const double mean = known ? by[2 * group] : double{NAN}, scale = known ? by[2 * group + 1] : double{NAN};
    for (int64_t i = threadIdx.x; i < a.length; i += kTokenThreads) {
      const int64_t place = row * a.length + i;
      float whitened = 0.0f;
      if (a.mask[place]) {
        whitened = static_cast<float>((static_cast<double>(static_cast<float>(a.x[place])) - mean) * scale);
      }
      result[place] = whitened;
    }
  }
}

Tensor group_whiten(const Tensor& x, const Tensor& mask, const Tensor& groups, int64_t num_groups, bool center,
                    int64_t ddof, double epsilon, int64_t epsilon_at) {
  const OnDevice on(x);
  Tensor result = empty_shaped(x, ScalarType::Float);
  if (x.numel() == 0) return result;
  const Tensor dense_x = dense(x), dense_mask = dense(mask), dense_groups = dense(groups);
  const int64_t num_rows = x.size(0), row_blocks = std::min(num_rows, kMaxRowBlocks);
  const Tensor rows = empty(x, {num_rows, 3}, ScalarType::Double), by = empty(x, {num_groups, 2}, ScalarType::Double);
  dispatch_floating(x.scalar_type(), "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const GroupArguments<T> a = {data<T>(dense_x),      data<bool>(dense_mask),
                                 num_rows,              x.numel() / num_rows,
                                 group_ids(dense_groups, num_groups), {center, ddof, epsilon, epsilon_at}};
    INSTRUCTRL_LAUNCH(row_moments_kernel<T>, row_blocks, kTokenThreads, 0, on.stream(), a, mutable_data<double>(rows));
    INSTRUCTRL_LAUNCH(group_moments_kernel<T>, std::min(num_groups, kMaxRowBlocks), kTokenThreads, 0, on.stream(), a,
                      data<double>(rows), mutable_data<double>(by));
    INSTRUCTRL_LAUNCH(apply_by_group_kernel<T>, row_blocks, kTokenThreads, 0, on.stream(), a, data<double>(by),
                      mutable_data<float>(result));
  });
  return result;
}

}  // namespace
}  // namespace instructrl

STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m) {
  INSTRUCTRL_REGISTER(m, "masked_whiten", instructrl::masked_whiten);
  INSTRUCTRL_REGISTER(m, "group_whiten", instructrl::group_whiten);
}
