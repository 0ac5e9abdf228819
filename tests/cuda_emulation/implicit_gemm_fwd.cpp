// implicit_gemm_fwd, run on the emulator against float64.
#include <array>
#include <bit>

#include "convolution.h"

using namespace bcos::transform::cuda;
using namespace testing;

template <typename T, typename O>
void check(const Case& c) {
  const Shape& s = c.shape;
  const std::string what = std::string("fwd ") + name_of<T> + " " + name_of<O> + " " + describe(c);
  const Formula<float> formula = c.b.formula();
  const int F = s.G * s.FG, count = outputs(s) * F / s.max_out;
  auto x = normal<T>(size_t(inputs(s)) * s.G * s.CG, 1);
  std::fill_n(x.end() - s.G * s.CG, s.G * s.CG, T{});  // a zero pixel
  auto w = normal<T>(size_t(F) * taps(s) * s.CG, 2, 0.1f);
  if (c.tf32) round_to_tf32(x), round_to_tf32(w);
  const auto alpha = normal<float>(F, 3), bias = normal<float>(F, 4);
  const Forward truth = forward(c, wide(x), wide(w), alpha, bias);
  const std::vector<float> squares(truth.squares.begin(), truth.squares.end());

  const bool saves_l = formula.of_l, has_norm = formula.power != Power::One;
  auto y = unwritten<O>(count), l = unwritten<O>(saves_l ? count : 0);
  auto n = unwritten<float>(has_norm ? truth.n.size() : 0);
  std::vector<uint8_t> winner(s.max_out > 1 ? count : 0, 255);
  expect_success(
      implicit_gemm_fwd({x.data(), w.data(), c.factors ? alpha.data() : nullptr,
                         c.factors ? bias.data() : nullptr, c.window_sum ? squares.data() : nullptr, y.data(),
                         has_norm ? n.data() : nullptr, saves_l ? l.data() : nullptr, winner.data(), s,
                         formula, dtype_of<T>, Dtype::Float32, dtype_of<O>, c.tf32, c.large},
                        nullptr));
  expect(what + " y", y, truth.y);
  if (has_norm) expect(what + " n", n, truth.n);
  if (saves_l) expect(what + " l", l, truth.l);
  if (s.max_out > 1) expect_equal(what + " winner", winner, truth.winner);
}

// Every value of a half type, as the emulator's tensor cores take it.
template <typename T>
void check_operands() {
  std::vector<uint8_t> found, truth;
  const auto append = [](std::vector<uint8_t>& bytes, float v) {
    const auto word = std::bit_cast<std::array<uint8_t, 4>>(v != v ? NAN : v);
    bytes.insert(bytes.end(), word.begin(), word.end());
  };
  for (uint32_t half = 0; half < 1 << 16; ++half)
    for (int part : {0, 1}) {
      append(found, bcos::cuda::element<T>(part ? half << 16 | 0x1234 : half | 0x5678 << 16, part));
      append(truth, to_float(std::bit_cast<T>(uint16_t(half))));
    }
  expect_equal(std::string("operands ") + name_of<T>, found, truth);
}

int main() {
  const Case cases[] = {
      {"1x1", shape(1, 1, 64, 40, 7, 9, 1, 1), {2}},
      {"3x3 ragged", shape(2, 1, 24, 72, 9, 7, 3, 3, 2, 1), {2}, true, true},
      {"3x3 dilated", shape(1, 1, 40, 8, 9, 8, 3, 3, 1, 2, 2), {1.5f}, true},
      {"3x3 groups", shape(1, 3, 8, 16, 6, 5, 3, 3, 1, 1), {2}, false, true},
      {"3x2 max_out", shape(1, 1, 8, 66, 6, 7, 3, 2, 1, 1, 1, 3), {2}, true},
      {"linear", shape(70, 1, 40, 24, 1, 1, 1, 1), {1}, true},
      {"linear", shape(70, 1, 40, 24, 1, 1, 1, 1), {2, true}},
      {"7x7 of 6 channels", shape(1, 1, 6, 16, 12, 11, 7, 7, 2, 3), {2}},
      {"odd groups max_out", shape(2, 2, 5, 14, 5, 5, 3, 3, 1, 1, 1, 2), {2.5f, true}, true, true},
      {"1 channel", shape(3, 1, 1, 1, 1, 1, 1, 1), {2}},
      {"1x1", shape(1, 1, 24, 40, 7, 5, 1, 1), kTwoOfL, true},
      {"odd 1x1", shape(1, 1, 24, 9, 7, 5, 1, 1), kTwoOfL},
  };
  for_dtypes([&](auto type) {
    using T = typename decltype(type)::type;
    for (Case c : kPacked) {
      check<T, T>(c);
      if (sizeof(T) == 2) check<T, float>(c);
      c.tf32 = sizeof(T) == 4, c.window_sum = !c.window_sum;
      check<T, T>(c);
    }
    for (Case c : cases) {
      check<T, T>(c);
      if (sizeof(T) == 2) check<T, float>(c);
      c.large = sizeof(T) == 2, c.tf32 = sizeof(T) == 4;
      check<T, T>(c);
    }
    if constexpr (sizeof(T) == 2) {
      check<T, T>({"large ragged", shape(1, 1, 136, 136, 13, 10, 1, 1), {2}, false, false, true});
      check_operands<T>();
    }
  });
  return result();
}
