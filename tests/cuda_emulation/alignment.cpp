// Dynamic alignment units, run on the emulator against float64.
#include "dynamic_alignment/cuda/launch.h"
#include "testing.h"

using namespace bcos::dynamic_alignment::cuda;
using namespace testing;
using bcos::dynamic_alignment::Norm;

const char* const kNames[] = {"squash", "l1", "l2"};

struct Case {
  const char* name;
  Shape shape;
  Norm kind;
};

Shape shape(int N, int C, int H, int W, int KH, int KW, int S, int P, int O, int K) {
  const auto out = [&](int size, int kernel) { return (size + 2 * P - kernel) / S + 1; };
  return {N, C, H, W, out(H, KH), out(W, KW), KH, KW, S, S, P, P, O, K};
}

// Tiles of one output, of some, of all, and of several tiles; with a part of the values left over.
const Case kCases[] = {
    {"one output", shape(2, 3, 6, 5, 3, 3, 1, 1, 1, 8), Norm::Squash},
    {"several values", shape(2, 5, 7, 9, 3, 2, 2, 1, 10, 16), Norm::L1},
    {"odd", shape(1, 2, 9, 8, 3, 3, 1, 0, 7, 40), Norm::L2},
    {"one value", shape(1, 3, 5, 5, 2, 2, 1, 2, 40, 24), Norm::Squash},
    {"two tiles", shape(1, 2, 4, 4, 3, 3, 1, 1, 70, 8), Norm::L1},
    {"pointwise", shape(3, 80, 4, 5, 1, 1, 1, 0, 3, 48), Norm::L2},
};

// What a call in float64 is made of: w and dw [pixels, P, O], u [pixels, P], and [O, pixels].
struct Truth {
  Shape s;
  std::vector<double> w, u, dw, norm, l, of_u, of_w, y, du;

  size_t at(int pixel, int p, int o) const { return (size_t(pixel) * s.patch() + p) * s.O + o; }
  // Where pixel and channel lie in a tensor of planes.
  size_t planar(int pixel, int channel, int channels) const {
    return (size_t(pixel / s.plane()) * channels + channel) * s.plane() + pixel % s.plane();
  }

  Truth(const Case& c, const std::vector<double>& x, const std::vector<double>& h,
        const std::vector<double>& weight, const std::vector<double>& grad)
      : s(c.shape) {
    const int pixels = s.pixels(), patch = s.patch(), taps = s.KH * s.KW;
    w.resize(size_t(pixels) * patch * s.O), u.resize(size_t(pixels) * patch), dw.resize(w.size());
    du.resize(u.size()), y.resize(size_t(pixels) * s.O);
    for (auto* v : {&norm, &l, &of_u, &of_w}) v->resize(y.size());
    for (int i = 0; i < pixels; ++i)
      for (int p = 0; p < patch; ++p) {
        const int row = i % s.plane() / s.OW * s.SH - s.PH + p % taps / s.KW;
        const int column = i % s.OW * s.SW - s.PW + p % s.KW;
        if (row >= 0 && row < s.H && column >= 0 && column < s.W)
          u[size_t(i) * patch + p] = x[((size_t(i / s.plane()) * s.C + p / taps) * s.H + row) * s.W + column];
        for (int o = 0; o < s.O; ++o)
          for (int k = 0; k < s.K; ++k)
            w[at(i, p, o)] += h[size_t(i) * s.K + k] * weight[(size_t(p) * s.O + o) * s.K + k];
      }
    for (int i = 0; i < pixels; ++i)
      for (int o = 0; o < s.O; ++o) {
        const size_t kept = size_t(o) * pixels + i, given = planar(i, o, s.O);
        double sum = 0;
        for (int p = 0; p < patch; ++p) {
          const double v = w[at(i, p, o)];
          l[kept] += v * u[size_t(i) * patch + p];
          sum += c.kind == Norm::L1 ? std::abs(v) : v * v;
        }
        const double n = norm[kept] = c.kind == Norm::L1 ? sum : std::sqrt(sum);
        const double inverse = n == 0 ? 0 : 1 / n, squash = n / (1 + n * n);
        const double scale = c.kind == Norm::Squash ? squash : inverse;
        // d scale/d norm, and d norm/dw = direction * each
        const double slope =
            c.kind == Norm::Squash ? (1 - n * n) / ((1 + n * n) * (1 + n * n)) : -inverse * inverse;
        const double each = c.kind == Norm::L1 ? 1 : inverse;
        y[given] = scale * l[kept];
        of_u[kept] = grad[given] * scale;
        of_w[kept] = grad[given] * l[kept] * slope * each;
        for (int p = 0; p < patch; ++p) {
          const double v = w[at(i, p, o)], direction = c.kind == Norm::L1 ? (v > 0) - (v < 0) : v;
          dw[at(i, p, o)] = of_u[kept] * u[size_t(i) * patch + p] + of_w[kept] * direction;
          du[planar(i, p, patch)] += of_u[kept] * v;
        }
      }
  }
};

