// Products of convolutions whose groups are narrow, on channels_last images of fp32. The vendor's kernels
// work on 16 channels of one group at a time, of which groups of 4 and 8 fill a part; those of 16 and 32 gain
// by products whose pixels are scaled while they are in cache.
#pragma once

#include "transform/spec.h"

namespace bcos::transform::cpu {

class NarrowGroups {
 public:
  // Whether the groups have 4, 8, 16 or 32 channels and as many filters.
  static bool serves(const Call& call, const at::Tensor& x, const at::Tensor& weight);
  // Whether it also forms dx.
  static bool serves_dgrad(const Call& call, const at::Tensor& x, const at::Tensor& weight);

  // `forward`: z from x; else dx from u.
  NarrowGroups(const Call& call, const at::Tensor& weight, bool forward);

  // `out` of pixels [begin, end) of all images, on the calling thread
  void run(const float* in, float* out, int64_t begin, int64_t end) const;

 private:
  int64_t width_, channels_;
  Plane window_;
  std::vector<int64_t> steps_;  // from the first tap to each tap, in values of `in`
  at::Tensor packed_;           // [block of outputs][tap][channel of the group][output]
  at::Tensor padding_;          // one pixel of zeros
};

}  // namespace bcos::transform::cpu
