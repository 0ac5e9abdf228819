#include "dynamic_alignment/spec.h"

#include <algorithm>

namespace bcos::dynamic_alignment {
namespace {

Norm named(const std::string& name) {
  if (name == "squash") return Norm::Squash;
  if (name == "l1") return Norm::L1;
  if (name == "l2") return Norm::L2;
  TORCH_CHECK_VALUE(false, "norm is '", name, "', allowed: 'squash', 'l1' and 'l2'");
}

int64_t out_size(const Spec& spec, const at::Tensor& x, int64_t dimension) {
  const int64_t size = x.size(2 + dimension) + 2 * spec.padding[dimension];
  TORCH_CHECK_VALUE(spec.kernel[dimension] <= size, "kernel is ", spec.kernel[dimension], ", allowed: 1 to ",
                    size, ", the padded size of x");
  return (size - spec.kernel[dimension]) / spec.stride[dimension] + 1;
}

}  // namespace

Spec::Spec(const Ints& kernel, const Ints& stride, const Ints& padding, const std::string& norm, bool detach)
    : kernel(checked_pair("kernel", kernel, 1)),
      stride(checked_pair("stride", stride, 1)),
      padding(checked_pair("padding", padding, 0)),
      norm(named(norm)),
      detach(detach) {}

Call::Call(const Spec& spec, const at::Tensor& x, const at::Tensor& h, const at::Tensor& weight)
    : spec(spec),
      images(x.size(0)),
      channels(x.size(1)),
      rank(h.size(1)),
      outputs(weight.size(0) / spec.kernel[0] / spec.kernel[1] / std::max<int64_t>(channels, 1)),
      in{x.size(2), x.size(3)},
      out{out_size(spec, x, 0), out_size(spec, x, 1)} {
  TORCH_CHECK_VALUE(outputs > 0 && weight.size(0) == patch() * outputs, "weight has ", weight.size(0),
                    " rows, allowed: a multiple of ", channels, " * ", spec.kernel[0], " * ", spec.kernel[1],
                    ", the values of a patch");
}

}  // namespace bcos::dynamic_alignment
