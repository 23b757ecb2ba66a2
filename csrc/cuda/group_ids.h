// Ids of groups as they are given; what is no group is for the kernel to see, never to follow.
#pragma once

#include "cuda/launch.h"
#include "stable.h"

namespace instructrl {

struct GroupIds {
  const void* data;
  bool is_int64;
  int64_t num_groups;

  __device__ __forceinline__ int64_t operator[](int64_t i) const {
    return is_int64 ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

// `groups` is dense.
inline GroupIds group_ids(const Tensor& groups, int64_t num_groups) {
  return {groups.data_ptr(), groups.scalar_type() == ScalarType::Long, num_groups};
}

}  // namespace instructrl
