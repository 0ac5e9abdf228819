// The two descriptions that travel with the tensors of dynamic alignment units: Spec, their static options,
// and Call, those options with the sizes of one call. They are checked when they are made, so that nothing
// below them reads or writes out of bounds.
#pragma once

#include <string>

#include "common/checks.h"
#include "dynamic_alignment/formula.h"

namespace bcos::dynamic_alignment {

// The static options. In Python it is DynamicAlignmentSpec, one object for each layer.
struct Spec {
  Pair kernel, stride, padding;
  Norm norm;
  bool detach;

  Spec(const Ints& kernel, const Ints& stride, const Ints& padding, const std::string& norm, bool detach);
};

// A Spec with the sizes of the tensors that it is applied to.
struct Call {
  Spec spec;
  int64_t images, channels, rank, outputs;
  Pair in, out;  // heights and widths

  // x [N, C, H, W], h [N, R, OH, OW], weight [P*O, R] with P = C*kH*kW
  Call(const Spec& spec, const at::Tensor& x, const at::Tensor& h, const at::Tensor& weight);

  int64_t taps() const { return spec.kernel[0] * spec.kernel[1]; }
  // The values of a patch.
  int64_t patch() const { return channels * taps(); }
  // The pixels of an image's output, and those of all images.
  int64_t plane() const { return out[0] * out[1]; }
  int64_t pixels() const { return images * plane(); }
};

}  // namespace bcos::dynamic_alignment
