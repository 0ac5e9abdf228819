// The patch of x that a pixel sees.
#pragma once

#include "common/cuda/primitives.cuh"
#include "dynamic_alignment/cuda/params.h"

namespace bcos::dynamic_alignment::cuda {

// Which value of a patch: of which channel, and how far from the patch's corner.
struct Value {
  int channel, h, w;

  __device__ __forceinline__ Value(const Shape& s, int p) {
    const int taps = s.KH * s.KW, tap = p % taps;
    channel = p / taps;
    h = tap / s.KW;
    w = tap % s.KW;
  }
};

struct Patch {
  int64_t image;  // where the pixel's image begins in x
  int top, left;
  bool inside;  // whether there is such a pixel

  __device__ __forceinline__ Patch(const Shape& s, int pixel) {
    inside = within(pixel, s.pixels());
    const int place = pixel % s.plane();
    image = int64_t(pixel / s.plane()) * s.C * s.H * s.W;
    top = place / s.OW * s.SH - s.PH;
    left = place % s.OW * s.SW - s.PW;
  }

  // Where a value lies in x; negative in the padding, and where there is no such value.
  __device__ __forceinline__ int64_t at(const Shape& s, const Value& value) const {
    const int h = top + value.h, w = left + value.w;
    const bool sees = inside && within(value.channel, s.C) && within(h, s.H) && within(w, s.W);
    return sees ? image + (int64_t(value.channel) * s.H + h) * s.W + w : -1;
  }
};

}  // namespace bcos::dynamic_alignment::cuda
