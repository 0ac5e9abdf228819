// The norms, run on the emulator against float64.
#include "norm/cuda/launch.h"
#include "testing.h"

using namespace bcos::norm::cuda;
using namespace testing;

constexpr float kEps = 1e-3f;

// What a norm in float64 is made of: x and grad as [N, C, P], and which values share statistics.
struct Truth {
  int N, C, P;
  std::vector<double> x, grad, gamma, beta;
  bool centered, frozen, given;
  std::vector<int> set;  // of every value
  std::vector<double> mean, var, y, dx, dgamma, dbeta;

  size_t channel(size_t i) const { return i / P % C; }

  // dx with the gradients of var that a second derivative returned.
  std::vector<double> joined(const std::vector<float>& dvar, double count) const {
    auto sum = dx;
    for (size_t i = 0; i < x.size(); ++i) sum[i] += 2 * dvar[set[i]] * (x[i] - mean[set[i]]) / count;
    return sum;
  }

  void form(int sets) {
    std::vector<double> count(sets), products(sets), grads(sets);
    if (!given) {
      mean.assign(sets, 0);
      var.assign(sets, 0);
      for (size_t i = 0; i < x.size(); ++i) ++count[set[i]], mean[set[i]] += x[i];
      for (int s = 0; s < sets; ++s) mean[s] /= count[s];
      for (size_t i = 0; i < x.size(); ++i) var[set[i]] += std::pow(x[i] - mean[set[i]], 2) / count[set[i]];
    }
    dgamma.assign(C, 0);
    dbeta.assign(C, 0);
    const auto r = [&](size_t i) { return bcos::norm::inverse_std(var[set[i]], double(kEps)); };
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t c = channel(i);
      const auto of = bcos::norm::affine(mean[set[i]], r(i), gamma[c], beta[c], centered);
      y.push_back(of(x[i]));
      dgamma[c] += r(i) * grad[i] * (x[i] - of.shift);
      dbeta[c] += grad[i];
      products[set[i]] += gamma[c] * grad[i] * (x[i] - of.shift);
      grads[set[i]] += gamma[c] * grad[i];
    }
    for (size_t i = 0; i < x.size(); ++i) {
      const int s = set[i];
      dx.push_back(bcos::norm::gradient(r(i), gamma[channel(i)], given ? 0. : products[s],
                                        given ? 0. : grads[s], given ? 1. : count[s], centered && !given,
                                        frozen)(grad[i], x[i] - mean[s]));
    }
  }
};

template <typename T>
std::vector<T> laid_out(const std::vector<double>& values, const Shape& s) {
  std::vector<T> out;
  for (const double v : values) out.push_back(bcos::cuda::rounded<T>(float(v)));
  return s.planes ? out : interleaved(out, int(s.P), s.C);
}

template <typename T>
std::vector<T> as_given(const std::vector<T>& values, const Shape& s) {
  return s.planes ? values : planar(values, int(s.P), s.C);
}

template <typename T, typename O>
Truth truth_of(int N, int C, int P, bool centered, bool frozen, bool given) {
  const auto x = normal<T>(size_t(N) * C * P, 1);
  const auto grad = normal<O>(x.size(), 2);
  const auto gamma = normal<float>(C, 3), beta = normal<float>(C, 4);
  Truth t{N,     C,  P,  wide(x), wide(grad), wide(gamma), wide(beta), centered, frozen,
          given, {}, {}, {},      {},         {},          {},         {}};
  for (double& v : t.x) v = to_float(bcos::cuda::rounded<T>(float(v * 2 + 1)));
  return t;
}

// A sum that almost cancels has the rounding errors of its terms.
constexpr double kSums = 3e-6;

