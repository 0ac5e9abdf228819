// Passes over rows of channels whose statistics lie along a row: norms at positions, and of tokens.
#pragma once

#include "common/cpu/types.h"

namespace bcos::norm::cpu {

using namespace bcos::cpu;
using c10::BFloat16;

// y = (x − [centered] mean) r gamma + beta for every row, with r = 1/√(var + eps).
template <typename T, typename U>
struct RowForward {
  using A = Accumulate<T>;
  const T* x;  // [rows, channels]
  U* y;
  A *mean, *var;          // [rows]
  const A *gamma, *beta;  // [channels]
  int64_t channels;
  A eps;
  bool centered;
};

// dx of every row, and the sums of the rows for dgamma and dbeta.
template <typename T, typename U>
struct RowBackward {
  using A = Accumulate<T>;
  const U* grad;  // [rows, channels]
  const T* x;
  T* dx;                   // null where not needed
  const A *mean, *var;     // [rows]
  const A* dvar;           // [rows], of a second derivative; null without one
  const A* gamma;          // [channels]
  double *dgamma, *dbeta;  // [channels], added to; null where neither is needed
  int64_t channels;
  A eps;
  bool centered, frozen;
};

// dgrad = (v − [centered] mean of v) r gamma for every row, dvar, and the sums of the rows for dgamma.
template <typename T, typename U>
struct RowSecond {
  using A = Accumulate<T>;
  const U* grad;  // [rows, channels]
  const T* v;
  U* dgrad;
  const A* var;    // [rows]
  A* dvar;         // [rows]; null where not needed
  const A* gamma;  // [channels]
  double* dgamma;  // [channels], added to; null where not needed
  int64_t channels;
  A eps;
  bool centered;
};

// Rows [begin, end); the caller runs them in parallel.
template <typename T, typename U>
void run(const RowForward<T, U>& pass, int64_t begin, int64_t end);

template <typename T, typename U>
void run(const RowBackward<T, U>& pass, int64_t begin, int64_t end);

template <typename T, typename U>
void run(const RowSecond<T, U>& pass, int64_t begin, int64_t end);

}  // namespace bcos::norm::cpu
