// The gradients of depthwise convolution, from those of its linear output.
#include "transform/cuda/depthwise.cuh"
#include "transform/cuda/launch.h"

namespace bcos::transform::cuda {
namespace {

using namespace depthwise;

template <typename T, int K>
__global__ void __launch_bounds__(kThreads, kBlocks<K>) depthwise_dgrad_kernel(const DepthwiseDgrad p) {
  const Window& w = p.window;
  const Lane lane(p.C);
  share_filters(static_cast<const T*>(p.w), p.C, w.KH * w.KW);
  if (!lane.live()) return;
  const T* u = static_cast<const T*>(p.u);
  const bool with_t = p.t != nullptr;
  for (int turn = 0; turn < kStrips; ++turn) {
    const int strip = (int(blockIdx.x) * kStrips + turn) * kWarps + int(threadIdx.x / 32);
    if (!within(strip, strips_of<K>(p.N, w.H, w.W))) return;
    const Pixel at = strip_at<K>(strip, w.H, w.W);
    float2 sums[kV<K>] = {}, pooled[kPositions<K>] = {};
    if constexpr (K > 0) {
      for (int i = 0; i < w.KH; ++i) {
        const int oh = at.row + w.PH - i;
        if (!within(oh, w.OH)) continue;
        const int64_t row = (at.image * w.OH + oh) * w.OW;
        float2 taps[K];
#pragma unroll
        for (int j = 0; j < K; ++j) taps[j] = shared_tap(i * K + j);
#pragma unroll
        for (int position = 0; position < kPositions<K>; ++position) {
          const int ow = at.column + w.PW - (K - 1) + position;
          if (!within(ow, w.OW)) continue;
          const float2 value = load_pair(u, row + ow, lane);
          if (with_t) add(pooled[position], load_pair(p.t, row + ow, lane), {1, 1});
#pragma unroll
          for (int o = 0; o < kV<K>; ++o)
            if (position >= o && position - o < K) add(sums[o], value, taps[K - 1 - (position - o)]);
        }
      }
    } else {
      for (int tap = 0; tap < w.KH * w.KW; ++tap) {
        const int64_t site = output_site(w, at, tap);
        if (site < 0) continue;
        add(sums[0], load_pair(u, site, lane), shared_tap(tap));
        if (with_t) add(pooled[0], load_pair(p.t, site, lane), {1, 1});
      }
    }
#pragma unroll
    for (int o = 0; o < kV<K>; ++o) {
      if (!within(at.column + o, w.W)) continue;
      const int64_t site = (at.image * w.H + at.row) * w.W + at.column + o;
      if (with_t) add(sums[o], load_pair(static_cast<const T*>(p.x), site, lane), window_of<K>(pooled, o));
      store_pair(static_cast<T*>(p.dx), site, lane, sums[o]);
    }
  }
}

// One row of taps to a block (K = 0: one tap) and every splits-
// th block of strips; its warps' sums are added in order.
template <typename T, int K>
__global__ void __launch_bounds__(kThreads, kBlocks<K>) depthwise_wgrad_kernel(const DepthwiseWgrad p) {
  constexpr int TAPS = K > 0 ? K : 1;
  const Window& w = p.window;
  const Lane lane(p.C);
  const int part = blockIdx.x, strips = strips_of<K>(p.N, w.OH, w.OW), warp = threadIdx.x / 32;
  const T* x = static_cast<const T*>(p.x);
  float2 dw[TAPS] = {}, total = {};
  for (int64_t strip = int64_t(blockIdx.z) * kWarps + warp; lane.live() && strip < strips;
       strip += p.splits * kWarps) {
    const Pixel at = strip_at<K>(int(strip), w.OH, w.OW);
    float2 u[kV<K>];
#pragma unroll
    for (int o = 0; o < kV<K>; ++o) {
      const int64_t site = (at.image * w.OH + at.row) * w.OW + at.column + o;
      u[o] = within(at.column + o, w.OW) ? load_pair(static_cast<const T*>(p.u), site, lane) : float2{};
      add(total, u[o], {1, 1});
    }
    if constexpr (K > 0) {
      const int h = at.row - w.PH + part;
      if (!within(h, w.H)) continue;
      const int64_t row = (at.image * w.H + h) * w.W;
#pragma unroll
      for (int position = 0; position < kPositions<K>; ++position) {
        const int v = at.column - w.PW + position;
        if (!within(v, w.W)) continue;
        const float2 value = load_pair(x, row + v, lane);
#pragma unroll
        for (int o = 0; o < kV<K>; ++o)
          if (position >= o && position - o < K) add(dw[position - o], value, u[o]);
      }
    } else {
      const int64_t site = input_site(w, at, part / w.KW, part % w.KW);
      if (site >= 0) add(dw[0], load_pair(x, site, lane), u[0]);
    }
  }
  const auto place = [](int of, int j) { return uint32_t((of * (TAPS + 1) + j) * kChannels) * 4; };
#pragma unroll
  for (int j = 0; j <= TAPS; ++j)
    shared_store(place(warp, j) + threadIdx.x % 32 * 8, j < TAPS ? dw[j < TAPS ? j : 0] : total);
  barrier();
  for (int at = threadIdx.x; at < (TAPS + 1) * kChannels; at += kThreads) {
    const int j = at / kChannels, channel = int(blockIdx.y) * kChannels + at % kChannels;
    if (!within(channel, p.C)) continue;
    float sum = 0;
    for (int of = 0; of < kWarps; ++of) sum += shared_load<float>(place(of, j) + at % kChannels * 4);
    const int64_t row = int64_t(blockIdx.z) * p.C + channel;
    if (j < TAPS)
      p.dw[row * (w.KH * w.KW) + part * TAPS + j] = sum;
    else if (p.dbias != nullptr && part == 0)
      p.dbias[row] = sum;
  }
}

}  // namespace

cudaError_t depthwise_dgrad(const DepthwiseDgrad& p, cudaStream_t stream) {
  const Window& w = p.window;
  if (int64_t(p.N) * w.H * w.W * p.C == 0) return cudaSuccess;
  return by_window(p.dtype, w, [&](auto type, auto width) {
    const auto kernel = depthwise_dgrad_kernel<typename decltype(type)::type, width>;
    return start(kernel, strip_grid<width>(p.N, w.H, w.W, p.C), kThreads, filter_bytes(w), stream, p);
  });
}

cudaError_t depthwise_wgrad(const DepthwiseWgrad& p, cudaStream_t stream) {
  const Window& w = p.window;
  if (p.C == 0) return cudaSuccess;
  return by_window(p.dtype, w, [&](auto type, auto width) {
    constexpr int K = decltype(width)::value;
    const auto kernel = depthwise_wgrad_kernel<typename decltype(type)::type, K>;
    const dim3 grid(K > 0 ? w.KH : w.KH * w.KW, ceil_div(p.C, kChannels), p.splits);
    const size_t shared = size_t(kWarps) * ((K > 0 ? K : 1) + 1) * kChannels * 4;
    return start(kernel, grid, kThreads, shared, stream, p);
  });
}

}  // namespace bcos::transform::cuda
