// Norms whose statistics are those of channels: over the batch, over all, or over groups of channels.
#include <limits>
#include <vector>

#include "common/cpu/tiling.h"
#include "common/dtype.h"
#include "norm/cpu/channels.h"
#include "norm/cpu/memory.h"
#include "norm/cpu/norm.h"
#include "norm/formula.h"

namespace bcos::norm::cpu {
namespace {

Extent make_extent(const Call& call, bool channels_last) {
  const bool one_image = channels_last && !call.per_image();
  const int64_t images = one_image ? 1 : call.batch, threads = at::get_num_threads();
  return {channels_last,
          images,
          one_image ? call.batch * call.positions : call.positions,
          call.channels,
          call.per_image() ? call.channels : 0,
          channels_last ? at::ceil_div(threads, std::max<int64_t>(1, images)) : 1};
}

// The statistics of a call: `sets` sets of channels, one for each image or one for all, in `groups` groups.
struct Groups {
  const Call& call;
  const Extent extent;

  Groups(const Call& call, const at::Tensor& x)
      : call(call), extent(make_extent(call, is_channels_last(x))) {}

  at::Tensor in_form(const at::Tensor& t) const { return cpu::in_form(t, extent.channels_last); }
  int64_t sets() const { return call.per_image() ? call.batch : 1; }
  int64_t first_part(int64_t set) const { return call.per_image() ? set * extent.splits : 0; }
  int64_t last_part(int64_t set) const { return call.per_image() ? first_part(set + 1) : extent.parts(); }

