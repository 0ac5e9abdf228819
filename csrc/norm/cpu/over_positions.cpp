// Norms whose statistics are those of the channels at a position.
#include "common/cpu/tiling.h"
#include "common/dtype.h"
#include "norm/cpu/memory.h"
#include "norm/cpu/norm.h"
#include "norm/cpu/positions.h"

namespace bcos::norm::cpu {
namespace {

// The sum over the shares of [shares, channels], which are overwritten.
template <typename A>
at::Tensor sum_of_shares(std::vector<double>& shares, int64_t channels) {
  for (int64_t i = channels; i < int64_t(shares.size()); i++) shares[i % channels] += shares[i];
  return as_gradient<A>(shares.data(), channels);
}

}  // namespace

Outputs forward_over_positions(const Call& call, const Inputs& inputs) {
  const auto sums = accumulate_type(call.dtype);
  const auto x = as_channels_last(inputs.x);
  const auto y = at::empty_like(x, x.options().dtype(call.spec.out_dtype));
  const auto mean = at::empty(call.statistics_shape, x.options().dtype(sums)), var = at::empty_like(mean);
  with_types(call.dtype, call.spec.out_dtype, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    using A = Accumulate<T>;
    const PerChannel<A> gamma(inputs.weight, 1, call.channels), beta(inputs.bias, 0, call.channels);
    const RowForward<T, U> pass{pointer<T>(x),           mutable_pointer<U>(y), mutable_pointer<A>(mean),
                                mutable_pointer<A>(var), gamma.data(),          beta.data(),
                                call.channels,           A(call.spec.eps),      call.spec.centered};
    parallel(call.batch * call.positions, call.channels,
             [&](int64_t begin, int64_t end) { run(pass, begin, end); });
  });
  return {with_strides_of(inputs.x, y), mean, var};
}

Gradients backward_over_positions(const Call& call, const Saved& saved, const Needs& needs) {
  const auto x = as_channels_last(saved.x), grad = as_channels_last(saved.grad);
  const int64_t shares = at::get_num_threads(), C = call.channels;
  const bool parameters = needs.weight || needs.bias;
  at::Tensor dx;
  if (needs.x) dx = at::empty_like(x);
  Gradients found;
  with_types(call.dtype, call.spec.out_dtype, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    using A = Accumulate<T>;
    const PerChannel<A> gamma(saved.weight, 1, C);
    std::vector<double> dgamma(parameters ? shares * C : 0), dbeta(dgamma.size());
    const RowBackward<T, U> pass{pointer<U>(grad),
                                 pointer<T>(x),
                                 mutable_pointer<T>(dx),
                                 pointer<A>(saved.mean),
                                 pointer<A>(saved.var),
                                 pointer<A>(saved.dvar),
                                 gamma.data(),
                                 parameters ? dgamma.data() : nullptr,
                                 parameters ? dbeta.data() : nullptr,
                                 C,
                                 A(call.spec.eps),
                                 call.spec.centered,
                                 call.frozen};
    parallel_shares(shares, call.batch * call.positions, [&](int64_t share, int64_t begin, int64_t end) {
      auto mine = pass;
      mine.dgamma = shift(pass.dgamma, share * C);
      mine.dbeta = shift(pass.dbeta, share * C);
      run(mine, begin, end);
    });
    if (needs.weight) found.weight = sum_of_shares<A>(dgamma, C);
    if (needs.bias) found.bias = sum_of_shares<A>(dbeta, C);
  });
  if (needs.x) found.x = with_strides_of(saved.x, dx);
  return found;
}

Second second_over_positions(const Call& call, const Saved& saved, const at::Tensor& given_v,
                             const SecondNeeds& needs) {
  const auto v = as_channels_last(given_v), grad = as_channels_last(saved.grad);
  const int64_t shares = at::get_num_threads(), C = call.channels;
  const auto dgrad = at::empty_like(v, v.options().dtype(call.spec.out_dtype));
  Second found;
  if (needs.var) found.var = at::empty_like(saved.var);
  with_types(call.dtype, call.spec.out_dtype, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    using A = Accumulate<T>;
    const PerChannel<A> gamma(saved.weight, 1, C);
    std::vector<double> dgamma(needs.weight ? shares * C : 0);
    const RowSecond<T, U> pass{pointer<U>(grad),
                               pointer<T>(v),
                               mutable_pointer<U>(dgrad),
                               pointer<A>(saved.var),
                               mutable_pointer<A>(found.var),
                               gamma.data(),
                               needs.weight ? dgamma.data() : nullptr,
                               C,
                               A(call.spec.eps),
                               call.spec.centered};
    parallel_shares(shares, call.batch * call.positions, [&](int64_t share, int64_t begin, int64_t end) {
      auto mine = pass;
      mine.dgamma = shift(pass.dgamma, share * C);
      run(mine, begin, end);
    });
    if (needs.weight) found.weight = sum_of_shares<A>(dgamma, C);
  });
  found.grad = with_strides_of(saved.x, dgrad);
  return found;
}

}  // namespace bcos::norm::cpu
