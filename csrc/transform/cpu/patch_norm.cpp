#include "transform/cpu/patch_norm.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/mul.h>

#include "common/cpu/empty.h"
#include "common/cpu/groups.h"
#include "common/cpu/sums.h"
#include "common/layout.h"

namespace bcos::transform::cpu {
namespace {

// sums[i] += the squares of `channels` rows that lie `stride` apart
template <typename T>
BCOS_INLINE void add_squares(const T* x, Accumulate<T>* sums, int64_t channels, int64_t stride,
                             int64_t size) {
  using A = Accumulate<T>;
  constexpr int64_t kRows = 8;  // that are summed in registers
  int64_t c = 0;
  for (; c + kRows <= channels; c += kRows) {
    const T* row = x + c * stride;
#pragma omp simd
    for (int64_t i = 0; i < size; i++) {
      const auto pair = [&](int64_t r) {
        const A v = A(row[r * stride + i]), w = A(row[(r + 1) * stride + i]);
        return v * v + w * w;
      };
      sums[i] += (pair(0) + pair(2)) + (pair(4) + pair(6));
    }
  }
  for (; c < channels; c++) {
    const T* row = x + c * stride;
#pragma omp simd
    for (int64_t i = 0; i < size; i++) sums[i] += A(row[i]) * A(row[i]);
  }
}

template <typename T>
BCOS_INLINE Accumulate<T> row_squares(const T* row, int64_t size) {
  if (size >= 16) return dot(row, row, size);
  Accumulate<T> sum = 0;  // too short for a vector: the reduction would cost more than the sum
  for (int64_t i = 0; i < size; i++) sum += Accumulate<T>(row[i]) * Accumulate<T>(row[i]);
  return sum;
}

// Unit by unit as Tiling has them
template <typename T>
BCOS_CLONES void sum_squares(const T* x, Accumulate<T>* q, const Tiling& t, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  if (t.channels_last && t.per_group == 1) {
#pragma omp simd
    for (int64_t i = begin * t.groups; i < end * t.groups; i++) q[i] = A(x[i]) * A(x[i]);
    return;
  }
  if (t.channels_last) {
    const int64_t first = begin * t.groups, last = end * t.groups;
    by_width(t.per_group, [&](auto width) BCOS_INLINE_BODY {
      if constexpr (std::is_same_v<decltype(width), int64_t>)
        for (int64_t i = first; i < last; i++) q[i] = row_squares(x + i * width, width);
      else
        sum_groups(q, first, last, width, [&](int64_t i) BCOS_INLINE_BODY { return A(x[i]) * A(x[i]); });
    });
    return;
  }
  for (int64_t unit = begin; unit < end; unit++) {
    const Block b(t, unit);
    A* out = q + b.group * t.pixels + b.begin;
    A part[Tiling::kBlock];
    for (int64_t c = 0; c < t.per_group; c += kSumChannels) {
      A* sums = c == 0 ? out : part;
      std::fill_n(sums, b.size, A(0));
      add_squares(x + (b.group * t.per_group + c) * t.pixels + b.begin, sums,
                  std::min(kSumChannels, t.per_group - c), t.pixels, b.size);
      if (c > 0) add_row(out, part, b.size);
    }
  }
}

// Outputs [first, last) whose tap at `offset` falls inside the input: 0 <= index * stride + offset < in.
struct Inside {
  int64_t first, last;
  Inside(int64_t offset, int64_t stride, int64_t in, int64_t out) {
    first = offset >= 0 ? 0 : at::ceil_div(-offset, stride);
    last = offset >= in ? 0 : std::min(out, at::ceil_div(in - offset, stride));
  }
};

// add(out, in, count) for the runs of outputs whose tap at `offset` falls inside: `count` values from `out`
// on, whose inputs lie from `in` on. Each position holds `inner` values.
template <typename F>
BCOS_INLINE void each_run(int64_t offset, const Axis& axis, int64_t inner, F&& add) {
  const int64_t stride = axis.stride;
  const Inside r(offset, stride, axis.in, axis.out);
  if (stride == 1) {
    if (r.first < r.last) add(r.first * inner, (r.first + offset) * inner, (r.last - r.first) * inner);
  } else if (inner == 1) {  // what is added is then one value for the compiler, too
    for (int64_t i = r.first; i < r.last; i++) add(i, i * stride + offset, 1);
  } else {
    for (int64_t i = r.first; i < r.last; i++) add(i * inner, (i * stride + offset) * inner, inner);
  }
}

template <typename A>
BCOS_INLINE void roots(A* q, const Constants<A>& k, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; i++) q[i] = root_norm(q[i], k);
}

// The input that an output sees through a tap of an axis, and the output that sees an input through it;
// negative where there is none.
BCOS_INLINE int64_t input_of(const Axis& a, int64_t out, int64_t tap) {
  const int64_t in = out * a.stride - a.padding + tap * a.dilation;
  return in < a.in ? in : -1;
}
BCOS_INLINE int64_t output_of(const Axis& a, int64_t in, int64_t tap) {
  const int64_t reach = in + a.padding - tap * a.dilation, out = reach / a.stride;
  return reach >= 0 && reach % a.stride == 0 && out < a.out ? out : -1;
}

// What a sum over windows reads and writes of an axis: inputs and outputs, or for its transpose the reverse.
template <bool Transposed>
BCOS_INLINE int64_t read_of(const Axis& a) {
  return Transposed ? a.out : a.in;
}
template <bool Transposed>
BCOS_INLINE int64_t written_of(const Axis& a) {
  return Transposed ? a.in : a.out;
}

// Rows [begin, end) of planes [rows, columns, inner] of the sums over windows, or of their transpose: rows
// are summed first, columns of the sum after. They become norms where k is given.
template <bool Transposed, typename A>
BCOS_CLONES void sum_rows(const A* q, A* out, const Plane& w, int64_t inner, const Constants<A>* k,
                          int64_t begin, int64_t end) {
  const auto& [rows, columns] = w;
  const int64_t height = written_of<Transposed>(rows), read = read_of<Transposed>(columns) * inner,
                written = written_of<Transposed>(columns) * inner;
  Scratch<A> scratch(read);
  A* column = scratch.data();
  for (int64_t row = begin; row < end; row++) {
    const int64_t plane = row / height * read_of<Transposed>(rows), h = row % height;
    A* dst = out + row * written;
    std::fill_n(column, read, A(0));
    std::fill_n(dst, written, A(0));
    for (int64_t i = 0; i < rows.kernel; i++) {
      const int64_t seen = Transposed ? output_of(rows, h, i) : input_of(rows, h, i);
      if (seen >= 0) add_row(column, q + (plane + seen) * read, read);
    }
    for (int64_t j = 0; j < columns.kernel; j++)
      each_run(j * columns.dilation - columns.padding, columns, inner,
               [&](int64_t output, int64_t input, int64_t count) BCOS_INLINE_BODY {
                 add_row(dst + (Transposed ? input : output), column + (Transposed ? output : input), count);
               });
    if (k) roots(dst, *k, 0, written);
  }
}

template <typename A>
BCOS_CLONES void run_roots(A* q, const Constants<A>& k, int64_t begin, int64_t end) {
  roots(q, k, begin, end);
}

at::Tensor empty_image(const at::Tensor& like, at::IntArrayRef shape, bool channels_last) {
  const auto format = image_format(channels_last, int64_t(shape.size()));
  return empty(shape, like.options().dtype(accumulate_type(like.scalar_type())).memory_format(format));
}

// The values of a group lie `inner` apart in planes, of which an image and a depth has `count`.
struct Planes {
  int64_t inner, count;

