#include "transform/cpu/depthwise.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <atomic>

#include "common/layout.h"
#include "transform/cpu/depthwise_pass.h"
#include "transform/cpu/steps.h"
#include "transform/cpu/weight_norm.h"

namespace bcos::transform::cpu {
namespace {

constexpr int64_t kMostColumns = 256;  // of a unit: its rows stay in the caches of one core

DepthwiseShape make_shape(const Call& call, bool channels_last) {
  const auto& [rows, columns] = call.window.plane;
  DepthwiseShape s{channels_last, call.images,    rows.in, columns.in, call.channels,
                   rows.kernel,   columns.kernel, rows.in, columns.in, call.power};
  // parts of equal size, of which the last may be smaller
  s.band_columns = at::ceil_div(s.width, at::ceil_div(s.width, kMostColumns));
  // every band forms what it shares with its neighbours again
  const int64_t most = std::max<int64_t>(1, s.height / (4 * s.rows)),
                wanted = at::ceil_div<int64_t>(4 * at::get_num_threads(), s.units());
  s.band_rows = at::ceil_div(s.height, std::min(most, wanted));
  return s;
}

// alpha w as [lane block, rows * columns, lane], for the input gradient turned by 180 degrees
at::Tensor pack_taps(const at::Tensor& weight, const at::Tensor& alpha, const DepthwiseShape& s,
                     bool turned) {
  const int64_t area = s.taps();
  auto out = at::zeros({s.lane_blocks(), area, kLanes}, alpha.options());
  const float *w = weight.const_data_ptr<float>(), *a = alpha.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t c = 0; c < s.channels; c++)
    for (int64_t i = 0; i < area; i++)
      to[(c / kLanes * area + (turned ? area - 1 - i : i)) * kLanes + c % kLanes] = a[c] * w[c * area + i];
  return out;
}

// The inverse of pack_taps, summed over the threads' shares: alpha * dtaps as [channels, 1, rows, columns]
at::Tensor unpack_taps(const at::Tensor& shares, const at::Tensor& alpha, const DepthwiseShape& s) {
  const int64_t area = s.taps();
  const auto dtaps = shares.sum(0);
  auto out = at::empty({s.channels, 1, s.rows, s.columns}, alpha.options());
  const float *d = dtaps.const_data_ptr<float>(), *a = alpha.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t c = 0; c < s.channels; c++)
    for (int64_t i = 0; i < area; i++)
      to[c * area + i] = a[c] * d[(c / kLanes * area + i) * kLanes + c % kLanes];
  return out;
}

int64_t unit_size(const DepthwiseShape& s) {
  return s.band_rows * s.band_columns * kLanes * s.taps();
}

}  // namespace

bool depthwise_serves(const Call& call) {
#if defined(__GNUC__)
  const auto& [rows, columns] = call.window.plane;
  const auto takes = [](const Axis& axis) {
    return axis.is_same() && axis.kernel % 2 == 1 && axis.kernel <= 7;
  };
  return call.images > 0 && call.dtype != at::kDouble && call.spec.groups == call.channels &&
         call.channels >= kLanes / 2 && call.filters == call.channels && call.spec.max_out == 1 &&
         call.window.is_plane() && call.window.taps() > 1 && takes(rows) && takes(columns);
#else
  return false;
#endif
}

Outputs depthwise(const Call& call, const Inputs& inputs, bool channels_last) {
  const auto& [x, weight, bias, b] = inputs;
  const auto s = make_shape(call, channels_last);
  const auto alpha = filter_alpha(weight, call.spec.unit);
  const auto taps = pack_taps(weight.to(at::kFloat).contiguous(), alpha, s, false);
  const auto beta = at::zeros({s.lane_blocks() * kLanes}, alpha.options());
  if (bias) beta.narrow(0, 0, s.channels).copy_(*bias);
  const auto options = x.options().memory_format(image_format(channels_last, x.dim()));
  Outputs out;
  out.y = at::empty(x.sizes(), options.dtype(call.spec.out_dtype));
  if (call.saves_l()) out.l = at::empty_like(out.y);
  with_types(call.dtype, call.spec.out_dtype, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    if constexpr (!std::is_same_v<T, double>) {
      const DepthwiseForward<T, U> pass{s,
                                        pointer<T>(inputs.x),
                                        pointer<float>(taps),
                                        pointer<float>(beta),
                                        mutable_pointer<U>(out.y),
                                        mutable_pointer<U>(out.l),
                                        call.constants<float>()};
      parallel(s.units(), unit_size(s), [&](int64_t begin, int64_t end) { run(pass, begin, end); });
    }
  });
  return out;
}

Gradients depthwise_backward(const Call& call, const Saved& saved, const Needs& needs, bool channels_last,
                             bool& small_norm) {
  const auto s = make_shape(call, channels_last);
  const auto weight = saved.weight.to(at::kFloat).contiguous();
  const auto alpha = filter_alpha(saved.weight, call.spec.unit);
  const auto taps = pack_taps(weight, alpha, s, true);
  const int64_t shares = at::get_num_threads(), area = s.taps();
  std::atomic<bool> found{false};
  at::Tensor dx, dtaps, dbias;
  if (needs.x) dx = empty_gradient(call, saved.x);
  if (needs.weight) dtaps = at::zeros({shares, s.lane_blocks(), area, kLanes}, alpha.options());
  if (needs.bias) dbias = at::zeros({shares, s.lane_blocks() * kLanes}, alpha.options());
  with_types(call.dtype, call.spec.out_dtype, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    if constexpr (!std::is_same_v<T, double>) {
      const DepthwiseBackward<T, U> pass{s,
                                         pointer<T>(saved.x),
                                         pointer<U>(saved.grad),
                                         pointer<U>(saved.y),
                                         pointer<U>(saved.l),
                                         pointer<float>(taps),
                                         mutable_pointer<T>(dx),
                                         nullptr,
                                         nullptr,
                                         call.constants<float>()};
      for (int64_t row = 0; row < call.rows; row++)
        parallel_shares(shares, s.units(), [&](int64_t share, int64_t begin, int64_t end) {
          auto mine = pass;
          mine.grad += row * saved.x.numel();
          if (needs.x) mine.dx += row * saved.x.numel();
          if (needs.weight)
            mine.dtaps = dtaps.mutable_data_ptr<float>() + share * s.lane_blocks() * area * kLanes;
          if (needs.bias) mine.dbias = dbias.mutable_data_ptr<float>() + share * s.lane_blocks() * kLanes;
          if (run(mine, begin, end)) found = true;
        });
    }
  });
  small_norm = found;
  Gradients out;
  if (needs.x) out.x = dx;
  if (needs.bias) out.bias = dbias.sum(0).narrow(0, 0, s.channels).to(saved.weight.scalar_type()).clone();
  if (needs.weight) out.weight = finish_weight_gradient(call, saved.weight, unpack_taps(dtaps, alpha, s));
  return out;
}

}  // namespace bcos::transform::cpu
