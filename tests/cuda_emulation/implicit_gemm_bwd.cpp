// implicit_gemm_dgrad and implicit_gemm_wgrad, run on the emulator against float64.
#include "convolution.h"

using namespace bcos::transform::cuda;
using namespace testing;

struct Mode {
  bool given = false, frozen = false;
};

template <typename T, typename O>
void check(const Case& c, const Mode& mode, int splits) {
  const Shape& s = c.shape;
  const Formula<float> formula = c.b.formula();
  const Power power = formula.power;
  const int C = s.G * s.CG, F = s.G * s.FG, outs = F / s.max_out, K = taps(s) * s.CG;
  auto x = normal<T>(size_t(inputs(s)) * C, 1), w = normal<T>(size_t(F) * K, 2, 0.1f);
  const auto grad = normal<O>(size_t(outputs(s)) * outs, 3), v = normal<O>(grad.size(), 4);
  const auto alpha = normal<float>(F, 5);
  auto n = normal<float>(size_t(outputs(s)) * s.G, 6);
  for (float& value : n) value = std::abs(value) + 0.5f;
  n.back() = 0;  // a zero patch
  auto u = normal<T>(size_t(outputs(s)) * F, 7);
  const auto t = normal<float>(n.size(), 8);
  std::vector<uint8_t> winner(s.max_out > 1 ? grad.size() : 0);
  for (size_t i = 0; i < winner.size(); ++i) winner[i] = uint8_t(i * 7 % s.max_out);
  if (c.tf32) round_to_tf32(x), round_to_tf32(w), round_to_tf32(u);

  const bool with_t = !mode.frozen && power != Power::One;
  std::vector<double> du(u.size()), dt(n.size()), true_dbias(F);
  for (size_t i = 0; i < du.size(); ++i) {
    const int f = int(i % F), site = int(i / F);
    if (mode.given) {
      du[i] = to_float(u[i]);
      true_dbias[f] += du[i];
      continue;
    }
    const size_t o = i / s.max_out;
    if (s.max_out > 1 && winner[o] != f % s.max_out) continue;
    const double norm = n[site * s.G + f / s.FG];
    const Slopes d = slopes(formula, to_float(v[o]), norm, c.b.constants(mode.frozen));
    // what the product takes is rounded to its operands' type
    du[i] = to_float(rounded<T>(float(to_float(grad[o]) * d.l * (c.factors ? alpha[f] : 1))));
    true_dbias[f] += du[i];
    if (c.tf32) du[i] = __uint_as_float(to_tf32(float(du[i])));
    if (norm != 0) dt[site * s.G + f / s.FG] += to_float(grad[o]) * d.n / norm;
  }
  if (mode.given) dt.assign(t.begin(), t.end());
  std::vector<double> true_dx(x.size()), true_dw(size_t(F) * K);
  for_taps(s, [&](int site, int from, int tap) {
    for (int f = 0; f < F; ++f)
      for (int channel = 0; channel < s.CG; ++channel) {
        const int at = from * C + f / s.FG * s.CG + channel, k = f * K + tap * s.CG + channel;
        true_dx[at] += du[site * F + f] * to_float(w[k]);
        true_dw[k] += du[site * F + f] * to_float(x[at]);
      }
    if (with_t)
      for (int channel = 0; channel < C; ++channel)
        true_dx[from * C + channel] += dt[site * s.G + channel / s.CG] * to_float(x[from * C + channel]);
  });

  const std::string what = std::string(name_of<T>) + " " + name_of<O> + " " + describe(c) +
                           (mode.given ? " given" : "") + (mode.frozen ? " frozen" : "");
  const T* given_u = mode.given ? u.data() : nullptr;
  const float* factors = c.factors && !mode.given ? alpha.data() : nullptr;
  auto dx = unwritten<T>(x.size());
  expect_success(
      implicit_gemm_dgrad({given_u, mode.given && with_t ? t.data() : nullptr, grad.data(), v.data(),
                           winner.data(), n.data(), w.data(), factors, x.data(), dx.data(), s, mode.frozen,
                           formula, dtype_of<T>, dtype_of<O>, c.tf32, c.large},
                          nullptr));
  // a rounded u is the neighbouring number where float and double disagree about a tie
  const double rounding = c.tf32 && !mode.given      ? 2e-5
                          : std::is_same_v<T, float> ? 1e-6
                                                     : tolerance_of<T> / 4;
  expect("dgrad " + what, dx, true_dx, std::max(rounding, tolerance_of<T>));
  auto dw = unwritten<float>(size_t(splits) * F * K), dbias = unwritten<float>(size_t(splits) * F);
  expect_success(implicit_gemm_wgrad({given_u, grad.data(), v.data(), winner.data(), n.data(), factors,
                                      x.data(), dw.data(), c.factors ? dbias.data() : nullptr, splits, s,
                                      mode.frozen, formula, dtype_of<T>, dtype_of<O>, c.tf32, c.large},
                                     nullptr));
  const auto added = [splits](const std::vector<float>& shares) {
    std::vector<float> sums(shares.size() / splits);
    for (size_t i = 0; i < shares.size(); ++i) sums[i % sums.size()] += shares[i];
    return sums;
  };
  expect("wgrad " + what, added(dw), true_dw, rounding);
  if (c.factors) expect("wgrad " + what + " dbias", added(dbias), true_dbias, rounding);
}

