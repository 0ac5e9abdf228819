// Tensors of more than 2^31 elements: the last block of each kernel gives the same bits as on its rows alone.
//
// Memory is reserved, not taken: only the pages of the last rows are touched. A 32-bit product of sizes is a
// sanitizer's error, or ends in other pages.
#include <sys/mman.h>

#include "convolution.h"
#include "dynamic_alignment/cuda/launch.h"
#include "norm/cuda/launch.h"

using namespace bcos::transform::cuda;
using namespace testing;

constexpr int kRows = (1 << 21) + 35, kLast = 35;  // rows, and how many of them the last block has
constexpr int kChannels = 1024, kFilters = 1032;

// A tensor [rows, width] that ends with `end`.
template <typename T>
struct Large {
  int64_t size;
  T* data;

  Large(int64_t rows, int64_t width, const std::vector<T>& end) : size(rows * width) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, size * sizeof(T), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) std::puts("FAILED to reserve memory"), std::exit(1);
    data = static_cast<T*>(memory);
    std::copy(end.begin(), end.end(), data + size - int64_t(end.size()));
  }
  ~Large() { munmap(data, size * sizeof(T)); }
  Large(const Large&) = delete;
};

// Whether the entries that `small` has written are those of
// the end of `large`, and that there are `least` of them.
template <typename T>
void expect_same(const std::string& what, const Large<T>& large, const std::vector<T>& small, int64_t least) {
  const T* end = large.data + large.size - int64_t(small.size());
  int64_t written = 0;
  bool good = true;
  for (size_t i = 0; i < small.size(); ++i) {
    if (std::isnan(to_float(small[i]))) continue;
    ++written;
    good = good && to_float(small[i]) == to_float(end[i]);
  }
  good = good && written >= least;
  std::printf("%-6s %s\n", good ? "ok" : "FAILED", what.c_str());
  note(good);
}

// Runs the last block alone.
template <typename F>
void last_block(F f) {
  emulation::last_block_only = true;
  expect_success(f());
  emulation::last_block_only = false;
}

// NHWC, or NCHW with planes of so many pixels.
template <typename T>
void elementwise(int plane) {
  const int last = plane > 0 ? 9 * plane : kLast, all = (1 << 21) + last;
  const std::string name = std::string(name_of<T>) + (plane > 0 ? " planes" : "");
  const auto values = normal<T>(size_t(last) * kChannels, 1), grads = normal<T>(values.size(), 2);
  auto norms = normal<float>(last, 3);
  for (float& n : norms) n = std::abs(n) + 0.5f;
  const Large<T> x(all, kChannels, values), grad(all, kChannels, grads);
  const Large<float> n(all, 1, norms);
  const Formula<float> formula = Exponents{2}.formula();
  const auto squares = [&](const T* from, float* to, int rows) {
    return patch_norm_squares<float>({from, to, rows, kChannels, false, formula, dtype_of<T>, plane},
                                     nullptr);
  };
  const auto forward = [&](const T* z, const float* norm, T* y, int rows) {
    return scale_fwd<float>({z, nullptr, nullptr, norm, y, nullptr, nullptr, rows, 1, kChannels, 1, formula,
                             dtype_of<T>, Dtype::Float32, dtype_of<T>, plane},
                            nullptr);
  };
  const auto backward = [&](const T* g, const T* v, const float* norm, T* u, float* t, int rows) {
    return scale_bwd<float>({g, v, nullptr, norm, nullptr, u, t, nullptr, rows, 1, kChannels, 1, rows, false,
                             formula, dtype_of<T>, dtype_of<T>, plane},
                            nullptr);
  };
  auto small_y = unwritten<T>(values.size()), small_u = unwritten<T>(values.size());
  auto small_q = unwritten<float>(last), small_t = unwritten<float>(last);
  const Large<T> y(all, kChannels, small_y), u(all, kChannels, small_u);
  const Large<float> q(all, 1, small_q), t(all, 1, small_t);
  last_block([&] { return squares(values.data(), small_q.data(), last); });
  last_block([&] { return forward(values.data(), norms.data(), small_y.data(), last); });
  last_block([&] {
    return backward(grads.data(), values.data(), norms.data(), small_u.data(), small_t.data(), last);
  });
  last_block([&] { return squares(x.data, q.data, all); });
  last_block([&] { return forward(x.data, n.data, y.data, all); });
  last_block([&] { return backward(grad.data, x.data, n.data, u.data, t.data, all); });
  expect_same(name + " squares", q, small_q, 3);
  expect_same(name + " scale y", y, small_y, kChannels / 2);
  expect_same(name + " scale u", u, small_u, 3 * kChannels);
  expect_same(name + " scale t", t, small_t, 3);
}

