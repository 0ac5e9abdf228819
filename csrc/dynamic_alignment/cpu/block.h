// The passes over one block of dynamic weights: those of a few values of the patch and of all outputs, for a
// tile of pixels. Matrices are rows of `pixels` values. All are of one type, float or double.
#pragma once

#include <cstdint>

#include "dynamic_alignment/spec.h"

namespace bcos::dynamic_alignment::cpu {

// Adds the block's part to the products with the patch and to the sums of the norms.
template <typename A>
struct BlockForward {
  Norm norm;
  int64_t values, outputs, pixels;
  const A *w, *bias, *u;  // [values*outputs, pixels], [values*outputs] or null, [values, pixels]
  A *l, *sums;            // [outputs, pixels]
};

// l and sums -> y and norm, [outputs, pixels] of each. The norm takes the place of the sums; y may be l.
template <typename A>
struct Finish {
  Norm norm;
  int64_t size;
  const A* l;
  A *sums, *y;
};

// The gradient at y -> `of_u`, by which w is multiplied in du and u in dw, and `of_w`, by which w's direction
// is multiplied in dw; the latter two may be null.
template <typename A>
struct Start {
  Norm norm;
  int64_t size;
  const A *grad, *norms, *l;
  A *of_u, *of_w;
};

// du [values, pixels]; with of_w, dw takes the place of w and its sums over pixels are added to dbias.
template <typename A>
struct BlockBackward {
  Norm norm;
  int64_t values, outputs, pixels;
  A* w;
  const A *bias, *u, *of_u, *of_w;
  A *du, *dbias;
};

template <typename A>
void run(const BlockForward<A>& f);
template <typename A>
void run(const Finish<A>& f);
template <typename A>
void run(const Start<A>& f);
template <typename A>
void run(const BlockBackward<A>& f);

}  // namespace bcos::dynamic_alignment::cpu
