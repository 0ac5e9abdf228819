// Linear layers, and pointwise convolutions of channels_last pixels, tile by tile: what surrounds a product
// of a tile's rows finds them in cache.
#pragma once

#include "transform/cpu/steps.h"

namespace bcos::transform::cpu {

// Whether a call is a product of rows of pixels.
inline bool is_product_of_rows(const Call& call, bool channels_last) {
  return channels_last && call.window.pointwise() && call.spec.groups == 1;
}

// A forward whose rows RowGemm serves.
Outputs tiled_forward(const Call& call, const Inputs& inputs, const Tiling& outputs);

// start_backward with dx beside it, and with the weight's gradient where that pays; u is kept for it where it
// does not.
BackwardPass tiled_backward(const Call& call, const Saved& saved, at::MemoryFormat format,
                            const Tiling& outputs, const Needs& needs, Gradients& gradients);

}  // namespace bcos::transform::cpu
