// The norm of every input patch, and its transpose that spreads per-patch values back over the patch's
// pixels.
#pragma once

#include "common/cpu/lines.h"
#include "common/cpu/tiling.h"
#include "transform/spec.h"

namespace bcos::transform::cpu {

using namespace bcos::cpu;

inline Tiling input_tiling(const Call& call, bool channels_last) {
  return {channels_last, call.images, call.spec.groups, call.group_channels(), call.in_plane()};
}

// x [N, C, H, W] or [N, C, D, H, W], contiguous or channels_last -> n [N, G, OH, OW] or [N, G, OD, OH, OW] of
// the same memory format, fp32 (fp64 for double)
at::Tensor patch_norm(const Call& call, const at::Tensor& x, bool channels_last);

// The same for v of x's shape -> m, shaped as n: the sum of x v over every patch
at::Tensor patch_products(const Call& call, const at::Tensor& x, const at::Tensor& v, bool channels_last);

// t, shaped as n -> r, as x with a channel for each group: the sum of t over the patches whose norm each
// pixel is part of. Both have the type of sums.
void spread(const Call& call, const float* t, bool channels_last, float* r);
void spread(const Call& call, const double* t, bool channels_last, double* r);

// The same with memory for r, which is t itself where every patch is a pixel.
template <typename A>
class Spread {
 public:
  Spread(const Call& call, const A* t, bool channels_last)
      : summed_(call.window.pointwise() ? 0 : call.images * call.spec.groups * call.in_plane()),
        r_(call.window.pointwise() ? t : summed_.data()) {
    if (r_ == summed_.data()) spread(call, t, channels_last, summed_.data());
  }

  const A* data() const { return r_; }

 private:
  Scratch<A> summed_;
  const A* r_;
};

// Sum of squares of each group of each pixel, into q of the type of sums; Tiling of x.
void square_sums(const at::Tensor& x, const Tiling& tiling, void* q);

// The same and the root after it for rows [begin, end) of x [rows, size], on the calling thread.
void row_norms(const float* x, float* n, int64_t size, const Constants<float>& k, int64_t begin, int64_t end);

// n in place of the sums of squares q
void finish_norm(const Call& call, at::Tensor& q);

}  // namespace bcos::transform::cpu
