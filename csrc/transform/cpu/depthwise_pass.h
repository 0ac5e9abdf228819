// The two passes of depthwise convolution as their kernels see them.
#pragma once

#include <ATen/ceil_div.h>

#include "common/cpu/types.h"
#include "transform/formula.h"

namespace bcos::transform::cpu {

using namespace bcos::cpu;
using c10::BFloat16;

constexpr int64_t kLanes = 16;  // channels of a unit of work: one AVX-512 register, one cache line

// Images are [batch, height, width, channels] in memory, or else [batch, channels, height, width].
struct DepthwiseShape {
  bool channels_last;
  int64_t batch, height, width, channels;
  int64_t rows, columns;            // of the kernel
  int64_t band_rows, band_columns;  // of the pixels of a unit of work
  Power power;

  int64_t taps() const { return rows * columns; }
  int64_t lane_blocks() const { return at::ceil_div(channels, kLanes); }
  int64_t bands() const { return at::ceil_div(height, band_rows); }
  int64_t column_bands() const { return at::ceil_div(width, band_columns); }
  int64_t units() const { return batch * lane_blocks() * bands() * column_bands(); }
};

template <typename T, typename U>
struct DepthwiseForward {
  DepthwiseShape shape;
  const T* x;
  const float* taps;  // alpha w as [lane block, rows * columns, lane], aligned
  const float* bias;  // [lane block, lane], aligned
  U *y, *l;
  Constants<float> k;
};

template <typename T, typename U>
struct DepthwiseBackward {
  DepthwiseShape shape;
  const T* x;
  const U *grad, *y, *l;
  const float* taps;     // turned by 180 degrees, aligned
  T* dx;                 // null where not needed, as the next two
  float *dtaps, *dbias;  // added to: [lane block, rows * columns, lane], [lane block, lane]
  Constants<float> k;
};

// Units [begin, end) of a pass. The backward returns whether a patch has the norm of a zero patch (b = 2).
template <typename T, typename U>
void run(const DepthwiseForward<T, U>& pass, int64_t begin, int64_t end);

template <typename T, typename U>
bool run(const DepthwiseBackward<T, U>& pass, int64_t begin, int64_t end);

}  // namespace bcos::transform::cpu
