// What the kernels of depthwise convolution share. A warp takes 64 neighbouring
// channels, two to a lane, of a strip of V neighbouring pixels, so that a value
// that is read once serves every pixel whose window it lies in.
//
// K is the width of the window where stride and dilation
// are 1; with K = 0 any window, and strips of one pixel.
#pragma once

#include "transform/cuda/formula.cuh"
#include "transform/cuda/window.cuh"

namespace bcos::transform::cuda::depthwise {

constexpr int kWarps = 4, kThreads = kWarps * 32, kChannels = 64;
constexpr int kStrips = 8;           // of a warp, one after the other
constexpr int kRow = kChannels + 2;  // fp32 of a tap in shared memory: neighbouring taps in other banks
template <int K>
constexpr int kV = K > 0 ? 8 : 1;  // pixels of a strip
template <int K>
constexpr int kPositions = K > 0 ? kV<K> + K - 1 : 1;  // of a row, that a strip sees
template <int K>
constexpr int kBlocks = K > 0 ? 3 : 8;  // of a multiprocessor: registers to hold a strip

// Which channels a thread works on.
struct Lane {
  int channel, C;
  __device__ explicit Lane(int channels) : C(channels) {
    channel = blockIdx.y * kChannels + threadIdx.x % 32 * 2;
  }
  __device__ bool live() const { return within(channel, C); }
  __device__ bool paired() const { return C % 2 == 0; }
};

// The lane's two channels of a pixel.
template <typename T>
__device__ __forceinline__ float2 load_pair(const T* p, int64_t site, const Lane& lane) {
  const T* from = p + site * lane.C + lane.channel;
  if (lane.paired()) {
    const auto pair = *reinterpret_cast<const Vector<T, 2>*>(from);
    return {to_float(pair.v[0]), to_float(pair.v[1])};
  }
  return {to_float(from[0]), within(lane.channel + 1, lane.C) ? to_float(from[1]) : 0.f};
}

template <typename T>
__device__ __forceinline__ void store_pair(T* p, int64_t site, const Lane& lane, float2 v) {
  T* to = p + site * lane.C + lane.channel;
  if (lane.paired()) {
    *reinterpret_cast<Vector<T, 2>*>(to) = {{rounded<T>(v.x), rounded<T>(v.y)}};
  } else {
    to[0] = rounded<T>(v.x);
    if (within(lane.channel + 1, lane.C)) to[1] = rounded<T>(v.y);
  }
}

// The same of tensors of type T or fp32.
template <typename T>
__device__ __forceinline__ float2 load_pair(const void* p, bool narrow, int64_t site, const Lane& lane) {
  return narrow ? load_pair(static_cast<const T*>(p), site, lane)
                : load_pair(static_cast<const float*>(p), site, lane);
}

template <typename T>
__device__ __forceinline__ void store_pair(void* p, bool narrow, int64_t site, const Lane& lane, float2 v) {
  if (narrow)
    store_pair(static_cast<T*>(p), site, lane, v);
  else
    store_pair(static_cast<float*>(p), site, lane, v);
}

__device__ __forceinline__ void add(float2& sum, float2 a, float2 b) {
  sum.x = fmaf(a.x, b.x, sum.x);
  sum.y = fmaf(a.y, b.y, sum.y);
}

// The block's filters as fp32 [taps, channels] in shared memory.
template <typename T>
__device__ __forceinline__ void share_filters(const T* w, int C, int taps) {
  const int first = blockIdx.y * kChannels;
  for (int at = threadIdx.x; at < kChannels * taps; at += kThreads) {
    const int channel = at / taps;
    const float value = within(first + channel, C) ? to_float(w[int64_t(first) * taps + at]) : 0.f;
    shared_store((at % taps * kRow + channel) * 4, value);
  }
  barrier();
}

__device__ __forceinline__ float2 shared_tap(int tap) {
  return shared_load<float2>((tap * kRow + threadIdx.x % 32 * 2) * 4);
}

// The first pixel of a strip of an image [height, width].
template <int K>
__device__ __forceinline__ Pixel strip_at(int strip, int height, int width) {
  const int blocks = int(ceil_div(width, kV<K>));
  Pixel at = pixel(strip, height, blocks);
  at.column *= kV<K>;
  return at;
}

template <int K>
__device__ __forceinline__ int strips_of(int images, int height, int width) {
  return images * height * int(ceil_div(width, kV<K>));
}

// z += x * w of each pixel of the strip of outputs at `at`,
// and the squares of each position (K = 0: of the window).
template <int K, bool PRODUCT, typename T>
__device__ __forceinline__ void walk(const T* x, const Window& w, const Pixel& at, const Lane& lane,
                                     float2 (&z)[kV<K>], float2 (&squares)[kPositions<K>]) {
  for (int i = 0; i < w.KH; ++i) {
    if constexpr (K > 0) {
      const int h = at.row - w.PH + i;
      if (!within(h, w.H)) continue;
      const int64_t row = (at.image * w.H + h) * w.W;
      float2 taps[K];
#pragma unroll
      for (int j = 0; j < K; ++j) taps[j] = PRODUCT ? shared_tap(i * K + j) : float2{};
#pragma unroll
      for (int p = 0; p < kPositions<K>; ++p) {
        const int v = at.column - w.PW + p;
        if (!within(v, w.W)) continue;
        const float2 value = load_pair(x, row + v, lane);
        add(squares[p], value, value);
        if constexpr (PRODUCT) {
#pragma unroll
          for (int o = 0; o < kV<K>; ++o)
            if (p >= o && p - o < K) add(z[o], value, taps[p - o]);
        }
      }
    } else {
      for (int j = 0; j < w.KW; ++j) {
        const int64_t site = input_site(w, at, i, j);
        if (site < 0) continue;
        const float2 value = load_pair(x, site, lane);
        add(squares[0], value, value);
        if constexpr (PRODUCT) add(z[0], value, shared_tap(i * w.KW + j));
      }
    }
  }
}

// The sum of the columns that pixel o of a strip sees.
template <int K>
__device__ __forceinline__ float2 window_of(const float2 (&columns)[kPositions<K>], int o) {
  float2 sum = columns[o];
#pragma unroll
  for (int j = 1; j < K; ++j) sum = {sum.x + columns[o + j].x, sum.y + columns[o + j].y};
  return sum;
}

// f of the dtype and of the window's width where a strip is made for it, else of 0.
template <typename F>
cudaError_t by_window(Dtype dtype, const Window& w, F&& f) {
  const bool plain = w.SH == 1 && w.SW == 1 && w.DH == 1 && w.DW == 1;
  return by_dtype(dtype, [&](auto type) {
    if (plain && w.KW == 3) return f(type, std::integral_constant<int, 3>{});
    if (plain && w.KW == 7) return f(type, std::integral_constant<int, 7>{});
    return f(type, std::integral_constant<int, 0>{});
  });
}

template <int K>
dim3 strip_grid(int images, int height, int width, int C) {
  const int64_t strips = int64_t(images) * height * ceil_div(width, kV<K>);
  return dim3(ceil_div(strips, kWarps * kStrips), ceil_div(C, kChannels));
}

inline size_t filter_bytes(const Window& w) {
  return size_t(w.KH) * w.KW * kRow * 4;
}

}  // namespace bcos::transform::cuda::depthwise