  // body(set, group, first channel, last channel)
  template <typename F>
  void each(F&& body) const {
    for (int64_t set = 0; set < sets(); set++)
      for (int64_t group = 0; group < call.groups(); group++)
        body(set, group, group * call.group_channels(), (group + 1) * call.group_channels());
  }
};

template <typename Pass>
void run_all(const Pass& pass) {
  const Extent& e = pass.extent;
  const int64_t values = e.images * e.rows * e.channels, units = pass.units();
  parallel(units, units ? values / units : 0, [&](int64_t begin, int64_t end) { run(pass, begin, end); });
}

// Writes the mean and the biased variance of every group.
template <typename T>
void compute_statistics(const Groups& groups, const T* x, Accumulate<T>* mean, Accumulate<T>* var) {
  const Extent& e = groups.extent;
  const int64_t C = e.channels, values = e.parts() * C;
  std::vector<double> found(2 * values);
  const PartMoments<T> pass{x, found.data(), found.data() + values, e};
  run_all(pass);
  const double count = double(groups.call.count());
  groups.each([&](int64_t set, int64_t group, int64_t first, int64_t last) {
    const auto sum = [&](auto&& of_part) {
      double total = 0;
      for (int64_t part = groups.first_part(set); part < groups.last_part(set); part++) {
        const double rows = double(e.part_end(part) - e.part_begin(part));
        for (int64_t i = part * C + first; i < part * C + last; i++) total += of_part(rows, i);
      }
      return total / count;
    };
    const double center = sum([&](double rows, int64_t i) { return rows * pass.mean[i]; });
    const int64_t at = set * groups.call.groups() + group;
    mean[at] = Accumulate<T>(center);
    var[at] = Accumulate<T>(sum([&](double rows, int64_t i) {
      const double step = pass.mean[i] - center;
      return pass.squares[i] + rows * step * step;
    }));
  });
}

// What the passes read of every channel of every set: a row of values of each kind.
template <typename A>
struct ChannelConstants {
  Lines<A> values;
  int64_t size;
  ChannelConstants(int64_t kinds, int64_t size) : values(kinds * size), size(size) {}
  A* operator[](int64_t kind) { return values.data() + kind * size; }
};

// The index of a channel's mean and variance: given ones are those of each channel.
int64_t statistic(const Call& call, int64_t set, int64_t group, int64_t channel) {
  return call.given ? channel : set * call.groups() + group;
}

template <typename T, typename U>
at::Tensor normalized(const Groups& groups, const at::Tensor& x, const OptionalTensor& mean,
                      const at::Tensor& var, const Inputs& inputs) {
  using A = Accumulate<T>;
  const Call& call = groups.call;
  const Extent& e = groups.extent;
  const int64_t C = e.channels;
  ChannelConstants<A> k(3, groups.sets() * C);
  const PerChannel<A> gamma(inputs.weight, 1, C), beta(inputs.bias, 0, C);
  const A *means = mean ? pointer<A>(*mean) : nullptr, *vars = pointer<A>(var);
  groups.each([&](int64_t set, int64_t group, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c++) {
      const int64_t from = statistic(call, set, group, c), to = set * C + c;
      const A r = inverse_std(vars[from], A(call.spec.eps));
      const auto a = affine<A>(means ? means[from] : A(0), r, gamma[c], beta[c], call.spec.centered);
      k[0][to] = a.shift, k[1][to] = a.gain, k[2][to] = a.offset;
    }
  });
  const auto y = at::empty_like(x, x.options().dtype(call.spec.out_dtype));
  const bool scales = !call.spec.centered && !inputs.bias;
  const Apply<T, U> pass{pointer<T>(x), mutable_pointer<U>(y),   scales ? nullptr : k[0],
                         k[1],          scales ? nullptr : k[2], e};
  run_all(pass);
  return y;
}

// What the backward needs of the sums over an image's parts: of each channel of every set.
struct Sums {
  std::vector<double> products, grads;
};

template <typename T, typename U>
Sums sums_of(const Groups& groups, const at::Tensor& grad, const at::Tensor& x, const Accumulate<T>* shift) {
  const Extent& e = groups.extent;
  const int64_t C = e.channels, values = e.parts() * C;
  std::vector<double> found(2 * values);
  const Products<T, U> pass{pointer<U>(grad), pointer<T>(x), shift, found.data(), found.data() + values, e};
  run_all(pass);
  Sums sums{std::vector<double>(groups.sets() * C), std::vector<double>(groups.sets() * C)};
  for (int64_t set = 0; set < groups.sets(); set++)
    for (int64_t part = groups.first_part(set); part < groups.last_part(set); part++)
      for (int64_t c = 0; c < C; c++) {
        sums.products[set * C + c] += pass.products[part * C + c];
        sums.grads[set * C + c] += pass.grads[part * C + c];
      }
  return sums;
}

// The gradient of the weight, with r of each channel of every set.
template <typename A>
at::Tensor weight_gradient(const Sums& sums, const A* r, int64_t channels) {
  std::vector<double> found(channels);
  for (size_t i = 0; i < sums.products.size(); i++)
    if (sums.products[i] != 0) found[i % channels] += sums.products[i] * double(r[i]);  // an empty x has no r
  return as_gradient<A>(found.data(), channels);
}

template <typename T, typename U>
Gradients gradients(const Groups& groups, const Saved& saved, const at::Tensor& grad, const at::Tensor& x,
                    const Needs& needs) {
  using A = Accumulate<T>;
  const Call& call = groups.call;
  const Extent& e = groups.extent;
  const int64_t C = e.channels;
  const PerChannel<A> gamma(saved.weight, 1, C);
  const A *means = pointer<A>(saved.mean), *vars = pointer<A>(saved.var);
  ChannelConstants<A> k(6, groups.sets() * C);
  A *of_grad = k[0], *of_x = k[1], *mean = k[2], *offset = k[3], *shift = k[4], *r = k[5];
  groups.each([&](int64_t set, int64_t group, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c++) {
      const int64_t from = statistic(call, set, group, c), to = set * C + c;
      mean[to] = means ? means[from] : A(0);
      shift[to] = call.spec.centered ? mean[to] : A(0);
      r[to] = inverse_std(vars[from], A(call.spec.eps));
    }
  });
  const bool through_statistics = !call.given && (!call.frozen || call.spec.centered);
  Sums sums;
  if (through_statistics || needs.weight || needs.bias) sums = sums_of<T, U>(groups, grad, x, shift);
  Gradients found;
  if (needs.weight) found.weight = weight_gradient(sums, r, C);
  if (needs.bias) {
    std::vector<double> dbeta(C);
    for (size_t i = 0; i < sums.grads.size(); i++) dbeta[i % C] += sums.grads[i];
    found.bias = as_gradient<A>(dbeta.data(), C);
  }
  if (!needs.x && !needs.map) return found;
  const A* dvars = pointer<A>(saved.dvar);
  groups.each([&](int64_t set, int64_t group, int64_t first, int64_t last) {
    const double of_dvar =
        dvars ? of_var<double>(dvars[set * call.groups() + group], double(call.count())) : 0;
    double products = 0, grads = 0;
    if (through_statistics)
      for (int64_t c = first; c < last; c++) {
        products += double(gamma[c]) * sums.products[set * C + c];
        grads += double(gamma[c]) * sums.grads[set * C + c];
      }
    for (int64_t c = first; c < last; c++) {
      const int64_t to = set * C + c;
      const auto g = gradient<double>(r[to], gamma[c], products, grads, double(call.count()),
                                      call.spec.centered && !call.given, call.frozen);
      of_grad[to] = A(g.of_grad), of_x[to] = A(g.of_x + of_dvar), offset[to] = A(g.offset);
    }
  });
  if (needs.map) {
    found.map = at::empty({4, C}, x.options().dtype(accumulate_type(call.dtype)));
    std::copy_n(of_grad, 4 * C, mutable_pointer<A>(*found.map));
    return found;
  }
  found.x = at::empty_like(x);
  if (through_statistics || dvars) {
    const InputGradient<T, U> pass{
        pointer<U>(grad), pointer<T>(x), mutable_pointer<T>(*found.x), mean, of_grad, of_x, offset, e};
    run_all(pass);
  } else {
    const Apply<U, T> pass{pointer<U>(grad), mutable_pointer<T>(*found.x), nullptr, of_grad, nullptr, e};
    run_all(pass);
  }
  return found;
}