template <typename T, typename O>
void shared(const char* over, Shape s, bool centered, bool frozen, bool given = false) {
  const std::string what = std::string(over) + " " + name_of<T> + " " + name_of<O> + " " +
                           std::to_string(s.N) + "x" + std::to_string(s.C) + "x" + std::to_string(s.P) +
                           (s.planes ? " planes" : " rows") + " splits " + std::to_string(s.splits) +
                           (centered ? " centered" : "") + (frozen ? " frozen" : "") +
                           (given ? " given" : "");
  Truth t = truth_of<T, O>(s.N, s.C, int(s.P), centered, frozen || given, given);
  for (size_t i = 0; i < t.x.size(); ++i)
    t.set.push_back(int(s.set_of(s.per_image ? i / (s.C * s.P) : 0, int(t.channel(i)))));
  const int sets = int(s.sets());
  auto mean = unwritten<float>(sets), var = unwritten<float>(sets);
  if (given) {
    mean = normal<float>(sets, 5);
    var = normal<float>(sets, 6);
    for (float& v : var) v = std::abs(v);
    t.mean = wide(mean);
    t.var = wide(var);
  }
  t.form(sets);
  const auto x = laid_out<T>(t.x, s);
  const auto grad = laid_out<O>(t.grad, s);
  const std::vector<float> gamma(t.gamma.begin(), t.gamma.end()), beta(t.beta.begin(), t.beta.end());
  if (!given) {
    std::vector<Partial<float>> partial(s.shares() * s.C, {NAN, {NAN, NAN, NAN}});
    expect_success(moments<float>({x.data(), partial.data(), s, dtype_of<T>}, nullptr));
    expect_success(join_moments<float>({partial.data(), mean.data(), var.data(), s}, nullptr));
    expect(what + " mean", mean, t.mean, kSums);
    expect(what + " var", var, t.var, kSums);
  }
  const Statistics<float> statistics{mean.data(), var.data(), kEps, centered};
  const Factor weight{gamma.data(), Dtype::Float32}, bias{beta.data(), Dtype::Float32};
  auto y = unwritten<O>(x.size());
  expect_success(
      apply<float>({x.data(), y.data(), statistics, weight, bias, s, dtype_of<T>, dtype_of<O>}, nullptr));
  expect(what + " y", as_given(y, s), t.y);

  std::vector<Sums<float>> partial(s.shares() * s.C, {NAN, NAN}), sums(sets, {NAN, NAN});
  expect_success(bcos::norm::cuda::sums<float>(
      {grad.data(), x.data(), statistics, partial.data(), s, dtype_of<T>, dtype_of<O>}, nullptr));
  auto dgamma = unwritten<float>(s.C), dbeta = unwritten<float>(s.C);
  const bool at_once = !s.per_image && s.groups == s.C;
  expect_success(channel_sums<float>(
      {partial.data(), statistics, weight, dgamma.data(), dbeta.data(), at_once ? sums.data() : nullptr, s},
      nullptr));
  if (!at_once) expect_success(set_sums<float>({partial.data(), weight, sums.data(), s}, nullptr));
  expect(what + " dgamma", dgamma, t.dgamma, kSums);
  expect(what + " dbeta", dbeta, t.dbeta, kSums);
  auto dx = unwritten<T>(x.size());
  expect_success(input_gradient<float>(
      {grad.data(), t.frozen ? nullptr : x.data(), statistics, weight, given ? nullptr : sums.data(),
       t.frozen, dx.data(), s, float(t.x.size() / sets), dtype_of<T>, dtype_of<O>},
      nullptr));
  expect(what + " dx", as_given(dx, s), t.dx);
  if (given) return;
  const auto dvar = normal<float>(sets, 7);
  const float count = float(t.x.size() / sets);
  expect_success(input_gradient<float>({grad.data(), x.data(), statistics, weight, sums.data(), t.frozen,
                                        dx.data(), s, count, dtype_of<T>, dtype_of<O>, dvar.data()},
                                       nullptr));
  expect(what + " joined dx", as_given(dx, s), t.joined(dvar, count));
}

