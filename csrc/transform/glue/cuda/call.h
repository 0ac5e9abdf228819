// A call on a GPU, and how its kernels are started: the one place that fills the structs of
// transform/cuda/params.h from a Call.
#pragma once

#include <string>

#include "common/cuda/tensors.h"
#include "common/dtype.h"
#include "common/layout.h"
#include "transform/cuda/launch.h"
#include "transform/tensors.h"

namespace bcos::transform::glue::cuda {

using namespace bcos::cuda;
namespace kernels = bcos::transform::cuda;

// Every tensor of a call on a GPU is an image; the rows of a linear layer are images of one pixel.
struct DeviceCall : Call {
  bool planes;  // images are NCHW, as the vendor's products take contiguous tensors; else they are NHWC
  bool large;   // the larger tile of the products
  bool tf32;    // products of fp32 may round their operands
  // A backward divides x by its norm before it multiplies it by dL/dn. Beside a bias l may be far larger than
  // a tiny n, and dL/dn divided by that norm then exceeds fp32, although the gradient of x does not.
  bool divides_x;

  DeviceCall(const Call& call, bool planes, bool large, bool tf32, bool divides_x = false);

  at::ScalarType sums() const { return accumulate_type(dtype); }
  int64_t pixels() const { return images * out_plane(); }
  int64_t in_pixels() const { return images * in_plane(); }
  bool depthwise() const { return spec.groups > 1 && group_channels() == 1 && group_filters() == 1; }

  kernels::Window device_window() const;                    // of the plane
  kernels::Window device_window(const Plane& plane) const;  // of this one
  kernels::Shape device_shape() const;
  // b: of type A, the type of sums, or undefined
  template <typename A>
  kernels::Formula<A> device_formula(const at::Tensor& b = {}) const {
    const auto k = constants<A>();
    return {power,         k.b_minus_1, k.cos_eps,      k.eps_inside,
            k.eps_outside, data<A>(b),  spec.exact_two, saves_l()};
  }
  int device_plane() const { return planes ? int(out_plane()) : 0; }
  int device_in_plane() const { return planes ? int(in_plane()) : 0; }

  at::MemoryFormat format() const {
    return image_format(!planes, spec.linear ? 4 : 2 + int64_t(spec.stride.size()));
  }

  // An image tensor as the kernels take it: in `format`, without gaps, aligned. Undefined stays undefined.
  at::Tensor dense(const at::Tensor& t) const;

  // A new tensor [gradients * N, values, OH, OW], or with a third axis, on the device of `like`.
  at::Tensor image(int64_t values, at::ScalarType dtype, const at::Tensor& like, int64_t gradients = 1) const;

  std::string sizes() const;  // for the error of a kernel
};

}  // namespace bcos::transform::glue::cuda
