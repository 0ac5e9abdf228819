#include "transform/cpu/narrow_groups.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cstring>
#include <utility>

#include "common/cpu/vectors.h"
#include "common/layout.h"
#include "common/macros.h"

namespace bcos::transform::cpu {
namespace {

constexpr int64_t kLanes = 8;   // outputs of a vector: one group of 8, or two of 4
constexpr int64_t kPixels = 8;  // that share each load of weights

#if defined(BCOS_VECTORS)
constexpr bool kCompiled = true;

using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));

// sums[p] += weights * the pixel's values of channel C. One shuffle gives all lanes of both halves their
// value: the upper half's channel is C + 4, modulo the width of the group.
template <int64_t C>
BCOS_INLINE void add_channel(const float* const* pixels, int64_t first, const float* weights, Vector* sums) {
  Vector w;
  std::memcpy(&w, weights + C * kLanes, sizeof(w));
#pragma GCC unroll 8
  for (int64_t p = 0; p < kPixels; p++) {
    constexpr int lower = C, upper = (C + 4) % kLanes;
    Vector v;
    std::memcpy(&v, pixels[p] + first, sizeof(v));
    sums[p] += w * __builtin_shufflevector(v, v, lower, lower, lower, lower, upper, upper, upper, upper);
  }
}

// `count` pixels of out [.., channels]; at [tap][kPixels] says where the values of each tap are.
template <int64_t... C>
BCOS_INLINE void product(std::integer_sequence<int64_t, C...>, const float* const* at, int64_t taps,
                         const float* weights, float* out, int64_t channels, int64_t count) {
  for (int64_t first = 0; first < channels; first += kLanes) {
    Vector sums[kPixels] = {};
    for (int64_t tap = 0; tap < taps; tap++) {
      (add_channel<C>(at + tap * kPixels, first, weights, sums), ...);
      weights += sizeof...(C) * kLanes;
    }
#pragma GCC unroll 8
    for (int64_t p = 0; p < kPixels; p++)
      if (p < count) std::memcpy(out + p * channels + first, &sums[p], sizeof(Vector));
  }
}

BCOS_CLONES void product_4(const float* const* at, int64_t taps, const float* weights, float* out,
                           int64_t channels, int64_t count) {
  product(std::make_integer_sequence<int64_t, 4>{}, at, taps, weights, out, channels, count);
}
BCOS_CLONES void product_8(const float* const* at, int64_t taps, const float* weights, float* out,
                           int64_t channels, int64_t count) {
  product(std::make_integer_sequence<int64_t, 8>{}, at, taps, weights, out, channels, count);
}
#else
constexpr bool kCompiled = false;

void product_4(const float* const*, int64_t, const float*, float*, int64_t, int64_t) {}
void product_8(const float* const*, int64_t, const float*, float*, int64_t, int64_t) {}
#endif

Axis reversed(const Axis& a) {
  return {a.kernel, 1, a.dilation * (a.kernel - 1) - a.padding, a.dilation, a.out, a.in};
}

// The channel of its group that a lane multiplies at step `step`, as add_channel shuffles them
int64_t channel_at(int64_t step, int64_t lane, int64_t width) {
  return (step + lane / 4 * 4) % width;
}

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
  return kCompiled && call.window.is_plane() && call.spec.groups > 1 && (width == 4 || width == 8) &&
         call.group_filters() == width && call.channels % kLanes == 0 && x.scalar_type() == at::kFloat &&
         weight.scalar_type() == at::kFloat && call.spec.out_dtype == at::kFloat;
}

bool NarrowGroups::serves_dgrad(const Call& call, const at::Tensor& x, const at::Tensor& weight) {
  const auto& [rows, columns] = call.window.plane;
  return rows.stride == 1 && columns.stride == 1 && serves(call, x, weight);
}

NarrowGroups::NarrowGroups(const Call& call, const at::Tensor& weight, bool forward)
    : width_(call.group_channels()),
      channels_(call.channels),
      window_(call.window.plane),
      packed_(at::empty({weight.numel()}, weight.options())),
      padding_(at::zeros({channels_}, weight.options())) {
  if (!forward) window_ = {reversed(window_.rows), reversed(window_.columns)};
  const auto& [rows, columns] = window_;
  for (int64_t i = 0; i < rows.kernel; i++)
    for (int64_t j = 0; j < columns.kernel; j++)
      steps_.push_back((i * rows.dilation * columns.in + j * columns.dilation) * channels_);
  const auto filters = weight.contiguous(image_format(true, weight.dim()));  // [filter][tap][channel]
  const float* w = filters.const_data_ptr<float>();
  float* to = packed_.mutable_data_ptr<float>();
  const auto taps = int64_t(steps_.size());
  for (int64_t first = 0; first < channels_; first += kLanes)
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t step = 0; step < width_; step++)
        for (int64_t output = first; output < first + kLanes; output++) {
          const int64_t channel = channel_at(step, output - first, width_), group = output / width_ * width_;
          *to++ = forward ? w[(output * taps + tap) * width_ + channel]
                          : w[((group + channel) * taps + taps - 1 - tap) * width_ + output - group];
        }
}

void NarrowGroups::run(const float* in, float* out, int64_t begin, int64_t end) const {
  const auto& [rows, columns] = window_;
  const auto taps = int64_t(steps_.size());
  const float *weights = packed_.const_data_ptr<float>(), *padding = padding_.const_data_ptr<float>();
  std::vector<const float*> at(taps * kPixels);
  for (int64_t first = begin; first < end; first += kPixels) {
    const int64_t count = std::min(kPixels, end - first);
    std::fill(at.begin(), at.end(), padding);
    for (int64_t p = 0; p < count; p++) {
      const int64_t row = (first + p) / columns.out, image = row / rows.out;
      const int64_t h = row % rows.out * rows.stride - rows.padding,
                    w = (first + p) % columns.out * columns.stride - columns.padding;
      const int64_t offset = ((image * rows.in + h) * columns.in + w) * channels_;
      if (inside(rows, h) && inside(columns, w)) {
        for (int64_t tap = 0; tap < taps; tap++) at[tap * kPixels + p] = in + (offset + steps_[tap]);
        continue;
      }
      for (int64_t i = 0, tap = 0; i < rows.kernel; i++)
        for (int64_t j = 0; j < columns.kernel; j++, tap++)
          if (has(rows, h + i * rows.dilation) && has(columns, w + j * columns.dilation))
            at[tap * kPixels + p] = in + (offset + steps_[tap]);
    }
    (width_ == 4 ? product_4 : product_8)(at.data(), taps, weights, out + first * channels_, channels_,
                                          count);
  }
}

}  // namespace bcos::transform::cpu
