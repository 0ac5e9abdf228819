// Depthwise convolution forward and backward, run on the emulator against float64.
#include "convolution.h"

using namespace bcos::transform::cuda;
using namespace testing;

template <typename T, typename O>
void check(const Case& c, bool frozen, int splits) {
  const Shape& s = c.shape;
  const Formula<float> formula = c.b.formula();
  const Power power = formula.power;
  const int C = s.G, count = outputs(s) * C, K = taps(s);
  const std::string what =
      std::string(name_of<T>) + " " + name_of<O> + " " + describe(c) + (frozen ? " frozen" : "");
  auto x = normal<T>(size_t(inputs(s)) * C, 1);
  std::fill_n(x.end() - C, C, T{});  // a zero pixel
  const auto w = normal<T>(size_t(C) * K, 2, 0.3f);
  const auto alpha = normal<float>(C, 3), bias = normal<float>(C, 4);
  const float* factors = c.factors ? alpha.data() : nullptr;
  const Forward truth = forward(c, wide(x), wide(w), alpha, bias);

  const bool saves_l = formula.of_l;
  auto y = unwritten<O>(count), l = unwritten<O>(saves_l ? count : 0);
  expect_success(depthwise_fwd(
      {x.data(), w.data(), factors, c.factors ? bias.data() : nullptr, y.data(), saves_l ? l.data() : nullptr,
       s.N, C, s.window, formula, dtype_of<T>, Dtype::Float32, dtype_of<O>},
      nullptr));
  expect("fwd " + what + " y", y, truth.y);
  if (saves_l) expect("fwd " + what + " l", l, truth.l);

  const auto grad = normal<O>(count, 5);
  const auto& v = saves_l ? l : y;
  const bool with_t = !frozen && power != Power::One;
  auto u = unwritten<T>(count);
  auto t = unwritten<float>(with_t ? count : 0);
  expect_success(depthwise_bwd(
      {grad.data(), power == Power::One ? nullptr : v.data(), x.data(), factors, u.data(),
       with_t ? t.data() : nullptr, s.N, C, s.window, frozen, formula, dtype_of<T>, dtype_of<O>},
      nullptr));
  std::vector<double> du(count), dt(count);
  for (int i = 0; i < count; ++i) {
    const Slopes d = slopes(formula, to_float(v[i]), truth.n[i], c.b.constants(frozen));
    du[i] = to_float(grad[i]) * d.l * (c.factors ? alpha[i % C] : 1);
    dt[i] = to_float(grad[i]) * d.n / truth.n[i];
  }
  expect("bwd " + what + " u", u, du);
  if (with_t) expect("bwd " + what + " t", t, dt);

  std::vector<double> true_dx(x.size()), pooled(x.size()), true_dw(w.size()), true_dbias(C);
  for_taps(s, [&](int site, int from, int tap) {
    for (int channel = 0; channel < C; ++channel) {
      const double value = to_float(u[site * C + channel]);
      true_dx[from * C + channel] += value * to_float(w[channel * K + tap]);
      true_dw[channel * K + tap] += value * to_float(x[from * C + channel]);
      if (with_t) pooled[from * C + channel] += t[site * C + channel];
    }
  });
  for (int i = 0; i < count; ++i) true_dbias[i % C] += to_float(u[i]);
  for (size_t i = 0; i < x.size(); ++i) true_dx[i] += to_float(x[i]) * pooled[i];
  auto dx = unwritten<T>(x.size());
  expect_success(depthwise_dgrad(
      {u.data(), with_t ? t.data() : nullptr, w.data(), x.data(), dx.data(), s.N, C, s.window, dtype_of<T>},
      nullptr));
  expect("dgrad " + what, dx, true_dx);
  auto dw = unwritten<float>(size_t(splits) * w.size()), dbias = unwritten<float>(size_t(splits) * C);
  expect_success(depthwise_wgrad({u.data(), x.data(), dw.data(), c.factors ? dbias.data() : nullptr, splits,
                                  s.N, C, s.window, dtype_of<T>},
                                 nullptr));
  const auto added = [splits](const std::vector<float>& shares) {
    std::vector<float> sums(shares.size() / splits);
    for (size_t i = 0; i < shares.size(); ++i) sums[i % sums.size()] += shares[i];
    return sums;
  };
  expect("wgrad " + what, added(dw), true_dw);
  if (c.factors) expect("wgrad " + what + " dbias", added(dbias), true_dbias);
}

int main() {
  const Case cases[] = {
      {"7x7", shape(2, 66, 1, 1, 9, 17, 7, 7, 1, 3), {2}},
      {"3x3 ragged", shape(1, 7, 1, 1, 8, 13, 3, 3, 1, 1), {1.5f}, true},
      {"5x7 wide padding", shape(1, 5, 1, 1, 4, 6, 5, 7, 1, 6), {2}, true},
      {"3x3 strided", shape(2, 70, 1, 1, 9, 8, 3, 3, 2, 1), {2.5f, true}, true},
      {"3x2 dilated", shape(1, 3, 1, 1, 9, 8, 3, 2, 1, 2, 2), {1}, true},
      {"1x1", shape(3, 64, 1, 1, 2, 3, 1, 1), {2, true}},
      {"3x3", shape(1, 7, 1, 1, 8, 6, 3, 3, 1, 1), kTwoOfL, true},
  };
  for_dtypes([&](auto type) {
    using T = typename decltype(type)::type;
    for (const Case& c : cases) {
      check<T, T>(c, false, 2);
      check<T, float>(c, true, 1);
    }
  });
  return result();
}
