#include "cpu/layer.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>

#include <atomic>

#include "cpu/row_gemm.h"
#include "cpu/scale.h"
#include "cpu/weight_norm.h"

namespace bcos::cpu {
namespace {

constexpr int64_t kTiledWork = 1 << 10;  // a unit of a tiled pass holds a product: split even few of them

// Tiles of at most kRows units and nearly equal size: a short last one would waste its product.
template <typename F>
void in_tiles(int64_t begin, int64_t end, F&& body) {
  const int64_t count = end - begin, tiles = (count + RowGemm::kRows - 1) / RowGemm::kRows;
  for (int64_t i = 0; i < tiles; i++) body(begin + count * i / tiles, begin + count * (i + 1) / tiles);
}

at::Tensor filter_bias(const std::optional<at::Tensor>& bias, int64_t filters, at::TensorOptions options) {
  return bias ? bias->to(options.dtype()).contiguous() : at::zeros({filters}, options);
}

}  // namespace

void finish_forward(const at::Tensor& z, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    const Tiling& outputs, const Formula& formula, at::ScalarType out_dtype, Outputs& out,
                    const TileStep& before) {
  const bool in_place = formula.max_out == 1 && out_dtype == z.scalar_type();
  if (in_place) {
    out.y = z;
    if (formula.power == Power::One && !formula.unit && !bias && !before) return;
  } else {
    auto shape = z.sizes().vec();
    shape[1] /= formula.max_out;
    const auto format =
        z.dim() == 4 && outputs.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    out.y = at::empty(shape, z.options().dtype(out_dtype).memory_format(format));
  }
  if (formula.saves_l()) out.l = at::empty_like(out.y);
  if (formula.max_out > 1) out.winner = at::empty_like(out.y, out.y.options().dtype(at::kByte));
  const auto alpha = filter_scale(weight, formula.unit);
  const auto beta = filter_bias(bias, weight.size(0), alpha.options());
  with_types(z.scalar_type(), out_dtype, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    using A = Accumulate<T>;
    const ScaleForward<T, U> scale{pointer<T>(z),
                                   mutable_pointer<U>(out.y),
                                   mutable_pointer<U>(out.l),
                                   mutable_pointer<uint8_t>(out.winner),
                                   pointer<A>(out.n),
                                   pointer<A>(alpha),
                                   pointer<A>(beta),
                                   outputs,
                                   formula.max_out,
                                   formula.power,
                                   formula.constants<A>()};
    std::atomic<bool> finite{true};
    const auto finish = [&](int64_t begin, int64_t end) {
      if (!run(scale, begin, end)) finite = false;
    };
    if (before) {
      parallel(outputs.units(), kTiledWork, [&](int64_t begin, int64_t end) {
        in_tiles(begin, end, [&](int64_t first, int64_t last) {
          before(first, last);
          finish(first, last);
        });
        RowGemm::release();
      });
    } else {
      parallel(outputs.units(), outputs.unit_size(), finish);
    }
    out.finite = finite;
  });
}

BackwardPass start_backward(const Saved& saved, at::IntArrayRef z_shape, at::MemoryFormat format,
                            const Tiling& outputs, const Formula& formula, const Needs& needs,
                            Gradients& gradients, const BackwardStep& after) {
  BackwardPass pass;
  const auto& x = saved.x;
  pass.alpha = filter_scale(saved.weight, formula.unit);
  pass.u = at::empty(z_shape, x.options().memory_format(format));
  if (formula.has_norm()) pass.t = at::empty_like(saved.n);
  const int64_t filters = saved.weight.size(0), slots = at::get_num_threads();
  at::Tensor dbias;
  if (needs.bias) dbias = at::zeros({slots, filters}, pass.alpha.options());
  with_types(x.scalar_type(), saved.grad.scalar_type(), [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    using A = Accumulate<T>;
    const ScaleBackward<T, U> scale{pointer<U>(saved.grad),
                                    pointer<U>(saved.y),
                                    pointer<U>(saved.l),
                                    pointer<uint8_t>(saved.winner),
                                    pointer<A>(saved.n),
                                    pointer<A>(pass.alpha),
                                    mutable_pointer<T>(pass.u),
                                    mutable_pointer<A>(pass.t),
                                    nullptr,
                                    outputs,
                                    formula.max_out,
                                    formula.power,
                                    formula.constants<A>()};
    if (!needs.bias && !after) run_all(scale);
    if (needs.bias || after) {
      parallel_slots(slots, outputs.units(), [&](int64_t slot, int64_t begin, int64_t end) {
        auto mine = scale;
        if (needs.bias) mine.dbias = dbias.mutable_data_ptr<A>() + slot * filters;
        if (!after) return run(mine, begin, end);
        in_tiles(begin, end, [&](int64_t first, int64_t last) {
          run(mine, first, last);
          after(pass, first, last);
        });
        RowGemm::release();
      });
    }
    if (needs.b) {
      std::vector<double> sums(slots);
      parallel_slots(slots, outputs.units(), [&](int64_t slot, int64_t begin, int64_t end) {
        sums[slot] = exponent_gradient(scale, begin, end);
      });
      double total = 0;
      for (double s : sums) total += s;
      gradients.b = at::full_like(*saved.b, total);
    }
  });
  if (needs.bias) gradients.bias = dbias.sum(0);
  return pass;
}

void add_norm_gradient(const at::Tensor& x, const at::Tensor& r, const Tiling& inputs, at::Tensor& dx) {
  with_type(x.scalar_type(), [&](auto t) {
    using T = decltype(t);
    run_all(AddScaled<T>{pointer<T>(x), pointer<Accumulate<T>>(r), mutable_pointer<T>(dx), inputs});
  });
}

at::Tensor finish_weight_gradient(const Saved& saved, const Formula& formula, const at::Tensor& wgrad) {
  const auto& weight = saved.weight;
  const auto format = weight.suggest_memory_format();
  auto dw = wgrad.to(weight.scalar_type()).contiguous(format);
  if (formula.unit) weight_norm_backward(weight.contiguous(format), dw);
  return dw;
}

}  // namespace bcos::cpu
