#include "cpu/patch_norm.h"
#include "cpu/weight_norm.h"
#include "host/ops.h"

namespace bcos::host {

at::Tensor patch_norm(const at::Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
                      const Ints& dilation, int64_t groups, double eps_inside, double eps_outside) {
  const PlainAten guard;
  check_input(kCpu, x, 4);
  TORCH_CHECK_VALUE(kernel.size() == 2, "kernel has ", kernel.size(), " values, allowed: 2");
  const auto window = make_window(x, kernel, make_geometry(stride, padding, dilation, groups));
  const auto formula =
      make_formula(x, groups, groups, std::nullopt, 1, 2, true, eps_inside, eps_outside, 0, true);
  const auto format = x.suggest_memory_format();
  return cpu::patch_norm(x.contiguous(format), format == at::MemoryFormat::ChannelsLast, window, formula);
}

at::Tensor weight_norm(const at::Tensor& weight) {
  const PlainAten guard;
  TORCH_CHECK_VALUE(weight.dim() >= 1, "weight has 0 dimensions, allowed: 1 or more");
  check_input(kCpu, weight, weight.dim());
  TORCH_CHECK_VALUE(weight.numel() > 0, "weight has shape ", weight.sizes(), ", allowed: sizes of 1 or more");
  return cpu::weight_norm(weight.contiguous(weight.suggest_memory_format()));
}

}  // namespace bcos::host
