// From linear outputs to scaled ones, and back: one pass each, in place where the types allow it.
#pragma once

#include "common/formula.h"
#include "cpu/tiling.h"
#include "cpu/types.h"

namespace bcos::cpu {

// l = max over members of (alpha z + bias), y = s(l, n) l; filter index is output * members + member.
template <typename T, typename U>
struct ScaleForward {
  using A = Accumulate<T>;
  const T* z;       // [batch, outputs * members, pixels]
  U* y;             // [batch, outputs, pixels], may be z
  U* l;             // as y; written when power is General
  uint8_t* winner;  // as y; written when members > 1
  const A* n;       // [batch, groups, pixels]
  const A* alpha;   // [outputs * members]
  const A* bias;    // [outputs * members]
  Tiling tiling;
  int64_t members;
  Power power;
  Constants<A> k;
};

// u = grad * dy/dl * alpha at the winners, 0 elsewhere; t = sum over a group's outputs of grad * dy/dn *
// dn/dx / x.
template <typename T, typename U>
struct ScaleBackward {
  using A = Accumulate<T>;
  const U *grad, *y, *l;
  const uint8_t* winner;
  const A *n, *alpha;
  T* u;      // [batch, outputs * members, pixels]
  A* t;      // as n; null for b = 1
  A* dbias;  // [outputs * members], added to; null where not needed
  Tiling tiling;
  int64_t members;
  Power power;
  Constants<A> k;
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
#define BCOS_DECLARE(T, U)                                               \
  bool run(const ScaleForward<T, U>& pass, int64_t begin, int64_t end);  \
  void run(const ScaleBackward<T, U>& pass, int64_t begin, int64_t end); \
  double exponent_gradient(const ScaleBackward<T, U>& pass, int64_t begin, int64_t end);
BCOS_DECLARE(float, float)
BCOS_DECLARE(double, double)
BCOS_DECLARE(c10::BFloat16, c10::BFloat16)
BCOS_DECLARE(c10::BFloat16, float)
#undef BCOS_DECLARE
void run(const AddScaled<float>& pass, int64_t begin, int64_t end);
void run(const AddScaled<double>& pass, int64_t begin, int64_t end);
void run(const AddScaled<c10::BFloat16>& pass, int64_t begin, int64_t end);

// The parts of run(ScaleBackward<float, float>), which are compiled apart.
void run_integral(const ScaleBackward<float, float>& pass, int64_t begin, int64_t end);
void run_general(const ScaleBackward<float, float>& pass, int64_t begin, int64_t end);

template <typename Pass>
void run_all(const Pass& pass) {
  parallel(pass.tiling.units(), pass.tiling.unit_size(),
           [&](int64_t begin, int64_t end) { run(pass, begin, end); });
}

}  // namespace bcos::cpu
