#include "norm/glue/cuda/call.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/StringUtil.h>

#include "common/layout.h"

namespace bcos::norm::glue::cuda {
namespace {

// [N, positions, C] of a tensor [N, C, positions].
at::Tensor rows_of(const at::Tensor& t) {
  return t.dim() == 2 ? t : t.movedim(1, -1);
}

bool lies_in(bool planes, const at::Tensor& t) {
  return planes ? t.is_contiguous() : lies_in_rows(t);
}

kernels::Shape with_splits(kernels::Shape shape, kernels::Dtype dtype) {
  shape.splits = kernels::splits_of(shape, dtype, multiprocessors());
  return shape;
}

}  // namespace

DeviceCall::DeviceCall(const Call& call, const at::Tensor& x) : Call(call), shape(x.sizes().vec()) {
  planes = positions > 1 && (x.is_contiguous() || !lies_in(false, x));
  narrow("the number of channels", channels);
  narrow("the number of positions of all images", batch * positions);
}

bool DeviceCall::lies_dense(const at::Tensor& t) const {
  return lies_in(planes, t);
}

at::Tensor DeviceCall::dense(const at::Tensor& t) const {
  if (lies_dense(t)) return aligned(t);
  return planes ? t.contiguous() : rows_of(t).contiguous().movedim(-1, 1);
}

at::Tensor DeviceCall::empty_like(const at::Tensor& x, at::ScalarType dtype) {
  return at::empty_like(x, x.options().dtype(dtype));
}

at::Tensor DeviceCall::empty(const at::Tensor& x, at::ScalarType dtype) const {
  const auto options = x.options().dtype(dtype);
  return planes ? at::empty(shape, options) : at::empty(rows_of(x).sizes(), options).movedim(-1, 1);
}

kernels::Shape DeviceCall::device_shape(kernels::Dtype dtype) const {
  return with_splits(
      {int(batch), int(channels), positions, planes, per_image(), int(given ? channels : groups()), 1},
      dtype);
}

kernels::Shape DeviceCall::device_run(kernels::Dtype dtype) const {
  return with_splits({1, 1, batch * channels * positions, true, false, 1, 1}, dtype);
}

std::string DeviceCall::sizes() const {
  return c10::str("x is [", c10::Join(", ", shape), "], over is '", spec.over_name(), "'");
}

kernels::Factor DeviceCall::factor(const at::Tensor& t) const {
  const auto absent = dtype == at::kDouble ? kernels::Dtype::Float64 : kernels::Dtype::Float32;
  return {data(t), t.defined() ? dtype_of(t) : absent};
}

at::Tensor dense_factor(const OptionalTensor& t) {
  return t ? aligned(t->contiguous()) : at::Tensor();
}

}  // namespace bcos::norm::glue::cuda
