// Rows of logits in 16-byte vectors: where a row starts, which part of it is aligned, and how a vector is read whose
// 16 bytes straddle two aligned ones.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "cuda/launch.h"
#include "stable.h"

namespace instructrl {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// 2^y, relative error 2^-22; 0 where the result would be subnormal. exp2f costs three more instructions to keep those.
__device__ __forceinline__ float fast_exp2(float y) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(y));
  return result;
#else
  return exp2f(y);
#endif
}

// Rows of float32 exponentiate to base e with expf, to one unit in the last place, which 4 bytes an element leave time
// for. Rows of 16 bits exponentiate to base 2: one instruction, and an error far below that of the logits.
template <class T>
inline constexpr float kLogOfBase = sizeof(T) == 2 ? kLn2 : 1.0f;
template <class T>
inline constexpr float kBasePerLog = sizeof(T) == 2 ? kLog2E : 1.0f;

template <class T>
__device__ __forceinline__ float power_of_base(float y) {
  if constexpr (sizeof(T) == 2) return fast_exp2(y);
  return expf(y);
}

// Elements in 16 bytes.
template <class T>
inline constexpr int kLanes = 16 / static_cast<int>(sizeof(T));

template <class T>
__device__ __forceinline__ T* row_start(T* base, const RowLayout& layout, int64_t row) {
  return base + (row / layout.inner) * layout.outer_stride + (row % layout.inner) * layout.inner_stride;
}

// A row is `head` elements up to the first 16-byte boundary, `num_vectors` aligned vectors, and fewer than kLanes after
// them. With an odd number of classes each row starts at another phase.
struct Alignment {
  int head;
  int num_vectors;
};

template <class T>
__device__ __forceinline__ Alignment alignment(const T* row, int num_classes) {
  const int phase = static_cast<int>(reinterpret_cast<uintptr_t>(row) & 15) / static_cast<int>(sizeof(T));
  const int to_boundary = (kLanes<T> - phase) & (kLanes<T> - 1);
  const int head = to_boundary < num_classes ? to_boundary : num_classes;
  return {head, (num_classes - head) / kLanes<T>};
}

template <class T>
__device__ __forceinline__ void unpack(const uint4& raw, float (&x)[kLanes<T>]) {
  T lanes[kLanes<T>];
  memcpy(lanes, &raw, sizeof(raw));
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) x[i] = static_cast<float>(lanes[i]);
}

template <class T>
__device__ __forceinline__ uint4 pack(const float (&x)[kLanes<T>]) {
  T lanes[kLanes<T>];
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) lanes[i] = static_cast<T>(x[i]);
  uint4 raw;
  memcpy(&raw, lanes, sizeof(raw));
  return raw;
}

// The low word of (high:low) >> shift, shift below 32.
__device__ __forceinline__ unsigned shifted_word(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32) | low) >> shift);
}

// 16 bytes at any element of [begin, end), `from` to `from + kLanes`: one load where they are aligned, else two aligned
// loads and a shift by whole words, then by bits. Vectors whose aligned neighbours reach over the row's ends, the first
// and the last at most, are put together from elements, so no byte outside the row is read.
template <class T>
__device__ __forceinline__ uint4 load_straddling(const T* from, const T* begin, const T* end) {
  const unsigned phase = static_cast<unsigned>(reinterpret_cast<uintptr_t>(from) & 15);
  if (phase == 0) return *reinterpret_cast<const uint4*>(from);
  const int before = static_cast<int>(phase / sizeof(T));
  if (from - begin < before || end - from < 2 * kLanes<T> - before) {
    T lanes[kLanes<T>];
#pragma unroll
    for (int i = 0; i < kLanes<T>; ++i) lanes[i] = from[i];
    uint4 raw;
    memcpy(&raw, lanes, sizeof(raw));
    return raw;
  }
  const uint4* aligned = reinterpret_cast<const uint4*>(from - before);
  const uint4 low = aligned[0], high = aligned[1];
  unsigned words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  // Selects instead of a dynamic index, which would put the words into local memory.
#pragma unroll
  for (int i = 0; i < 6; ++i) words[i] = phase & 8 ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) words[i] = phase & 4 ? words[i + 1] : words[i];
  const unsigned shift = (phase & 3) * 8;
  return {shifted_word(words[0], words[1], shift), shifted_word(words[1], words[2], shift),
          shifted_word(words[2], words[3], shift), shifted_word(words[3], words[4], shift)};
}

}  // namespace instructrl
