// B-cos convolution on the CPU: the vendor's convolution and one fused pass beside it.
#pragma once

#include "cpu/patch_norm.h"
#include "host/params.h"

namespace bcos::cpu {

// x [N, C, H, W], weight [O*M, C/G, kh, kw], bias [O*M] -> y [N, O, OH, OW], n [N, G, OH, OW], l and winner
// as y
Outputs conv2d(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
               const Window& window, const Formula& formula, at::ScalarType out_dtype);

Gradients conv2d_backward(const Saved& saved, const Window& window, const Formula& formula,
                          const Needs& needs);

}  // namespace bcos::cpu
