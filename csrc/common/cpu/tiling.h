// How a pass walks an activation [batch, groups * per_group, pixels].
#pragma once

#include <ATen/Parallel.h>
#include <ATen/ceil_div.h>

#include <algorithm>
#include <cstdint>

namespace bcos::cpu {

// channels_last memory is [batch, pixels, groups, per_group], contiguous memory [batch, groups, per_group,
// pixels]. A unit is one pixel of the former; of the latter one block of pixels in one group, so that its
// norms stay in L1.
struct Tiling {
  bool channels_last;
  int64_t batch, groups, per_group, pixels;

  static constexpr int64_t kBlock = 1024;

  int64_t channels() const { return groups * per_group; }
  int64_t blocks() const { return at::ceil_div(pixels, kBlock); }
  int64_t units() const { return channels_last ? batch * pixels : batch * groups * blocks(); }
  int64_t unit_size() const { return channels_last ? channels() : per_group * std::min(kBlock, pixels); }
};

// Where one block of a contiguous activation lies.
struct Block {
  int64_t group;   // batch * groups + group: index of the norm's plane
  int64_t filter;  // index of the group's first channel among the batch's
  int64_t begin, size;

  Block(const Tiling& t, int64_t unit) {
    group = unit / t.blocks();
    filter = group % t.groups * t.per_group;
    begin = unit % t.blocks() * Tiling::kBlock;
    size = std::min(Tiling::kBlock, t.pixels - begin);
  }
};

// body(begin, end) over count units of work_each elements, in parallel where it pays.
template <typename F>
void parallel(int64_t count, int64_t work_each, F&& body) {
  // A thread with fewer elements takes longer to wake up than to compute them. torch's own passes, which do
  // less with an element, take twice as many.
  constexpr int64_t kLeastElements = 16384;
  at::parallel_for(0, count, std::max<int64_t>(1, kLeastElements / std::max<int64_t>(1, work_each)), body);
}

// body(share, begin, end) with one share for each thread's partial sums: the same split, so the same sum,
// every time.
template <typename F>
void parallel_shares(int64_t shares, int64_t count, F&& body) {
  at::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
    for (int64_t share = first; share < last; share++)
      body(share, count * share / shares, count * (share + 1) / shares);
  });
}

}  // namespace bcos::cpu