template <typename T>
void check(const Case& c, bool tf32) {
  const Shape& s = c.shape;
  const int pixels = s.pixels(), rows = s.rows(), stride = (rows + 3) / 4 * 4;
  const std::string what =
      std::string(c.name) + " " + name_of<T> + " " + kNames[int(c.kind)] + (tf32 ? " tf32" : "");
  auto x = normal<T>(size_t(s.N) * s.C * s.H * s.W, 1), h = normal<T>(size_t(pixels) * s.K, 2);
  auto weight = normal<T>(size_t(rows) * s.K, 3, 0.1f);
  const auto grad = normal<T>(size_t(pixels) * s.O, 4);
  std::fill_n(h.begin(), s.K, T{});  // a pixel whose dynamic weights are zero
  if (tf32) round_to_tf32(h), round_to_tf32(weight);
  const Truth truth(c, wide(x), wide(h), wide(weight), wide(grad));

  auto y = unwritten<T>(truth.y.size());
  auto norm = unwritten<float>(y.size()), l = unwritten<float>(y.size());
  expect_success(forward<float>(
      {x.data(), h.data(), weight.data(), y.data(), norm.data(), l.data(), s, c.kind, dtype_of<T>, tf32},
      nullptr));
  expect(what + " y", y, truth.y);
  expect(what + " norm", norm, truth.norm);
  expect(what + " l", l, truth.l);

  auto of_u = unwritten<float>(y.size()), of_w = unwritten<float>(y.size());
  expect_success(upstream<float>(
      {grad.data(), norm.data(), l.data(), of_u.data(), of_w.data(), s, pixels, c.kind, dtype_of<T>},
      nullptr));
  expect(what + " of_u", of_u, truth.of_u, 2e-6);
  expect(what + " of_w", of_w, truth.of_w, 4e-6);
  auto du = unwritten<float>(truth.du.size());
  expect_success(patch_gradient<float>(
      {of_u.data(), h.data(), weight.data(), du.data(), s, pixels, dtype_of<T>, tf32}, nullptr));
  expect(what + " du", du, truth.du, 2e-6);

  std::vector<float> wide_h, wide_weight;
  for (const T v : h) wide_h.push_back(to_float(v));
  for (const T v : weight) wide_weight.push_back(to_float(v));
  const int first = pixels / 3, count = pixels - first;  // of several parts the last
  auto dw = unwritten<float>(size_t(count) * stride);
  const bool rounds = tf32 || sizeof(T) == 2;
  expect_success(
      weight_gradient<float>({x.data(), wide_h.data(), wide_weight.data(), of_u.data(), of_w.data(),
                              dw.data(), s, first, count, stride, c.kind, dtype_of<T>, rounds},
                             nullptr));
  std::vector<double> true_dw;
  for (int i = first; i < pixels; ++i)
    for (int column = 0; column < stride; ++column)
      true_dw.push_back(column < rows ? truth.dw[size_t(i) * rows + column] : 0);
  expect(what + " dw", dw, true_dw, 4e-6);
}

