// Dynamic alignment units on the CPU, as Python calls them.
#pragma once

#include "dynamic_alignment/glue/arguments.h"

namespace bcos::dynamic_alignment::glue {

// x [N, C, H, W], h [N, R, OH, OW], weight [P*O, R], bias [P*O] -> y, norm, l; l is empty with detach.
Forward forward(const at::Tensor& x, const at::Tensor& h, const at::Tensor& weight,
                const OptionalTensor& bias, const Spec& spec);

// -> the gradients of x, h, weight and bias, none where not needed. grad may hold those of several rows of
// the dynamic linear map, [rows*N, O, OH, OW], where only that of x is needed; dx then holds as many.
Backward backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& h, const at::Tensor& weight,
                  const OptionalTensor& bias, const at::Tensor& norm, const at::Tensor& l, const Spec& spec,
                  const std::vector<bool>& needs);

}  // namespace bcos::dynamic_alignment::glue
