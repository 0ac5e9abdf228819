// The passes of channels.h for any element types. Each channels_*.cpp compiles them for its own types.
#pragma once

#include <algorithm>
#include <vector>

#include "norm/cpu/channels.h"
#include "norm/cpu/sums.h"

namespace bcos::norm::cpu {
namespace {

// Rows whose terms are summed in single precision before the sums join those before them.
constexpr int64_t kRunRows = 64;

// Rows that give a first guess of each channel's mean.
constexpr int64_t kGuessRows = 8;

template <typename T, typename A>
BCOS_INLINE void guess_means(const T* x, int64_t rows, int64_t channels, A* near) {
  std::fill_n(near, channels, A(0));
  const int64_t count = std::min(kGuessRows, rows);
  for (int64_t r = 0; r < count; r++)
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) near[c] += A(x[r * channels + c]);
  for (int64_t c = 0; c < channels; c++) near[c] /= A(count);
}

// Rows that are added to each other before they join a sum: less rounding, and less traffic of the sums.
constexpr int64_t kTogether = 4;

// Adds up term(0) to term(Rows - 1) in pairs.
template <int64_t Rows, typename F>
BCOS_INLINE auto in_pairs(F&& term) {
  if constexpr (Rows == 1) {
    return term(0);
  } else {
    return in_pairs<Rows / 2>(term) +
           in_pairs<Rows / 2>([&](int64_t r) BCOS_INLINE_BODY { return term(r + Rows / 2); });
  }
}

// Adds, for every channel, the distances of `Rows` rows from `near`, and their squares.
template <int64_t Rows, typename T, typename A>
BCOS_INLINE void add_distances(const T* x, int64_t channels, const A* near, A* distances, A* squared) {
#pragma omp simd
  for (int64_t c = 0; c < channels; c++) {
    const auto distance = [&](int64_t r) BCOS_INLINE_BODY { return A(x[r * channels + c]) - near[c]; };
    distances[c] += in_pairs<Rows>(distance);
    squared[c] += in_pairs<Rows>([&](int64_t r) BCOS_INLINE_BODY { return distance(r) * distance(r); });
  }
}

// Adds, for every channel, grad (x − shift) and grad of `Rows` rows.
template <int64_t Rows, typename T, typename U, typename A>
BCOS_INLINE void add_products(const U* grad, const T* x, int64_t channels, const A* shift, A* products,
                              A* grads) {
#pragma omp simd
  for (int64_t c = 0; c < channels; c++) {
    const auto g = [&](int64_t r) BCOS_INLINE_BODY { return A(grad[r * channels + c]); };
    products[c] += in_pairs<Rows>(
        [&](int64_t r) BCOS_INLINE_BODY { return g(r) * (A(x[r * channels + c]) - shift[c]); });
    grads[c] += in_pairs<Rows>(g);
  }
}

template <typename T>
BCOS_INLINE void part_moments(const Moments<T>& f, int64_t part) {
  using A = Accumulate<T>;
  const Extent& e = f.extent;
  const int64_t C = e.channels, first = e.part_begin(part), rows = e.part_end(part) - first;
  const T* x = f.x + (part / e.splits * e.rows + first) * C;
  double *mean = f.mean + part * C, *squares = f.squares + part * C;
  std::fill_n(mean, C, 0.0);
  std::fill_n(squares, C, 0.0);
  if (rows == 0) return;
  std::vector<A> sums(3 * C);
  A *near = sums.data(), *distances = near + C, *squared = distances + C;
  guess_means(x, rows, C, near);
  for (int64_t begin = 0; begin < rows; begin += kRunRows) {
    const int64_t count = std::min(kRunRows, rows - begin);
    std::fill_n(distances, 2 * C, A(0));
    int64_t r = 0;
    for (; r + kTogether <= count; r += kTogether)
      add_distances<kTogether>(x + (begin + r) * C, C, near, distances, squared);
    for (; r < count; r++) add_distances<1>(x + (begin + r) * C, C, near, distances, squared);
    const Join join{double(begin), double(count)};
#pragma omp simd
    for (int64_t c = 0; c < C; c++) {
      join(near[c], distances[c], squared[c], mean[c], squares[c]);
      near[c] = A(mean[c]);
    }
  }
}

template <typename T>
BCOS_INLINE void moments(const Moments<T>& f, int64_t begin, int64_t end) {
  if (f.extent.channels_last) {
    for (int64_t part = begin; part < end; part++) part_moments(f, part);
    return;
  }
  for (int64_t plane = begin; plane < end; plane++) {
    const Moment found = moment_of(f.x + plane * f.extent.rows, f.extent.rows);
    f.mean[plane] = found.mean;
    f.squares[plane] = found.squares;
  }
}

template <typename T, typename U>
BCOS_INLINE void part_products(const Products<T, U>& f, int64_t part) {
  using A = Accumulate<T>;
  const Extent& e = f.extent;
  const int64_t C = e.channels, first = e.part_begin(part), rows = e.part_end(part) - first;
  const int64_t start = (part / e.splits * e.rows + first) * C;
  const A* shift = f.shift + e.constants(part / e.splits);
  double *products = f.products + part * C, *grads = f.grads + part * C;
  std::fill_n(products, C, 0.0);
  std::fill_n(grads, C, 0.0);
  std::vector<A> sums(2 * C);
  A *short_products = sums.data(), *short_grads = short_products + C;
  for (int64_t begin = 0; begin < rows; begin += kRunRows) {
    const int64_t count = std::min(kRunRows, rows - begin);
    std::fill_n(short_products, 2 * C, A(0));
    const U* grad = f.grad + start + begin * C;
    const T* x = f.x + start + begin * C;
    int64_t r = 0;
    for (; r + kTogether <= count; r += kTogether)
      add_products<kTogether>(grad + r * C, x + r * C, C, shift, short_products, short_grads);
    for (; r < count; r++) add_products<1>(grad + r * C, x + r * C, C, shift, short_products, short_grads);
    for (int64_t c = 0; c < C; c++) {
      products[c] += double(short_products[c]);
      grads[c] += double(short_grads[c]);
    }
  }
}

template <typename T, typename U>
BCOS_INLINE void plane_products(const Products<T, U>& f, int64_t plane) {
  using A = Accumulate<T>;
  const Extent& e = f.extent;
  const A shift = f.shift[e.constants(plane / e.channels) + plane % e.channels];
  const ProductSums sums = products_of(f.grad + plane * e.rows, f.x + plane * e.rows, shift, e.rows);
  f.products[plane] = sums.products;
  f.grads[plane] = sums.grads;
}

template <typename T, typename U>
BCOS_INLINE void products(const Products<T, U>& f, int64_t begin, int64_t end) {
  if (f.extent.channels_last) {
    for (int64_t part = begin; part < end; part++) part_products(f, part);
  } else {
    for (int64_t plane = begin; plane < end; plane++) plane_products(f, plane);
  }
}

// body(offset, size, constants) for the runs of memory of units [begin, end): rows of channels with
// `constants` of each channel, or planes with those of one.
template <typename F>
BCOS_INLINE void for_runs(const Extent& e, int64_t begin, int64_t end, F&& body) {
  for (int64_t unit = begin; unit < end; unit++) {
    if (e.channels_last)
      body(unit * e.channels, e.channels, e.constants(unit / e.rows), std::true_type{});
    else
      body(unit * e.rows, e.rows, e.constants(unit / e.channels) + unit % e.channels, std::false_type{});
  }
}

template <typename T, typename U>
BCOS_INLINE void apply(const Apply<T, U>& f, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  for_runs(
      f.extent, begin, end, [&](int64_t offset, int64_t size, int64_t constants, auto each) BCOS_INLINE_BODY {
        const T* x = f.x + offset;
        U* y = f.y + offset;
        const A *shift = f.shift + constants, *gain = f.gain + constants, *add = f.offset + constants;
        const A shift0 = *shift, gain0 = *gain, add0 = *add;
#pragma omp simd
        for (int64_t i = 0; i < size; i++)
          y[i] =
              U((A(x[i]) - (each ? shift[i] : shift0)) * (each ? gain[i] : gain0) + (each ? add[i] : add0));
      });
}

template <typename T, typename U>
BCOS_INLINE void input_gradient(const InputGradient<T, U>& f, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  for_runs(
      f.extent, begin, end, [&](int64_t offset, int64_t size, int64_t constants, auto each) BCOS_INLINE_BODY {
        const U* grad = f.grad + offset;
        const T* x = f.x + offset;
        T* dx = f.dx + offset;
        const A *mean = f.mean + constants, *of_grad = f.of_grad + constants;
        const A *of_x = f.of_x + constants, *add = f.offset + constants;
        const A mean0 = *mean, of_grad0 = *of_grad, of_x0 = *of_x, add0 = *add;
#pragma omp simd
        for (int64_t i = 0; i < size; i++)
          dx[i] = T(A(grad[i]) * (each ? of_grad[i] : of_grad0) +
                    (A(x[i]) - (each ? mean[i] : mean0)) * (each ? of_x[i] : of_x0) + (each ? add[i] : add0));
      });
}

}  // namespace
}  // namespace bcos::norm::cpu
