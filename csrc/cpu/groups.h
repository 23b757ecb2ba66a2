// Ids of groups, as the CPU reads them.
#pragma once

#include <algorithm>
#include <vector>

#include "stable.h"

namespace instructrl {

inline std::vector<int64_t> ids_of(const Tensor& given) {
  const Tensor groups = dense(given);
  std::vector<int64_t> ids(groups.numel());
  if (groups.scalar_type() == ScalarType::Int) {
    std::copy_n(data<int32_t>(groups), ids.size(), ids.begin());
  } else {
    STD_TORCH_CHECK(groups.scalar_type() == ScalarType::Long, "groups: expected int32 or int64");
    std::copy_n(data<int64_t>(groups), ids.size(), ids.begin());
  }
  return ids;
}

inline bool is_group(int64_t id, int64_t num_groups) { return id >= 0 && id < num_groups; }

}  // namespace instructrl
