// The backward of norms over the batch, all values or groups: one pass for the sums, one for dx.
#include "norm/cuda/launch.h"
#include "norm/cuda/walk.cuh"

namespace bcos::norm::cuda {
namespace {

constexpr int kPlaces = 2;  // items of grad and of x that a thread has in flight

template <typename T, bool PLANES, int V>
__global__ void __launch_bounds__(kThreads, kBlocks) sums_kernel(const Shared<SumsPass> s) {
  const SumsPass& p = s.p;
  const Walk<PLANES, V> walk(p.shape, s.lanes);
  constexpr int K = walk.kChannels;
  const bool wide = p.out_dtype == Dtype::Float32;
  float shift[K] = {};
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (walk.inside && p.x != nullptr) shift[k] = shift_of(p.statistics, walk.set(k));
  RunningSums<K> running;
  walk.template for_each<kPlaces>([&](const auto& addresses) {
    constexpr int R = std::extent_v<std::remove_reference_t<decltype(addresses)>>;
    float grad[R][V], x[R][V] = {};
    load_places<T>(grad, p.grad, wide, addresses);
    if (p.x != nullptr) load_places<T>(x, p.x, false, addresses);
    RunningSums<K> batch;  // added up before it joins what is larger
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

__global__ void __launch_bounds__(kThreads, kBlocks) set_sums_kernel(const Shared<SetSums> s) {
  const SetSums& p = s.p;
  const int lane = threadIdx.x % s.lanes;
  const int64_t set = int64_t(blockIdx.x) * (kThreads / s.lanes) + threadIdx.x / s.lanes;
  const bool inside = set < p.shape.sets();
  const int channels = p.shape.group_channels();
  const int64_t unit = set / p.shape.groups;
  const int first = int(set % p.shape.groups) * channels;
  RunningSums<1> running;
  for (int64_t i = lane; inside && i < int64_t(p.shape.splits) * channels; i += s.lanes) {
    const int channel = first + int(i % channels);
    const Sums& share = p.partial[(unit * p.shape.splits + i / channels) * p.shape.C + channel];
    const float gamma = value_of(p.weight, channel, 1);
    running.of[0].products += gamma * share.products;
    running.of[0].grads += gamma * share.grads;
  }
  join_threads<false>(running, 1, s.lanes);
  if (inside && lane == 0) p.sums[set] = running.of[0];
}

constexpr int kColumns = 8;  // neighbouring channels of a block, whose threads share out the units and shares

__global__ void __launch_bounds__(kThreads, kBlocks) channel_sums_kernel(const ChannelSums p) {
  const int channel = int(blockIdx.x) * kColumns + int(threadIdx.x % kColumns);
  const bool inside = within(channel, p.shape.C);
  const bool scaled = p.statistics.var == nullptr, per_image = p.shape.per_image;
  RunningSums<1> running;
  for (int64_t i = threadIdx.x / kColumns; inside && i < p.shape.shares(); i += kThreads / kColumns) {
    const Sums& share = p.partial[i * p.shape.C + channel];
    const int64_t unit = i / p.shape.splits;
    const float r = per_image && !scaled ? r_of(p.statistics, p.shape.set_of(unit, channel)) : 1.f;
    running.of[0].products += r * share.products;
    running.of[0].grads += share.grads;
  }
  join_threads<false>(running, kColumns, kThreads);
  if (!inside || threadIdx.x >= kColumns) return;
  const Sums& found = running.of[0];
  const float r = per_image || scaled ? 1.f : r_of(p.statistics, p.shape.set_of(0, channel));
  if (p.dweight != nullptr) p.dweight[channel] = r * found.products;
  if (p.dbias != nullptr) p.dbias[channel] = found.grads;
  if (p.sums != nullptr) {
    const float gamma = value_of(p.weight, channel, 1);
    p.sums[channel] = {gamma * found.products, gamma * found.grads};
  }
}

__device__ __forceinline__ Gradient<float> gradient_of(const GradientPass& p, int64_t set, float gamma) {
  const bool constant = p.sums == nullptr;  // mean and variance
  const Sums sums = constant ? Sums{} : p.sums[set];
  Gradient<float> of = gradient(r_of(p.statistics, set), gamma, sums.products, sums.grads, p.count,
                                p.statistics.centered && !constant, p.frozen || constant);
  if (p.dvar != nullptr) of.of_x += of_var(p.dvar[set], p.count);
  return of;
}

__global__ void __launch_bounds__(kThreads) gradient_map_kernel(const GradientPass p) {
  const int C = p.shape.C, channel = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (channel >= C) return;
  const int64_t set = p.shape.set_of(0, channel);
  const Gradient<float> of = gradient_of(p, set, value_of(p.weight, channel, 1));
  p.map[channel] = of.of_grad;
  p.map[C + channel] = of.of_x;
  p.map[2 * C + channel] = p.statistics.mean != nullptr ? p.statistics.mean[set] : 0.f;
  p.map[3 * C + channel] = of.offset;
}

template <typename T, bool PLANES, int V>
__global__ void __launch_bounds__(kThreads, kBlocks) input_gradient_kernel(const Shared<GradientPass> s) {
  const GradientPass& p = s.p;
  const Walk<PLANES, V> walk(p.shape, s.lanes);
  if (!walk.inside) return;
  constexpr int K = walk.kChannels;
  const bool wide = p.out_dtype == Dtype::Float32;
  Gradient<float> of[K];
  float gamma[K], mean[K] = {};
  load_factor(gamma, p.weight, walk.channel, 1);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t set = walk.set(k);
    of[k] = gradient_of(p, set, gamma[k]);
    if (p.x != nullptr) mean[k] = p.statistics.mean[set];
  }
  walk.template for_each<kPlaces>([&](const auto& addresses) {
    constexpr int R = std::extent_v<std::remove_reference_t<decltype(addresses)>>;
    float grad[R][V], x[R][V];
    load_places<T>(grad, p.grad, wide, addresses);
    if (p.x != nullptr) load_places<T>(x, p.x, false, addresses);
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float from_mean = p.x != nullptr ? x[r][i] - mean[i % K] : 0.f;
        grad[r][i] = of[i % K](grad[r][i], from_mean);
      }
      store(static_cast<T*>(p.dx), addresses[r], grad[r], true);
    }
  });
}

}  // namespace

cudaError_t sums(const SumsPass& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  if (!is_output_of(p.dtype, p.out_dtype)) return cudaErrorInvalidValue;
  return by_layout(p.shape, p.dtype, [&](auto type, auto planes, auto width) {
    using T = typename decltype(type)::type;
    constexpr bool PLANES = decltype(planes)::value;
    constexpr int V = decltype(width)::value;
    const Plan plan = Plan::of<PLANES, V>(p.shape);
    return start(sums_kernel<T, PLANES, V>, dim3(plan.blocks), kThreads, kShared<RunningSums<PLANES ? 1 : V>>,
                 {p, plan.lanes}, stream);
  });
}

cudaError_t set_sums(const SetSums& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  if (!is_known(p.weight.dtype)) return cudaErrorInvalidValue;
  const int lanes = lanes_of(int64_t(p.shape.splits) * p.shape.group_channels(), true);
  return start(set_sums_kernel, dim3(ceil_div(p.shape.sets(), kThreads / lanes)), kThreads,
               kShared<RunningSums<1>>, {p, lanes}, stream);
}

cudaError_t channel_sums(const ChannelSums& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  if (!is_known(p.weight.dtype)) return cudaErrorInvalidValue;
  return start(channel_sums_kernel, dim3(ceil_div(p.shape.C, kColumns)), kThreads, kShared<RunningSums<1>>, p,
               stream);
}

cudaError_t gradient_map(const GradientPass& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  if (!is_known(p.weight.dtype)) return cudaErrorInvalidValue;
  return start(gradient_map_kernel, dim3(ceil_div(p.shape.C, kThreads)), kThreads, 0, p, stream);
}

cudaError_t input_gradient(const GradientPass& p, cudaStream_t stream) {
  if (is_empty(p.shape)) return cudaSuccess;
  if (!is_known(p.weight.dtype)) return cudaErrorInvalidValue;
  if (!is_output_of(p.dtype, p.out_dtype)) return cudaErrorInvalidValue;
  return by_layout(p.shape, p.dtype, [&](auto type, auto planes, auto width) {
    using T = typename decltype(type)::type;
    constexpr bool PLANES = decltype(planes)::value;
    constexpr int V = decltype(width)::value;
    const Plan plan = Plan::of<PLANES, V>(p.shape);
    return start(input_gradient_kernel<T, PLANES, V>, dim3(plan.blocks), kThreads, 0, {p, plan.lanes},
                 stream);
  });
}

}  // namespace bcos::norm::cuda
