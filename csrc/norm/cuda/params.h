// What the CUDA kernels of a norm take, for host and device: plain structs of raw device pointers and sizes.
//
// x, y and their gradients lie without gaps in one of two layouts: in planes [N, C, P], or in rows [N, P, C].
// P are the positions of an image. A *unit* is what has statistics of its own beside other such: an image
// where `per_image`, else all images together; within it `groups` of neighbouring channels have a set of
// statistics each. The sets are counted over units and groups. Pointers are aligned to 16 bytes; those of
// tensors that a call does not have are null. A size of 0 starts nothing.
//
// A is the type in which values are added up: double for tensors of fp64, else float.
#pragma once

#include <cstdint>

#include "common/cuda/dtype.h"
#include "norm/formula.h"

namespace bcos::norm::cuda {

using namespace bcos::cuda;

// Where values lie, which of them share statistics, and into how many shares the values of a channel in a
// unit are divided. N * P is below 2^31, unless N is 1.
struct Shape {
  int N, C;
  int64_t P;
  bool planes;
  bool per_image;
  int groups;  // of a unit; divides C
  int splits;  // see splits_of in launch.h

  BCOS_HOST_DEVICE int units() const { return per_image ? N : 1; }
  BCOS_HOST_DEVICE int group_channels() const { return C / groups; }
  BCOS_HOST_DEVICE int64_t sets() const { return int64_t(units()) * groups; }
  BCOS_HOST_DEVICE int64_t set_of(int64_t unit, int channel) const {
    return unit * groups + channel / group_channels();
  }
  BCOS_HOST_DEVICE int64_t shares() const { return int64_t(units()) * splits; }  // of every channel
};

// Values of one dtype for each channel, or null.
struct Factor {
  const void* data;
  Dtype dtype;
};

template <typename A>
struct Statistics {
  const A* mean;  // [sets]; null where nothing needs it
  const A* var;   // [sets]
  A eps;
  bool centered;
};

// Moments of `count` values.
template <typename A>
struct Partial {
  A count;
  Moments<A> moments;
};

// Sums over values of grad (x − shift) and of grad.
template <typename A>
struct Sums {
  A products, grads;
};

// The moments of each share.
template <typename A>
struct MomentsPass {
  const void* x;
  Partial<A>* partial;  // [units, splits, C]
  Shape shape;
  Dtype dtype;  // of x
};

template <typename A>
struct JoinMoments {
  const Partial<A>* partial;  // [units, splits, C]
  A* mean;                    // [sets]
  A* var;                     // [sets], biased
  Shape shape;
};

// y = γ (x − shift) r + β
template <typename A>
struct Apply {
  const void* x;
  void* y;
  Statistics<A> statistics;
  Factor weight, bias;
  Shape shape;
  Dtype dtype;      // of x
  Dtype out_dtype;  // of y: as x, or fp32
};

// The sums of each share, without γ.
template <typename A>
struct SumsPass {
  const void* grad;
  const void* x;  // null: the products are not wanted and become 0
  Statistics<A> statistics;
  Sums<A>* partial;  // [units, splits, C]
  Shape shape;
  Dtype dtype;      // of x
  Dtype out_dtype;  // of grad: as x, or fp32
};

// The sums of each set of more than one channel, with γ.
template <typename A>
struct SetSums {
  const Sums<A>* partial;  // [units, splits, C]
  Factor weight;
  Sums<A>* sums;  // [sets]
  Shape shape;
};

// dγ and dβ, the sums over the units and shares of a channel; and where a channel of all images is a set, its
// sums with γ.
template <typename A>
struct ChannelSums {
  const Sums<A>* partial;    // [units, splits, C]
  Statistics<A> statistics;  // var is null where the products have the factor r already
  Factor weight;
  A* dweight;     // [C] or null
  A* dbias;       // [C] or null
  Sums<A>* sums;  // [C] or null
  Shape shape;
};

// dx = γ grad r + (the part of the variance, unless `frozen`) + (that of the mean, where `centered`)
template <typename A>
struct GradientPass {
  const void* grad;
  const void* x;  // read unless null; null where `frozen` without dvar
  Statistics<A> statistics;
  Factor weight;
  const Sums<A>* sums;  // [sets], with γ; null: mean and variance are constants
  bool frozen;
  void* dx;
  Shape shape;
  A count;                  // values of a set
  Dtype dtype;              // of x and dx
  Dtype out_dtype;          // of grad: as x, or fp32
  const A* dvar = nullptr;  // [sets]: what a second derivative adds to the gradient of var
  A* map = nullptr;         // [4, C], for gradient_map
};

// Norms at positions: one set for each row, which are the C channels at a position. N * P and N * C are below
// 2^31.
template <typename A>
struct PositionsFwd {
  const void* x;
  void* y;
  A* mean;  // [N, P]
  A* var;   // [N, P]
  Factor weight, bias;
  int N, C, P;
  bool planes;
  A eps;
  bool centered;
  Dtype dtype;               // of x
  Dtype out_dtype;           // of y: as x, or fp32
  const A* given = nullptr;  // [N, P]: a variance that forms y in place of x's own; var is then null
};

// With `var_gradient` the second derivative of a frozen backward: x and mean are then those of v, the
// gradient of dx, and dx is null.
template <typename A>
struct PositionsBwd {
  const void* grad;
  const void* x;  // null where `frozen` and neither sums nor a gradient of var are wanted or given
  Statistics<A> statistics;
  Factor weight;
  bool frozen;
  void* dx;          // null: not wanted
  Sums<A>* partial;  // [shares, C] of positions_shares: the products have the factor r; null: not wanted
  int N, C, P;
  bool planes;
  int64_t each;               // of rows: how many a block has; not read of planes
  Dtype dtype;                // of x and dx
  Dtype out_dtype;            // of grad: as x, or fp32
  const A* dvar = nullptr;    // [N, P]: what a second derivative adds to the gradient of var
  A* var_gradient = nullptr;  // [N, P]
};

}  // namespace bcos::norm::cuda