// The second derivative of what `p` did, with a v that has another mean and variance than x.
template <typename T, typename O>
void second_at_positions(PositionsBwd<float> p, const Truth& first) {
  const Shape s{p.N, p.C, p.P, p.planes, false, 1, 1};
  Truth t = first;
  for (double& v : t.x) v = to_float(bcos::cuda::rounded<T>(float(v * v)));
  for (auto* formed : {&t.mean, &t.var, &t.y, &t.dx}) formed->clear();
  t.beta.assign(t.C, 0);
  t.form(p.N * p.P);
  std::vector<double> var_gradient(p.N * p.P), dgrad(t.x.size()), dgamma(t.C);
  for (size_t i = 0; i < t.x.size(); ++i) {
    const int row = t.set[i];
    const double r = 1 / std::sqrt(first.var[row] + kEps), distance = t.x[i] - (t.centered ? t.mean[row] : 0);
    const double gamma = t.gamma[t.channel(i)];
    dgrad[i] = gamma * r * distance;
    var_gradient[row] -= gamma * t.grad[i] * distance * r * r * r / 2;
    dgamma[t.channel(i)] += t.grad[i] * distance * r;
  }
  const std::string what = std::string("position second ") + name_of<T> + " " + name_of<O> + " " +
                           std::to_string(p.N) + "x" + std::to_string(p.C) + "x" + std::to_string(p.P) +
                           (p.planes ? " planes" : " rows");
  const auto v = laid_out<T>(t.x, s);
  auto mean = unwritten<float>(p.N * p.P), found = unwritten<float>(p.N * p.P);
  auto y = unwritten<O>(v.size());
  const Factor none{nullptr, Dtype::Float32};
  expect_success(
      positions_fwd<float>({v.data(), y.data(), mean.data(), nullptr, p.weight, none, p.N, p.C, p.P, p.planes,
                            kEps, t.centered, dtype_of<T>, dtype_of<O>, p.statistics.var},
                           nullptr));
  expect(what + " dgrad", as_given(y, s), dgrad);
  p.x = v.data();
  p.statistics.mean = mean.data();
  p.dx = nullptr;
  p.var_gradient = found.data();
  std::vector<Sums<float>> partial(size_t(positions_shares(p)) * p.C, {NAN, NAN});
  p.partial = partial.data();
  expect_success(positions_bwd(p, nullptr));
  expect(what + " dvar", found, var_gradient, kSums);
  auto sums = std::vector<float>(p.C);
  for (size_t i = 0; i < partial.size(); ++i) sums[i % p.C] += partial[i].products;
  expect(what + " dgamma", sums, dgamma, 1e-5);
}

template <typename T, typename O>
void at_positions(int N, int C, int P, bool planes, bool centered, bool frozen, int each = 5) {
  const Shape s{N, C, P, planes, false, 1, 1};
  const std::string what = std::string("position ") + name_of<T> + " " + name_of<O> + " " +
                           std::to_string(N) + "x" + std::to_string(C) + "x" + std::to_string(P) +
                           (planes ? " planes" : " rows") + (centered ? " centered" : "") +
                           (frozen ? " frozen" : "");
  Truth t = truth_of<T, O>(N, C, P, centered, frozen, false);
  for (size_t i = 0; i < t.x.size(); ++i) t.set.push_back(int(i / (C * P) * P + i % P));
  t.form(N * P);
  const auto x = laid_out<T>(t.x, s);
  const auto grad = laid_out<O>(t.grad, s);
  const std::vector<float> gamma(t.gamma.begin(), t.gamma.end()), beta(t.beta.begin(), t.beta.end());
  const Factor weight{gamma.data(), Dtype::Float32}, bias{beta.data(), Dtype::Float32};
  auto mean = unwritten<float>(N * P), var = unwritten<float>(N * P);
  auto y = unwritten<O>(x.size());
  expect_success(positions_fwd<float>({x.data(), y.data(), mean.data(), var.data(), weight, bias, N, C, P,
                                       planes, kEps, centered, dtype_of<T>, dtype_of<O>},
                                      nullptr));
  expect(what + " mean", mean, t.mean, kSums);
  expect(what + " var", var, t.var, kSums);
  expect(what + " y", as_given(y, s), t.y);

  const Statistics<float> statistics{mean.data(), var.data(), kEps, centered};
  auto dx = unwritten<T>(x.size());
  PositionsBwd<float> p{grad.data(), x.data(), statistics, weight, frozen, dx.data(),   nullptr,
                        N,           C,        P,          planes, each,   dtype_of<T>, dtype_of<O>};
  const int shares = positions_shares(p);
  std::vector<Sums<float>> partial(size_t(shares) * C, {NAN, NAN});
  p.partial = partial.data();
  expect_success(positions_bwd(p, nullptr));
  expect(what + " dx", as_given(dx, s), t.dx);
  auto dgamma = unwritten<float>(C), dbeta = unwritten<float>(C);
  const Shape of_shares{1, C, 1, false, false, 1, shares};
  expect_success(channel_sums<float>({partial.data(),
                                      {nullptr, nullptr, kEps, centered},
                                      weight,
                                      dgamma.data(),
                                      dbeta.data(),
                                      nullptr,
                                      of_shares},
                                     nullptr));
  expect(what + " dgamma", dgamma, t.dgamma, kSums);
  expect(what + " dbeta", dbeta, t.dbeta, kSums);
  auto alone = unwritten<T>(x.size());
  p.dx = alone.data();
  p.partial = nullptr;
  const auto dvar = normal<float>(N * P, 7);
  p.dvar = dvar.data();
  expect_success(positions_bwd(p, nullptr));
  expect(what + " joined dx", as_given(alone, s), t.joined(dvar, C));
  p.dvar = nullptr;
  if (frozen) p.x = nullptr;
  expect_success(positions_bwd(p, nullptr));
  expect(what + " dx alone", as_given(alone, s), t.dx);
  if (frozen) second_at_positions<T, O>(p, t);
}

