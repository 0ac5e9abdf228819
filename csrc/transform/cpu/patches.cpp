#include "transform/cpu/patches.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <type_traits>

#include "common/cpu/row_gemm.h"
#include "common/cpu/types.h"
#include "transform/cpu/patch_norm.h"
#include "transform/cpu/steps.h"

namespace bcos::transform::cpu {
namespace {

constexpr int64_t kMostChannels = 8, kLeastPixels = 2048;  // of a call whose patches may overlap
constexpr int64_t kMostValues = 2048;  // of a patch that lies apart: a tile of them stays in L2

// What part of its patch lies in the image, for one pixel of all outputs: rows [first, last) of the patch, of
// which each has `size` values from `offset` on, and where these begin in memory, for row 0.
struct Part {
  int64_t h, first, last, offset, size, from;

  Part(const Call& call, int64_t pixel) {
    const auto& [rows, columns] = call.window.plane;
    const int64_t row = pixel / columns.out, image = row / rows.out;
    const int64_t w = pixel % columns.out * columns.stride - columns.padding;
    const int64_t left = std::min(columns.kernel, std::max<int64_t>(0, -w)),
                  right = std::max(left, std::min(columns.kernel, columns.in - w));
    h = row % rows.out * rows.stride - rows.padding;
    first = std::max<int64_t>(0, -h);
    last = std::min(rows.kernel, rows.in - h);
    offset = left * call.channels;
    size = (right - left) * call.channels;
    from = ((image * rows.in + h) * columns.in + w + left) * call.channels;
  }
};

// The patches of output pixels [begin, end) of all images, one after the other.
template <typename T>
BCOS_CLONES void gather(const Call& call, const T* x, int64_t begin, int64_t end, T* to) {
  const auto& [rows, columns] = call.window.plane;
  const int64_t run = columns.kernel * call.channels, line = columns.in * call.channels;
  for (int64_t pixel = begin; pixel < end; pixel++, to += rows.kernel * run) {
    const Part part(call, pixel);
    if (part.last - part.first < rows.kernel || part.size < run) std::fill_n(to, rows.kernel * run, T(0));
    for (int64_t i = part.first; i < part.last; i++) {
      const T* in = x + (part.from + i * line);
      T* out = to + i * run + part.offset;
#pragma omp simd
      for (int64_t v = 0; v < part.size; v++) out[v] = in[v];
    }
  }
}

// Adds them to rows [top, bottom) of their image in dx.
BCOS_CLONES void scatter(const Call& call, const float* patches, int64_t begin, int64_t end, int64_t top,
                         int64_t bottom, float* dx) {
  const auto& [rows, columns] = call.window.plane;
  const int64_t run = columns.kernel * call.channels, line = columns.in * call.channels;
  for (int64_t pixel = begin; pixel < end; pixel++, patches += rows.kernel * run) {
    const Part part(call, pixel);
    for (int64_t i = std::max(part.first, top - part.h); i < std::min(part.last, bottom - part.h); i++) {
      const float* in = patches + i * run + part.offset;
      float* out = dx + (part.from + i * line);
#pragma omp simd
      for (int64_t v = 0; v < part.size; v++) out[v] += in[v];
    }
  }
}

int64_t patch_size(const Call& call) {
  return call.window.taps() * call.channels;
}

// Whether a row of a patch is one run of memory.
bool are_runs(const Call& call, bool channels_last) {
  const auto& [rows, columns] = call.window.plane;
  return channels_last && call.spec.groups == 1 && call.window.is_plane() && !call.window.bordered &&
         !call.window.pointwise() && rows.dilation == 1 && columns.dilation == 1;
}

// Room for the patches of a tile, one for each thread.
at::Tensor tiles(const Call& call, const at::Tensor& like) {
  return at::empty({at::get_num_threads(), RowGemm::kRows * patch_size(call)}, like.options());
}

}  // namespace

bool patches_serve(const Call& call, const at::Tensor& x, const at::Tensor& weight, bool channels_last) {
  return call.channels <= kMostChannels && call.images * call.out_plane() >= kLeastPixels &&
         are_runs(call, channels_last) && RowGemm::serves(x, weight, call.spec.out_dtype);
}

bool patches_serve_forward(const Call& call, const at::Tensor& x, const at::Tensor& weight,
                           bool channels_last) {
  const auto& [rows, columns] = call.window.plane;
  return rows.stride >= rows.kernel && columns.stride >= columns.kernel && patch_size(call) <= kMostValues &&
         are_runs(call, channels_last) && RowGemm::serves_forward(x, weight, call.spec.out_dtype);
}

Outputs patches_forward(const Call& call, const Inputs& inputs, const Tiling& outputs) {
  const PackedFilters filters(inputs.weight, call.spec.unit, call.dtype);
  const auto scratch = tiles(call, inputs.x);
  Outputs out;
  if (call.has_norm()) out.n = empty_norm(call, inputs.x, true);
  float* n = mutable_pointer<float>(out.n);
  const auto k = call.constants<float>();
  with_values<float>(inputs.x, [&](const auto* x) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(x)>>;
    finish_forward(call, inputs, filters.alpha, {}, outputs, out, [&](int64_t begin, int64_t end, float* z) {
      T* patches = scratch.mutable_data_ptr<T>() + at::get_thread_num() * scratch.size(1);
      gather(call, x, begin, end, patches);
      if (n) row_norms(patches, n + begin, patch_size(call), k, 0, end - begin);
      filters.gemm.forward(patches, z, end - begin);
    });
  });
  return out;
}

at::Tensor patches_dgrad(const Call& call, const at::Tensor& u, const at::Tensor& x,
                         const at::Tensor& weight) {
  const auto& [rows, columns] = call.window.plane;
  const RowGemm gemm(weight, false);
  const auto scratch = tiles(call, x);
  auto dx = empty_gradient(call, x);
  float *room = scratch.mutable_data_ptr<float>(), *out = dx.mutable_data_ptr<float>();
  const float* in = u.const_data_ptr<float>();
  const int64_t images = dx.size(0), line = columns.in * call.channels;
  // bands of rows of dx, of which each needs a few rows of u more than it has itself
  const int64_t wanted = at::ceil_div<int64_t>(2 * at::get_num_threads(), images),
                bands = std::max<int64_t>(1, std::min(wanted, rows.in / (4 * rows.kernel)));
  at::parallel_for(0, images * bands, 1, [&](int64_t begin, int64_t end) {
    float* patches = room + at::get_thread_num() * scratch.size(1);
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t image = unit / bands, band = unit % bands;
      const int64_t top = rows.in * band / bands, bottom = rows.in * (band + 1) / bands;
      std::fill_n(out + (image * rows.in + top) * line, (bottom - top) * line, 0.f);
      const int64_t above = top + rows.padding - rows.kernel;  // the last row that no window reaches
      const int64_t first = above < 0 ? 0 : above / rows.stride + 1,
                    last = std::min(rows.out, (bottom - 1 + rows.padding) / rows.stride + 1);
      const int64_t start = (image * rows.out + first) * columns.out,
                    stop = start + (last - first) * columns.out;
      for (int64_t pixel = start; pixel < stop; pixel += RowGemm::kRows) {
        const int64_t next = std::min(pixel + RowGemm::kRows, stop);
        gemm.dgrad(in + pixel * call.filters, patches, next - pixel);
        scatter(call, patches, pixel, next, top, bottom, out);
      }
    }
    RowGemm::release();
  });
  return dx;
}

}  // namespace bcos::transform::cpu
