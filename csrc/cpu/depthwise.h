// Depthwise convolution, channels_last, stride 1, "same" padding: norm, product and scale of a tile in one
// go.
#pragma once

#include "cpu/patch_norm.h"
#include "cpu/types.h"
#include "host/params.h"

namespace bcos::cpu {

// Whether the kernels below serve a call; else the vendor's convolution does.
bool depthwise_serves(const at::Tensor& x, const at::Tensor& weight, const Window& window,
                      const Formula& formula);

Outputs depthwise(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                  const Window& window, const Formula& formula, at::ScalarType out_dtype);

// Every tensor of saved is channels_last. At b = 2 sets small_norm where a patch has the norm of a zero
// patch.
Gradients depthwise_backward(const Saved& saved, const Window& window, const Formula& formula,
                             const Needs& needs, bool& small_norm);

// Tensors of one call as the kernels see them; images are [batch, height, width, channels].
struct DepthwiseShape {
  int64_t batch, height, width, channels, kernel, band;
  Power power;

  int64_t lane_blocks() const;
  int64_t bands() const { return (height + band - 1) / band; }
  int64_t units() const { return lane_blocks() * batch * bands(); }
};

template <typename T, typename U>
struct DepthwiseForward {
  DepthwiseShape shape;
  const T* x;
  const float *taps, *bias;  // [lane block, kernel * kernel, lane] of alpha w, [channels]
  U *y, *l;
  Constants<float> k;
};

template <typename T, typename U>
struct DepthwiseBackward {
  DepthwiseShape shape;
  const T* x;
  const U *grad, *y, *l;
  const float* taps;     // turned by 180 degrees
  T* dx;                 // null where not needed, as the next two
  float *dtaps, *dbias;  // added to: [lane block, kernel * kernel, lane], [lane block, lane]
  Constants<float> k;
};

// Units [begin, end); the backward returns whether a patch has the norm of a zero patch (b = 2).
#define BCOS_DECLARE(T, U)                                               \
  void run(const DepthwiseForward<T, U>& f, int64_t begin, int64_t end); \
  bool run(const DepthwiseBackward<T, U>& f, int64_t begin, int64_t end);
BCOS_DECLARE(float, float)
BCOS_DECLARE(c10::BFloat16, c10::BFloat16)
BCOS_DECLARE(c10::BFloat16, float)
#undef BCOS_DECLARE

constexpr int64_t kLanes = 16;  // channels of a tile: one AVX-512 register, one cache line

}  // namespace bcos::cpu