template <typename T, typename U>
Second second_of(const Groups& groups, const Saved& saved, const at::Tensor& grad, const at::Tensor& v,
                 const SecondNeeds& needs) {
  using A = Accumulate<T>;
  const Call& call = groups.call;
  const int64_t C = groups.extent.channels, statistics = groups.sets() * call.groups();
  const bool centered = call.spec.centered && !call.given;  // given statistics are constants
  std::vector<A> means(statistics), unused(centered ? statistics : 0);
  if (centered) compute_statistics<T>(groups, pointer<T>(v), means.data(), unused.data());
  const PerChannel<A> gamma(saved.weight, 1, C);
  const A* vars = pointer<A>(saved.var);
  ChannelConstants<A> k(4, groups.sets() * C);
  A *shift = k[0], *r = k[1], *gain = k[2], *offset = k[3];
  groups.each([&](int64_t set, int64_t group, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c++) {
      const int64_t to = set * C + c;
      shift[to] = means[set * call.groups() + group];
      r[to] = inverse_std(vars[statistic(call, set, group, c)], A(call.spec.eps));
      gain[to] = gamma[c] * r[to];
    }
  });
  Second found;
  if (needs.weight || needs.var) {
    const auto sums = sums_of<T, U>(groups, grad, v, shift);
    if (needs.weight) found.weight = weight_gradient(sums, r, C);
    if (needs.var) {
      found.var = at::empty_like(saved.var);
      A* dvars = mutable_pointer<A>(found.var);
      groups.each([&](int64_t set, int64_t group, int64_t first, int64_t last) {
        double products = 0;
        for (int64_t c = first; c < last; c++) products += double(gamma[c]) * sums.products[set * C + c];
        dvars[set * call.groups() + group] = A(var_gradient<double>(r[set * C + first], products));
      });
    }
  }
  found.grad = at::empty_like(v, v.options().dtype(call.spec.out_dtype));
  const Apply<T, U> pass{pointer<T>(v), mutable_pointer<U>(found.grad), shift, gain, offset, groups.extent};
  run_all(pass);
  return found;
}

}  // namespace

Outputs forward_over_channels(const Call& call, const Inputs& inputs) {
  const auto sums = accumulate_type(call.dtype);
  const Groups groups(call, inputs.x);
  const auto x = groups.in_form(inputs.x);
  Outputs found;
  with_types(call.dtype, call.spec.out_dtype, [&](auto t, auto u) {
    using T = decltype(t);
    using U = decltype(u);
    using A = Accumulate<T>;
    if (!call.given) {
      found.mean = at::empty(call.statistics_shape, x.options().dtype(sums));
      found.var = at::empty_like(found.mean);
      compute_statistics<T>(groups, pointer<T>(x), mutable_pointer<A>(found.mean),
                            mutable_pointer<A>(found.var));
    }
    const auto mean = call.given ? inputs.mean : OptionalTensor(found.mean);
    const auto var = call.given ? inputs.var->to(sums).contiguous() : found.var;
    found.y =
        normalized<T, U>(groups, x, mean ? OptionalTensor(mean->to(sums).contiguous()) : mean, var, inputs);
  });
  found.y = with_strides_of(inputs.x, found.y);
  return found;
}

Gradients backward_over_channels(const Call& call, const Saved& saved, const Needs& needs) {
  const Groups groups(call, saved.x);
  const auto x = groups.in_form(saved.x), grad = groups.in_form(saved.grad);
  Gradients found;
  with_types(call.dtype, call.spec.out_dtype, [&](auto t, auto u) {
    found = gradients<decltype(t), decltype(u)>(groups, saved, grad, x, needs);
  });
  if (found.x) found.x = with_strides_of(saved.x, *found.x);
  return found;
}

Second second_over_channels(const Call& call, const Saved& saved, const at::Tensor& given_v,
                            const SecondNeeds& needs) {
  const Groups groups(call, saved.x);
  const auto v = groups.in_form(given_v), grad = groups.in_form(saved.grad);
  Second found;
  with_types(call.dtype, call.spec.out_dtype, [&](auto t, auto u) {
    found = second_of<decltype(t), decltype(u)>(groups, saved, grad, v, needs);
  });
  found.grad = with_strides_of(saved.x, found.grad);
  return found;
}

}  // namespace bcos::norm::cpu
