// both_norms, run on the emulator against float64 and against the kernels of each norm.
#include <cstring>

#include "testing.h"

using namespace bcos::transform::cuda;
using namespace testing;

// One launch in place of three: the same bits.
template <typename A, typename T, typename O>
void both_norms(int N, int C, int F, bool ohwi, bool raw, const Window& w) {
  const std::string what = std::string("both norms ") + (sizeof(A) == 8 ? "fp64" : name_of<T>)+" " +
                           std::to_string(N) + "x" + std::to_string(C) + "x" + std::to_string(w.H) + "x" +
                           std::to_string(w.W) + " window " + std::to_string(w.KH) + "x" +
                           std::to_string(w.KW) + " filters " + std::to_string(F);
  const auto given = [](size_t count, unsigned seed) {
    const auto values = normal<std::conditional_t<sizeof(A) == 8, float, T>>(count, seed);
    return std::vector<T>(values.begin(), values.end());
  };
  const auto formula = [] {
    if constexpr (sizeof(A) == 8)
      return Formula<A>{Power::Two, 1, 0, 1e-6, 0.25, nullptr, false};
    else
      return Exponents{2}.formula(1e-6f, 0.25f);
  }();
  const Dtype dtype =
      sizeof(A) == 8 ? Dtype::Float64 : dtype_of<std::conditional_t<sizeof(A) == 8, float, T>>;
  const int taps = w.KH * w.KW, pixels = N * w.H * w.W, sites = N * w.OH * w.OW;
  const auto x = given(size_t(pixels) * C, 1), filters = given(size_t(F) * C * taps, 2);
  auto alpha = unwritten<A>(F), known_alpha = alpha, q = unwritten<A>(pixels);
  auto n = unwritten<A>(sites), known_n = n;
  auto operand = unwritten<O>(filters.size()), known_operand = operand;
  const auto weights = [&](std::vector<A>& inverse, std::vector<O>& of_products) {
    return WeightNormFwd<A>{filters.data(), inverse.data(), of_products.data(), F, C, taps, ohwi, raw,
                            dtype,          dtype};
  };
  expect_success(weight_norm_fwd<A>(weights(known_alpha, known_operand), nullptr));
  expect_success(patch_norm_squares<A>({x.data(), q.data(), pixels, C, false, formula, dtype}, nullptr));
  expect_success(patch_norm_fwd<A>({q.data(), known_n.data(), sites, 1, w, formula}, nullptr));
  const BothNorms<A> both{weights(alpha, operand), x.data(), n.data(), N, C, w, formula, dtype};
  expect_success(both_norms<A>(both, nullptr));
  std::vector<double> truth(sites);
  for (int site = 0; site < sites; ++site) {
    const int image = site / (w.OH * w.OW), oh = site / w.OW % w.OH, ow = site % w.OW;
    for (int tap = 0; tap < taps; ++tap) {
      const int h = oh * w.SH - w.PH + tap / w.KW * w.DH, v = ow * w.SW - w.PW + tap % w.KW * w.DW;
      if (h < 0 || h >= w.H || v < 0 || v >= w.W) continue;
      const T* of_pixel = x.data() + ((image * w.H + h) * w.W + v) * C;
      for (int c = 0; c < C; ++c) truth[site] += std::pow(double(widened(of_pixel[c])), 2);
    }
    truth[site] = std::sqrt(truth[site] + 1e-6) + 0.25;
  }
  expect(what + " n", std::vector<float>(n.begin(), n.end()), truth);
  const auto same = [](const auto& a, const auto& b) {
    return uint8_t(std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0);
  };
  expect_equal(what + " bits", {same(alpha, known_alpha), same(operand, known_operand), same(n, known_n)},
               {1, 1, 1});
}

// A row of the input that does not fit shared memory is said to do so, and refused.
void long_rows() {
  BothNorms<float> p{};
  p.N = p.C = 1;
  const auto fits = [&](int kernel, int width) {
    p.window = {9, width, 9 - kernel + 1, 1, kernel, kernel, 1, width, 0, 0, 1, 1};
    return uint8_t(fits_both_norms(p));
  };
  expect_equal("both norms fit", {fits(3, 4096), fits(3, 4097), fits(1, 1 << 20)}, {1, 0, 1});
  fits(3, 4097);
  expect_equal("both norms refuse", {both_norms(p, nullptr) == cudaErrorInvalidValue}, {1});
}

int main() {
  long_rows();
  both_norms<double, double, double>(2, 5, 3, false, false, {6, 5, 6, 5, 3, 3, 1, 1, 1, 1, 1, 1});
  for_dtypes([](auto type) {
    using T = typename decltype(type)::type;
    // strips with and without a border, strides that leave rows out, and windows that see padding alone
    both_norms<float, T, T>(3, 24, 4, true, true, {19, 7, 19, 7, 3, 3, 1, 1, 1, 1, 1, 1});
    both_norms<float, T, T>(140, 8, 1, true, true, {9, 2, 9, 2, 3, 3, 1, 1, 1, 1, 1, 1});
    both_norms<float, T, T>(2, 12, 2, false, true, {21, 6, 11, 4, 2, 3, 2, 2, 1, 1, 1, 2});
    both_norms<float, T, T>(1, 6, 0, true, true, {2, 9, 13, 12, 2, 2, 1, 1, 6, 2, 1, 1});
    both_norms<float, T, T>(1, 7, 2, false, false, {4, 3100, 3, 776, 3, 4, 1, 4, 1, 2, 1, 1});
    both_norms<float, T, T>(2, 300, 3, true, false, {9, 8, 9, 8, 1, 1, 1, 1, 0, 0, 1, 1});
    both_norms<float, T, T>(2, 40, 3, true, true, {7, 9, 4, 3, 1, 1, 2, 3, 0, 0, 1, 1});
  });
  return result();
}