// The mean of values far from zero, and no variance of equal ones: what a difference of two sums would
// cancel.
void far_from_zero() {
  for (const bool planes : {false, true}) {
    const Shape s{3, 4, 64, planes, false, 4, 2};
    std::vector<float> x(3 * 4 * 64);
    for (size_t i = 0; i < x.size(); ++i)
      x[i] = 65536.f + float(i / 256 % 2);  // of two images, one is higher by 1
    std::vector<Partial<float>> partial(s.shares() * s.C, {NAN, {NAN, NAN, NAN}});
    auto mean = unwritten<float>(4), var = unwritten<float>(4);
    expect_success(moments<float>({x.data(), partial.data(), s, Dtype::Float32}, nullptr));
    expect_success(join_moments<float>({partial.data(), mean.data(), var.data(), s}, nullptr));
    expect("far from zero mean", mean, std::vector<double>(4, 65536 + 1 / 3.), 1e-7);
    expect("far from zero var", var, std::vector<double>(4, 2 / 9.), 1e-6);
  }
}

void refusals() {
  Apply<float> p{};
  p.shape = {1, 1, 1, false, false, 1, 1};
  p.dtype = Dtype::Float16, p.out_dtype = Dtype::BFloat16;
  const bool pair = apply(p, nullptr) == cudaErrorInvalidValue;
  p.out_dtype = Dtype::Float16, p.weight.dtype = Dtype(7);
  const bool dtype = apply(p, nullptr) == cudaErrorInvalidValue;
  p.shape.N = 0;
  p.weight.dtype = Dtype::Float32;
  const Shape narrow{64, 8, 49, true, false, 8, 1};
  const int few = splits_of(narrow, Dtype::Float32, 1), many = splits_of(narrow, Dtype::Float32, 132);
  expect_equal("refused dtypes, no values, and splits",
               {pair, dtype, apply(p, nullptr) == cudaSuccess, many >= few}, {1, 1, 1, 1});
}

template <typename T>
void of_dtype() {
  for (const bool planes : {false, true}) {
    for (const int splits : {1, 3}) {
      shared<T, T>("batch", {5, 24, 35, planes, false, 24, splits}, true, false);
      shared<T, float>("batch", {3, 11, 16, planes, false, 11, splits}, false, false);
    }
    shared<T, T>("batch", {2, 8, 392, planes, false, 8, 2}, false, false);
    shared<T, T>("batch", {4, 40, 9, planes, false, 40, 1}, true, true);
    shared<T, float>("batch", {4, 40, 12, planes, false, 40, 2}, true, false, true);
    shared<T, T>("all", {3, 12, 20, planes, false, 1, 2}, true, false);
    shared<T, float>("group", {3, 24, 28, planes, true, 4, 2}, true, false);
    shared<T, T>("group", {2, 9, 25, planes, true, 1, 1}, false, false);
    at_positions<T, T>(3, 24, 16, planes, true, false);
    at_positions<T, float>(2, 13, 7, planes, false, false);
    at_positions<T, T>(2, 3, 24, planes, true, true);
  }
  at_positions<T, float>(2, 11, 9, false, false, true);
  at_positions<T, T>(3, 300, 1, false, true, false, 40);
  at_positions<T, T>(2, 2100, 1, false, true, true, 2);
  at_positions<T, float>(2, 2100, 1, false, false, false, 2);
}

int main() {
  refusals();
  far_from_zero();
  for_dtypes([](auto type) { of_dtype<typename decltype(type)::type>(); });
  return result();
}
