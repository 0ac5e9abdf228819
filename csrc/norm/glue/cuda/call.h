// A call of a norm on a GPU, and what its kernels take of it.
#pragma once

#include <string>

#include "common/cuda/tensors.h"
#include "common/dtype.h"
#include "norm/cuda/launch.h"
#include "norm/tensors.h"

namespace bcos::norm::glue::cuda {

using namespace bcos::cuda;
namespace kernels = bcos::norm::cuda;

// A tensor of x's shape lies in planes, [N, C, positions], or in rows, [N, positions, C].
struct DeviceCall : Call {
  Ints shape;  // of x
  bool planes;

  DeviceCall(const Call& call, const at::Tensor& x);

  // x, y or one of their gradients as the kernels take it: in the layout of the call, without gaps, aligned.
  at::Tensor dense(const at::Tensor& t) const;

  // Calls f with a new tensor in the layout of the call; returns what f wrote to it, with the strides that
  // torch gives a result of x.
  template <typename F>
  at::Tensor result_of(const at::Tensor& x, at::ScalarType dtype, F&& f) const {
    const auto usual = empty_like(x, dtype), written = lies_dense(usual) ? usual : empty(x, dtype);
    f(written);
    return written.is_same(usual) ? usual : usual.copy_(written);
  }

  // The values of norms over the batch, all values or groups; what statistics are formed of, and what they
  // apply to.
  kernels::Shape device_shape(kernels::Dtype dtype) const;

  // All values as those of one channel.
  kernels::Shape device_run(kernels::Dtype dtype) const;

  template <typename A>
  kernels::Statistics<A> device_statistics(const at::Tensor& mean, const at::Tensor& var) const {
    return {data<A>(mean), data<A>(var), A(spec.eps), spec.centered && mean.defined()};
  }

  at::ScalarType sums() const { return accumulate_type(dtype); }

  kernels::Factor factor(const at::Tensor& t) const;

  std::string sizes() const;  // for the error of a kernel

 private:
  bool lies_dense(const at::Tensor& t) const;
  at::Tensor empty(const at::Tensor& x, at::ScalarType dtype) const;
  static at::Tensor empty_like(const at::Tensor& x, at::ScalarType dtype);
};

// A factor of each channel without gaps and aligned, undefined where there is none.
at::Tensor dense_factor(const OptionalTensor& t);

}  // namespace bcos::norm::glue::cuda
