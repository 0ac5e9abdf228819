// What linear and convolution share once their vendor product is there. A linear layer is a channels_last 1x1
// convolution.
#pragma once

#include <c10/core/Allocator.h>

#include <functional>

#include "common/cpu/row_gemm.h"
#include "common/cpu/tiling.h"
#include "transform/tensors.h"

namespace bcos::transform::cpu {

using namespace bcos::cpu;

// A step of a tile of units [begin, end), while it is in cache.
using TileStep = std::function<void(int64_t begin, int64_t end)>;

// A step that writes the products z [end - begin, O*M] of a tile.
using ProductStep = std::function<void(int64_t begin, int64_t end, float* z)>;

// step(begin, end) with every tile of [0, units), in parallel. The step may take products of RowGemm.
void run_tiles(int64_t units, const TileStep& step);

// Takes the bias out of the inputs where the vendor's product can add it, before it rounds to x's type.
OptionalTensor take_bias(const Call& call, Inputs& inputs);

// A weight as the tiles of a forward take it, and alpha of each filter: both from one reading of it.
struct PackedFilters {
  at::Tensor alpha;
  RowGemm gemm;

  // For rows of this dtype
  PackedFilters(const at::Tensor& weight, bool unit, at::ScalarType dtype);
};

// z [.., O*M, ..] -> y, l, winner; out.n is already there. z is overwritten where y has its shape and type.
// `alpha` is the filter_alpha of the weight, where the caller has it. `products`, where given, writes z, of
// which nothing is kept, and n of a tile's units first. Sets out.finite.
void finish_forward(const Call& call, const Inputs& inputs, const at::Tensor& alpha, const at::Tensor& z,
                    const Tiling& outputs, Outputs& out, const ProductStep& products = {});

// The tensors of a derivative in one memory format; the weight is made dense in its own.
Saved in_format(Saved saved, at::MemoryFormat format);

// The gradient at z, as the vendor's dgrad and wgrad take it, and what comes beside it. Where several rows of
// each image are formed at once, both hold Call::rows times as many images.
struct BackwardPass {
  at::Tensor u;    // grad * dy/dl * alpha, shaped and typed as z
  c10::DataPtr t;  // as the values of n: coefficient of x in dx, per patch; null where it is not formed
};
// Units [begin, end) while they are in cache: their u is in pass.u from row `u_row` on. Each share is one
// thread's.
struct BackwardTile {
  int64_t share, begin, end, u_row;
};
// What follows each tile of u and t. Where it is the last to need u, a thread's tiles share their rows of u.
struct BackwardStep {
  std::function<void(const BackwardPass& pass, const BackwardTile& tile)> run;
  bool keeps_u;
};
BackwardPass start_backward(const Call& call, const Saved& saved, at::MemoryFormat format,
                            const Tiling& outputs, const Needs& needs, Gradients& gradients,
                            const BackwardStep& after = {nullptr, true});

// Whether start_backward applies the map of Saved in passing.
bool takes_map(const Call& call, const Needs& needs);

// An uninitialised dx for every row of every image, and what stands for x in a vendor's dgrad, which reads
// its shape and strides alone.
at::Tensor empty_gradient(const Call& call, const at::Tensor& x);

// The elementwise part of the second derivative, from z = v * w and the sums m of x v over the patches, which
// are undefined where the scale is frozen. Fills grad, n and l of `out` and returns u, the gradient at v * w,
// and t, the coefficient of v in the gradient of x. `before`, where given, writes z of a tile's units first.
BackwardPass finish_second(const Call& call, const Saved& saved, const at::Tensor& z, const at::Tensor& m,
                           const Tiling& outputs, bool detached, Second& out, const TileStep& before = {});

// dx += x * r, in place, with the r of t that Spread forms
void add_norm_gradient(const Call& call, const at::Tensor& x, const c10::DataPtr& t, bool channels_last,
                       at::Tensor& dx);

// The vendor's wgrad of u, as a gradient of the raw weight in the weight's dtype and memory format
at::Tensor finish_weight_gradient(const Call& call, const at::Tensor& weight, const at::Tensor& wgrad);

}  // namespace bcos::transform::cpu