  Planes(const Call& call, bool channels_last)
      : inner(channels_last ? call.spec.groups : 1),
        count(channels_last ? call.images : call.images * call.spec.groups) {}
};

// `out` = the sums of q over the windows of w in `count` planes, or their transpose; norms where k is given
template <bool Transposed, typename A>
void sum_planes(const Plane& w, int64_t count, int64_t inner, const A* q, A* out,
                const Constants<A>* k = nullptr) {
  const auto& [rows, columns] = w;
  const int64_t work =
      rows.kernel * read_of<Transposed>(columns) + columns.kernel * written_of<Transposed>(columns);
  parallel(count * written_of<Transposed>(rows), work * inner,
           [&](int64_t begin, int64_t end) { sum_rows<Transposed>(q, out, w, inner, k, begin, end); });
}

// `out`, of the shape of n, = the sums of q, as x with a channel for each group, over every patch; norms
// where k is given
template <typename A>
void window_sums(const Call& call, const A* q, bool channels_last, A* out, const Constants<A>* k = nullptr) {
  const auto& w = call.window;
  const Planes planes(call, channels_last);
  const int64_t count = planes.count * w.depth.in;
  if (w.depth.pointwise()) return sum_planes<false>(w.plane, count, planes.inner, q, out, k);
  Scratch<A> half(count * w.across().columns.out * planes.inner);
  sum_planes<false>(w.plane, count, planes.inner, q, half.data());
  sum_planes<false>(w.across(), planes.count, planes.inner, half.data(), out, k);
}

// Sets what the patch norm takes as 0, in q of the shape of x with a channel for each group.
template <typename A>
void clear_border(const Call& call, bool channels_last, A* q) {
  const auto& border = call.spec.border;
  if (border.empty()) return;
  const auto& [depth, plane, bordered] = call.window;
  const Planes planes(call, channels_last);
  auto all = at::from_blob(q, {planes.count, depth.in, plane.rows.in, plane.columns.in, planes.inner},
                           c10::CppTypeToScalarType<A>::value);
  for (size_t i = 0; i < border.size(); i++) {
    const int64_t axis = 4 - int64_t(border.size() / 2) + int64_t(i / 2);
    const int64_t begin = i % 2 ? all.size(axis) - border[i] : 0;
    all.narrow(axis, begin, border[i]).zero_();
  }
}

// q = the sum of squares of each group of each pixel
template <typename A>
void square_sums(const at::Tensor& x, const Tiling& tiling, A* q) {
  with_values<A>(x, [&](const auto* in) {
    parallel(tiling.units(), tiling.unit_size(),
             [&](int64_t begin, int64_t end) { sum_squares(in, q, tiling, begin, end); });
  });
}

}  // namespace

