// c^e for c >= 0.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/macros.h"

namespace bcos {

BCOS_HOST_DEVICE BCOS_INLINE double power(double c, double e) {
  return std::pow(c, e);
}

#if defined(__CUDA_ARCH__)
BCOS_HOST_DEVICE BCOS_INLINE float power(float c, float e) {
  return powf(c, e);
}
#else

template <typename To, typename From>
BCOS_INLINE To bits_of(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &v, sizeof(out));
  return out;
}

// Free of branches and calls, so that a loop over it becomes vector code; double inside, correct to 1 ulp of
// float.
BCOS_INLINE float power(float c, float e) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer in the low bits
  constexpr int64_t kHalfRoot = 0x3fe6a09e667f3bcd;  // bits of sqrt(1/2)
  // c = 2^exponent * m with m in [sqrt(1/2), sqrt(2)); log2 m by the series of the area tangent in t
  const int64_t bits = bits_of<int64_t>(double(c));
  const int64_t shifted = (bits - kHalfRoot) & int64_t(0xfff0000000000000);
  const double m = bits_of<double>(bits - shifted);
  const int64_t exponent = int64_t(uint64_t(shifted) >> 52);
  const int64_t wrapped = exponent >= 2048 ? exponent - 4096 : exponent;
  const double whole = bits_of<double>(wrapped + bits_of<int64_t>(kRound)) - kRound;
  const double t = (m - 1) / (m + 1), q = t * t;
  double series = 1.0 / 13;
  series = series * q + 1.0 / 11;
  series = series * q + 1.0 / 9;
  series = series * q + 1.0 / 7;
  series = series * q + 1.0 / 5;
  series = series * q + 1.0 / 3;
  series = series * q + 1.0;
  const double product = double(e) * (whole + 2.8853900817779268 * t * series);
  // 2^product: the integer part goes into the exponent bits, the rest, within 1/2, through its Taylor series
  const double most = product < 300 ? product : 300, bounded = most > -300 ? most : -300;
  const double rounded = bounded + kRound;
  const double r = (bounded - (rounded - kRound)) * 0.69314718055994531;
  double value = 1.0 / 40320;
  value = value * r + 1.0 / 5040;
  value = value * r + 1.0 / 720;
  value = value * r + 1.0 / 120;
  value = value * r + 1.0 / 24;
  value = value * r + 1.0 / 6;
  value = value * r + 0.5;
  value = value * r + 1.0;
  value = value * r + 1.0;
  const float result = float(bits_of<double>(bits_of<uint64_t>(value) + (bits_of<uint64_t>(rounded) << 52)));
  // Outside the positive finite numbers: x^0 = 1, 0^e, inf^e, and NaN for NaN
  const float infinite = std::numeric_limits<float>::infinity();
  const float at_zero = e > 0 ? 0.f : infinite, at_infinity = e > 0 ? infinite : 0.f;
  float out = c == 0 ? at_zero : (c == infinite ? at_infinity : result);
  out = c != c || e != e ? c + e : out;
  return e == 0 ? 1.f : out;
}
#endif

}  // namespace bcos
