// What the CUDA kernels take, for host and device: plain structs of raw device pointers and sizes.
//
// Images are NHWC without gaps, weights OHWI; a linear layer is the 1 x 1 convolution of images of one pixel.
// "rows" are pixels x groups. A struct with a field `plane` takes NCHW images as well: `plane` is then the
// number of pixels of an image, rows lie as [N, G, plane] instead of [N, plane, G], and what is written as
// [rows, C] lies as [N, G, C, plane]. Tensors with one value for each row lie in the order of the rows; with
// one group both orders are the same memory. Pointers are aligned to 16 bytes; those of tensors that a call
// does not have are null. Products of sizes may pass 2^31; a size that is an int here may not. Where a size
// is 0, nothing is started.
//
// A is the type in which values are added up: double for tensors of fp64, else float.
#pragma once

#include <cstdint>

#include "common/cuda/dtype.h"
#include "transform/formula.h"

namespace bcos::transform::cuda {

using namespace bcos::cuda;

constexpr int kMostMaxOut = 64;  // filters of an output that a tile holds

// Which formula, and its constants.
template <typename A>
struct Formula {
  Power power;                                    // General where b is a tensor
  A b_minus_1, cos_eps, eps_inside, eps_outside;  // b_minus_1: unused where b is a tensor
  const A* b;                                     // one value on the device, or null
  bool exact_two;                                 // a tensor b of exactly 2 has no cos_eps
  bool of_l = false;  // what is given as v, of which derivatives are formed, is l; else y, for b = 2 alone
};

// How output pixels see input pixels.
struct Window {
  int H, W, OH, OW;  // sizes of the input and of the output
  int KH, KW, SH, SW, PH, PW, DH, DW;
};

// alpha[f] = 1/|w_f|, 0 for a zero filter; and the operand
// of the products: w/|w|, or w itself if `raw`, as OHWI.
template <typename A>
struct WeightNormFwd {
  const void* w;    // [F, K] in its own order, OIHW unless `ohwi`
  A* alpha;         // [F]
  void* operand;    // [F, K] OHWI; null: alpha alone
  int F, CG, taps;  // K = CG * taps
  bool ohwi, raw;
  Dtype dtype;          // of w
  Dtype operand_dtype;  // of operand
};

// dw, formed of d, which is the sum of partial over the splits. With unit weights it is the projection
// alpha (d - w^ (w^ . d)).
template <typename A>
struct WeightNormBwd {
  void* partial;   // [splits, F, K] OHWI; with splits > 1 the first share is overwritten
  const void* w;   // [F, K] in its own order
  const A* alpha;  // [F] 1/|w_f|; null: not unit weights
  void* dw;        // as w
  int F, CG, taps, splits;
  bool ohwi, raw;       // raw: the product took w itself, and d has the factor alpha already
  Dtype dtype;          // of w and dw
  Dtype partial_dtype;  // fp32 where splits > 1
};

// out[row] = sum of x v over the row's channels; with `root`
// the norm of it, which is that of a patch of one pixel.
template <typename A>
struct PatchNormSquares {
  const void* x;  // [rows, CG]; v, too, unless it is given below
  A* out;         // [rows]
  int rows, CG;
  bool root;
  Formula<A> formula;
  Dtype dtype;              // of x and v
  int plane = 0;            // NCHW: H * W
  const void* v = nullptr;  // as x
};

// n = sqrt(window sum of squares + eps_inside) + eps_outside; in NCHW of N * G images of one group
template <typename A>
struct PatchNormFwd {
  const A* squares;  // [N, H, W, G]
  A* n;              // [N, OH, OW, G]
  int rows, G;       // rows of n
  Window window;
  Formula<A> formula;
  bool root = true;  // else n is the window sum itself
};

// Both norms of a forward of one group: what WeightNormFwd says, and n of x.
template <typename A>
struct BothNorms {
  WeightNormFwd<A> weights;  // of x's dtype; F = 0: n alone
  const void* x;             // [N, H, W, C]
  A* n;                      // [N, OH, OW]
  int N, C;
  Window window;
  Formula<A> formula;
  Dtype dtype;  // of x and w
};

// dx += x * (sum of t over the outputs that read the pixel), in place; x is divided by root first, where that
// is given
template <typename A>
struct PatchNormBwd {
  void* dx;         // [N, H, W, G * CG]
  const void* x;    // as dx
  const A* t;       // [N, OH, OW, G]
  int rows, G, CG;  // rows of dx
  Window window;
  Dtype dtype;              // of dx and x
  int plane = 0;            // NCHW: H * W
  bool add = true;          // else dx = instead of dx +=
  const A* root = nullptr;  // [rows]; null, too, with planes
};

// y = transform(max over max_out of (alpha z + bias), n)
template <typename A>
struct ScaleFwd {
  const void* z;     // [rows, OG * max_out]
  const A* alpha;    // [G * OG * max_out] or null
  const void* bias;  // as alpha, or null
  const A* n;        // [rows]; null for b = 1
  void* y;           // [rows, OG]
  void* l;           // as y, the transform's argument; null: not saved
  uint8_t* winner;   // as y; where max_out > 1
  int rows, G, OG, max_out;
  Formula<A> formula;
  Dtype dtype;       // of z
  Dtype bias_dtype;  // of bias
  Dtype out_dtype;   // of y and l: as z, or fp32
  int plane = 0;     // NCHW: OH * OW
};

// u = dL/dz, t = dL/dn * dn/dx / x, or with `of_n` dL/dn, and each block's share of dL/db. Given dl and dn,
// which a second derivative returned, are added to the gradients of l and n.
template <typename A>
struct ScaleBwd {
  const void* grad;       // [rows, OG]
  const void* v;          // [scales, OG]: y or l, as formula.of_l says; null for b = 1
  const uint8_t* winner;  // as v; where max_out > 1
  const A* n;             // [scales]; null for b = 1
  const A* alpha;         // [G * OG * max_out] or null
  void* u;                // [rows, OG * max_out]
  A* t;                   // [rows]; null where frozen without dn, or b = 1
  A* db;                  // [blocks(p)], of the launcher; null: not wanted
  int rows, G, OG, max_out;
  int scales;   // rows / scales gradients share the scale of a row; rows itself unless frozen
  bool frozen;  // the scale is a constant
  Formula<A> formula;
  Dtype dtype;               // of u
  Dtype out_dtype;           // of grad, v and dl: as u, or fp32
  int plane = 0;             // NCHW: OH * OW
  const void* dl = nullptr;  // as grad; null, as dn is, without a second derivative
  const A* dn = nullptr;     // as n
  // [4, G * OG], of_grad, of_y, mean and offset of each output, for b = 2: the gradient of y is then
  // grad of_grad + (y - mean) of_y + offset; null: it is grad.
  const A* map = nullptr;
  bool of_n = false;
};

// The gradient of y at an output, of what stands in grad.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A mapped(const ScaleBwd<A>& p, int output, A grad, A y) {
  const int all = p.G * p.OG;
  return grad * p.map[output] + (y - p.map[2 * all + output]) * p.map[all + output] + p.map[3 * all + output];
}

