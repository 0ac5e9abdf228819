// graph: products by cuDNN with the formula fused around them, as graphs that cuDNN compiles. What it does
// not serve goes to the candidate vendor.
#include "transform/glue/cuda/graph.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>

#include "transform/glue/cuda/candidate.h"
#include "transform/glue/cuda/patch_norm.h"
#include "transform/glue/cuda/scale.h"
#include "transform/glue/cuda/vendor.h"

namespace bcos::transform::glue::cuda {
namespace {

void forward(const ForwardCall& c) {
  const auto& w = c.weights;
  const auto bias = c.bias.defined() ? std::optional(c.bias.scalar_type()) : std::nullopt;
  const auto graph = prepare_graph(c.call, Step::Forward, {w.alpha.defined(), bias});
  if (!graph) return candidate_of("vendor").forward(c);
  graph->run(c.call, {c.x, w.operand, w.alpha, c.bias, c.n, c.out.l, c.out.y});
}

// dx of a frozen scale, which is formed in front of the product.
Parts explanation(const BackwardCall& c, const Prepared& graph) {
  const auto& s = c.saved;
  const auto n = s.n.defined() ? s.n : norm(c.call, s.x, {});
  Parts out;
  out.dx = at::empty_like(s.x);
  graph.run(c.call, {s.grad, c.call.saves_l() ? s.l : s.y, n, c.weights.alpha, c.weights.operand, out.dx});
  return out;
}

// u and t by a kernel, dx with the norm's part by the graph, and the weight's gradient by the vendor.
Parts training(const BackwardCall& c, const Prepared& graph) {
  const auto& x = c.saved.x;
  const auto& operand = c.weights.operand;
  const auto [u, t, db] = scale_backward(c);
  Parts out{at::empty_like(x), {}, {}, db};
  if (c.needs.bias) out.dbias = u.sum({0, 2, 3}, false, at::kFloat);
  graph.run(c.call, {u, operand, x, pooled(c.call, t), out.dx});
  if (c.needs.weight) out.partial = std::get<1>(vendor_gradients(c.call, u, x, operand, false, true));
  return out;
}

Parts backward(const BackwardCall& c) {
  const bool with_norm = c.saved.norm_gradient(c.call);
  const auto& needs = c.needs;
  const bool alone = !(needs.weight || needs.bias || needs.b || c.saved.map.defined());
  if (needs.x && (with_norm || alone)) {
    const auto step = with_norm ? Step::Training : Step::Explanation;
    if (const auto graph = prepare_graph(c.call, step, {c.weights.alpha.defined(), std::nullopt}))
      return with_norm ? training(c, *graph) : explanation(c, *graph);
  }
  return candidate_of("vendor").backward(c);
}

const Registered registered({"graph", false, forward, backward, nullptr, false, true, false, false, true});

}  // namespace
}  // namespace bcos::transform::glue::cuda
