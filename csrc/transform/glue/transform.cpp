#include "transform/glue/transform.h"

#include "transform/cpu/range.h"
#include "transform/cpu/transform.h"

namespace bcos::transform::glue {
namespace {

const Takes kCpu{c10::kCPU, {at::kFloat, at::kDouble, at::kBFloat16}};

}  // namespace

// A call of fp16 comes with an x of float and gets outputs in float, which core/half.py rounds; l stands
// there in place of y, as in every call of fp16.
Call Cpu::make_call(const Spec& spec, const Inputs& inputs) const {
  if (spec.out_dtype != at::kHalf || inputs.x.scalar_type() != at::kFloat)
    return glue::make_call(kCpu, spec, inputs);
  Spec wide = spec;
  wide.out_dtype = at::kFloat;
  auto call = glue::make_call(kCpu, wide, inputs);
  return call.saves_y() ? cpu::with_l(std::move(call)) : call;
}

Outputs Cpu::forward(const Call& call, const Inputs& inputs) const {
  return cpu::forward(call, inputs);
}

Gradients Cpu::backward(const Call& call, const Saved& saved, const Needs& needs) const {
  return cpu::backward(call, saved, needs);
}

Second Cpu::second(const Call& call, const Saved& saved, const at::Tensor& v,
                   const SecondNeeds& needs) const {
  return cpu::second(call, saved, v, needs);
}

Kernels kernels(const Spec& spec, bool saves_output, bool detached) {
  const auto forwards = [spec](const Tensors& in) {
    const PlainAten guard;
    const Cpu backend;
    const Inputs inputs{in[0], in[1], given(in[2]), given(in[3])};
    const auto out = backend.forward(backend.make_call(spec, inputs), inputs);
    return Tensors{out.y, out.n, out.l, out.winner};
  };
  const auto backwards = [spec, detached](const at::Tensor& grad, const Tensors& in, const Tensors& saved,
                                          const std::vector<bool>& needs, const at::Tensor& map) {
    const auto [dx, dweight, dbias, db] =
        backward<Cpu>(grad, in[0], in[1], given(in[3]), given(saved[0]), saved[1], saved[2], saved[3],
                      std::nullopt, std::nullopt, given(map), spec, detached, needs);
    return or_undefined(dx, dweight, dbias, db);
  };
  return {forwards, backwards, {}, 4, 4, 1, saves_output};
}

}  // namespace bcos::transform::glue
