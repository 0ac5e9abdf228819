// The static parameters of a call, checked once in csrc/host and passed down by reference.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>

#include "common/formula.h"

namespace bcos {

// Of sums over values of this type, and of the patch norm.
inline at::ScalarType accumulate_type(at::ScalarType t) {
  return t == at::kDouble ? at::kDouble : at::kFloat;
}

struct Geometry {
  std::array<int64_t, 2> stride, padding, dilation;
  int64_t groups;
};

// A convolution's window over one image: kernel taps, input and output size.
struct Window {
  Geometry g;
  int64_t kh, kw, in_h, in_w, out_h, out_w;

  bool pointwise() const {  // every patch is one pixel, in order
    constexpr std::array<int64_t, 2> kOnes{1, 1}, kZeros{0, 0};
    return kh * kw == 1 && g.stride == kOnes && g.padding == kZeros;
  }
};

struct Formula {
  int64_t max_out;
  double exponent;
  bool unit;  // divide each filter by its norm
  double eps_inside, eps_outside, cos_eps;
  Power power;
  bool exact_two;  // b as a tensor of exactly 2 has no cos_eps
  bool explain = false;

  template <typename A>
  Constants<A> constants() const {
    return {A(exponent - 1), A(cos_eps), A(eps_inside), A(eps_outside), A(explain ? 0 : 1)};
  }
  bool has_norm() const { return power != Power::One; }
  bool saves_l() const { return power == Power::General; }
};

// A depthwise layer's norm is as large as its input: the backward forms it again.
inline bool saves_norm(const at::Tensor& weight, const Geometry& g) {
  return g.groups == 1 || weight.size(1) > 1;
}

struct Outputs {
  at::Tensor y, n, l, winner;  // undefined where the formula has no such tensor
  bool finite = true;          // every product z, before its filter is normalised
};

struct Saved {
  at::Tensor grad, x, weight, y, n, l, winner;
  std::optional<at::Tensor> b;
};

struct Needs {
  bool x, weight, bias, b;
};

struct Gradients {
  std::optional<at::Tensor> x, weight, bias, b;

  static Gradients zeros(const Saved& saved, const Needs& needs);  // where there is nothing to sum over
};

}  // namespace bcos
