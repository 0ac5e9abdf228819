// How the threads of a grid share out the values of norms over the batch, all values or groups.
//
// A thread has V neighbouring values at a time, which are an *item*: of planes, V positions of one channel;
// of rows, V channels at one position. The items of a channel in a unit are divided into `splits` shares. Of
// planes, `lanes` threads have a share and take every lanes-th of its items; of rows, `lanes` neighbouring
// threads have neighbouring channels, and the block's kThreads / lanes slices take every so many-th item.
#pragma once

#include "common/cuda/planes.cuh"
#include "norm/cuda/reduce.cuh"

namespace bcos::norm::cuda {

template <bool PLANES, int V>
struct Walk {
  static constexpr int kChannels = PLANES ? 1 : V;

  const Shape& shape;
  int64_t unit = 0;
  int channel = 0;            // the first of kChannels
  int64_t share = 0;          // counted over units and splits
  int64_t item = 0, end = 0;  // the thread's first item, and the end of the share
  int step;
  bool inside;         // else the thread has no channel and no items
  bool first = false;  // of those that share the channels
  int low, high;       // bits of the thread index in which those threads differ

  __device__ Walk(const Shape& s, int lanes) : shape(s) {
    const int lane = threadIdx.x % lanes, other = threadIdx.x / lanes;
    int64_t task;
    if constexpr (PLANES) {
      task = int64_t(blockIdx.x) * (kThreads / lanes) + other;
      channel = int(task % s.C);
      share = task / s.C;
      inside = share < s.shares();
    } else {
      const int chunks = int(ceil_div(s.C, lanes * V));
      channel = (int(blockIdx.x % chunks) * lanes + lane) * V;
      share = blockIdx.x / chunks;
      inside = within(channel, s.C);
    }
    first = (PLANES ? lane : other) == 0;
    step = PLANES ? lanes : kThreads / lanes;
    low = PLANES ? 1 : lanes;
    high = PLANES ? lanes : kThreads;
    if (!inside) return;
    unit = share / s.splits;
    const int64_t items = items_of(s), each = ceil_div(items, s.splits), begin = share % s.splits * each;
    end = begin + each < items ? begin + each : items;
    item = begin + (PLANES ? lane : other);
  }

  __host__ __device__ static int64_t items_of(const Shape& s) {
    return (s.per_image ? 1 : s.N) * (PLANES ? s.P / V : s.P);
  }

  // The address of an item's first value.
  __device__ __forceinline__ int64_t at(int64_t i) const {
    if constexpr (!PLANES) return (unit * shape.P + i) * shape.C + channel;
    const int64_t inner = shape.P / V;
    // More images than one have less than 2^31 items together.
    const int64_t image = i < inner ? 0 : unsigned(i) / unsigned(inner);
    return ((unit + image) * shape.C + channel) * shape.P + (i - image * inner) * V;
  }

  // f(addresses) of R items of the thread at a time, and of the rest one by one.
  template <int R, typename F>
  __device__ __forceinline__ void for_each(F&& f) const {
    int64_t i = item;
    for (; i + int64_t(R - 1) * step < end; i += int64_t(R) * step) {
      int64_t addresses[R];
#pragma unroll
      for (int r = 0; r < R; ++r) addresses[r] = at(i + int64_t(r) * step);
      f(addresses);
    }
    for (; i < end; i += step) {
      const int64_t address[1] = {at(i)};
      f(address);
    }
  }

  __device__ __forceinline__ int64_t set(int k) const { return shape.set_of(unit, channel + k); }
  __device__ __forceinline__ int64_t partial(int k) const { return share * shape.C + channel + k; }
};

// V values at each of R addresses of a tensor of T, or of fp32 where `wide`.
template <typename T, int R, int V>
__device__ __forceinline__ void load_places(SumsOf<T> (&out)[R][V], const void* p, bool wide,
                                            const int64_t (&addresses)[R]) {
#pragma unroll
  for (int r = 0; r < R; ++r) load_output<T>(out[r], p, wide, addresses[r]);
}

// Lanes of a share of planes with so many items, or of rows with so many groups of V channels: at most a
// warp, or of planes the block.
inline int lanes_of_share(int64_t count, bool planes) {
  return planes && count >= 2 * kThreads ? kThreads : lanes_of(count);
}

// The grid of a walk, and the lanes that it goes with.
struct Plan {
  int lanes;
  int64_t blocks;

  template <bool PLANES, int V>
  static Plan of(const Shape& s) {
    const int64_t items = ceil_div(Walk<PLANES, V>::items_of(s), s.splits), vectors = ceil_div(s.C, V);
    const int lanes = lanes_of_share(PLANES ? items : vectors, PLANES);
    return {lanes,
            PLANES ? ceil_div(s.shares() * s.C, kThreads / lanes) : s.shares() * ceil_div(vectors, lanes)};
  }
};

// f(T, PLANES, V) of the dtype, whose values are added up in A, and the layout as constants; V are the values
// of an item.
template <typename A, typename F>
cudaError_t by_layout(const Shape& s, Dtype dtype, F&& f) {
  return by_dtype<A>(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (s.planes)
      return bcos::cuda::planes::by_width<T>(s.P, dtype,
                                             [&](auto width) { return f(type, std::true_type{}, width); });
    return by_vector<T>(s.C, [&](auto width) { return f(type, std::false_type{}, width); });
  });
}

inline bool is_empty(const Shape& s) {
  return s.N == 0 || s.C == 0 || s.P == 0;
}

// Starts a kernel that walks over all values.
template <bool PLANES, int V, typename P>
cudaError_t start_walk(void (*kernel)(P, int), size_t shared, const P& p, cudaStream_t stream) {
  const Plan plan = Plan::of<PLANES, V>(p.shape);
  return start(kernel, dim3(plan.blocks), kThreads, shared, stream, p, plan.lanes);
}

// A set whose shares neighbouring lanes join.
struct SetWalk {
  const Shape& shape;
  int lanes, lane;
  int64_t set;
  bool inside;

  __device__ SetWalk(const Shape& s, int lanes) : shape(s), lanes(lanes), lane(threadIdx.x % lanes) {
    set = int64_t(blockIdx.x) * (kThreads / lanes) + threadIdx.x / lanes;
    inside = set < s.sets();
  }

  // f(at, channel) of each of the lane's shares, which lies at `at` of [units, splits, C].
  template <typename F>
  __device__ __forceinline__ void for_each(F&& f) const {
    const int channels = shape.group_channels(), first = int(set % shape.groups) * channels;
    const int64_t unit = set / shape.groups;
    for (int64_t i = lane; inside && i < int64_t(shape.splits) * channels; i += lanes) {
      const int channel = first + int(i % channels);
      f((unit * shape.splits + i / channels) * shape.C + channel, channel);
    }
  }
};

// Starts a kernel that joins what the shares of each set have.
template <typename P>
cudaError_t start_sets(void (*kernel)(P, int), size_t shared, const P& p, cudaStream_t stream) {
  const int lanes = lanes_of_share(int64_t(p.shape.splits) * p.shape.group_channels(), true);
  return start(kernel, dim3(ceil_div(p.shape.sets(), kThreads / lanes)), kThreads, shared, stream, p, lanes);
}

}  // namespace bcos::norm::cuda
