#include "host/cuda/ops.h"

#include "host/cuda/layer.h"

namespace bcos::host::gpu {
namespace {

const Takes kCuda{kDevice, {at::kFloat, at::kHalf, at::kBFloat16}};

// Rows as images of one pixel.
at::Tensor image_of(const at::Tensor& t) {
  return t.dim() == 2 ? t.contiguous().view({t.size(0), t.size(1), 1, 1}) : t;
}

at::Tensor rows_of(const at::Tensor& t) {
  return t.defined() ? t.flatten(1) : t;
}

std::optional<at::Tensor> rows_of(const std::optional<at::Tensor>& t) {
  return t ? std::optional(t->flatten(1)) : t;
}

Way make_way(const WayArguments& way) {
  const auto [candidate, large, tf32] = way;
  TORCH_CHECK_VALUE(candidate >= 0 && candidate <= int64_t(Candidate::Vendor), "candidate is ", candidate,
                    ", allowed: 0 to 2");
  return {Candidate(candidate), large, tf32};
}

// Checks x and weight, and makes images of a linear layer's.
Problem make_problem(at::Tensor& x, at::Tensor& weight, const OptionalTensor& b,
                     const GeometryArguments& geometry, const FormulaArguments& arguments, const Way& way) {
  const bool linear = !geometry;
  check_input(kCuda, x, linear ? 2 : 4);
  check_weight(x, weight);
  const auto g = linear ? Geometry{{1, 1}, {0, 0}, {1, 1}, 1} : std::apply(make_geometry, *geometry);
  check_channels(x, weight, g.groups);
  x = image_of(x);
  weight = image_of(weight);
  const auto make = [&](auto... rest) { return make_formula(x, weight.size(0), g.groups, b, rest...); };
  return {x,      weight,       make_window(x, weight.sizes().slice(2), g), std::apply(make, arguments),
          linear, way.candidate};
}

}  // namespace

Forward forward(const at::Tensor& given_x, const at::Tensor& given_weight, const OptionalTensor& bias,
                const OptionalTensor& b, const GeometryArguments& geometry, const FormulaArguments& formula,
                at::ScalarType out_dtype, const WayArguments& way) {
  const PlainAten guard;
  at::Tensor x = given_x, weight = given_weight;
  const auto served = make_way(way);
  const auto problem = make_problem(x, weight, b, geometry, formula, served);
  check_bias(x, weight, bias);
  check_out_dtype(x, out_dtype);
  auto out = gpu::forward(problem, x, weight, bias, b, out_dtype, served);
  if (problem.linear) out = {rows_of(out.y), rows_of(out.n), rows_of(out.l), rows_of(out.winner)};
  return pack(out, x);
}

Backward backward(const at::Tensor& grad, const at::Tensor& given_x, const at::Tensor& given_weight,
                  const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                  const at::Tensor& winner, const GeometryArguments& geometry,
                  const FormulaArguments& formula, bool explain, const std::vector<bool>& needs,
                  const WayArguments& way) {
  const PlainAten guard;
  at::Tensor x = given_x, weight = given_weight;
  const auto served = make_way(way);
  auto problem = make_problem(x, weight, b, geometry, formula, served);
  problem.formula.explain = explain;
  const auto image = [&](int64_t channels) {
    return std::vector<int64_t>{problem.images, channels, problem.window.out_h, problem.window.out_w};
  };
  const auto n_shape = problem.saves_norm() ? image(problem.groups) : std::vector<int64_t>{};
  const auto saved =
      make_saved(image_of(grad), x, weight, b, y ? std::optional(image_of(*y)) : y, image_of(n), image_of(l),
                 image_of(winner), image(problem.outputs()), n_shape, problem.formula);
  auto out = gpu::backward(problem, saved, make_needs(needs, b), served);
  if (problem.linear) {
    out.x = rows_of(out.x);
    out.weight = rows_of(out.weight);
  }
  return pack(std::move(out));
}

}  // namespace bcos::host::gpu