// Pixels, and images of one pixel and windows that see it.
template <typename T>
void both_norms_of(int kernel) {
  const auto values = normal<T>(size_t(kLast) * kChannels, 1);
  auto small_n = unwritten<float>(kLast);
  const Large<T> x(kRows, kChannels, values);
  const Large<float> n(kRows, 1, small_n);
  const auto run = [&](const T* from, float* to, int rows) {
    BothNorms<float> p{};
    p.x = from, p.n = to, p.N = rows, p.C = kChannels, p.dtype = dtype_of<T>;
    p.window = {1, 1, 1, 1, kernel, kernel, 1, 1, kernel / 2, kernel / 2, 1, 1};
    p.formula = Exponents{2}.formula();
    return both_norms<float>(p, nullptr);
  };
  last_block([&] { return run(values.data(), small_n.data(), kLast); });
  last_block([&] { return run(x.data, n.data, kRows); });
  expect_same(std::string(name_of<T>) + " both norms " + std::to_string(kernel), n, small_n, 1);
}

template <typename T>
void product(bool large) {
  const std::string name = std::string(name_of<T>) + (large ? " large" : "");
  const auto values = normal<T>(size_t(kLast) * kChannels, 1), us = normal<T>(size_t(kLast) * kFilters, 2);
  const auto w = normal<T>(size_t(kFilters) * kChannels, 3, 0.1f);
  const auto ts = normal<float>(kLast, 4);
  auto small_y = unwritten<T>(us.size()), small_dx = unwritten<T>(values.size());
  const Large<T> x(kRows, kChannels, values), u(kRows, kFilters, us);
  const Large<T> y(kRows, kFilters, small_y), dx(kRows, kChannels, small_dx);
  const Large<float> t(kRows, 1, ts);
  const Formula<float> formula = Exponents{2}.formula();
  const auto sizes = [](int rows) { return shape(rows, 1, kChannels, kFilters, 1, 1, 1, 1); };
  const auto forward = [&](const T* from, T* to, int rows) {
    return implicit_gemm_fwd({from, w.data(), nullptr, nullptr, nullptr, to, nullptr, nullptr, nullptr,
                              sizes(rows), formula, dtype_of<T>, Dtype::Float32, dtype_of<T>, false, large},
                             nullptr);
  };
  const auto dgrad = [&](const T* of, const float* pooled, const T* from, T* to, int rows) {
    return implicit_gemm_dgrad({of, pooled, nullptr, nullptr, nullptr, nullptr, w.data(), nullptr, from, to,
                                sizes(rows), false, formula, dtype_of<T>, dtype_of<T>, false, large},
                               nullptr);
  };
  last_block([&] { return forward(values.data(), small_y.data(), kLast); });
  last_block([&] { return dgrad(us.data(), ts.data(), values.data(), small_dx.data(), kLast); });
  last_block([&] { return forward(x.data, y.data, kRows); });
  last_block([&] { return dgrad(u.data, t.data, x.data, dx.data, kRows); });
  expect_same(name + " y", y, small_y, kLast * 8);
  expect_same(name + " dx", dx, small_dx, kLast * 64);
}

// The shares of the weight's gradient, too, pass 2^31 values.
template <typename T>
void weight_gradient() {
  constexpr int splits = 65535, last = 29, rows = (splits - 1) * 32 + last, channels = 1040, filters = 64;
  const auto values = normal<T>(size_t(last) * channels, 1), us = normal<T>(size_t(last) * filters, 2);
  auto small_dw = unwritten<float>(filters * channels);
  const Large<T> x(rows, channels, values), u(rows, filters, us);
  const Large<float> dw(splits, filters * channels, small_dw);
  const auto wgrad = [&](const T* of, const T* from, float* to, int count, int shares) {
    return implicit_gemm_wgrad({of, nullptr, nullptr, nullptr, nullptr, nullptr, from, to, nullptr, shares,
                                shape(count, 1, channels, filters, 1, 1, 1, 1), false, Exponents{2}.formula(),
                                dtype_of<T>, dtype_of<T>, false, false},
                               nullptr);
  };
  last_block([&] { return wgrad(us.data(), values.data(), small_dw.data(), last, 1); });
  last_block([&] { return wgrad(u.data, x.data, dw.data, rows, splits); });
  expect_same(std::string(name_of<T>) + " dw", dw, small_dw, filters * 16);
}

