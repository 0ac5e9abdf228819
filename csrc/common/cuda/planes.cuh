// What the kernels of NCHW tensors share. Neighbouring lanes take V neighbouring pixels of a plane each, so
// that a warp reads whole lines; the slices of a block share out the channels of those pixels and add their
// sums.
#pragma once

#include "common/cuda/primitives.cuh"

namespace bcos::cuda::planes {

constexpr int kThreads = 256, kMostSlices = 8;

// The V neighbouring rows that a thread works on, all of one plane; rows past the last are worked on by
// nobody.
template <int V>
struct Strip {
  int slices, slice, lanes, lane;
  int64_t row;    // the first
  int64_t plane;  // counted over images and groups
  int pixel;      // within the plane
  bool inside;

  __device__ Strip(int rows, int pixels, int of) : slices(of) {
    lanes = kThreads / slices;
    slice = threadIdx.x / lanes;
    lane = threadIdx.x % lanes;
    row = first_row() + lane * V;
    inside = row < rows;
    plane = row / pixels;
    pixel = int(row % pixels);
  }
  __device__ int64_t first_row() const { return int64_t(blockIdx.x) * lanes * V; }

  // Adds up what the slices have, alike in every run, in the first of them.
  template <typename A>
  __device__ __forceinline__ void add_slices(A (&sums)[V]) const {
    constexpr int kValue = sizeof(A);
#pragma unroll
    for (int i = 0; i < V; ++i) shared_store((i * kThreads + int(threadIdx.x)) * kValue, sums[i]);
    barrier();
    for (int other = lane + lanes; slice == 0 && other < kThreads; other += lanes)
#pragma unroll
      for (int i = 0; i < V; ++i) sums[i] += shared_load<A>((i * kThreads + other) * kValue);
  }
};

template <int V, typename A = float>
constexpr size_t kShared = kThreads * V * sizeof(A);  // of add_slices

// As many slices as there are channels, up to a limit.
inline int slices_of(int channels) {
  int slices = 1;
  while (slices < kMostSlices && slices * 2 <= channels) slices *= 2;
  return slices;
}

// Neighbouring pixels to a thread: 16 bytes, or 8, or one where planes are no multiple of that.
inline int width_of(int64_t plane, Dtype dtype) {
  if (dtype == Dtype::Float64) return plane % 2 == 0 ? 2 : 1;
  if (dtype != Dtype::Float32 && plane % 8 == 0) return 8;
  return plane % 4 == 0 ? 4 : 1;
}

// f of that width as a type.
template <typename T, typename F>
cudaError_t by_width(int64_t plane, Dtype dtype, F&& f) {
  constexpr int kWidth = sizeof(T) == 8 ? 2 : 4;
  const int width = width_of(plane, dtype);
  if constexpr (sizeof(T) == 2)
    if (width == 8) return f(std::integral_constant<int, 8>{});
  return width == 1 ? f(std::integral_constant<int, 1>{}) : f(std::integral_constant<int, kWidth>{});
}

// f of the dtype, whose values are added up in A, and of that width, as types.
template <typename A, typename F>
cudaError_t by_pixels(Dtype dtype, int64_t plane, F&& f) {
  return by_dtype<A>(dtype, [&](auto type) {
    return by_width<typename decltype(type)::type>(plane, dtype, [&](auto width) { return f(type, width); });
  });
}

inline dim3 strip_grid(int rows, int slices, int width) {
  return dim3(ceil_div(rows, kThreads / slices * width));
}

// Starts a kernel for all rows, V to a thread, with slices that share out so many channels.
template <int V, typename P>
cudaError_t start_strips(void (*kernel)(P, int), int rows, int channels, size_t shared, const P& p,
                         cudaStream_t stream) {
  const int slices = slices_of(channels);
  return start(kernel, strip_grid(rows, slices, V), kThreads, shared, stream, p, slices);
}

}  // namespace bcos::cuda::planes
