#include "dynamic_alignment/cpu/dynamic_alignment.h"

#include <ATen/Parallel.h>
#include <ATen/ceil_div.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include "common/cpu/row_gemm.h"
#include "common/cpu/types.h"
#include "common/plain_aten.h"
#include "dynamic_alignment/cpu/block.h"
#include "dynamic_alignment/cpu/patches.h"

namespace bcos::dynamic_alignment::cpu {
namespace {

using bcos::cpu::mutable_pointer;
using bcos::cpu::pointer;

// Sizes of tiles: a block of w has about kBlock values, so that it stays in a core's cache with what is read
// beside it; a tile has at most kPixels pixels and, unless there are many outputs, at least kFewest.
constexpr int64_t kBlock = 1 << 16, kPixels = 256, kFewest = 32;

// How the pixels are cut into tiles, and the values of a patch into blocks.
struct Cut {
  int64_t pixels, values;

  Cut(const Call& call, int64_t shares) {
    const int64_t most = std::max(kFewest, std::min(kPixels, kBlock / call.outputs / 16 * 16));
    pixels = std::max<int64_t>(
        1, std::min({most, call.pixels(), std::max(kFewest, at::ceil_div(call.pixels(), shares))}));
    values = std::min(call.patch(), std::max<int64_t>(1, kBlock / (call.outputs * pixels)));
  }
};

at::ScalarType sums_of(const at::Tensor& t) {
  return accumulate_type(t.scalar_type());
}

at::Tensor wide(const at::Tensor& t) {
  return t.to(sums_of(t)).contiguous();
}

Inputs wide(const Inputs& given) {
  return {wide(given.x), wide(given.h), wide(given.weight),
          given.bias ? OptionalTensor(wide(*given.bias)) : std::nullopt};
}

// What one thread needs of a tile: the projections of its pixels, and one block with the values of x.
template <typename A>
struct Tile {
  const Call& call;
  const Inputs& inputs;
  Cut cut;
  at::Tensor h, w, u;  // [R, pixels], [values*O, pixels], [values, pixels]
  bool by_rows;        // whether there is a product of few rows, which needs no packing of w and h
  int64_t begin = 0, end = 0;

  ~Tile() {
    if (by_rows) bcos::cpu::RowGemm::release();
  }

  Tile(const Call& call, const Inputs& inputs, const Cut& cut)
      : call(call),
        inputs(inputs),
        cut(cut),
        h(rows(call.rank)),
        w(rows(cut.values * call.outputs)),
        u(rows(cut.values)),
        by_rows(bcos::cpu::RowGemm::serves(inputs.h, inputs.weight, inputs.h.scalar_type())) {}

  at::Tensor rows(int64_t count) const { return at::empty({count * cut.pixels}, inputs.x.options()); }
  int64_t size() const { return end - begin; }
  // The part of a scratch that holds [count, size()].
  at::Tensor part(const at::Tensor& scratch, int64_t count) const {
    return scratch.narrow(0, 0, count * size()).view({count, size()});
  }

  void move(int64_t first, int64_t last) {
    begin = first;
    end = last;
    take(call, call.rank, inputs.h.const_data_ptr<A>(), begin, end, h.mutable_data_ptr<A>());
  }

  const A* bias(int64_t value) const {
    return inputs.bias ? inputs.bias->const_data_ptr<A>() + value * call.outputs : nullptr;
  }

  // The rows of a parameter [P*O, ..] that belong to values [first, last) of a patch.
  at::Tensor of_values(const at::Tensor& t, int64_t first, int64_t last) const {
    return t.narrow(0, first * call.outputs, (last - first) * call.outputs);
  }

  // w = weight h, for the rows of the weight that belong to a block
  void multiply(const at::Tensor& weight, int64_t count) {
    if constexpr (std::is_same_v<A, float>) {
      if (by_rows) {
        bcos::cpu::RowGemm::multiply(count, size(), call.rank, weight.const_data_ptr<A>(),
                                     h.const_data_ptr<A>(), w.mutable_data_ptr<A>());
        return;
      }
    }
    auto block = part(w, count);
    at::mm_out(block, weight, part(h, call.rank));
  }