// A depthwise layer's rows are images, and its last block has the last channels.
template <typename T>
void depthwise_layer() {
  const int rows = (1 << 21) + 3;
  const auto values = normal<T>(3 * kChannels, 1), w = normal<T>(kChannels, 2);
  auto small_y = unwritten<T>(values.size());
  const Large<T> x(rows, kChannels, values), y(rows, kChannels, small_y);
  const auto forward = [&](const T* from, T* to, int images) {
    return depthwise_fwd({from, w.data(), nullptr, nullptr, to, nullptr, images, kChannels,
                          shape(images, kChannels, 1, 1, 1, 1, 1, 1).window, Exponents{2}.formula(),
                          dtype_of<T>, Dtype::Float32, dtype_of<T>},
                         nullptr);
  };
  last_block([&] { return forward(values.data(), small_y.data(), 3); });
  last_block([&] { return forward(x.data, y.data, rows); });
  expect_same(std::string(name_of<T>) + " depthwise y", y, small_y, 3 * 64);
}

namespace norms = bcos::norm::cuda;

// Statistics of channels, applied and differentiated: the last channels of the last share.
template <typename T>
void norm_shares(bool planes) {
  const int images = planes ? 3 : kLast, P = planes ? 8 : 1, all = planes ? 3 * 87382 : kRows;
  const std::string name = std::string(name_of<T>) + (planes ? " planes" : "") + " norm";
  const auto values = normal<T>(size_t(images) * kChannels * P, 1), grads = normal<T>(values.size(), 2);
  const auto mean = normal<float>(kChannels, 3);
  const std::vector<float> var(kChannels, 1);
  const std::vector<norms::Sums<float>> sums(kChannels, {1, 2});
  auto small_y = unwritten<T>(values.size()), small_dx = unwritten<T>(values.size());
  const int64_t width = int64_t(kChannels) * P;
  const Large<T> x(all, width, values), grad(all, width, grads);
  const Large<T> y(all, width, small_y), dx(all, width, small_dx);
  const norms::Statistics<float> statistics{mean.data(), var.data(), 1e-5f, true};
  const auto shape = [&](int N) {
    const int V = planes ? bcos::cuda::kVector<T> : 1, items = N * P / V, each = planes ? images * P / V : 64;
    return norms::Shape{N, kChannels, P, planes, false, kChannels, int(bcos::cuda::ceil_div(items, each))};
  };
  const auto forward = [&](const T* from, T* to, int N) {
    return norms::apply<float>({from, to, statistics, {}, {}, shape(N), dtype_of<T>, dtype_of<T>}, nullptr);
  };
  const auto backward = [&](const T* g, const T* from, T* to, int N) {
    return norms::input_gradient<float>(
        {g, from, statistics, {}, sums.data(), false, to, shape(N), 100, dtype_of<T>, dtype_of<T>}, nullptr);
  };
  last_block([&] { return forward(values.data(), small_y.data(), images); });
  last_block([&] { return backward(grads.data(), values.data(), small_dx.data(), images); });
  last_block([&] { return forward(x.data, y.data, all); });
  last_block([&] { return backward(grad.data, x.data, dx.data, all); });
  expect_same(name + " y", y, small_y, images * 8);
  expect_same(name + " dx", dx, small_dx, images * 8);
}

// Statistics at positions.
template <typename T>
void norm_at_positions(bool planes) {
  const int images = planes ? 40 : kLast, P = planes ? 8 : 1, all = (1 << (planes ? 18 : 21)) + images;
  const std::string name = std::string(name_of<T>) + (planes ? " planes" : "") + " norm at positions";
  const auto values = normal<T>(size_t(images) * kChannels * P, 1), grads = normal<T>(values.size(), 2);
  auto small_y = unwritten<T>(values.size()), small_dx = unwritten<T>(values.size());
  auto small_mean = unwritten<float>(images * P), small_var = small_mean;
  const int64_t width = int64_t(kChannels) * P;
  const Large<T> x(all, width, values), grad(all, width, grads);
  const Large<T> y(all, width, small_y), dx(all, width, small_dx);
  const Large<float> mean(all, P, small_mean), var(all, P, small_var);
  const auto forward = [&](const T* from, T* to, float* m, float* v, int N) {
    return norms::positions_fwd<float>(
        {from, to, m, v, {}, {}, N, kChannels, P, planes, 1e-5f, true, dtype_of<T>, dtype_of<T>}, nullptr);
  };
  const auto backward = [&](const T* g, const T* from, const float* m, const float* v, T* to, int N) {
    return norms::positions_bwd<float>({g,
                                        from,
                                        {m, v, 1e-5f, true},
                                        {},
                                        false,
                                        to,
                                        nullptr,
                                        N,
                                        kChannels,
                                        P,
                                        planes,
                                        64,
                                        dtype_of<T>,
                                        dtype_of<T>},
                                       nullptr);
  };
  // Statistics of rows outside of the last block are read by nobody.
  last_block(
      [&] { return forward(values.data(), small_y.data(), small_mean.data(), small_var.data(), images); });
  last_block([&] { return forward(x.data, y.data, mean.data, var.data, all); });
  expect_same(name + " y", y, small_y, kChannels);
  expect_same(name + " var", var, small_var, 1);
  std::fill(small_mean.begin(), small_mean.end(), 0.5f);
  std::fill(small_var.begin(), small_var.end(), 2.f);
  std::copy(small_mean.begin(), small_mean.end(), mean.data + mean.size - int64_t(small_mean.size()));
  std::copy(small_var.begin(), small_var.end(), var.data + var.size - int64_t(small_var.size()));
  last_block([&] {
    return backward(grads.data(), values.data(), small_mean.data(), small_var.data(), small_dx.data(),
                    images);
  });
  last_block([&] { return backward(grad.data, x.data, mean.data, var.data, dx.data, all); });
  expect_same(name + " dx", dx, small_dx, kChannels);
}

