#include "transform/cpu/narrow_groups.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>

#include "common/cpu/registers.h"
#include "common/cpu/tiling.h"
#include "common/cpu/transpose.h"
#include "common/layout.h"
#include "common/macros.h"

namespace bcos::transform::cpu {

using namespace bcos::cpu;

namespace {

constexpr int64_t kPixels = 8;  // that share each load of weights

// Outputs whose weights lie side by side: two groups of 4 channels or one of 8, or a part of a wider group.
constexpr int64_t kNarrow = 8, kWide = 16;

constexpr int64_t block_size(int64_t width) {
  return width <= kNarrow ? kNarrow : kWide;
}

// A tile of pixels: at[tap * stride + pixel] says where the values of each tap are. `stride` is a multiple of
// kPixels.
struct Taps {
  const float* const* at;
  int64_t count, stride;
};

// out [pixels, channels] of one tile
using Product = void (*)(const Taps& taps, const float* weights, float* out, int64_t channels,
                         int64_t pixels);

#if defined(BCOS_VECTORS)
// out [pixels, channels]: add(begin, first, sums) adds up outputs [first, first + lanes of V) of kPixels
// pixels from `begin` on. All pixels take the same outputs before the next ones, whose weights stay in cache.
template <typename V, typename F>
BCOS_INLINE void each_output(float* out, int64_t channels, int64_t pixels, F&& add) {
  for (int64_t first = 0; first < channels; first += sizeof(V) / sizeof(float))
    for (int64_t begin = 0; begin < pixels; begin += kPixels) {
      V sums[kPixels] = {};
      add(begin, first, sums);
#pragma GCC unroll 8
      for (int64_t p = 0; p < kPixels; p++)
        if (begin + p < pixels) std::memcpy(out + (begin + p) * channels + first, &sums[p], sizeof(V));
    }
}

using Vector = float __attribute__((vector_size(kNarrow * sizeof(float))));

// sums[p] += weights * the pixel's values of channel C of two groups of 4. One shuffle gives all lanes of
// both groups their value.
template <int64_t C>
BCOS_INLINE void add_channel(const float* const* pixels, int64_t first, const float* weights, Vector* sums) {
  Vector w;
  std::memcpy(&w, weights + C * kNarrow, sizeof(w));
#pragma GCC unroll 8
  for (int64_t p = 0; p < kPixels; p++) {
    constexpr int lower = C, upper = C + 4;
    Vector v;
    std::memcpy(&v, pixels[p] + first, sizeof(v));
    sums[p] += w * __builtin_shufflevector(v, v, lower, lower, lower, lower, upper, upper, upper, upper);
  }
}

BCOS_CLONES void product_4(const Taps& taps, const float* weights, float* out, int64_t channels,
                           int64_t pixels) {
  each_output<Vector>(out, channels, pixels,
                      [&](int64_t begin, int64_t first, Vector* sums) BCOS_INLINE_BODY {
                        const float* w = weights + first * taps.count * 4;
                        for (int64_t tap = 0; tap < taps.count; tap++, w += 4 * kNarrow) {
                          const float* const* in = taps.at + tap * taps.stride + begin;
                          add_channel<0>(in, first, w, sums);
                          add_channel<1>(in, first, w, sums);
                          add_channel<2>(in, first, w, sums);
                          add_channel<3>(in, first, w, sums);
                        }
                      });
}

// Each value of a pixel is one factor of all outputs that a register holds.
template <int64_t Width>
void wide_product(const Taps& taps, const float* weights, float* out, int64_t channels, int64_t pixels) {
  constexpr int64_t kBlock = block_size(Width);
  by_lanes([&](auto lanes) BCOS_INLINE_BODY {
    using V = Register<std::min<int>(lanes(), kBlock)>;
    each_output<V>(out, channels, pixels, [&](int64_t begin, int64_t first, V* sums) BCOS_INLINE_BODY {
      const int64_t group = first / Width * Width, block = first / kBlock * kBlock;
      const float* w = weights + block * taps.count * Width + (first - block);
      for (int64_t tap = 0; tap < taps.count; tap++) {
        const float* in[kPixels];
        for (int64_t p = 0; p < kPixels; p++) in[p] = taps.at[tap * taps.stride + begin + p] + group;
#pragma GCC unroll 4
        for (int64_t c = 0; c < Width; c++, w += kBlock)
#pragma GCC unroll 8
          for (int64_t p = 0; p < kPixels; p++) sums[p] += *reinterpret_cast<const V*>(w) * in[p][c];
      }
    });
  });
}

Product product_of(int64_t width) {
  switch (width) {
    case 4:
      return product_4;
    case 8:
      return wide_product<8>;
    case 16:
      return wide_product<16>;
    case 32:
      return wide_product<32>;
  }
  return nullptr;
}
#else
Product product_of(int64_t) {
  return nullptr;
}
#endif

bool has(const Axis& a, int64_t position) {
  return position >= 0 && position < a.in;
}

// Whether all taps are inside of which the first is at `first`
bool inside(const Axis& a, int64_t first) {
  return has(a, first) && has(a, first + a.dilation * (a.kernel - 1));
}

}  // namespace

bool NarrowGroups::serves(const Call& call, const at::Tensor& x, const at::Tensor& weight) {
  const int64_t width = call.group_channels();
  return product_of(width) && call.window.is_plane() && call.spec.groups > 1 &&
         call.group_filters() == width && call.channels % block_size(width) == 0 &&
         x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat &&
         call.spec.out_dtype == at::kFloat;
}

bool NarrowGroups::serves_dgrad(const Call& call, const at::Tensor& x, const at::Tensor& weight) {
  const auto& [rows, columns] = call.window.plane;
  return rows.stride == 1 && columns.stride == 1 && serves(call, x, weight);
}

NarrowGroups::NarrowGroups(const Call& call, const at::Tensor& weight, bool forward)
    : width_(call.group_channels()),
      channels_(call.channels),
      window_(forward ? call.window.plane : call.window.plane.reversed()),
      packed_(at::empty({weight.numel()}, weight.options())),
      padding_(at::zeros({channels_}, weight.options())) {
  const auto& [rows, columns] = window_;
  for (int64_t i = 0; i < rows.kernel; i++)
    for (int64_t j = 0; j < columns.kernel; j++)
      steps_.push_back((i * rows.dilation * columns.in + j * columns.dilation) * channels_);
  const auto filters = weight.contiguous(image_format(true, weight.dim()));  // [filter][tap][channel]
  const float* w = filters.const_data_ptr<float>();
  float* to = packed_.mutable_data_ptr<float>();
  const auto taps = int64_t(steps_.size());
  const int64_t size = taps * width_, block = block_size(width_);
  const auto pack = [&](int64_t first, float* to) {
    if (block <= width_ && forward) return transpose(w + first * size, size, block, size, to, block);
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t step = 0; step < width_; step++, to += block) {
        const int64_t turned = (taps - 1 - tap) * width_;
        if (block <= width_) {
          const int64_t from = first % width_;
          std::copy_n(w + (first - from + step) * size + turned + from, block, to);
          continue;
        }
        for (int64_t lane = 0; lane < block; lane++) {
          const int64_t output = first + lane, from = output % width_;
          to[lane] = forward ? w[output * size + tap * width_ + step]
                             : w[(output - from + step) * size + turned + from];
        }
      }
  };
  parallel(channels_ / block, block * size, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) pack(i * block, to + i * block * size);
  });
}

