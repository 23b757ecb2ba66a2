// torch's stable C++ interface, and the few things that every op needs of it: outputs, dense inputs, dispatch by dtype.
//
// Nothing here is ATen, so a library built with one torch loads in later ones (and in 2.10, the first that has all of it).
#pragma once

#ifndef TORCH_TARGET_VERSION
#define TORCH_TARGET_VERSION 0x020a000000000000ULL
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

namespace instructrl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// float64 where the inputs are, else float32: what sums are kept in and results are returned in.
inline ScalarType accumulation_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A new contiguous tensor on the device of `like`. Goes around the dispatcher: it costs half a microsecond, not three.
inline Tensor empty(const Tensor& like, const int64_t* sizes, int64_t num_dims, ScalarType dtype) {
  std::vector<int64_t> strides(num_dims);
  int64_t stride = 1;
  for (int64_t d = num_dims - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  int32_t device_type = 0, device_index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const auto encoded = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(num_dims, sizes, strides.data(), encoded, device_type, device_index, &handle));
  return Tensor(handle);
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty(like, sizes.begin(), static_cast<int64_t>(sizes.size()), dtype);
}

// A new contiguous tensor of the shape of `shape`.
inline Tensor empty_shaped(const Tensor& shape, ScalarType dtype) {
  return empty(shape, shape.sizes().data(), shape.dim(), dtype);
}

// The tensor itself where it is contiguous, else a copy that is.
inline Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

inline std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(dense(*tensor)) : std::nullopt;
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

// nullptr where there is no tensor.
template <class T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->data_ptr()) : nullptr;
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Rows of `[..., V]` whose last dimension is dense, addressed by two strides: row n starts at
// `(n / inner) * outer_stride + (n % inner) * inner_stride`. So `logits[:, :-1]` is read where it is.
struct RowLayout {
  int64_t num_rows = 0;
  int64_t num_classes = 0;
  int64_t inner = 1;
  int64_t outer_stride = 0;
  int64_t inner_stride = 0;
};

// The layout of `[..., V]`, or nullopt where two strides do not describe it.
inline std::optional<RowLayout> row_layout(const Tensor& logits) {
  const auto sizes = logits.sizes();
  const auto strides = logits.strides();
  const int64_t num_dims = logits.dim();
  RowLayout layout;
  layout.num_classes = sizes[num_dims - 1];
  layout.num_rows = 1;
  for (int64_t d = 0; d < num_dims - 1; ++d) layout.num_rows *= sizes[d];
  if (layout.num_rows == 0) return layout;
  if (layout.num_classes > 1 && strides[num_dims - 1] != 1) return std::nullopt;
  // Dimensions of size 1 say nothing; neighbours that continue each other are one.
  std::vector<std::pair<int64_t, int64_t>> merged;
  for (int64_t d = 0; d < num_dims - 1; ++d) {
    if (sizes[d] == 1) continue;
    if (!merged.empty() && merged.back().second == sizes[d] * strides[d]) {
      merged.back() = {merged.back().first * sizes[d], strides[d]};
    } else {
      merged.emplace_back(sizes[d], strides[d]);
    }
  }
  if (merged.size() > 2) return std::nullopt;
  if (!merged.empty()) {
    layout.inner = merged.back().first;
    layout.inner_stride = merged.back().second;
  }
  if (merged.size() == 2) layout.outer_stride = merged.front().second;
  return layout;
}

}  // namespace instructrl