// The second derivative of the scale, that of <v, dx> = sum of grad (P p + Q r m), with p = v * w alpha at
// the winners, P and Q the partials of y, r = dn/dx / x, and m the sum of x v over a patch. z = v * w.
template <typename A>
struct ScaleSecond {
  const void* grad;       // [rows, OG]
  const void* v;          // as grad: y or l, as formula.of_l says; null for b = 1
  const uint8_t* winner;  // as grad; where max_out > 1
  const void* z;          // [rows, OG * max_out]
  const A* n;             // [rows]; null for b = 1
  const A* m;             // as n; null where frozen
  const A* alpha;         // [G * OG * max_out] or null
  void* dgrad;            // as grad
  void* u;                // as z: grad P alpha at the winners
  void* dl;               // as grad; null, as dn and t are, where the scale is a constant of every derivative
  A* dn;                  // as n
  A* t;                   // as n: r times the sum of grad Q
  int rows, G, OG, max_out;
  bool frozen;  // the scale was a constant of dx
  Formula<A> formula;
  Dtype dtype;              // of z and u
  Dtype out_dtype;          // of grad, y, dgrad and dl: as z, or fp32
  int plane = 0;            // NCHW: OH * OW
  const A* root = nullptr;  // as n: n without eps_outside; null: it is formed of n
};

// Sizes of a convolution. Narrow groups share a tile with their neighbours, in the gradients where u is
// given: as many as divide G, have at most 64 channels and filters together (32 in fp32) and make whole
// chunks of 16 bytes; in half types CG is even.
struct Shape {
  int N, G, CG, FG;  // images, groups, channels and filters of a group
  int max_out;       // filters of an output; divides FG
  Window window;
};

// y = transform(max over max_out of (alpha x * w + bias), n), and what the backward needs.
// At most kMostMaxOut filters of an output, and 65535 groups.
struct ImplicitGemmFwd {
  const void* x;         // [N, H, W, G * CG]
  const void* w;         // [G * FG, KH, KW, CG]
  const float* alpha;    // [G * FG] or null
  const void* bias;      // [G * FG] or null
  const float* squares;  // [N, H, W, G] of patch_norm_squares; null: summed of the product's own operand
  void* y;               // [N, OH, OW, G * OG], OG = FG / max_out
  float* n;              // [N, OH, OW, G]; null: not saved
  void* l;               // as y; null: not saved
  uint8_t* winner;       // as y; where max_out > 1
  Shape shape;
  Formula<float> formula;
  Dtype dtype;       // of x and w
  Dtype bias_dtype;  // of bias
  Dtype out_dtype;   // of y and l: as x, or fp32
  bool tf32;         // fp32 products may round their operands to ten bits of mantissa
  bool large;        // tiles of 128 x 128: half types, CG a multiple of 8, no shared tile; else ignored
};

