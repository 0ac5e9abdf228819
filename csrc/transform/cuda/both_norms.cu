// Both norms of a forward in one launch, in front of a product that takes them.
//
// The first blocks have a filter each. Every other one has a strip of
// rows of an image of n: it sums the squares of each input pixel that
// these see into shared memory, and then over the windows. Of a window
// of one pixel it has as many pixels of n as its threads sum at once.
#include <algorithm>

#include "transform/cuda/formula.cuh"
#include "transform/cuda/launch.h"
#include "transform/cuda/weight_norm.cuh"
#include "transform/cuda/window.cuh"

namespace bcos::transform::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kResident = 3;           // blocks that a multiprocessor has registers for
constexpr int kAtOnce = 4;             // pixels whose loads a thread has under way
constexpr int64_t kShared = 48 << 10;  // bytes that a block may take without asking for more
// A strip is so short that a large GPU with kProcessors multiprocessors has kBlocks strips for each of them,
// but not shorter than kLeastRows where there are as many images, because neighbouring strips read the same
// rows of x.
constexpr int kProcessors = 132, kBlocks = 4, kLeastRows = 8;

template <typename A>
struct Strips {
  BothNorms<A> p;
  int lanes;  // of a pixel, a power of two
  int rows;   // of a strip
  int count;  // of an image
};

__device__ __forceinline__ int at_most(int value, int most) {
  return value < most ? value : most;
}

// Adds a lane's part of the squares of pixels of C values; a pixel that is null has none. All loads of a
// round are under way before the first value is used.
template <bool VECTOR, typename T>
__device__ __forceinline__ void add_squares(SumsOf<T> (&sums)[kAtOnce], const T* const (&from)[kAtOnce],
                                            int lane, int lanes, int C) {
  constexpr int V = kVector<T>;
  for (int c = lane * V; c < C; c += lanes * V) {
    Vector<T> values[kAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if constexpr (VECTOR) {
        if (from[i] != nullptr) values[i] = *reinterpret_cast<const Vector<T>*>(from[i] + c);
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j)
          if (from[i] != nullptr && within(c + j, C)) values[i].v[j] = from[i][c + j];
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
      for (int j = 0; j < V; ++j) sums[i] += widened(values[i].v[j]) * widened(values[i].v[j]);
  }
}

// Calls write(i, sum of squares) for each of `count` pixels, of which i lies at site(i) of x, or nowhere: -1.
template <typename T, typename Site, typename Write>
__device__ __forceinline__ void sum_squares(const Strips<SumsOf<T>>& s, int count, Site site, Write write) {
  using A = SumsOf<T>;
  const int C = s.p.C, lanes = s.lanes, lane = int(threadIdx.x) % lanes, step = kThreads / lanes;
  const bool vector = C % kVector<T> == 0;
  for (int first = int(threadIdx.x) / lanes; first - int(threadIdx.x) / lanes < count;
       first += kAtOnce * step) {
    const T* from[kAtOnce];
    A sums[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t at = within(first + i * step, count) ? site(first + i * step) : -1;
      from[i] = at < 0 ? nullptr : static_cast<const T*>(s.p.x) + at * C;
      sums[i] = 0;
    }
    if (vector)
      add_squares<true>(sums, from, lane, lanes, C);
    else
      add_squares<false>(sums, from, lane, lanes, C);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const A sum = lane_sum(sums[i], lanes);
      if (lane == 0 && within(first + i * step, count)) write(first + i * step, sum);
    }
  }
}

// n of as many pixels as the block sums at once, from `first` on.
template <typename T>
__device__ __forceinline__ void norms_of_pixels(const Strips<SumsOf<T>>& s, int first) {
  using A = SumsOf<T>;
  const BothNorms<A>& p = s.p;
  const auto k = constants(p.formula);
  const int count = at_most(kAtOnce * (kThreads / s.lanes), p.N * p.window.OH * p.window.OW - first);
  sum_squares<T>(
      s, count, [&](int i) { return input_site(p.window, pixel(first + i, p.window.OH, p.window.OW), 0, 0); },
      [&](int i, A sum) { p.n[first + i] = root_norm(sum, k); });
}