// Dynamic alignment units of one output, whose patches are pixels: x, du and dw are [rows, channels].
template <typename T>
void alignment() {
  namespace units = bcos::dynamic_alignment::cuda;
  constexpr int kDepth = 16 / int(sizeof(T));
  const auto values = normal<T>(size_t(kLast) * kChannels, 1), hs = normal<T>(size_t(kLast) * kDepth, 2);
  const auto weight = normal<T>(size_t(kChannels) * kDepth, 3);
  const auto us = normal<float>(kLast, 4), ws = normal<float>(kLast, 5);
  auto small_y = unwritten<T>(kLast);
  auto small_norm = unwritten<float>(kLast), small_du = unwritten<float>(values.size()), small_dw = small_du;
  const Large<T> x(kRows, kChannels, values), h(kRows, kDepth, hs), y(kRows, 1, small_y);
  const Large<float> of_u(kRows, 1, us), of_w(kRows, 1, ws), norm(kRows, 1, small_norm);
  const Large<float> du(kRows, kChannels, small_du), dw(kRows, kChannels, small_dw);
  const auto kind = bcos::dynamic_alignment::Norm::L2;
  const auto sizes = [&](int rows) {
    return units::Shape{rows, kChannels, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, kDepth};
  };
  const auto run = [&](const T* x, const T* h, const float* of_u, const float* of_w, T* y, float* norm,
                       float* du, float* dw, int rows) {
    const units::Shape s = sizes(rows);
    const auto dtype = dtype_of<T>;
    last_block([&] {
      return units::forward<float>({x, h, weight.data(), y, norm, nullptr, s, kind, dtype, false}, nullptr);
    });
    last_block([&] {
      return units::patch_gradient<float>({of_u, h, weight.data(), du, s, rows, dtype, false}, nullptr);
    });
    if constexpr (sizeof(T) == 4)
      last_block([&] {
        return units::weight_gradient<float>(
            {x, h, weight.data(), of_u, of_w, dw, s, 0, rows, kChannels, kind, dtype, false}, nullptr);
      });
  };
  run(values.data(), hs.data(), us.data(), ws.data(), small_y.data(), small_norm.data(), small_du.data(),
      small_dw.data(), kLast);
  run(x.data, h.data, of_u.data, of_w.data, y.data, norm.data, du.data, dw.data, kRows);
  const std::string name = std::string(name_of<T>) + " alignment ";
  expect_same(name + "y", y, small_y, kLast);
  expect_same(name + "norm", norm, small_norm, kLast);
  expect_same(name + "du", du, small_du, kLast);
  if constexpr (sizeof(T) == 4) expect_same(name + "dw", dw, small_dw, kLast);
}

int main() {
  alignment<float>();
  alignment<__half>();
  for (const int plane : {0, 4}) {
    elementwise<float>(plane);
    elementwise<__nv_bfloat16>(plane);
  }
  both_norms_of<float>(1);
  both_norms_of<__nv_bfloat16>(3);
  product<float>(false);
  product<__nv_bfloat16>(false);
  product<__half>(true);
  weight_gradient<__nv_bfloat16>();
  depthwise_layer<__half>();
  for (const bool planes : {false, true}) {
    norm_shares<float>(planes);
    norm_shares<__half>(planes);
    norm_at_positions<float>(planes);
    norm_at_positions<__nv_bfloat16>(planes);
  }
  return result();
}