int main() {
  const Case cases[] = {
      {"1x1", shape(1, 1, 64, 40, 7, 5, 1, 1), {2}, true},
      {"3x3 ragged", shape(2, 1, 24, 72, 7, 6, 3, 3, 2, 1), {2}, true},
      {"3x3 dilated", shape(1, 1, 16, 8, 9, 8, 3, 3, 1, 2, 2), {1.5f}},
      {"3x3 groups", shape(1, 3, 8, 16, 6, 5, 3, 3, 1, 1), {2}},
      {"3x2 max_out", shape(1, 1, 8, 66, 5, 6, 3, 2, 1, 1, 1, 3), {2}, true},
      {"linear", shape(70, 1, 40, 24, 1, 1, 1, 1), {1}, true},
      {"linear", shape(70, 1, 40, 24, 1, 1, 1, 1), {2, true}},
      {"5x5 of 6 channels", shape(1, 1, 6, 16, 10, 9, 5, 5, 2, 2), {2}},
      {"odd groups max_out", shape(2, 2, 5, 14, 5, 5, 3, 3, 1, 1, 1, 2), {2.5f, true}, true},
      {"1 channel", shape(3, 1, 1, 1, 1, 1, 1, 1), {2}},
      {"1x1", shape(1, 1, 24, 40, 7, 5, 1, 1), kTwoOfL, true},
      {"images in several steps", shape(5, 1, 8, 8, 7, 5, 3, 3, 1, 1), {2}},
  };
  for_dtypes([&](auto type) {
    using T = typename decltype(type)::type;
    for (Case c : kPacked)
      for (const Mode mode : {Mode{true}, {true, true}, {}}) {
        if (mode.given || c.shape.max_out == 1) check<T, T>(c, mode, 2);
        c.tf32 = sizeof(T) == 4 && mode.given;
        if (c.tf32) check<T, T>(c, mode, 3);
        c.tf32 = false;
      }
    for (Case c : cases)
      for (const Mode mode : {Mode{}, {false, true}, {true, false}}) {
        check<T, T>(c, mode, 2);
        if (sizeof(T) == 2 && !mode.given) check<T, float>(c, mode, 1);
        c.large = sizeof(T) == 2 && mode.given, c.tf32 = sizeof(T) == 4;
        if (c.large || c.tf32) check<T, T>(c, mode, 3);
        c.large = c.tf32 = false;
      }
    if (sizeof(T) == 2)
      check<T, T>({"large ragged", shape(1, 1, 136, 136, 13, 10, 1, 1), {2}, true, false, true}, {true}, 1);
  });
  return result();
}
