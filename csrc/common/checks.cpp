#include "common/checks.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/dtype.h"

namespace bcos {
namespace {

void check_strided(const char* name, const at::Tensor& t) {
  TORCH_CHECK_TYPE(t.defined(), name, " is not a tensor, allowed: a tensor");
  TORCH_CHECK_TYPE(t.layout() == at::kStrided, name, " has layout ", t.layout(), ", allowed: strided");
}

}  // namespace

void check_kind(const Takes& takes, const char* name, const at::Tensor& t, int64_t dimensions) {
  check_strided(name, t);
  TORCH_CHECK_VALUE(t.device().type() == takes.device, name, " is on ", t.device(),
                    ", allowed: ", takes.device);
  TORCH_CHECK_TYPE(std::count(takes.dtypes.begin(), takes.dtypes.end(), t.scalar_type()) == 1, name,
                   " has dtype ", t.scalar_type(), ", allowed: ", at::ArrayRef<at::ScalarType>(takes.dtypes));
  TORCH_CHECK_VALUE(t.dim() == dimensions, name, " has ", t.dim(), " dimensions, allowed: ", dimensions);
}

void check_input(const Takes& takes, const char* name, const at::Tensor& t, int64_t dimensions) {
  check_kind(takes, name, t, dimensions);
  for (int64_t d = 1; d < dimensions; d++)
    TORCH_CHECK_VALUE(t.size(d) > 0, name, " has shape ", t.sizes(), ", allowed: only the batch is empty");
}

void check_beside(const at::Tensor& x, const char* name, const at::Tensor& t) {
  check_strided(name, t);
  TORCH_CHECK_VALUE(t.device() == x.device(), name, " is on ", t.device(), ", allowed: ", x.device(),
                    " as x is");
}

void check_exactly(const at::Tensor& x, const char* name, const at::Tensor& t, at::IntArrayRef shape,
                   at::ScalarType dtype) {
  check_beside(x, name, t);
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, name, " has dtype ", t.scalar_type(), ", allowed: ", dtype);
  TORCH_CHECK_VALUE(t.sizes() == shape, name, " has shape ", t.sizes(), ", allowed: ", shape);
}

void check_out_dtype(const at::Tensor& x, at::ScalarType out_dtype) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_TYPE(out_dtype == dtype || (out_dtype == at::kFloat && is_half(dtype)), "out_dtype is ",
                   out_dtype, ", allowed: x's dtype ", dtype, ", or float beside an x of a half type");
}

void check_not_empty(const char* name, const at::Tensor& t) {
  TORCH_CHECK_VALUE(t.numel() > 0, name, " has shape ", t.sizes(), ", allowed: sizes of 1 or more");
}

void check_sizes(const char* name, at::IntArrayRef values, int64_t count, int64_t least) {
  TORCH_CHECK_VALUE(int64_t(values.size()) == count, name, " has ", values.size(),
                    " values, allowed: ", count);
  for (int64_t v : values)
    TORCH_CHECK_VALUE(v >= least && v <= std::numeric_limits<int32_t>::max(), name, " is ", v,
                      ", allowed: ", least, " to 2^31-1");
}

Pair checked_pair(const char* name, at::IntArrayRef values, int64_t least) {
  check_sizes(name, values, 2, least);
  return {values[0], values[1]};
}

void check_number(const char* name, double value, double least) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value >= least, name, " is ", value,
                    ", allowed: a finite number of ", least, " or more");
}

}  // namespace bcos
