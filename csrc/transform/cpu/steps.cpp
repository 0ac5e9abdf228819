#include "transform/cpu/steps.h"

#include <ATen/ops/div.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <type_traits>
#include <utility>

#include "common/cpu/empty.h"
#include "common/cpu/lines.h"
#include "common/cpu/row_gemm.h"
#include "common/cpu/sums.h"
#include "common/layout.h"
#include "transform/cpu/patch_norm.h"
#include "transform/cpu/scale_second.h"
#include "transform/cpu/weight_norm.h"

namespace bcos::transform::cpu {
namespace {

constexpr int64_t kTiledWork = 1 << 10;  // a unit of a tiled pass holds a product: split even few of them

// Tiles of at most kRows units and nearly equal size, as a short last one would waste its product. All but
// the last are of whole blocks, which are what NarrowGroups multiplies at once.
template <typename F>
void in_tiles(int64_t begin, int64_t end, F&& body) {
  constexpr int64_t kBlock = 8, kBlocks = RowGemm::kRows / kBlock;
  const int64_t blocks = at::ceil_div(end - begin, kBlock), tiles = at::ceil_div(blocks, kBlocks);
  for (int64_t i = 0; i < tiles; i++)
    body(begin + blocks * i / tiles * kBlock, std::min(end, begin + blocks * (i + 1) / tiles * kBlock));
}

// body(pass, begin, end) with the units of one row of all images each, for the units [begin, end) of all
// rows.
template <typename Pass, typename F>
void in_rows(const Pass& all, int64_t begin, int64_t end, F&& body) {
  const Tiling& t = all.tiling;
  const int64_t units = t.units(), outputs = t.batch * t.channels() * t.pixels;
  while (begin < end) {
    const int64_t row = begin / units, last = std::min(end, (row + 1) * units);
    Pass mine = all;
    mine.grad += row * outputs;
    mine.u_begin -= row * outputs * all.max_out;
    if (mine.t) mine.t += row * t.batch * t.groups * t.pixels;
    body(mine, begin - row * units, last - row * units);
    begin = last;
  }
}

}  // namespace

void run_tiles(int64_t units, const TileStep& step) {
  parallel(units, kTiledWork, [&](int64_t begin, int64_t end) {
    in_tiles(begin, end, step);
    RowGemm::release();
  });
}

PackedFilters::PackedFilters(const at::Tensor& weight, bool unit, at::ScalarType dtype)
    : alpha(empty({weight.size(0)}, weight.options().dtype(at::kFloat))),
      gemm(in_type(weight, dtype), true, [&](int64_t begin, int64_t end) {
        filter_alpha(weight, unit, begin, end, alpha.mutable_data_ptr<float>());
      }) {}

OptionalTensor take_bias(const Call& call, Inputs& inputs) {
  if (!inputs.bias || call.spec.unit) return std::nullopt;
  return in_type(*std::exchange(inputs.bias, std::nullopt), call.dtype);
}

void finish_forward(const Call& call, const Inputs& inputs, const at::Tensor& alpha, const at::Tensor& z,
                    const Tiling& outputs, Outputs& out, const ProductStep& products) {
  const auto& spec = call.spec;
  const auto type = products ? at::kFloat : z.scalar_type();
  const bool in_place = spec.max_out == 1 && spec.out_dtype == type;
  if (in_place && !products) {
    out.y = z;
    if (call.power == Power::One && !spec.unit && !inputs.bias) return;
  } else {
    const auto format = image_format(outputs.channels_last, inputs.x.dim());
    out.y = empty(call.y_shape(), inputs.x.options().dtype(spec.out_dtype).memory_format(format));
  }
  at::Tensor tiles;  // one for each thread
  if (products && !in_place)
    tiles = empty({at::get_num_threads(), RowGemm::kRows * call.filters}, inputs.x.options().dtype(type));
  if (call.saves_l()) out.l = at::empty_like(out.y);
  if (call.saves_winner()) out.winner = at::empty_like(out.y, out.y.options().dtype(at::kByte));
  at::Tensor bias;
  if (inputs.bias) bias = in_type(*inputs.bias, accumulate_type(type)).contiguous();
  const auto finish = [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    using A = Accumulate<T>;
    Scratch<A> scratch(2 * call.filters);
    A *own_alpha = scratch.data(), *zeros = own_alpha + call.filters;
    if (!alpha.defined()) filter_alpha(inputs.weight, spec.unit, own_alpha);
    if (!bias.defined()) std::fill_n(zeros, call.filters, A(0));
    const ScaleForward<T, U> scale{pointer<T>(z),
                                   mutable_pointer<U>(out.y),
                                   mutable_pointer<U>(out.l),
                                   mutable_pointer<uint8_t>(out.winner),
                                   pointer<A>(out.n),
                                   alpha.defined() ? pointer<A>(alpha) : own_alpha,
                                   bias.defined() ? pointer<A>(bias) : zeros,
                                   outputs,
                                   spec.max_out,
                                   call.power,
                                   call.constants<A>(),
                                   spec.unit};
    std::atomic<bool> finite{true};
    const auto finish_tile = [&](int64_t begin, int64_t end) {
      auto mine = scale;
      if constexpr (std::is_same_v<T, float>) {
        mine.z_begin = begin * call.filters;
        float* rows = in_place ? out.y.mutable_data_ptr<float>() + mine.z_begin
                               : tiles.mutable_data_ptr<float>() + at::get_thread_num() * tiles.size(1);
        products(begin, end, rows);
        mine.z = rows;
      }
      if (!run(mine, begin, end)) finite = false;
    };
    if (products)
      run_tiles(outputs.units(), finish_tile);
    else
      parallel(outputs.units(), outputs.unit_size(), [&](int64_t begin, int64_t end) {
        if (!run(scale, begin, end)) finite = false;
      });
    out.finite = finite;
  };
  if (products && spec.out_dtype == at::kBFloat16)
    finish(float{}, BFloat16{});
  else
    with_types(type, spec.out_dtype, finish);
}

Saved in_format(Saved saved, at::MemoryFormat format) {
  for (auto* t : {&saved.grad, &saved.x, &saved.y, &saved.n, &saved.l, &saved.winner, &saved.dn, &saved.dl})
    if (t->defined()) *t = t->contiguous(format);
  saved.weight = saved.weight.contiguous(saved.weight.suggest_memory_format());
  return saved;
}

BackwardPass start_backward(const Call& call, const Saved& saved, at::MemoryFormat format,
                            const Tiling& outputs, const Needs& needs, Gradients& gradients,
                            const BackwardStep& after) {
  BackwardPass pass;
  const auto& x = saved.x;
  const int64_t filters = call.filters, shares = at::get_num_threads();
  pass.u = after.keeps_u ? empty(call.of_rows(call.z_shape()), x.options().memory_format(format))
                         : empty({shares * RowGemm::kRows, filters}, x.options());
  if (call.has_norm()) pass.t = c10::GetCPUAllocator()->allocate(call.rows * saved.n.nbytes());
  const bool joins = saved.dl.defined();
  at::Tensor dbias;
  if (needs.bias) dbias = at::zeros({shares, filters}, x.options().dtype(at::kDouble));
  with_types(x.scalar_type(), saved.grad.scalar_type(), [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    using A = Accumulate<T>;
    Scratch<A> alpha(filters);
    filter_alpha(saved.weight, call.spec.unit, alpha.data());
    const ScaleBackward<T, U> scale{pointer<U>(saved.grad),
                                    pointer<U>(saved.y),
                                    pointer<U>(saved.l),
                                    pointer<uint8_t>(saved.winner),
                                    pointer<A>(saved.n),
                                    alpha.data(),
                                    mutable_pointer<T>(pass.u),
                                    static_cast<A*>(pass.t.get()),
                                    nullptr,
                                    outputs,
                                    call.spec.max_out,
                                    call.power,
                                    call.constants<A>(),
                                    pointer<A>(saved.map)};
    const auto of_rows = [](const auto& some, int64_t begin, int64_t end) {
      in_rows(some, begin, end, [](const auto& row, int64_t first, int64_t last) { run(row, first, last); });
    };
    const int64_t units = call.rows * outputs.units();
    const bool in_shares = needs.bias || joins || after.run;
    if (!in_shares) {
      parallel(units, outputs.unit_size(), [&](int64_t begin, int64_t end) { of_rows(scale, begin, end); });
    } else {
      parallel_shares(shares, units, [&](int64_t share, int64_t begin, int64_t end) {
        auto mine = scale;
        Scratch<A> of_tile(needs.bias ? filters : 0);
        if (needs.bias) mine.dbias = of_tile.data();
        std::fill_n(mine.dbias, needs.bias ? filters : 0, A(0));
        if (!after.keeps_u) mine.u += share * RowGemm::kRows * filters;
        ScaleJoin<T, U> join{
            pointer<U>(saved.dl), scale.winner, pointer<A>(saved.dn), scale.n, scale.alpha, mine.u, scale.t,
            mine.dbias,           outputs,      scale.max_out,        scale.k};
        in_tiles(begin, end, [&](int64_t first, int64_t last) {
          if (!after.keeps_u) join.u_begin = mine.u_begin = first * filters;
          of_rows(mine, first, last);
          if (joins) run(join, first, last);
          // a row of a plane is summed up before it joins; single values would lose digits beside a long sum
          if (needs.bias && (outputs.channels_last || last == end)) {
            add_row(dbias.mutable_data_ptr<double>() + share * filters, mine.dbias, filters);
            std::fill_n(mine.dbias, filters, A(0));
          }
          if (after.run)
            after.run(pass, {share, first, last, after.keeps_u ? first : share * RowGemm::kRows});
        });
        if (after.run) RowGemm::release();
      });
    }
    if (needs.b) {
      std::vector<double> sums(shares);
      parallel_shares(shares, outputs.units(), [&](int64_t share, int64_t begin, int64_t end) {
        sums[share] = b_gradient(scale, begin, end);
      });
      double total = 0;
      for (double s : sums) total += s;
      gradients.b = at::full_like(*saved.b, total);
    }
  });
  if (needs.bias) gradients.bias = dbias.sum(0);
  return pass;
}

bool takes_map(const Call& call, const Needs& needs) {
  return call.power == Power::Two && call.spec.max_out == 1 && !needs.bias;
}

at::Tensor empty_gradient(const Call& call, const at::Tensor& x) {
  return empty(call.of_rows(x.sizes()), x.options().memory_format(x.suggest_memory_format()));
}

BackwardPass finish_second(const Call& call, const Saved& saved, const at::Tensor& z, const at::Tensor& m,
                           const Tiling& outputs, bool detached, Second& out, const TileStep& before) {
  BackwardPass pass;
  pass.u = at::empty_like(z);
  const bool in_place = call.spec.max_out == 1 && call.spec.out_dtype == z.scalar_type();
  const auto dgrad = in_place ? z : at::empty_like(saved.grad);
  at::Tensor rm;
  if (!detached && call.has_norm()) {
    rm = at::zeros_like(saved.n);
    if (m.defined()) {
      const auto root = at::sub(saved.n, call.spec.eps_outside);
      rm = at::where(at::eq(root, 0), rm, at::div(m, root)).contiguous(saved.n.suggest_memory_format());
    }
    out.l = at::empty_like(saved.grad);
    out.n = at::empty_like(saved.n);
    pass.t = c10::GetCPUAllocator()->allocate(saved.n.nbytes());
  }
  with_types(z.scalar_type(), call.spec.out_dtype, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    using A = Accumulate<T>;
    Scratch<A> alpha(call.filters);
    filter_alpha(saved.weight, call.spec.unit, alpha.data());
    const ScaleSecond<T, U> scale{pointer<U>(saved.grad),
                                  pointer<U>(saved.y),
                                  pointer<U>(saved.l),
                                  pointer<uint8_t>(saved.winner),
                                  pointer<T>(z),
                                  pointer<A>(saved.n),
                                  pointer<A>(rm),
                                  alpha.data(),
                                  mutable_pointer<U>(dgrad),
                                  mutable_pointer<T>(pass.u),
                                  mutable_pointer<U>(out.l),
                                  mutable_pointer<A>(out.n),
                                  static_cast<A*>(pass.t.get()),
                                  outputs,
                                  call.spec.max_out,
                                  call.power,
                                  call.constants<A>()};
    if (!before) return run_all(scale);
    run_tiles(outputs.units(), [&](int64_t begin, int64_t end) {
      before(begin, end);
      run(scale, begin, end);
    });
  });
  out.grad = dgrad;
  return pass;
}

void add_norm_gradient(const Call& call, const at::Tensor& x, const c10::DataPtr& t, bool channels_last,
                       at::Tensor& dx) {
  with_type(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const Spread<A> r(call, static_cast<const A*>(t.get()), channels_last);
    run_all(AddScaled<T>{pointer<T>(x), r.data(), mutable_pointer<T>(dx), input_tiling(call, channels_last)});
  });
}

at::Tensor finish_weight_gradient(const Call& call, const at::Tensor& weight, const at::Tensor& wgrad) {
  const auto format = weight.suggest_memory_format();
  auto dw = in_type(wgrad, weight.scalar_type()).contiguous(format);
  if (call.spec.unit) weight_norm_backward(weight.contiguous(format), dw);
  return dw;
}

}  // namespace bcos::transform::cpu
