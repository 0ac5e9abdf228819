#include "norm/cpu/over_positions.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "common/cpu/tiling.h"
#include "common/dtype.h"
#include "norm/cpu/memory.h"
#include "norm/cpu/positions.h"

namespace bcos::norm::cpu {

Outputs forward_over_positions(const Call& call, const Inputs& inputs) {
  const auto sums = accumulate_type(call.dtype);
  const auto x = as_channels_last(inputs.x);
  const auto y = at::empty_like(x, x.options().dtype(call.spec.out_dtype));
  const auto mean = at::empty(call.statistics_shape, x.options().dtype(sums)), var = at::empty_like(mean);
  const auto gamma = per_channel(inputs.weight, 1, call.channels, sums);
  const auto beta = per_channel(inputs.bias, 0, call.channels, sums);
  with_types(call.dtype, call.spec.out_dtype, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    using A = Accumulate<T>;
    const RowForward<T, U> pass{pointer<T>(x),           mutable_pointer<U>(y), mutable_pointer<A>(mean),
                                mutable_pointer<A>(var), pointer<A>(gamma),     pointer<A>(beta),
                                call.channels,           A(call.spec.eps),      call.spec.centered};
    parallel(call.batch * call.positions, call.channels,
             [&](int64_t begin, int64_t end) { run(pass, begin, end); });
  });
  return {in_form(y, is_channels_last(inputs.x)), mean, var};
}

Gradients backward_over_positions(const Call& call, const Saved& saved, const Needs& needs) {
  const auto sums = accumulate_type(call.dtype);
  const auto x = as_channels_last(saved.x), grad = as_channels_last(saved.grad);
  const auto gamma = per_channel(saved.weight, 1, call.channels, sums);
  const int64_t shares = at::get_num_threads();
  at::Tensor dx, partial;
  if (needs.x) dx = at::empty_like(x);
  if (needs.weight || needs.bias)
    partial = at::zeros({2, shares, call.channels}, x.options().dtype(at::kDouble));
  with_types(call.dtype, call.spec.out_dtype, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    using A = Accumulate<T>;
    double* dgamma = mutable_pointer<double>(partial);
    const RowBackward<T, U> pass{pointer<U>(grad),
                                 pointer<T>(x),
                                 mutable_pointer<T>(dx),
                                 pointer<A>(saved.mean),
                                 pointer<A>(saved.var),
                                 pointer<A>(gamma),
                                 dgamma,
                                 shift(dgamma, shares * call.channels),
                                 call.channels,
                                 A(call.spec.eps),
                                 call.spec.centered,
                                 call.frozen};
    parallel_shares(shares, call.batch * call.positions,
                    [&](int64_t share, int64_t begin, int64_t end) { run(pass, share, begin, end); });
  });
  Gradients found;
  if (needs.x) found.x = in_form(dx, is_channels_last(saved.x));
  if (needs.weight) found.weight = partial[0].sum(0).to(sums);
  if (needs.bias) found.bias = partial[1].sum(0).to(sums);
  return found;
}

}  // namespace bcos::norm::cpu
