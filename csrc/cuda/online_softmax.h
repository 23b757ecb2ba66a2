// The softmax of a row in one pass: its largest element and sums of exponentials below it, by a thread and by a warp.
#pragma once

#include "cuda/block.h"
#include "cuda/rows.h"
#include "formulas.h"

namespace instructrl {

inline constexpr int kUnrolled = 4;  // Vectors in flight in a thread.

// The base to a lower power is 0; a clamped exponent keeps 0 * -inf out of the entropy.
inline constexpr float kNegligible = -1000.0f;

// What becomes of the classes of a row before their softmax: tanh(tanh_slope * x), and -inf where not allowed. Kernels are
// compiled apart for rows that stay as they are (kMapped false), whose registers and bandwidth those functions would cost.
struct LogitMap {
  float tanh_slope;     // 0: no tanh.
  const bool* allowed;  // A number for each class; nullptr: all are.
};

template <bool kMapped>
__device__ __forceinline__ float mapped_class(float x, int64_t k, const LogitMap& map) {
  if constexpr (kMapped) {
    if (map.tanh_slope != 0.0f && x != -INFINITY) x = tanh_of(x * map.tanh_slope);
    if (map.allowed != nullptr && !map.allowed[k]) x = -INFINITY;
  }
  return x;
}

// The derivative of mapped_class by x.
template <bool kMapped>
__device__ __forceinline__ float map_slope(float x, int64_t k, const LogitMap& map) {
  if constexpr (kMapped) {
    if (map.allowed != nullptr && !map.allowed[k]) return 0.0f;
    if (map.tanh_slope != 0.0f) return x == -INFINITY ? 0.0f : map.tanh_slope * tanh_derivative(x * map.tanh_slope);
  }
  return 1.0f;
}

// Of a subset of a row: the largest logit m, sum of e = power_of_base((x - m) * scale), and of e * (x - m) * scale.
struct Running {
  float max;
  float sum;
  float weighted;
};

template <class T>
__device__ __forceinline__ void raise_maximum(Running& running, float max, float scale) {
  const float shift = (running.max - max) * scale;
  const float factor = power_of_base<T>(shift);
  running.weighted = (running.weighted + running.sum * fmaxf(shift, kNegligible)) * factor;
  running.sum *= factor;
  running.max = max;
}

// fmaxf drops a NaN; the exponential does not.
template <class T, bool kWithEntropy>
__device__ __forceinline__ void add_below_maximum(Running& running, float x, float scale) {
  const float power = (x - running.max) * scale;
  const float e = power_of_base<T>(power);
  running.sum += e;
  if constexpr (kWithEntropy) running.weighted += e * fmaxf(power, kNegligible);
}

template <class T, bool kWithEntropy>
__device__ __forceinline__ void add(Running& running, float x, float scale) {
  raise_maximum<T>(running, fmaxf(running.max, x), scale);
  add_below_maximum<T, kWithEntropy>(running, x, scale);
}

template <class T>
__device__ __forceinline__ void merge(Running& running, Running other, float scale) {
  const float max = fmaxf(running.max, other.max);
  raise_maximum<T>(running, max, scale);
  raise_maximum<T>(other, max, scale);
  running.sum += other.sum;
  running.weighted += other.weighted;
}

// Lane 0 gets the whole of its warp.
template <class T>
__device__ __forceinline__ void merge_warp(Running& running, float scale) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const Running other = {__shfl_down_sync(kFullWarp, running.max, offset),
                           __shfl_down_sync(kFullWarp, running.sum, offset),
                           __shfl_down_sync(kFullWarp, running.weighted, offset)};
    merge<T>(running, other, scale);
  }
}

// A thread's part of a row of `num_classes`.
template <class T, bool kWithEntropy>
__device__ __forceinline__ Running read_row(const T* row, int num_classes, float scale) {
  // Lower than any finite logit would leave (-inf) - (-inf) in rows that begin with -inf.
  Running running = {-FLT_MAX, 0.0f, 0.0f};
  const int thread = static_cast<int>(threadIdx.x), num_threads = static_cast<int>(blockDim.x);
  const Alignment aligned = alignment(row, num_classes);
  const uint4* vectors = reinterpret_cast<const uint4*>(row + aligned.head);
  for (int first = thread; first < aligned.num_vectors; first += kUnrolled * num_threads) {
    uint4 raw[kUnrolled];
    float max = running.max;
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      if (first + u * num_threads < aligned.num_vectors) raw[u] = vectors[first + u * num_threads];
    }
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      if (first + u * num_threads >= aligned.num_vectors) break;
      float x[kLanes<T>];
      unpack<T>(raw[u], x);
#pragma unroll
      for (int i = 0; i < kLanes<T>; ++i) max = fmaxf(max, x[i]);
    }
    raise_maximum<T>(running, max, scale);
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      if (first + u * num_threads >= aligned.num_vectors) break;
      float x[kLanes<T>];
      unpack<T>(raw[u], x);
#pragma unroll
      for (int i = 0; i < kLanes<T>; ++i) add_below_maximum<T, kWithEntropy>(running, x[i], scale);
    }
  }
  const int tail = aligned.head + aligned.num_vectors * kLanes<T>;
  if (thread < aligned.head) add<T, kWithEntropy>(running, static_cast<float>(row[thread]), scale);
  if (thread < num_classes - tail) add<T, kWithEntropy>(running, static_cast<float>(row[tail + thread]), scale);
  return running;
}

// The same of mapped classes, an element at a time: what a tanh costs leaves time for narrower loads.
template <class T, bool kWithEntropy>
__device__ __forceinline__ Running read_mapped_row(const T* row, int num_classes, float scale, const LogitMap& map) {
  Running running = {-FLT_MAX, 0.0f, 0.0f};
  const int num_threads = static_cast<int>(blockDim.x);
  for (int first = static_cast<int>(threadIdx.x); first < num_classes; first += kUnrolled * num_threads) {
    float x[kUnrolled];
    float max = running.max;
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int k = first + u * num_threads;
      x[u] = k < num_classes ? mapped_class<true>(static_cast<float>(row[k]), k, map) : -INFINITY;
      max = fmaxf(max, x[u]);
    }
    raise_maximum<T>(running, max, scale);
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) add_below_maximum<T, kWithEntropy>(running, x[u], scale);
  }
  return running;
}

}  // namespace instructrl
