#include "norm/cpu/channels.h"

#include <algorithm>

#include "common/cpu/lines.h"
#include "common/cpu/sums.h"
#include "norm/cpu/sums.h"
#include "norm/formula.h"

namespace bcos::norm::cpu {
namespace {

// Rows whose terms are summed in single precision before the sums join those before them.
constexpr int64_t kRunRows = 256;

// Rows whose mean is each channel's first pivot.
constexpr int64_t kPivotRows = 8;

// `sums` is overwritten.
template <typename T, typename A>
BCOS_INLINE void first_pivots(const T* x, int64_t rows, int64_t channels, A* pivots, double* sums) {
  std::fill_n(sums, channels, 0.0);
  const int64_t count = std::min(kPivotRows, rows);
  for (int64_t r = 0; r < count; r++)
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) sums[c] += double(x[r * channels + c]);
  for (int64_t c = 0; c < channels; c++) pivots[c] = A(sums[c] / double(count));
}

// Adds body(row) of `count` rows to two sums for every channel: body adds one row to the two that it is
// given, and short sums of few rows are added up, which rounds less than one long sum.
template <typename A, typename F>
BCOS_INLINE void add_rows(int64_t count, int64_t channels, A* first, A* second, A* short_sums, F&& body) {
  constexpr int64_t kShortRows = 16;
  for (int64_t begin = 0; begin < count; begin += kShortRows) {
    std::fill_n(short_sums, 2 * channels, A(0));
    for (int64_t r = begin; r < std::min(begin + kShortRows, count); r++)
      body(r, short_sums, short_sums + channels);
    add_row(first, short_sums, channels);
    add_row(second, short_sums + channels, channels);
  }
}

template <typename T>
BCOS_INLINE void part_moments(const PartMoments<T>& f, int64_t part) {
  using A = Accumulate<T>;
  const Extent& e = f.extent;
  const int64_t C = e.channels, first = e.part_begin(part), rows = e.part_end(part) - first;
  const T* x = f.x + (part / e.splits * e.rows + first) * C;
  double *mean = f.mean + part * C, *squares = f.squares + part * C;
  std::fill_n(squares, C, 0.0);
  Lines<A> sums(5 * C);
  A *pivots = sums.data(), *distances = pivots + C, *squared = distances + C;
  first_pivots(x, rows, C, pivots, mean);
  std::fill_n(mean, C, 0.0);
  for (int64_t begin = 0; begin < rows; begin += kRunRows) {
    const int64_t count = std::min(kRunRows, rows - begin);
    std::fill_n(distances, 2 * C, A(0));
    add_rows(count, C, distances, squared, squared + C,
             [&](int64_t r, A* distances, A* squared) BCOS_INLINE_BODY {
               const T* row = x + (begin + r) * C;
#pragma omp simd
               for (int64_t c = 0; c < C; c++) {
                 const A distance = A(row[c]) - pivots[c];
                 distances[c] += distance;
                 squared[c] += distance * distance;
               }
             });
#pragma omp simd
    for (int64_t c = 0; c < C; c++) {
      const auto all = with_run({mean[c], 0, squares[c]}, double(begin), double(count), pivots[c],
                                distances[c], squared[c]);
      mean[c] = all.mean;
      squares[c] = all.squares;
      pivots[c] = A(all.mean);
    }
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
  Lines<A> sums(4 * C);
  A *short_products = sums.data(), *short_grads = short_products + C;
  for (int64_t begin = 0; begin < rows; begin += kRunRows) {
    const int64_t count = std::min(kRunRows, rows - begin);
    std::fill_n(short_products, 2 * C, A(0));
    add_rows(count, C, short_products, short_grads, short_grads + C,
             [&](int64_t r, A* products, A* grads) BCOS_INLINE_BODY {
               const U* grad = f.grad + start + (begin + r) * C;
               const T* x = f.x + start + (begin + r) * C;
#pragma omp simd
               for (int64_t c = 0; c < C; c++) {
                 const A g = A(grad[c]);
                 products[c] += g * (A(x[c]) - shift[c]);
                 grads[c] += g;
               }
             });
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

// body(offset, size, constants) for the runs of memory of units [begin, end): rows of channels with
// `constants` of each channel, or planes with those of one.
template <typename F>
BCOS_INLINE void for_runs(const Extent& e, int64_t begin, int64_t end, F&& body) {
  if (!e.channels_last) {
    for (int64_t plane = begin; plane < end; plane++)
      body(plane * e.rows, e.rows, e.constants(plane / e.channels) + plane % e.channels, std::false_type{});
    return;
  }
  for (int64_t row = begin; row < end;) {
    const int64_t image = row / e.rows, constants = e.constants(image);
    for (const int64_t last = std::min(end, (image + 1) * e.rows); row < last; row++)
      body(row * e.channels, e.channels, constants, std::true_type{});
  }
}

template <typename T, typename U>
BCOS_INLINE void scale(const Apply<T, U>& f, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  for_runs(f.extent, begin, end,
           [&](int64_t offset, int64_t size, int64_t constants, auto each) BCOS_INLINE_BODY {
             const T* x = f.x + offset;
             U* y = f.y + offset;
             const A* gain = f.gain + constants;
             const A gain0 = *gain;
#pragma omp simd
             for (int64_t i = 0; i < size; i++) y[i] = rounded<U>(A(x[i]) * (each ? gain[i] : gain0));
           });
}

}  // namespace

template <typename T>
BCOS_CLONES void run(const PartMoments<T>& f, int64_t begin, int64_t end) {
  if (f.extent.channels_last) {
    for (int64_t part = begin; part < end; part++) part_moments(f, part);
    return;
  }
  for (int64_t plane = begin; plane < end; plane++) {
    const Moments<double> found = moments_along(f.x + plane * f.extent.rows, f.extent.rows);
    f.mean[plane] = found.mean;
    f.squares[plane] = found.squares;
  }
}

template <typename T, typename U>
BCOS_CLONES void run(const Products<T, U>& f, int64_t begin, int64_t end) {
  if (f.extent.channels_last) {
    for (int64_t part = begin; part < end; part++) part_products(f, part);
  } else {
    for (int64_t plane = begin; plane < end; plane++) plane_products(f, plane);
  }
}

template <typename T, typename U>
BCOS_CLONES void run(const Apply<T, U>& f, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  if (!f.shift) return scale(f, begin, end);
  for_runs(
      f.extent, begin, end, [&](int64_t offset, int64_t size, int64_t constants, auto each) BCOS_INLINE_BODY {
        const T* x = f.x + offset;
        U* y = f.y + offset;
        const A *shift = f.shift + constants, *gain = f.gain + constants, *add = f.offset + constants;
        const A shift0 = *shift, gain0 = *gain, add0 = *add;
#pragma omp simd
        for (int64_t i = 0; i < size; i++)
          y[i] = rounded<U>(
              Affine<A>{each ? shift[i] : shift0, each ? gain[i] : gain0, each ? add[i] : add0}(A(x[i])));
      });
}

template <typename T, typename U>
BCOS_CLONES void run(const InputGradient<T, U>& f, int64_t begin, int64_t end) {
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
          dx[i] =
              rounded<T>(Gradient<A>{each ? of_grad[i] : of_grad0, each ? of_x[i] : of_x0,
                                     each ? add[i] : add0}(A(grad[i]), A(x[i]) - (each ? mean[i] : mean0)));
      });
}

template void run(const PartMoments<float>&, int64_t, int64_t);
template void run(const PartMoments<double>&, int64_t, int64_t);
template void run(const PartMoments<BFloat16>&, int64_t, int64_t);
template void run(const Products<float, float>&, int64_t, int64_t);
template void run(const Apply<float, float>&, int64_t, int64_t);
template void run(const InputGradient<float, float>&, int64_t, int64_t);
template void run(const Products<double, double>&, int64_t, int64_t);
template void run(const Apply<double, double>&, int64_t, int64_t);
template void run(const InputGradient<double, double>&, int64_t, int64_t);
template void run(const Products<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const Apply<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const InputGradient<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const Products<BFloat16, float>&, int64_t, int64_t);
template void run(const Apply<BFloat16, float>&, int64_t, int64_t);
template void run(const InputGradient<BFloat16, float>&, int64_t, int64_t);
template void run(const Apply<float, BFloat16>&, int64_t, int64_t);

}  // namespace bcos::norm::cpu