// Every dtype, with and without rounding, in parts or at once; both orders of a.
void products() {
  for (const bool transposed : {false, true})
    for (const bool tf32 : {false, true})
      for (const int splits : {1, 3}) {
        const int m = 70, n = 68, k = 107, stride = transposed ? 72 : 108;
        auto a = normal<float>(size_t(transposed ? k : m) * stride, 1), b = normal<float>(size_t(k) * n, 2);
        if (tf32) round_to_tf32(a), round_to_tf32(b);
        auto c = unwritten<float>(size_t(splits) * m * n);
        expect_success(product<float>(
            {a.data(), b.data(), c.data(), m, n, k, stride, splits, transposed, tf32}, nullptr));
        std::vector<float> sum(size_t(m) * n);
        std::vector<double> truth(sum.size());
        for (size_t i = 0; i < c.size(); ++i) sum[i % sum.size()] += c[i];
        for (int i = 0; i < m; ++i)
          for (int j = 0; j < n; ++j)
            for (int at = 0; at < k; ++at)
              truth[i * n + j] += double(a[transposed ? at * stride + i : i * stride + at]) * b[at * n + j];
        expect(std::string("product") + (transposed ? " transposed" : "") + (tf32 ? " tf32" : "") + " of " +
                   std::to_string(splits),
               sum, truth);
      }
}

// Several rows of the dynamic linear map, which share h and the norms.
void rows_of_the_map() {
  const Case c = kCases[1];
  const Shape& s = c.shape;
  const int pixels = s.pixels(), sites = 3 * pixels;
  const auto x = normal<float>(size_t(s.N) * s.C * s.H * s.W, 1), h = normal<float>(size_t(pixels) * s.K, 2);
  const auto weight = normal<float>(size_t(s.rows()) * s.K, 3), grads = normal<float>(size_t(sites) * s.O, 4);
  auto of_u = unwritten<float>(grads.size()), du = unwritten<float>(size_t(sites) * s.patch());
  std::vector<double> truth;
  std::vector<float> norm;
  for (int row = 0; row < 3; ++row) {
    const size_t each = size_t(pixels) * s.O;
    const std::vector<float> grad(grads.begin() + row * each, grads.begin() + (row + 1) * each);
    const Truth of_row(c, wide(x), wide(h), wide(weight), wide(grad));
    truth.insert(truth.end(), of_row.du.begin(), of_row.du.end());
    norm.assign(of_row.norm.begin(), of_row.norm.end());
  }
  expect_success(upstream<float>(
      {grads.data(), norm.data(), nullptr, of_u.data(), nullptr, s, sites, c.kind, Dtype::Float32}, nullptr));
  expect_success(patch_gradient<float>(
      {of_u.data(), h.data(), weight.data(), du.data(), s, sites, Dtype::Float32, false}, nullptr));
  expect("rows of the map", du, truth, 2e-6);
}

void refusals() {
  Product<float> p{};
  p.m = 64, p.n = 64, p.k = 100;
  const int alone = splits_of(p, 1), filling = splits_of(p, 132);
  p.k = 5000;
  const int of_long = splits_of(p, 1);
  p.k = 1 << 30;
  const int most = splits_of(p, 132);
  Upstream<float> u{};
  u.dtype = Dtype(7);
  WeightGradient<float> w{};
  w.dtype = Dtype(7);
  expect_equal(
      "refused dtypes, and parts of products",
      {upstream(u, nullptr) == cudaErrorInvalidValue, weight_gradient(w, nullptr) == cudaErrorInvalidValue,
       alone == 1, filling == 1, of_long == 10, most == 64},
      {1, 1, 1, 1, 1, 1});
}

int main() {
  for (const Case& c : kCases) for_dtypes([&](auto type) { check<typename decltype(type)::type>(c, false); });
  check<float>(kCases[1], true);
  products();
  rows_of_the_map();
  refusals();
  return result();
}