void NarrowGroups::run(const float* in, float* out, int64_t begin, int64_t end) const {
  const auto& [rows, columns] = window_;
  const auto taps = int64_t(steps_.size());
  const int64_t pixels = end - begin, stride = at::round_up(pixels, kPixels);
  std::vector<const float*> at(taps * stride, padding_.const_data_ptr<float>());
  for (int64_t p = 0; p < pixels; p++) {
    const int64_t row = (begin + p) / columns.out, image = row / rows.out;
    const int64_t h = row % rows.out * rows.stride - rows.padding,
                  w = (begin + p) % columns.out * columns.stride - columns.padding;
    const int64_t offset = ((image * rows.in + h) * columns.in + w) * channels_;
    if (inside(rows, h) && inside(columns, w)) {
      for (int64_t tap = 0; tap < taps; tap++) at[tap * stride + p] = in + (offset + steps_[tap]);
      continue;
    }
    for (int64_t i = 0, tap = 0; i < rows.kernel; i++)
      for (int64_t j = 0; j < columns.kernel; j++, tap++)
        if (has(rows, h + i * rows.dilation) && has(columns, w + j * columns.dilation))
          at[tap * stride + p] = in + (offset + steps_[tap]);
  }
  product_of(width_)({at.data(), taps, stride}, packed_.const_data_ptr<float>(), out, channels_, pixels);
}

}  // namespace bcos::transform::cpu