  // body(first, last) for the blocks of values [from, to), each with w, without the bias, and u.
  template <typename F>
  void blocks(int64_t from, int64_t to, F&& body) {
    for (int64_t first = from; first < to; first += cut.values) {
      const int64_t last = std::min(to, first + cut.values);
      multiply(of_values(inputs.weight, first, last), (last - first) * call.outputs);
      for (int64_t p = first; p < last; p++)
        take_value(call, inputs.x.const_data_ptr<A>(), p, begin, end,
                   u.mutable_data_ptr<A>() + (p - first) * size());
      body(first, last);
    }
  }
};

// body() for each of tiles [first, last), to which the tile is moved.
template <typename A, typename F>
void over_tiles(Tile<A>& tile, int64_t first, int64_t last, F&& body) {
  for (int64_t i = first; i < last; i++) {
    tile.move(i * tile.cut.pixels, std::min((i + 1) * tile.cut.pixels, tile.call.pixels()));
    body();
  }
}

// [O, pixels] of a tile between scratch and tensor
template <typename A>
void copy_rows(int64_t rows, const A* from, int64_t from_stride, A* to, int64_t to_stride, int64_t size) {
  for (int64_t r = 0; r < rows; r++) std::copy_n(from + r * from_stride, size, to + r * to_stride);
}

template <typename A>
Outputs forward_of(const Call& call, const Inputs& inputs) {
  const int64_t outputs = call.outputs, pixels = call.pixels();
  const auto options = inputs.x.options();
  const auto y = at::empty({call.images, outputs, call.out[0], call.out[1]}, options);
  const auto norms = at::empty({outputs, pixels}, options);
  const auto all_l = at::empty({call.spec.detach ? 0 : outputs, pixels}, options);
  A *to_y = y.mutable_data_ptr<A>(), *to_norms = norms.mutable_data_ptr<A>();
  A* to_l = call.spec.detach ? nullptr : all_l.mutable_data_ptr<A>();
  const Cut cut(call, at::get_num_threads());
  at::parallel_for(0, at::ceil_div(pixels, cut.pixels), 1, [&](int64_t first, int64_t last) {
    const PlainAten guard;  // threads do not inherit it
    Tile<A> tile(call, inputs, cut);
    std::vector<A> l(outputs * cut.pixels), sums(outputs * cut.pixels);
    over_tiles(tile, first, last, [&] {
      const int64_t size = tile.size(), all = outputs * size, q = tile.begin;
      std::fill_n(l.data(), all, A(0));
      std::fill_n(sums.data(), all, A(0));
      tile.blocks(0, call.patch(), [&](int64_t from, int64_t to) {
        run(BlockForward<A>{call.spec.norm, to - from, outputs, size, tile.w.template const_data_ptr<A>(),
                            tile.bias(from), tile.u.template const_data_ptr<A>(), l.data(), sums.data()});
      });
      if (to_l) copy_rows(outputs, l.data(), size, to_l + q, pixels, size);
      run(Finish<A>{call.spec.norm, all, l.data(), sums.data(), l.data()});
      copy_rows(outputs, sums.data(), size, to_norms + q, pixels, size);
      give(call, outputs, l.data(), q, tile.end, to_y);
    });
  });
  return {y, norms, all_l};
}

// The gradients at w and u of a tile, made of those at y: one matrix [O, pixels] for each row of the dynamic
// linear map and, in training, another.
template <typename A>
struct Upstream {
  std::vector<A> grad, norms, l, of_u, of_w;

  Upstream(const Call& call, const Cut& cut, int64_t rows, bool training)
      : grad(call.outputs * cut.pixels),
        norms(grad.size()),
        l(training ? grad.size() : 0),
        of_u(rows * grad.size()),
        of_w(l.size()) {}

