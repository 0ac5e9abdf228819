// The scale by a kernel of its own, forward and backward, and what every kernel that has the scale inside
// takes.
#pragma once

#include "transform/glue/cuda/candidate.h"

namespace bcos::transform::glue::cuda {

// Fills what every forward kernel takes that ends with the scale; values are added up in A.
template <typename A, typename Params>
void fill_forward(Params& k, const ForwardCall& c) {
  k.alpha = data<A>(c.weights.alpha);
  k.bias = data(c.bias);
  k.y = mutable_data(c.out.y);
  k.l = mutable_data(c.out.l);
  k.formula = c.call.device_formula<A>(c.b);
  k.dtype = dtype_of(c.x);
  k.bias_dtype = c.bias.defined() ? dtype_of(c.bias) : k.dtype;
  k.out_dtype = dtype_of(c.out.y);
}

// Fills what every backward kernel takes that forms u and t of grad.
template <typename A, typename Params>
void fill_backward(Params& k, const BackwardCall& c) {
  k.grad = data(c.saved.grad);
  k.v = data(c.call.saves_l() ? c.saved.l : c.saved.y);
  k.alpha = data<A>(c.weights.alpha);
  k.frozen = !c.call.norm_gradient();
  k.formula = c.call.device_formula<A>(c.b);
  k.dtype = dtype_of(c.saved.x);
  k.out_dtype = dtype_of(c.saved.grad);
}

// Writes c.out of z = x * w and n.
void scale_forward(const ForwardCall& c, const at::Tensor& z, const at::Tensor& n);

struct ScaleGradients {
  at::Tensor u, t, db;  // t is undefined where the norm has no gradient, db where it is not needed
};

// Forms the norm again where it was not saved.
ScaleGradients scale_backward(const BackwardCall& c);

// What a second derivative takes of every patch: the norm, its root, and the sum m of x v. root is undefined
// where it is formed of n, and m where the scale was a constant of dx.
struct Norms {
  at::Tensor n, root = {}, m = {};
};

// z = v * w and the norms -> u and t; the gradients of grad, n and l are written into `out`.
ScaleGradients scale_second(const SecondCall& c, const at::Tensor& z, const Norms& norms, SecondParts& out);

}  // namespace bcos::transform::glue::cuda
