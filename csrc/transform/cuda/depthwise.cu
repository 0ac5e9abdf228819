// Depthwise convolution with the norm and the scale inside, and the gradient through them: the product and
// the patch norm in one window loop.
#include "transform/cuda/depthwise.cuh"
#include "transform/cuda/launch.h"

namespace bcos::transform::cuda {
namespace {

using namespace depthwise;

template <typename T, int K>
__global__ void __launch_bounds__(kThreads, kBlocks<K>) depthwise_fwd_kernel(const DepthwiseFwd p) {
  const Window& w = p.window;
  const Lane lane(p.C);
  share_filters(static_cast<const T*>(p.w), p.C, w.KH * w.KW);
  if (!lane.live()) return;
  const Constants<float> k = constants(p.formula);
  const bool narrow = p.out_dtype == p.dtype, second = within(lane.channel + 1, p.C);
  const float2 alpha = p.alpha == nullptr
                           ? float2{1, 1}
                           : float2{p.alpha[lane.channel], second ? p.alpha[lane.channel + 1] : 0.f};
  float2 bias = {};
  if (p.bias != nullptr)
    bias = {load_as(p.bias, p.bias_dtype, lane.channel),
            second ? load_as(p.bias, p.bias_dtype, lane.channel + 1) : 0.f};
  for (int turn = 0; turn < kStrips; ++turn) {
    const int strip = (int(blockIdx.x) * kStrips + turn) * kWarps + int(threadIdx.x / 32);
    if (!within(strip, strips_of<K>(p.N, w.OH, w.OW))) return;
    const Pixel at = strip_at<K>(strip, w.OH, w.OW);
    float2 z[kV<K>] = {}, squares[kPositions<K>] = {};
    walk<K, true>(static_cast<const T*>(p.x), w, at, lane, z, squares);
#pragma unroll
    for (int o = 0; o < kV<K>; ++o) {
      if (!within(at.column + o, w.OW)) continue;
      const float2 l = {z[o].x * alpha.x + bias.x, z[o].y * alpha.y + bias.y},
                   sums = window_of<K>(squares, o);
      const float2 inverse = {safe_inverse(root_norm(sums.x, k)), safe_inverse(root_norm(sums.y, k))};
      float2 y = l;
      by_power(p.formula.power, [&](auto power) {
        constexpr Power P = decltype(power)::value;
        y = {scaled<P>(l.x, inverse.x, k), scaled<P>(l.y, inverse.y, k)};
      });
      const int64_t site = (at.image * w.OH + at.row) * w.OW + at.column + o;
      store_pair<T>(p.y, narrow, site, lane, y);
      if (p.l != nullptr) store_pair<T>(p.l, narrow, site, lane, l);
    }
  }
}

template <typename T, int K>
__global__ void __launch_bounds__(kThreads, kBlocks<K>) depthwise_bwd_kernel(const DepthwiseBwd p) {
  const Window& w = p.window;
  const Lane lane(p.C);
  if (!lane.live()) return;
  const Constants<float> k = constants(p.formula, p.frozen);
  const bool narrow = p.out_dtype == p.dtype, has_norm = p.formula.power != Power::One;
  float2 alpha = {1, 1};
  if (p.alpha != nullptr)
    alpha = {p.alpha[lane.channel], within(lane.channel + 1, p.C) ? p.alpha[lane.channel + 1] : 0.f};
  for (int turn = 0; turn < kStrips; ++turn) {
    const int strip = (int(blockIdx.x) * kStrips + turn) * kWarps + int(threadIdx.x / 32);
    if (!within(strip, strips_of<K>(p.N, w.OH, w.OW))) return;
    const Pixel at = strip_at<K>(strip, w.OH, w.OW);
    float2 z[kV<K>] = {}, squares[kPositions<K>] = {};
    if (has_norm) walk<K, false>(static_cast<const T*>(p.x), w, at, lane, z, squares);
#pragma unroll
    for (int o = 0; o < kV<K>; ++o) {
      if (!within(at.column + o, w.OW)) continue;
      const int64_t site = (at.image * w.OH + at.row) * w.OW + at.column + o;
      const float2 sums = window_of<K>(squares, o), n = {root_norm(sums.x, k), root_norm(sums.y, k)};
      const float2 inverse = {safe_inverse(n.x), safe_inverse(n.y)};
      const float2 grad = load_pair<T>(p.grad, narrow, site, lane);
      const float2 v = has_norm ? load_pair<T>(p.v, narrow, site, lane) : float2{};
      float2 u, t;
      by_power(p.formula.power, [&](auto power) {
        constexpr Power P = decltype(power)::value;
        const float2 of = {restored<P>(p.formula, v.x, inverse.x, k),
                           restored<P>(p.formula, v.y, inverse.y, k)};
        const auto x = partials<P>(of.x, of.x, inverse.x, k), y = partials<P>(of.y, of.y, inverse.y, k);
        u = {grad.x * x.l * alpha.x, grad.y * y.l * alpha.y};
        t = {grad.x * x.n * root_gradient(n.x, k), grad.y * y.n * root_gradient(n.y, k)};
      });
      store_pair(static_cast<T*>(p.u), site, lane, u);
      if (p.t != nullptr) store_pair(p.t, site, lane, t);
    }
  }
}

}  // namespace

cudaError_t depthwise_fwd(const DepthwiseFwd& p, cudaStream_t stream) {
  const Window& w = p.window;
  if (int64_t(p.N) * w.OH * w.OW * p.C == 0) return cudaSuccess;
  if (!is_output_of(p.dtype, p.out_dtype) || !is_known(p.bias_dtype)) return cudaErrorInvalidValue;
  return by_window(p.dtype, w, [&](auto type, auto width) {
    const auto kernel = depthwise_fwd_kernel<typename decltype(type)::type, width>;
    return start(kernel, strip_grid<width>(p.N, w.OH, w.OW, p.C), kThreads, filter_bytes(w), stream, p);
  });
}

cudaError_t depthwise_bwd(const DepthwiseBwd& p, cudaStream_t stream) {
  const Window& w = p.window;
  if (int64_t(p.N) * w.OH * w.OW * p.C == 0) return cudaSuccess;
  if (!is_output_of(p.dtype, p.out_dtype)) return cudaErrorInvalidValue;
  return by_window(p.dtype, w, [&](auto type, auto width) {
    const auto kernel = depthwise_bwd_kernel<typename decltype(type)::type, width>;
    return start(kernel, strip_grid<width>(p.N, w.OH, w.OW, p.C), kThreads, 0, stream, p);
  });
}

}  // namespace bcos::transform::cuda
