// From linear outputs to scaled ones, and back: one pass each, in place where the types allow it.
#pragma once

#include "common/cpu/tiling.h"
#include "common/cpu/types.h"
#include "transform/formula.h"

namespace bcos::transform::cpu {

using namespace bcos::cpu;
using c10::BFloat16;

// l = max over max_out filters of (alpha z + bias), y = s(l, n) l. The filters of an output lie side by side.
template <typename T, typename U>
struct ScaleForward {
  using A = Accumulate<T>;
  const T* z;       // [batch, outputs * max_out, pixels], or a part of it that starts at index z_begin
  U* y;             // [batch, outputs, pixels], may be z
  U* l;             // as y; written when power is General
  uint8_t* winner;  // as y; written when max_out > 1
  const A* n;       // [batch, groups, pixels]
  const A* alpha;   // [outputs * max_out]
  const A* bias;    // [outputs * max_out]
  Tiling tiling;
  int64_t max_out;
  Power power;
  Constants<A> k;
  bool marks_lost;  // y is NaN where any product is not finite: another filter may win
  int64_t z_begin = 0;
};

// u = grad * dy/dl * alpha at the winners, 0 elsewhere; t = sum over a group's outputs of grad * dy/dn *
// dn/dx / x.
template <typename T, typename U>
struct ScaleBackward {
  using A = Accumulate<T>;
  const U *grad, *y, *l;
  const uint8_t* winner;
  const A *n, *alpha;
  T* u;      // [batch, outputs * max_out, pixels], or a part of it that starts at index u_begin
  A* t;      // as n; null for b = 1
  A* dbias;  // [outputs * max_out], added to; null where not needed
  Tiling tiling;
  int64_t max_out;
  Power power;
  Constants<A> k;
  const A* map = nullptr;  // [4, outputs] of Saved, for b = 2 without max_out; null: grad is that of y itself
  int64_t u_begin = 0;
};

// dx += x * r with one r for each pixel and group
template <typename T>
struct AddScaled {
  using A = Accumulate<T>;
  const T* x;
  const A* r;
  T* dx;
  Tiling tiling;
};

// Units [begin, end) of a pass; the caller runs them in parallel. The forward returns whether every product z
// was finite.
template <typename T, typename U>
bool run(const ScaleForward<T, U>& pass, int64_t begin, int64_t end);

template <typename T, typename U>
void run(const ScaleBackward<T, U>& pass, int64_t begin, int64_t end);

template <typename T>
void run(const AddScaled<T>& pass, int64_t begin, int64_t end);

// The sum of grad * dy/db over the units.
template <typename T, typename U>
double b_gradient(const ScaleBackward<T, U>& pass, int64_t begin, int64_t end);

template <typename Pass>
void run_all(const Pass& pass) {
  parallel(pass.tiling.units(), pass.tiling.unit_size(),
           [&](int64_t begin, int64_t end) { run(pass, begin, end); });
}

}  // namespace bcos::transform::cpu
