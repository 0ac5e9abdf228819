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

// x [M, K], [N, C, H, W] or [N, C, D, H, W] -> n [M, 1], [N, G, OH, OW] or [N, G, OD, OH, OW], fp32 (fp64 for
// double). Both are contiguous or both channels_last; the rows of a linear layer count as channels_last.
at::Tensor patch_norm(const Call& call, const at::Tensor& x, bool channels_last);

// An uninitialised n, as patch_norm would return it
at::Tensor empty_norm(const Call& call, const at::Tensor& x, bool channels_last);

// As patch_norm, for v of x's shape -> m, shaped as n: the sum of x v over every patch
at::Tensor patch_products(const Call& call, const at::Tensor& x, const at::Tensor& v, bool channels_last);

// t, shaped as n -> r, as x with a channel for each group: the sum of t over the patches whose norm each
// pixel is part of. Both have the type of sums.
template <typename A>
void spread(const Call& call, const A* t, bool channels_last, A* r);

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

// n of rows [begin, end) of x [rows, size], on the calling thread
template <typename T>
void row_norms(const T* x, float* n, int64_t size, const Constants<float>& k, int64_t begin, int64_t end);

}  // namespace bcos::transform::cpu
