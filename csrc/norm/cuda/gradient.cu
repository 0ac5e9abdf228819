// The backward of norms over the batch, all values or groups: one pass for the sums, one for dx.
#include "norm/cuda/launch.h"
#include "norm/cuda/walk.cuh"

namespace bcos::norm::cuda {
namespace {

constexpr int kPlaces = 2;  // items of grad and of x that a thread has in flight

template <typename T, bool PLANES, int V>
__global__ void __launch_bounds__(kThreads, kBlocks) sums_kernel(const SumsPass<SumsOf<T>> p, int lanes) {
  using A = SumsOf<T>;
  const Walk<PLANES, V> walk(p.shape, lanes);
  constexpr int K = walk.kChannels;
  const bool wide = p.out_dtype == Dtype::Float32;
  A shift[K] = {};
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (walk.inside && p.x != nullptr) shift[k] = shift_of(p.statistics, walk.set(k));
  RunningSums<A, K> running;
  walk.template for_each<kPlaces>([&](const auto& addresses) {
    constexpr int R = std::extent_v<std::remove_reference_t<decltype(addresses)>>;
    A grad[R][V], x[R][V] = {};
    load_places<T>(grad, p.grad, wide, addresses);
    if (p.x != nullptr) load_places<T>(x, p.x, false, addresses);
    RunningSums<A, K> batch;  // added up before it joins what is larger
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int i = 0; i < V; ++i) batch.add(i % K, grad[r][i], x[r][i] - shift[i % K]);
    running.join(batch);
  });
  join_threads<false>(running, walk.low, walk.high);
  if (!walk.inside || !walk.first) return;
#pragma unroll
  for (int k = 0; k < K; ++k) p.partial[walk.partial(k)] = running.of[k];
}

template <typename A>
__global__ void __launch_bounds__(kThreads, kBlocks) set_sums_kernel(const SetSums<A> p, int lanes) {
  const SetWalk walk(p.shape, lanes);
  RunningSums<A, 1> running;
  walk.for_each([&](int64_t at, int channel) {
    const A gamma = value_of(p.weight, channel, A(1));
    running.of[0].products += gamma * p.partial[at].products;
    running.of[0].grads += gamma * p.partial[at].grads;
  });
  join_threads<false>(running, 1, lanes);
  if (walk.inside && walk.lane == 0) p.sums[walk.set] = running.of[0];
}

constexpr int kColumns = 8;  // neighbouring channels of a block, whose threads share out the units and shares

template <typename A>
__global__ void __launch_bounds__(kThreads, kBlocks) channel_sums_kernel(const ChannelSums<A> p) {
  const int channel = int(blockIdx.x) * kColumns + int(threadIdx.x % kColumns);
  const bool inside = within(channel, p.shape.C);
  const bool scaled = p.statistics.var == nullptr, per_image = p.shape.per_image;
  RunningSums<A, 1> running;
  for (int64_t i = threadIdx.x / kColumns; inside && i < p.shape.shares(); i += kThreads / kColumns) {
    const Sums<A>& share = p.partial[i * p.shape.C + channel];
    const int64_t unit = i / p.shape.splits;
    const A r = per_image && !scaled ? r_of(p.statistics, p.shape.set_of(unit, channel)) : A(1);
    running.of[0].products += r * share.products;
    running.of[0].grads += share.grads;
  }
  join_threads<false>(running, kColumns, kThreads);
  if (!inside || threadIdx.x >= kColumns) return;
  const Sums<A>& found = running.of[0];
  const A r = per_image || scaled ? A(1) : r_of(p.statistics, p.shape.set_of(0, channel));
  if (p.dweight != nullptr) p.dweight[channel] = r * found.products;
  if (p.dbias != nullptr) p.dbias[channel] = found.grads;
  if (p.sums != nullptr) {
    const A gamma = value_of(p.weight, channel, A(1));
    p.sums[channel] = {gamma * found.products, gamma * found.grads};
  }
}

template <typename A>
__device__ __forceinline__ Gradient<A> gradient_of(const GradientPass<A>& p, int64_t set, A gamma) {
  const bool constant = p.sums == nullptr;  // mean and variance
  const Sums<A> sums = constant ? Sums<A>{} : p.sums[set];
  Gradient<A> of = gradient(r_of(p.statistics, set), gamma, sums.products, sums.grads, p.count,
                            p.statistics.centered && !constant, p.frozen || constant);
  if (p.dvar != nullptr) of.of_x += of_var(p.dvar[set], p.count);
  return of;
}

template <typename A>
__global__ void __launch_bounds__(kThreads) gradient_map_kernel(const GradientPass<A> p) {
  const int C = p.shape.C, channel = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (channel >= C) return;
  const int64_t set = p.shape.set_of(0, channel);
  const Gradient<A> of = gradient_of(p, set, value_of(p.weight, channel, A(1)));
  p.map[channel] = of.of_grad;
  p.map[C + channel] = of.of_x;
  p.map[2 * C + channel] = p.statistics.mean != nullptr ? p.statistics.mean[set] : A(0);
  p.map[3 * C + channel] = of.offset;
}

template <typename T, bool PLANES, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    input_gradient_kernel(const GradientPass<SumsOf<T>> p, int lanes) {
  using A = SumsOf<T>;
  const Walk<PLANES, V> walk(p.shape, lanes);
  if (!walk.inside) return;
  constexpr int K = walk.kChannels;
  const bool wide = p.out_dtype == Dtype::Float32;
  Gradient<A> of[K];
  A gamma[K], mean[K] = {};
  load_factor(gamma, p.weight, walk.channel, A(1));
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t set = walk.set(k);
    of[k] = gradient_of(p, set, gamma[k]);
    if (p.x != nullptr) mean[k] = p.statistics.mean[set];
  }
  walk.template for_each<kPlaces>([&](const auto& addresses) {
    constexpr int R = std::extent_v<std::remove_reference_t<decltype(addresses)>>;
    A grad[R][V], x[R][V];
    load_places<T>(grad, p.grad, wide, addresses);
    if (p.x != nullptr) load_places<T>(x, p.x, false, addresses);
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const A from_mean = p.x != nullptr ? x[r][i] - mean[i % K] : A(0);
        grad[r][i] = of[i % K](grad[r][i], from_mean);
      }
      store(static_cast<T*>(p.dx), addresses[r], grad[r], true);
    }
  });
}

}  // namespace

