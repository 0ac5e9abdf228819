// What the CUDA kernels of dynamic alignment units take, for host and device: plain structs of raw device
// pointers and sizes.
//
// x [N, C, H, W], y [N, O, OH, OW] and their gradients lie without gaps. `pixels` are those of y in all
// images. h [pixels, K] and the weight [P*O, K] have the bias as more columns, beside which h is 1, and zeros
// up to a multiple of 16 bytes: row p*O + o of the weight makes the dynamic weight of output o for
// value p of the patch. Pointers are aligned to 16 bytes; those of tensors that a call does not have are
// null. The kernels start at least one block: no size is 0.
//
// A is the type in which values are added up: double for tensors of fp64, else float.
#pragma once

#include <cstdint>

#include "common/cuda/dtype.h"
#include "dynamic_alignment/formula.h"

namespace bcos::dynamic_alignment::cuda {

using namespace bcos::cuda;

// N * OH * OW and P * O are at most 2^30.
struct Shape {
  int N, C, H, W, OH, OW, KH, KW, SH, SW, PH, PW, O, K;

  BCOS_HOST_DEVICE int plane() const { return OH * OW; }
  BCOS_HOST_DEVICE int pixels() const { return N * plane(); }
  BCOS_HOST_DEVICE int patch() const { return C * KH * KW; }  // P
  BCOS_HOST_DEVICE int rows() const { return patch() * O; }   // of the weight
};

template <typename A>
struct Forward {
  const void *x, *h, *weight;
  void* y;
  A* norm;  // [O, pixels]
  A* l;     // [O, pixels], or null
  Shape shape;
  Norm kind;
  Dtype dtype;  // of all but norm and l
  bool tf32;    // whether fp32 is rounded to tf32
};

// The gradient at y -> of_u, by which w is multiplied in du and u in dw, and of_w, by which w's direction is
// multiplied in dw. Sites are the pixels, those of several rows of the dynamic linear map apart.
template <typename A>
struct Upstream {
  const void* grad;  // [sites / OH*OW, O, OH, OW]
  const A* norm;     // [O, pixels]
  const A* l;        // [O, pixels]; read with of_w alone
  A* of_u;           // [O, sites]
  A* of_w;           // [O, pixels], or null; only where sites are pixels
  Shape shape;
  int sites;  // at most 2^30
  Norm kind;
  Dtype dtype;  // of grad
};

// The gradients of the patches.
template <typename A>
struct PatchGradient {
  const A* of_u;  // [O, sites]
  const void *h, *weight;
  A* du;  // [sites / OH*OW, P, OH, OW]
  Shape shape;
  int sites;
  Dtype dtype;  // of h and the weight
  bool tf32;
};

// The gradients of the dynamic weights of pixels [first, first + count): of_u u + of_w direction(w).
template <typename A>
struct WeightGradient {
  const void* x;
  const A *h, *weight;
  const A *of_u, *of_w;  // [O, pixels]
  A* dw;                 // [count, stride], with zeros behind the P*O values of a row
  Shape shape;
  int first, count, stride;  // stride is a multiple of 4
  Norm kind;
  Dtype dtype;  // of x
  bool tf32;
};

// c = a b, in parts that have every `splits`-th step of k each. With `transposed` a is [k, m] in memory. The
// rows of a and b begin at multiples of 16 bytes; what a has behind its last k is finite.
template <typename A>
struct Product {
  const A *a, *b;  // [m, k] or [k, m], rows of a_stride values; [k, n]
  A* c;            // [splits, m, n]
  int m, n, k;     // rows of n values are multiples of 16 bytes
  int a_stride;
  int splits;
  bool transposed, tf32;
};

}  // namespace bcos::dynamic_alignment::cuda
