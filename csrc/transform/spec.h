// The two descriptions that travel with the tensors of a transform: Spec, its static options, and Call, those
// options with the sizes of one call. They are checked when they are made, so that nothing below them reads
// or writes out of bounds.
#pragma once

#include <ATen/core/DimVector.h>

#include "common/checks.h"
#include "transform/formula.h"

namespace bcos::transform {

// The static options of a transform. In Python it is TransformSpec, one object for each layer.
struct Spec {
  bool linear;                              // a linear layer; else a convolution
  at::DimVector stride, padding, dilation;  // of each axis, 2 or 3 of them; empty for a linear layer
  // How many positions at the low and at the high end of each axis of x count as 0 in the patch norm; empty
  // where none does. They are padding that is not zeros.
  at::DimVector border;
  int64_t groups, max_out;
  std::optional<double> b;         // none: b is a tensor that comes with each call
  bool unit;                       // each filter is divided by its norm
  double eps_inside, eps_outside;  // of the patch norm: inside its root, and beside it
  double cos_eps;
  bool exact_two;  // at b = 2 cos_eps counts as 0
  at::ScalarType out_dtype;

  Spec(const Ints& stride, const Ints& padding, const Ints& dilation, const Ints& border, int64_t groups,
       int64_t max_out, std::optional<double> b, bool unit, std::pair<double, double> norm_eps,
       double cos_eps, bool exact_two, at::ScalarType out_dtype);
};

// A convolution along one axis of an image.
struct Axis {
  int64_t kernel = 1, stride = 1, padding = 0, dilation = 1, in = 1, out = 1;

  bool pointwise() const { return kernel == 1 && stride == 1 && padding == 0; }
  bool is_same() const { return stride == 1 && dilation == 1 && padding == kernel / 2; }
  // Of stride 1: the outputs that see an input are a window of as many taps, in the reverse order.
  Axis reversed() const { return {kernel, 1, dilation * (kernel - 1) - padding, dilation, out, in}; }
};

struct Plane {
  Axis rows, columns;

  bool pointwise() const { return rows.pointwise() && columns.pointwise(); }
  Plane reversed() const { return {rows.reversed(), columns.reversed()}; }
};

// Where the taps of a convolution lie in one image. One with two axes has a depth of 1. A linear layer is the
// pointwise convolution of images of one pixel.
struct Window {
  Axis depth;
  Plane plane;
  bool bordered = false;  // Spec::border is not empty

  int64_t taps() const { return depth.kernel * plane.rows.kernel * plane.columns.kernel; }
  int64_t in_pixels() const { return depth.in * plane.rows.in * plane.columns.in; }
  int64_t out_pixels() const { return depth.out * plane.rows.out * plane.columns.out; }
  bool is_plane() const { return depth.pointwise() && depth.in == 1; }
  bool pointwise() const {  // every patch is one pixel that counts, and they are in the order of the pixels
    return depth.pointwise() && plane.pointwise() && !bordered;
  }

  // The sum over a window is the sum over its plane, and then over the depth. These are the planes of the
  // second: their rows are the depth, and their columns the pixels that the first has left.
  Plane across() const {
    const int64_t pixels = plane.rows.out * plane.columns.out;
    return {depth, {1, 1, 0, 1, pixels, pixels}};
  }
};

// A Spec with the sizes of the tensors that it is applied to.
struct Call {
  Spec spec;
  int64_t images, channels, filters;
  Window window;
  at::ScalarType dtype;  // of x
  Power power;
  double b;             // 0 where b is a tensor whose value is not known
  double cos_eps;       // 0 where the formula has none
  bool frozen = false;  // the scale is a constant of this derivative
  int64_t rows = 1;     // gradients of each image: rows of the dynamic linear map that are formed at once

  // x is [M, K], [N, C, H, W] or [N, C, D, H, W], a weight of these sizes [O*M, C/G], with kh and kw or with
  // kd, kh and kw after it.
  Call(const Spec& spec, const at::Tensor& x, at::IntArrayRef weight_sizes);

  // The value of b as a tensor. The formula stays General, which saves l.
  void set_b(double value);

  int64_t group_channels() const { return channels / spec.groups; }
  int64_t group_filters() const { return filters / spec.groups; }
  int64_t outputs() const { return filters / spec.max_out; }
  int64_t group_outputs() const { return outputs() / spec.groups; }
  int64_t in_plane() const { return window.in_pixels(); }
  int64_t out_plane() const { return window.out_pixels(); }

  bool has_norm() const { return power != Power::One; }
  bool norm_gradient() const { return has_norm() && !frozen; }  // whether that of y has a part through n

  // The outputs that a backward needs: y or l. The norm of a depthwise layer is as large as x: the backward
  // forms it again.
  bool saves_y() const { return saves_output(power, spec.out_dtype == at::kHalf); }
  bool saves_n() const { return has_norm() && (spec.groups == 1 || group_channels() > 1); }
  bool saves_l() const { return has_norm() && !saves_y(); }
  bool saves_winner() const { return spec.max_out > 1; }

  // Shapes of the outputs: y, l and winner have the first, n the second.
  at::DimVector y_shape() const { return shape_of(outputs()); }
  at::DimVector n_shape() const { return shape_of(spec.groups); }
  at::DimVector z_shape() const { return shape_of(filters); }
  at::DimVector in_shape(int64_t values) const;  // of a tensor with as many values at each pixel of x

  // The shape of all rows' gradients: `rows` times as many images.
  at::DimVector of_rows(at::IntArrayRef shape) const {
    at::DimVector all(shape);
    all.front() *= rows;
    return all;
  }

  template <typename A>
  Constants<A> constants() const {
    return {A(b - 1), A(cos_eps), A(spec.eps_inside), A(spec.eps_outside), A(frozen ? 0 : 1)};
  }

 private:
  at::DimVector shape_of(int64_t values) const;  // as y, with as many values at each pixel
};

}  // namespace bcos::transform
