// The forward of norms over the batch, all values or groups: one reading for the statistics, one to apply
// them.
#include "norm/cuda/launch.h"
#include "norm/cuda/walk.cuh"

namespace bcos::norm::cuda {
namespace {

constexpr int kPlaces = 4;  // items that a thread has in flight

template <typename T, bool PLANES, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    moments_kernel(const MomentsPass<SumsOf<T>> p, int lanes) {
  using A = SumsOf<T>;
  const Walk<PLANES, V> walk(p.shape, lanes);
  constexpr int K = walk.kChannels;
  Running<A, K> running;
  walk.template for_each<kPlaces>([&](const auto& addresses) {
    constexpr int R = std::extent_v<std::remove_reference_t<decltype(addresses)>>;
    A x[R][V];
    load_places<T>(x, p.x, false, addresses);
    running.take(x);
  });
  join_threads<false>(running, walk.low, walk.high);
  if (!walk.inside || !walk.first) return;
#pragma unroll
  for (int k = 0; k < K; ++k) p.partial[walk.partial(k)] = {running.count, running.of[k]};
}

template <typename A>
__global__ void __launch_bounds__(kThreads, kBlocks) join_moments_kernel(const JoinMoments<A> p, int lanes) {
  const SetWalk walk(p.shape, lanes);
  Running<A, 1> running;
  walk.for_each([&](int64_t at, int) { running.join({p.partial[at].count, {p.partial[at].moments}}); });
  join_threads<false>(running, 1, lanes);
  if (!walk.inside || walk.lane != 0) return;
  p.mean[walk.set] = running.of[0].mean;
  p.var[walk.set] = running.of[0].squares / running.count;
}

template <typename T, bool PLANES, int V>
__global__ void __launch_bounds__(kThreads, kBlocks) apply_kernel(const Apply<SumsOf<T>> p, int lanes) {
  using A = SumsOf<T>;
  const Walk<PLANES, V> walk(p.shape, lanes);
  if (!walk.inside) return;
  constexpr int K = walk.kChannels;
  const bool wide = p.out_dtype == Dtype::Float32;
  A gamma[K], beta[K];
  load_factor(gamma, p.weight, walk.channel, A(1));
  load_factor(beta, p.bias, walk.channel, A(0));
  Affine<A> of[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t set = walk.set(k);
    of[k] = affine(shift_of(p.statistics, set), r_of(p.statistics, set), gamma[k], beta[k],
                   p.statistics.centered);
  }
  walk.template for_each<kPlaces>([&](const auto& addresses) {
    constexpr int R = std::extent_v<std::remove_reference_t<decltype(addresses)>>;
    A x[R][V];
    load_places<T>(x, p.x, false, addresses);
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int i = 0; i < V; ++i) x[r][i] = of[i % K](x[r][i]);
      store_output<T>(p.y, wide, addresses[r], x[r]);
    }
  });
}

}  // namespace

int splits_of(const Shape& shape, Dtype dtype, int multiprocessors) {
  constexpr int kWanted = 8;           // blocks of a multiprocessor
  constexpr int kLeast = 4 * kPlaces;  // items of a thread
  constexpr int kMostParts = 1 << 16;  // of a set, which a block joins
  Shape whole = shape;
  whole.splits = 1;
  int64_t splits = 1;
  const auto count = [&](auto, auto planes, auto width) {
    const Plan plan = Plan::of<planes, width>(whole);
    const int64_t items = Walk<planes, width>::items_of(whole);
    const int64_t least = int64_t(kLeast) * (planes ? plan.lanes : kThreads / plan.lanes);
    splits = ceil_div(int64_t(kWanted) * multiprocessors, plan.blocks > 0 ? plan.blocks : 1);
    splits = splits < items / least ? splits : items / least;
    return cudaSuccess;
  };
  if (dtype == Dtype::Float64)
    by_layout<double>(shape, dtype, count);
  else
    by_layout<float>(shape, dtype, count);
  const int64_t most = kMostParts / shape.group_channels();
  splits = splits < most ? splits : most;
  return splits > 1 ? int(splits) : 1;
}

template <typename A>
cudaError_t moments(const MomentsPass<A>& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  return by_layout<A>(p.shape, p.dtype, [&](auto type, auto planes, auto width) {
    using T = typename decltype(type)::type;
    return start_walk<planes, width>(moments_kernel<T, planes, width>,
                                     kShared<Running<A, planes ? 1 : width>>, p, stream);
  });
}

template <typename A>
cudaError_t join_moments(const JoinMoments<A>& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  return start_sets(join_moments_kernel<A>, kShared<Running<A, 1>>, p, stream);
}

template <typename A>
cudaError_t apply(const Apply<A>& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  if (!is_known<A>(p.weight.dtype) || !is_known<A>(p.bias.dtype)) return cudaErrorInvalidValue;
  if (!is_output_of<A>(p.dtype, p.out_dtype)) return cudaErrorInvalidValue;
  return by_layout<A>(p.shape, p.dtype, [&](auto type, auto planes, auto width) {
    using T = typename decltype(type)::type;
    return start_walk<planes, width>(apply_kernel<T, planes, width>, 0, p, stream);
  });
}

BCOS_FOR_BOTH_SUMS(moments, MomentsPass);
BCOS_FOR_BOTH_SUMS(join_moments, JoinMoments);
BCOS_FOR_BOTH_SUMS(apply, Apply);

}  // namespace bcos::norm::cuda