// dx = u *^T w + x * (sum of t over the outputs that read the pixel), u = dL/dz, t = dL/dn * dn/dx / x.
// Either u and t are given, or u is null and both are formed of grad, v, winner and n. At most 65535 groups.
struct ImplicitGemmDgrad {
  const void* u;          // [N, OH, OW, G * FG] or null
  const float* t;         // [N, OH, OW, G]; null where frozen, b = 1 or u is null
  const void* grad;       // [N, OH, OW, G * OG]
  const void* v;          // as grad: y or l, as formula.of_l says; null for b = 1
  const uint8_t* winner;  // as grad; where max_out > 1
  const float* n;         // [N, OH, OW, G]; null for b = 1
  const void* w;          // [G * FG, KH, KW, CG]
  const float* alpha;     // [G * FG] or null; a factor of u that a given u has already
  const void* x;          // [N, H, W, G * CG]
  void* dx;               // as x
  Shape shape;
  bool frozen;  // the scale is a constant, and t is 0
  Formula<float> formula;
  Dtype dtype;      // of u, w, x and dx
  Dtype out_dtype;  // of grad and v: as x, or fp32
  bool tf32;        // as in the forward
  bool large;       // as in the forward, with u given and FG a multiple of 8, too
};

// dw[split] = sum over every splits-th block of pixels of u^T x, dbias[split] that of u; alike in every run.
// u as in ImplicitGemmDgrad. At most 65535 groups * KH * KW.
struct ImplicitGemmWgrad {
  const void* u;
  const void* grad;
  const void* v;
  const uint8_t* winner;
  const float* n;
  const float* alpha;
  const void* x;  // [N, H, W, G * CG]
  float* dw;      // [splits, G * FG, KH, KW, CG]
  float* dbias;   // [splits, G * FG]; null: not wanted
  int splits;     // at most 65535
  Shape shape;
  bool frozen;
  Formula<float> formula;
  Dtype dtype;      // of u and x
  Dtype out_dtype;  // of grad and v: as x, or fp32
  bool tf32;        // as in the forward
  bool large;       // as in ImplicitGemmDgrad
};

// Depthwise layers: one filter to a channel, the norm formed inside. At most 2^22 channels, and 600 taps or
// as many as shared memory holds, of 264 bytes each.

// y = transform(alpha x * w + bias, n)
struct DepthwiseFwd {
  const void* x;       // [N, H, W, C]
  const void* w;       // [C, KH, KW]
  const float* alpha;  // [C] or null
  const void* bias;    // [C] or null
  void* y;             // [N, OH, OW, C]
  void* l;             // as y; null: not saved
  int N, C;
  Window window;
  Formula<float> formula;
  Dtype dtype;       // of x and w
  Dtype bias_dtype;  // of bias
  Dtype out_dtype;   // of y and l: as x, or fp32
};

// u = dL/dz and t = dL/dn * dn/dx / x, with n formed again: it would be as large as x to save.
struct DepthwiseBwd {
  const void* grad;    // [N, OH, OW, C]
  const void* v;       // as grad: y or l, as formula.of_l says; null for b = 1
  const void* x;       // [N, H, W, C]
  const float* alpha;  // [C] or null
  void* u;             // as grad
  float* t;            // as grad; null where frozen or b = 1
  int N, C;
  Window window;
  bool frozen;  // the scale is a constant
  Formula<float> formula;
  Dtype dtype;      // of x and u
  Dtype out_dtype;  // of grad and v: as x, or fp32
};

// dx = u *^T w + x * (sum of t over the outputs that read the pixel)
struct DepthwiseDgrad {
  const void* u;   // [N, OH, OW, C]
  const float* t;  // as u, or null
  const void* w;   // [C, KH, KW]
  const void* x;   // [N, H, W, C]; read where t is given
  void* dx;        // as x
  int N, C;
  Window window;
  Dtype dtype;  // of u, w, x and dx
};

// dw[split] = sum over every splits-th block of strips of u x, dbias[split] that of u; alike in every run.
struct DepthwiseWgrad {
  const void* u;  // [N, OH, OW, C]
  const void* x;  // [N, H, W, C]
  float* dw;      // [splits, C, KH, KW]
  float* dbias;   // [splits, C]; null: not wanted
  int splits;     // at most 65535
  int N, C;
  Window window;
  Dtype dtype;  // of u and x
};

}  // namespace bcos::transform::cuda
