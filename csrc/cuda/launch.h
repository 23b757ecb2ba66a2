// What every CUDA op needs on the host side: device, stream, launches that are checked, dispatch by dtype.
//
// The sources also compile as plain C++ for a test that executes the kernels on the CPU, one fibre a thread
// (tests/cuda_on_host). So a launch goes through INSTRUCTRL_LAUNCH, dynamic shared memory through
// INSTRUCTRL_DYNAMIC_SHARED, registration through INSTRUCTRL_KEY, and inline PTX stays behind INSTRUCTRL_ON_HOST.
#pragma once

#include "schemas.h"
#include "stable.h"

#ifdef INSTRUCTRL_ON_HOST
#define INSTRUCTRL_KEY CPU
#else
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#define INSTRUCTRL_KEY CUDA
#endif

#include <cstdint>
#include <cstring>
#include <tuple>

namespace instructrl {

inline constexpr int kWarpSize = 32;
// The largest number of blocks on grid.x. Rows go there and nowhere else: y and z end at 65,535.
inline constexpr int64_t kMaxBlocks = 2147483647;

inline void check_cuda(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

#ifdef INSTRUCTRL_ON_HOST

// The device of a tensor, current for the life of this object, and torch's current stream on it.
class OnDevice {
 public:
  explicit OnDevice(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

#define INSTRUCTRL_LAUNCH(kernel, grid, block, shared_bytes, on_stream, ...)                                      \
  do {                                                                                                            \
    static_cast<void>(on_stream);                                                                                 \
    ::cuda_on_host::launch(#kernel, ::instructrl::checked_grid(grid), dim3(block), (shared_bytes),                \
                           [&] { kernel(__VA_ARGS__); });                                                         \
  } while (false)

#define INSTRUCTRL_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::cuda_on_host::dynamic_shared())

#else

// torch's current stream. Looked up by name in the library that torch has loaded, which a CPU build of torch, enough to
// compile against, does not have to link with.
inline cudaStream_t current_stream(int32_t device_index) {
  using Function = AOTITorchError (*)(int32_t device_index, void** stream);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* found = library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
    STD_TORCH_CHECK(found != nullptr, "this torch has no libtorch_cuda.so with aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Function>(found);
  }();
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(function(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor)
      : guard_(tensor.get_device()), stream_(current_stream(tensor.get_device())) {}
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// `kernel` in parentheses where it is a template with several arguments.
#define INSTRUCTRL_LAUNCH(kernel, grid, block, shared_bytes, on_stream, ...)                                        \
  do {                                                                                                              \
    kernel<<<::instructrl::checked_grid(grid), dim3(block), (shared_bytes), (on_stream)>>>(__VA_ARGS__);            \
    ::instructrl::check_cuda(cudaGetLastError(), "launch of " #kernel);                                             \
  } while (false)

// One array of bytes under several types: an `extern __shared__` name has one type in a translation unit.
#define INSTRUCTRL_DYNAMIC_SHARED(type, name)                              \
  extern __shared__ __align__(16) unsigned char instructrl_shared_bytes[]; \
  type* name = reinterpret_cast<type*>(instructrl_shared_bytes)

#endif

inline dim3 checked_grid(int64_t num_blocks) {
  STD_TORCH_CHECK(num_blocks > 0 && num_blocks <= kMaxBlocks, "a grid of ", num_blocks, " blocks");
  return dim3(static_cast<unsigned>(num_blocks));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool is_aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

inline int64_t num_multiprocessors(const Tensor& on) {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, on.get_device()), "multiprocessor count");
  return count;
}

template <class T>
struct TypeTag {
  using type = T;
};

// function(TypeTag<T>{}) with T for float32, bfloat16 or float16.
template <class Function>
void dispatch_floating(ScalarType dtype, const char* argument, Function&& function) {
  switch (dtype) {
    case ScalarType::Float: return function(TypeTag<float>{});
    case ScalarType::BFloat16: return function(TypeTag<torch::headeronly::BFloat16>{});
    case ScalarType::Half: return function(TypeTag<torch::headeronly::Half>{});
    default: STD_TORCH_CHECK(false, argument, ": a dtype that the CUDA kernels do not read");
  }
}

// Registers `function` under the backend's prefix, inside of STABLE_TORCH_LIBRARY_IMPL(instructrl, INSTRUCTRL_KEY, m).
#define INSTRUCTRL_REGISTER(m, name, function) m.impl(INSTRUCTRL_PREFIX name, TORCH_BOX(&function))

}  // namespace instructrl
