// Test data, and the comparison with float64.
#pragma once

#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "common/cuda/primitives.cuh"
#include "transform/cuda/launch.h"

namespace testing {

using bcos::cuda::Dtype;
using bcos::cuda::to_float;
using bcos::transform::Power;
using bcos::transform::cuda::Formula;

template <typename T>
constexpr Dtype dtype_of = std::is_same_v<T, float>    ? Dtype::Float32
                           : std::is_same_v<T, __half> ? Dtype::Float16
                                                       : Dtype::BFloat16;
template <typename T>
constexpr const char* name_of = std::is_same_v<T, float>    ? "fp32"
                                : std::is_same_v<T, __half> ? "fp16"
                                                            : "bf16";

// Half a unit in the last place of a half type, 1e-6 of fp32.
template <typename T>
constexpr double tolerance_of = std::is_same_v<T, float>    ? 1e-6
                                : std::is_same_v<T, __half> ? 4.9e-4
                                                            : 3.9e-3;

template <typename T>
std::vector<T> normal(size_t count, unsigned seed, float scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution;
  std::vector<T> values(count);
  for (T& v : values) v = bcos::cuda::rounded<T>(scale * distribution(generator));
  return values;
}

// As tensor cores take fp32: rounded beforehand, their products are as exact as others.
template <typename T>
void round_to_tf32(std::vector<T>& values) {
  if constexpr (sizeof(T) == 4)
    for (T& v : values) v = __uint_as_float(bcos::cuda::to_tf32(v));
}

// A buffer to be written: an entry that is left out stays NaN.
template <typename T>
std::vector<T> unwritten(size_t count) {
  return std::vector<T>(count, bcos::cuda::rounded<T>(NAN));
}

template <typename T>
std::vector<double> wide(const std::vector<T>& values) {
  std::vector<double> out(values.size());
  for (size_t i = 0; i < values.size(); ++i) out[i] = to_float(values[i]);
  return out;
}

// [.., pixels, channels] as [.., channels, pixels], where there are so many pixels; with 0 as it is.
template <typename T>
std::vector<T> planar(const std::vector<T>& values, int pixels, int channels) {
  std::vector<T> out = values;
  const size_t image = size_t(pixels) * channels;
  for (size_t i = 0; pixels > 0 && i < out.size(); ++i)
    out[i] = values[i / image * image + i % pixels * channels + i % image / pixels];
  return out;
}

// The reverse.
template <typename T>
std::vector<T> interleaved(const std::vector<T>& values, int pixels, int channels) {
  return planar(values, pixels > 0 ? channels : 0, pixels);
}

inline int failures = 0;

inline void note(bool good) {
  failures += !good;
  if (good || bcos::cuda::planted == bcos::cuda::kNone) return;
  std::printf("the first failure of a planted bug ends the run\n");
  std::fflush(stdout);
  std::_Exit(1);
}

// The error in the 2-norm relative to the truth's (to 1e-3 an entry where the truth is almost zero).
template <typename T>
void expect(const std::string& what, const std::vector<T>& found, const std::vector<double>& truth,
            double tolerance = tolerance_of<T>) {
  double square = 0, length = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    const double difference = to_float(found[i]) - truth[i];
    square += difference * difference;
    length += truth[i] * truth[i];
  }
  const double error =
      std::sqrt(square) / std::max(std::sqrt(length), 1e-3 * std::sqrt(double(truth.size())));
  const bool good = found.size() == truth.size() && error < tolerance;  // not so for NaN
  std::printf("%-6s %-60s %.2e of %.1e\n", good ? "ok" : "FAILED", what.c_str(), error, tolerance);
  note(good);
}

inline void expect_equal(const std::string& what, const std::vector<uint8_t>& found,
                         const std::vector<uint8_t>& truth) {
  const bool good = found == truth;
  std::printf("%-6s %s\n", good ? "ok" : "FAILED", what.c_str());
  note(good);
}

inline void expect_success(cudaError_t error) {
  if (error == cudaSuccess) return;
  ++failures;
  std::printf("FAILED to start: %d\n", int(error));
}

inline int result() {
  std::printf("%d failed\n", failures);
  return failures != 0;
}

// Every dtype: f(type) with a bcos::cuda::Type.
template <typename F>
void for_dtypes(F f) {
  f(bcos::cuda::Type<float>{});
  f(bcos::cuda::Type<__half>{});
  f(bcos::cuda::Type<__nv_bfloat16>{});
}

// The formula of exponent b; `tensor`: b is read from the device; `of_l`: l stands in place of y at b = 2.
struct Exponents {
  float b;
  bool tensor = false, exact_two = true, of_l = false;

  Formula<float> formula(float eps_inside = 1e-6f, float eps_outside = 0) const {
    const Power power = tensor ? Power::General : b == 2 ? Power::Two : b == 1 ? Power::One : Power::General;
    const bool saves_l = of_l || power == Power::General;
    return {power,       tensor ? NAN : b - 1,  1e-6f,     eps_inside,
            eps_outside, tensor ? &b : nullptr, exact_two, saves_l};
  }
  bcos::transform::Constants<double> constants(bool frozen = false) const {
    const Formula<float> f = formula();
    const double cos_eps = tensor && exact_two && b == 2 ? 0 : f.cos_eps;
    return {double(b) - 1, cos_eps, f.eps_inside, f.eps_outside, frozen ? 0. : 1.};
  }
  std::string name() const {
    return "b=" + std::to_string(b).substr(0, 4) + (tensor ? " tensor" : "") + (of_l ? " of l" : "");
  }
};

constexpr Exponents kTwoOfL{2, false, true, true};

// The formula in float64, b = 2 without its shortcuts.
inline double transform(Power power, double l, double n, const bcos::transform::Constants<double>& k) {
  if (power == Power::One) return l;
  const double cosine = n == 0 ? 0 : std::abs(l) / n;
  return (power == Power::Two ? cosine : std::pow(cosine + k.cos_eps, k.b_minus_1)) * l;
}

// (dy/dl, dy/dn, dy/db) of v, which is y or l as the formula says; l/n, and the slope of dy/dl along l.
struct Slopes {
  double l, n, b, cosine, bend;
};
inline Slopes slopes(const Formula<float>& f, double v, double n,
                     const bcos::transform::Constants<double>& k) {
  const Power power = f.power;
  if (power == Power::One) return {1, 0, 0, 0, 0};
  const double l = power == Power::Two && !f.of_l ? std::sqrt(std::abs(v) * n) * (v < 0 ? -1 : 1) : v;
  const double e = power == Power::Two ? 1 : k.b_minus_1, cosine = n == 0 ? 0 : std::abs(l) / n;
  const double c = cosine + (power == Power::Two ? 0 : k.cos_eps);
  const double s = std::pow(c, e), slope = c == 0 ? 0 : e * std::pow(c, e - 1) * cosine;
  const double y = s * l;
  const double first = c == 0 ? 0 : e * std::pow(c, e - 1), second = c == 0 ? 0 : (e - 1) * first / c;
  const double bend = n == 0 ? 0 : (first + k.unfrozen * (first + second * cosine)) / n * (l > 0 ? 1 : -1);
  return {s + k.unfrozen * slope, n == 0 ? 0 : -k.unfrozen * slope * l / n, y == 0 ? 0 : y * std::log(c),
          n == 0 ? 0 : l / n, l == 0 ? 0 : bend};
}

}  // namespace testing