template <typename A>
cudaError_t sums(const SumsPass<A>& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  if (!is_output_of<A>(p.dtype, p.out_dtype)) return cudaErrorInvalidValue;
  return by_layout<A>(p.shape, p.dtype, [&](auto type, auto planes, auto width) {
    using T = typename decltype(type)::type;
    return start_walk<planes, width>(sums_kernel<T, planes, width>,
                                     kShared<RunningSums<A, planes ? 1 : width>>, p, stream);
  });
}

template <typename A>
cudaError_t set_sums(const SetSums<A>& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  if (!is_known<A>(p.weight.dtype)) return cudaErrorInvalidValue;
  return start_sets(set_sums_kernel<A>, kShared<RunningSums<A, 1>>, p, stream);
}

template <typename A>
cudaError_t channel_sums(const ChannelSums<A>& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  if (!is_known<A>(p.weight.dtype)) return cudaErrorInvalidValue;
  return start(channel_sums_kernel<A>, dim3(ceil_div(p.shape.C, kColumns)), kThreads,
               kShared<RunningSums<A, 1>>, stream, p);
}

template <typename A>
cudaError_t gradient_map(const GradientPass<A>& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  if (!is_known<A>(p.weight.dtype)) return cudaErrorInvalidValue;
  return start(gradient_map_kernel<A>, dim3(ceil_div(p.shape.C, kThreads)), kThreads, 0, stream, p);
}

template <typename A>
cudaError_t input_gradient(const GradientPass<A>& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  if (!is_known<A>(p.weight.dtype)) return cudaErrorInvalidValue;
  if (!is_output_of<A>(p.dtype, p.out_dtype)) return cudaErrorInvalidValue;
  return by_layout<A>(p.shape, p.dtype, [&](auto type, auto planes, auto width) {
    using T = typename decltype(type)::type;
    return start_walk<planes, width>(input_gradient_kernel<T, planes, width>, 0, p, stream);
  });
}

BCOS_FOR_BOTH_SUMS(sums, SumsPass);
BCOS_FOR_BOTH_SUMS(set_sums, SetSums);
BCOS_FOR_BOTH_SUMS(channel_sums, ChannelSums);
BCOS_FOR_BOTH_SUMS(gradient_map, GradientPass);
BCOS_FOR_BOTH_SUMS(input_gradient, GradientPass);

}  // namespace bcos::norm::cuda