template <typename T>
void row_norms(const T* x, float* n, int64_t size, const Constants<float>& k, int64_t begin, int64_t end) {
  sum_squares(x, n, {true, 1, 1, size, end}, begin, end);
  run_roots(n, k, begin, end);
}
template void row_norms(const float*, float*, int64_t, const Constants<float>&, int64_t, int64_t);
template void row_norms(const c10::BFloat16*, float*, int64_t, const Constants<float>&, int64_t, int64_t);

at::Tensor empty_norm(const Call& call, const at::Tensor& x, bool channels_last) {
  return empty_image(x, call.n_shape(), channels_last);
}

at::Tensor patch_norm(const Call& call, const at::Tensor& x, bool channels_last) {
  const auto tiling = input_tiling(call, channels_last);
  auto n = empty_norm(call, x, channels_last);
  with_type(n.scalar_type(), [&](auto zero) {
    using A = Accumulate<decltype(zero)>;
    A* out = n.mutable_data_ptr<A>();
    const auto k = call.constants<A>();
    if (call.window.pointwise()) {
      square_sums(x, tiling, out);
      return parallel(n.numel(), 1, [&](int64_t begin, int64_t end) { run_roots(out, k, begin, end); });
    }
    Scratch<A> q(call.images * call.spec.groups * call.in_plane());
    square_sums(x, tiling, q.data());
    clear_border(call, channels_last, q.data());
    window_sums(call, q.data(), channels_last, out, &k);
  });
  return n;
}

at::Tensor patch_products(const Call& call, const at::Tensor& x, const at::Tensor& v, bool channels_last) {
  const auto dtype = accumulate_type(x.scalar_type());
  auto q = at::mul(x.to(dtype), v.to(dtype)).unflatten(1, {call.spec.groups, -1}).sum(2);
  if (call.window.pointwise()) return q;
  q = q.contiguous(image_format(channels_last, q.dim()));
  auto m = empty_image(q, call.n_shape(), channels_last);
  with_type(dtype, [&](auto zero) {
    using A = Accumulate<decltype(zero)>;
    clear_border(call, channels_last, q.mutable_data_ptr<A>());
    window_sums(call, q.const_data_ptr<A>(), channels_last, m.mutable_data_ptr<A>());
  });
  return m;
}

template <typename A>
void spread(const Call& call, const A* t, bool channels_last, A* r) {
  const auto& w = call.window;
  const Planes planes(call, channels_last);
  const int64_t count = planes.count * w.depth.in, inner = planes.inner;
  if (w.depth.pointwise()) {
    sum_planes<true>(w.plane, count, inner, t, r);
  } else {
    Scratch<A> half(count * w.across().columns.out * inner);
    sum_planes<true>(w.across(), planes.count, inner, t, half.data());
    sum_planes<true>(w.plane, count, inner, half.data(), r);
  }
  clear_border(call, channels_last, r);
}
template void spread(const Call&, const float*, bool, float*);
template void spread(const Call&, const double*, bool, double*);

}  // namespace bcos::transform::cpu
