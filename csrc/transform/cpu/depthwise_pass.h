// The two passes of depthwise convolution as their kernels see them; images are [batch, height, width,
// channels].
#pragma once

#include "common/cpu/types.h"
#include "transform/formula.h"

namespace bcos::transform::cpu {

using namespace bcos::cpu;
using c10::BFloat16;

constexpr int64_t kLanes = 16;  // channels of a tile: one AVX-512 register, one cache line

struct DepthwiseShape {
  int64_t batch, height, width, channels, kernel, band;
  Power power;

  int64_t lane_blocks() const { return (channels + kLanes - 1) / kLanes; }
  int64_t bands() const { return (height + band - 1) / band; }
  int64_t units() const { return lane_blocks() * batch * bands(); }
};

template <typename T, typename U>
struct DepthwiseForward {
  DepthwiseShape shape;
  const T* x;
  const float *taps, *bias;  // [lane block, kernel * kernel, lane] of alpha w, [channels]
  U *y, *l;
  Constants<float> k;
};

template <typename T, typename U>
struct DepthwiseBackward {
  DepthwiseShape shape;
  const T* x;
  const U *grad, *y, *l;
  const float* taps;     // turned by 180 degrees
  T* dx;                 // null where not needed, as the next two
  float *dtaps, *dbias;  // added to: [lane block, kernel * kernel, lane], [lane block, lane]
  Constants<float> k;
};

// Units [begin, end) of a pass. The backward returns whether a patch has the norm of a zero patch (b = 2).
void run(const DepthwiseForward<float, float>& pass, int64_t begin, int64_t end);
void run(const DepthwiseForward<BFloat16, BFloat16>& pass, int64_t begin, int64_t end);
void run(const DepthwiseForward<BFloat16, float>& pass, int64_t begin, int64_t end);

bool run(const DepthwiseBackward<float, float>& pass, int64_t begin, int64_t end);
bool run(const DepthwiseBackward<BFloat16, BFloat16>& pass, int64_t begin, int64_t end);
bool run(const DepthwiseBackward<BFloat16, float>& pass, int64_t begin, int64_t end);

}  // namespace bcos::transform::cpu