  void start(const Call& call, const Saved& saved, int64_t begin, int64_t end) {
    const int64_t O = call.outputs, size = end - begin, pixels = call.pixels();
    const bool training = !of_w.empty();
    copy_rows(O, saved.norm.const_data_ptr<A>() + begin, pixels, norms.data(), size, size);
    if (training) copy_rows(O, saved.l.const_data_ptr<A>() + begin, pixels, l.data(), size, size);
    for (size_t row = 0; row < of_u.size() / grad.size(); row++) {
      take(call, O, saved.grad.const_data_ptr<A>() + row * O * pixels, begin, end, grad.data());
      run(Start<A>{call.spec.norm, O * size, grad.data(), norms.data(), l.data(),
                   of_u.data() + row * grad.size(), training ? of_w.data() : nullptr});
    }
  }
};

// Each share takes some channels of x, all pixels, and no part of dx, dweight and dbias that another takes;
// each has its own dh.
template <typename A>
Gradients backward_of(const Call& call, const Inputs& inputs, const Saved& saved, const Needs& needs) {
  const int64_t rows = call.images ? saved.grad.size(0) / call.images : 1;
  const int64_t shares = std::min<int64_t>(at::get_num_threads(), call.channels);
  const int64_t in_x = inputs.x.numel();
  const bool training = needs.training();
  const auto options = inputs.x.options();
  auto dx_shape = inputs.x.sizes().vec(), dh_shape = inputs.h.sizes().vec();
  dx_shape[0] *= rows;
  dh_shape.insert(dh_shape.begin(), shares);
  at::Tensor dx, dh, dweight, dbias;
  if (needs.x) dx = at::zeros(dx_shape, options);
  if (training) dbias = at::zeros({inputs.weight.size(0)}, options);
  if (needs.weight) dweight = at::zeros(inputs.weight.sizes(), options);
  if (needs.h) dh = at::empty(dh_shape, options);
  A *to_x = mutable_pointer<A>(dx), *to_h = mutable_pointer<A>(dh), *to_bias = mutable_pointer<A>(dbias);
  const Cut cut(call, 1);
  at::parallel_for(0, shares, 1, [&](int64_t first_share, int64_t last_share) {
    const PlainAten guard;  // threads do not inherit it
    Tile<A> tile(call, inputs, cut);
    Upstream<A> upstream(call, cut, rows, training);
    std::vector<A> du(cut.values * cut.pixels);
    const auto tile_dh = tile.rows(needs.h ? call.rank : 0);
    for (int64_t share = first_share; share < last_share; share++) {
      const int64_t from = call.channels * share / shares * call.taps();
      const int64_t to = call.channels * (share + 1) / shares * call.taps();
      over_tiles(tile, 0, at::ceil_div(call.pixels(), cut.pixels), [&] {
        const int64_t size = tile.size();
        upstream.start(call, saved, tile.begin, tile.end);
        tile.blocks(from, to, [&](int64_t first, int64_t last) {
          const int64_t values = last - first;
          for (int64_t row = 0; row < rows; row++) {
            run(BlockBackward<A>{
                call.spec.norm, values, call.outputs, size, tile.w.template mutable_data_ptr<A>(),
                tile.bias(first), tile.u.template const_data_ptr<A>(),
                upstream.of_u.data() + row * upstream.grad.size(), training ? upstream.of_w.data() : nullptr,
                du.data(), training ? to_bias + first * call.outputs : nullptr});
            for (int64_t p = first; to_x && p < last; p++)
              add_value(call, du.data() + (p - first) * size, p, tile.begin, tile.end, to_x + row * in_x);
          }
          const auto dw = tile.part(tile.w, values * call.outputs);
          if (needs.h) {
            auto sum = tile.part(tile_dh, call.rank);
            const auto weight = tile.of_values(inputs.weight, first, last);
            at::addmm_out(sum, sum, weight.t(), dw, first == from ? 0 : 1);
          }
          if (needs.weight) {
            auto sum = tile.of_values(dweight, first, last);
            at::addmm_out(sum, sum, dw, tile.part(tile.h, call.rank).t());
          }
        });
        if (needs.h)
          give(call, call.rank, tile_dh.template const_data_ptr<A>(), tile.begin, tile.end,
               to_h + share * inputs.h.numel());
      });
    }
  });
  Gradients found;
  if (needs.x) found.x = dx;
  if (needs.h) found.h = shares == 1 ? dh.squeeze(0) : dh.sum(0);
  if (needs.weight) found.weight = dweight;
  if (needs.bias) found.bias = dbias;
  return found;
}

template <typename F>
auto with_sums(const at::Tensor& t, F&& body) {
  return sums_of(t) == at::kDouble ? body(double{}) : body(float{});
}

}  // namespace

Outputs forward(const Call& call, const Inputs& given) {
  auto out = with_sums(given.x, [&](auto a) { return forward_of<decltype(a)>(call, wide(given)); });
  const bool last = given.x.is_contiguous(at::MemoryFormat::ChannelsLast) && !given.x.is_contiguous();
  out.y = out.y.to(given.x.scalar_type())
              .contiguous(last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  return out;
}

Gradients backward(const Call& call, const Inputs& given, const Saved& saved, const Needs& needs) {
  auto found = with_sums(given.x, [&](auto a) {
    return backward_of<decltype(a)>(call, wide(given), {wide(saved.grad), saved.norm, saved.l}, needs);
  });
  for (auto* gradient : {&found.x, &found.h, &found.weight, &found.bias})
    if (*gradient) *gradient = (*gradient)->to(given.x.scalar_type());
  for (auto [gradient, like] : {std::pair{&found.x, &given.x}, std::pair{&found.h, &given.h}})
    if (*gradient) *gradient = (*gradient)->contiguous(like->suggest_memory_format());
  return found;
}

}  // namespace bcos::dynamic_alignment::cpu
