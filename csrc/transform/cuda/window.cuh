// Where pixels lie, and which output sees which input.
#pragma once

#include "common/cuda/intrinsics.cuh"
#include "transform/cuda/params.h"

namespace bcos::transform::cuda {

struct Pixel {
  int64_t image;
  int row, column;
};

__device__ __forceinline__ Pixel pixel(int index, int height, int width) {
  const int rows = index / width;
  return {rows / height, rows % height, index % width};
}

// Moves a pixel on by as many as lie between the first pixel and `by`.
__device__ __forceinline__ void advance(Pixel& at, const Pixel& by, int height, int width) {
  at.image += by.image;
  at.row += by.row;
  at.column += by.column;
  if (at.column >= width) at.column -= width, ++at.row;
  if (at.row >= height) at.row -= height, ++at.image;
}

// The input pixel that output pixel `at` sees through tap (i, j), or -1.
__device__ __forceinline__ int64_t input_site(const Window& w, const Pixel& at, int i, int j) {
  const int h = at.row * w.SH - w.PH + i * w.DH, v = at.column * w.SW - w.PW + j * w.DW;
  return within(h, w.H) && within(v, w.W) ? (at.image * w.H + h) * w.W + v : -1;
}

// The output pixel that reads input pixel `at` through tap (i, j), or -1.
__device__ __forceinline__ int64_t output_site(const Window& w, const Pixel& at, int i, int j) {
  const int top = at.row + w.PH - i * w.DH, left = at.column + w.PW - j * w.DW;
  const int oh = w.SH == 1 ? top : top / w.SH, ow = w.SW == 1 ? left : left / w.SW;  // divisions are long
  const bool reads =
      top >= 0 && left >= 0 && oh * w.SH == top && ow * w.SW == left && within(oh, w.OH) && within(ow, w.OW);
  return reads ? (at.image * w.OH + oh) * w.OW + ow : -1;
}

__device__ __forceinline__ int64_t output_site(const Window& w, const Pixel& at, int tap) {
  return output_site(w, at, tap / w.KW, tap % w.KW);
}

// The sum of squares [N, H, W, G] over the window of output pixel `at`.
template <typename A>
__device__ __forceinline__ A window_sum(const A* squares, const Window& w, const Pixel& at, int group,
                                        int groups) {
  A sum = 0;
  for (int i = 0; i < w.KH; ++i)
    for (int j = 0; j < w.KW; ++j) {
      const int64_t site = input_site(w, at, i, j);
      if (site >= 0) sum += squares[site * groups + group];
    }
  return sum;
}

// The sum of t [N, OH, OW, G] over the outputs that read input pixel `at`.
template <typename A>
__device__ __forceinline__ A pooled_sum(const A* t, const Window& w, const Pixel& at, int group, int groups) {
  A sum = 0;
  for (int i = 0; i < w.KH; ++i)
    for (int j = 0; j < w.KW; ++j) {
      const int64_t site = output_site(w, at, i, j);
      if (site >= 0) sum += t[site * groups + group];
    }
  return sum;
}

}  // namespace bcos::transform::cuda
