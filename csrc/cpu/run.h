// From a tensor's dtype to a kernel, and from a kernel's items to threads.
#pragma once

#include <algorithm>

#include "cpu/cpu_kernels.h"
#include "stable.h"

namespace instructrl {

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return kFloat32;
    case ScalarType::BFloat16:
      return kBFloat16;
    case ScalarType::Half:
      return kFloat16;
    default:
      STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double, "expected a floating-point tensor");
      return kFloat64;
  }
}

inline int64_t num_blocks(int64_t num_elements, int64_t block) { return (num_elements + block - 1) / block; }

// Items that keep a thread busy for longer than it takes to wake it: some 16384 elements.
inline int64_t grain(int64_t elements_per_item) { return 1 + 16384 / std::max<int64_t>(elements_per_item, 1); }

// `function(begin, end)` over the items from 0, several of them at least for each thread. Few items do not pay the toll of
// the call into torch.
template <class Function>
void run_items(int64_t num_items, int64_t grain, const Function& function) {
  if (num_items <= grain) {
    if (num_items > 0) function(0, num_items);
  } else {
    torch::stable::parallel_for(0, num_items, grain, function);
  }
}

template <class Args>
void run_items(Kernel<Args> kernel, const Args& args, int64_t num_items, int64_t grain) {
  run_items(num_items, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace instructrl
