#include "dynamic_alignment/glue/cuda/call.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/zeros.h>
#include <c10/util/StringUtil.h>

#include <array>

namespace bcos::dynamic_alignment::glue::cuda {
namespace {

constexpr int64_t kMost = int64_t(1) << 30;  // leaves the end of the last tile an index of 32 bits

void check_count(const char* name, int64_t count) {
  TORCH_CHECK_VALUE(count <= kMost, name, " are ", count, ", allowed: at most ", kMost);
}

// `t`, whose last axis has the values of a row, with `columns` behind them and zeros to `depth` values.
at::Tensor widened(const at::Tensor& t, const at::Tensor& columns, int64_t depth, at::ScalarType dtype) {
  const int64_t count = t.size(-1);
  if (count == depth && !columns.defined()) return aligned(t.to(dtype).contiguous());
  auto shape = t.sizes().vec();
  shape.back() = depth;
  const auto out = at::zeros(shape, t.options().dtype(dtype));
  out.narrow(-1, 0, count).copy_(t);
  if (columns.defined()) out.narrow(-1, count, columns.size(-1)).copy_(columns);
  return out;
}

// The bias as columns whose sum it is, also where a product rounds them to tf32: the first one is of bf16.
at::Tensor columns_of(const at::Tensor& bias, int64_t columns) {
  if (columns == 1) return bias.unsqueeze(-1);
  const auto first = bias.to(at::kBFloat16).to(bias.scalar_type());
  return at::stack(std::array{first, at::sub(bias, first)}, -1);
}

}  // namespace

DeviceCall::DeviceCall(const Call& call, bool bias, bool tf32) : Call(call), bias(bias), tf32(tf32) {
  check_count("the pixels of y", pixels());
  check_count("the rows of weight", patch() * outputs);
  check_count("the values of rank", rank);
  for (const int i : {0, 1}) check_count("the pixels of a padded side of x", in[i] + 2 * spec.padding[i]);
}

kernels::Shape DeviceCall::shape(int64_t depth) const {
  const auto& [kernel, stride, padding, norm, detach] = spec;
  return {int(images),     int(channels),   int(in[0]),     int(in[1]),     int(out[0]),
          int(out[1]),     int(kernel[0]),  int(kernel[1]), int(stride[0]), int(stride[1]),
          int(padding[0]), int(padding[1]), int(outputs),   int(depth)};
}

std::string DeviceCall::sizes() const {
  return c10::str("x is [", images, ", ", channels, ", ", in[0], ", ", in[1], "], kernel is ", spec.kernel[0],
                  "x", spec.kernel[1], ", rank is ", rank, ", outputs are ", outputs);
}

Operands::Operands(const DeviceCall& call, const Inputs& inputs, at::ScalarType dtype) {
  const int64_t vector = 16 / int64_t(at::elementSize(dtype));
  const int64_t columns = call.bias ? 1 + call.tf32 : 0;
  const int64_t depth = (call.rank + columns + vector - 1) / vector * vector;
  at::Tensor ones, bias;
  if (call.bias) {
    ones = at::ones({columns}, inputs.h.options().dtype(dtype));
    bias = columns_of(*inputs.bias, columns);
  }
  h = widened(inputs.h.permute({0, 2, 3, 1}), ones, depth, dtype);
  weight = widened(inputs.weight, bias, depth, dtype);
}

}  // namespace bcos::dynamic_alignment::glue::cuda
