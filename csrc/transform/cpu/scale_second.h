// The elementwise passes of the second derivative, which is that of
//   <v, dx> = sum of g (P p + Q r m)
// with p = v * w/|w|, m = the sum of x v over a patch, P and Q the partials of y, and r = dn/dx / x.
#pragma once

#include "transform/cpu/scale.h"

namespace bcos::transform::cpu {

// From z = v * w: the gradient of grad, u = grad P alpha at the winners, and the gradients of n and l.
template <typename T, typename U>
struct ScaleSecond {
  using A = Accumulate<T>;
  const U *grad, *y, *l;  // [batch, outputs, pixels]
  const uint8_t* winner;
  const T* z;       // [batch, outputs * max_out, pixels]
  const A *n, *rm;  // [batch, groups, pixels]: the norm, and r m, 0 where the scale is frozen
  const A* alpha;   // [outputs * max_out]
  U* dgrad;         // as grad; may be z
  T* u;             // as z
  U* dl;            // as grad; null, as rm, dn and t are, where the scale is a constant of every derivative
  A *dn, *t;  // as n; t = sum of g Q r over a group's outputs, the coefficient of v in the gradient of x
  Tiling tiling;
  int64_t max_out;
  Power power;
  Constants<A> k;
};

// Takes the gradients of l and n on: u += dl alpha at the winners, t += dn r, dbias += dl.
template <typename T, typename U>
struct ScaleJoin {
  using A = Accumulate<T>;
  const U* dl;
  const uint8_t* winner;
  const A *dn, *n, *alpha;
  T* u;
  A *t, *dbias;  // dbias is null where it is not needed
  Tiling tiling;
  int64_t max_out;
  Constants<A> k;
  int64_t u_begin = 0;  // as in ScaleBackward
};

template <typename T, typename U>
void run(const ScaleJoin<T, U>& pass, int64_t begin, int64_t end);

template <typename T, typename U>
void run(const ScaleSecond<T, U>& pass, int64_t begin, int64_t end);

}  // namespace bcos::transform::cpu
