// B-cos linear layer on the CPU.
#pragma once

#include "cpu/layer.h"

namespace bcos::cpu {

// x [P, K], weight [O*M, K], bias [O*M] -> y [P, O], n [P, 1], l and winner as y
Outputs linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
               const Formula& formula, at::ScalarType out_dtype);

Gradients linear_backward(const Saved& saved, const Formula& formula, const Needs& needs);

// The same on rows of pixels, tile by tile (fp32; RowGemm must serve): z as finish_forward takes it, n and z
// not yet written; start_backward with dx beside it, and without.
void tiled_forward(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                   const Tiling& outputs, const Formula& formula, const at::Tensor& z, Outputs& out);
BackwardPass tiled_backward(const Saved& saved, at::IntArrayRef z_shape, at::MemoryFormat format,
                            const Tiling& outputs, const Formula& formula, const Needs& needs,
                            Gradients& gradients);
BackwardPass untiled_backward(const Saved& saved, at::IntArrayRef z_shape, at::MemoryFormat format,
                              const Tiling& outputs, const Formula& formula, const Needs& needs,
                              Gradients& gradients);

}  // namespace bcos::cpu