template <typename T>
__device__ __forceinline__ void norms_of_strip(const Strips<SumsOf<T>>& s, int strip) {
  using A = SumsOf<T>;
  constexpr uint32_t kValue = sizeof(A);
  const BothNorms<A>& p = s.p;
  const Window& w = p.window;
  const int64_t image = strip / s.count;
  const int top = strip % s.count * s.rows, rows = at_most(s.rows, w.OH - top);
  // the input rows that these see
  const int first = top * w.SH - w.PH, from = first > 0 ? first : 0;
  const int to = at_most(first + (rows - 1) * w.SH + (w.KH - 1) * w.DH + 1, w.H);
  const int64_t start = (image * w.H + from) * w.W;
  sum_squares<T>(
      s, (to - from) * w.W, [&](int i) { return start + i; },
      [&](int i, A sum) { shared_store(i * kValue, sum); });
  barrier();
  const auto k = constants(p.formula);
  for (int i = int(threadIdx.x); i < rows * w.OW; i += kThreads) {
    const int row = (top + i / w.OW) * w.SH - w.PH, column = i % w.OW * w.SW - w.PW;
    A sum = 0;
    for (int h = row; h < row + w.KH * w.DH; h += w.DH)
      for (int v = column; v < column + w.KW * w.DW; v += w.DW)
        if (within(h, w.H) && within(v, w.W)) sum += shared_load<A>(((h - from) * w.W + v) * kValue);
    p.n[(image * w.OH + top) * w.OW + i] = root_norm(sum, k);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kResident) both_norms_kernel(const Strips<SumsOf<T>> s) {
  const int filters = s.p.weights.F, block = int(blockIdx.x) - filters;
  if (block < 0)
    filter_norm<T>(s.p.weights, block + filters);
  else if (s.count == 0)
    norms_of_pixels<T>(s, block * kAtOnce * (kThreads / s.lanes));
  else
    norms_of_strip<T>(s, block);
}

// The input rows that so many rows of n see, those beyond the border counted.
int64_t seen(const Window& w, int64_t rows) {
  return (rows - 1) * w.SH + (w.KH - 1) * w.DH + 1;
}

// The most rows of n whose input fits shared memory; 0 where that of one does not.
template <typename A>
int64_t most_rows(const Window& w) {
  const int64_t room = kShared / int64_t(sizeof(A)) / std::max(w.W, 1);
  return room < seen(w, 1) ? 0 : (room - seen(w, 1)) / w.SH + 1;
}

}  // namespace

template <typename A>
bool fits_both_norms(const BothNorms<A>& p) {
  return p.window.KH * p.window.KW == 1 || most_rows<A>(p.window) > 0;
}

template <typename A>
cudaError_t both_norms(const BothNorms<A>& p, cudaStream_t stream) {
  const Window& w = p.window;
  const int64_t pixels = int64_t(p.N) * w.OH * w.OW;
  if (pixels == 0) return cudaSuccess;
  if (!fits_both_norms(p) || !is_known<A>(p.weights.operand_dtype)) return cudaErrorInvalidValue;
  return by_dtype<A>(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    Strips<A> s{p, lanes_of(ceil_div(p.C, kVector<T>)), 0, 0};
    int64_t blocks = ceil_div(pixels, kAtOnce * (kThreads / s.lanes));
    int64_t shared = kThreads / 32 * sizeof(A);
    if (w.KH * w.KW > 1) {
      const int least = p.N < kProcessors ? w.KH : kLeastRows;
      const int64_t wanted = std::max<int64_t>(ceil_div(w.OH, ceil_div(kProcessors * kBlocks, p.N)), least);
      s.count = int(ceil_div(w.OH, std::min(wanted, most_rows<A>(w))));
      s.rows = int(ceil_div(w.OH, s.count));
      blocks = int64_t(p.N) * s.count;
      shared = std::max<int64_t>(shared, seen(w, s.rows) * w.W * sizeof(A));
    }
    return start(both_norms_kernel<T>, dim3(unsigned(p.weights.F + blocks)), kThreads, size_t(shared), stream,
                 s);
  });
}

BCOS_FOR_BOTH_SUMS(both_norms, BothNorms);
template bool fits_both_norms(const BothNorms<float>&);
template bool fits_both_norms(const BothNorms<double>&);

}  // namespace bcos::transform::cuda
