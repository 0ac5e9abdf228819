// The products of a transform as graphs of cuDNN, with the formula (transform/formula.h) fused around them.
#pragma once

#include <string>
#include <vector>

#include "common/cuda/cudnn/graph.h"
#include "transform/cuda/params.h"

namespace bcos::transform::cuda {

enum class Step : int {
  Forward,      // y, and l where it is saved, of x, the operand and n
  Explanation,  // dx of grad, of y or l, and of n, with the scale frozen: pointwise calls alone
  Training      // dx = u * w + x * pool, of u, the operand, x and the sums of t over the windows
};

// All that decides a plan, besides the device. Images are NHWC.
struct Fused {
  Step step;
  int64_t images, channels, filters;
  Window window;  // as for the kernels
  cudnn::DataType dtype, out_dtype, bias_dtype;
  bool alpha, bias;  // whether the product is multiplied by alpha, and whether a bias is added
  Power power;
  float b_minus_1, cos_eps;

  // One pixel of x for one of y, in the same order: a product of matrices.
  bool pointwise() const;

  bool saves_y() const { return saves_output(power, out_dtype == cudnn::DataType::Half); }
  bool saves_l() const { return power != Power::One && !saves_y(); }

  // Equal where the plan is the same.
  std::vector<int64_t> key() const;
};

// Why no graph is formed for it, whatever cuDNN takes; empty where one is.
std::string why_not(const Fused& call);

// In the order in which a run takes their addresses:
//   Forward      x, operand, [alpha], [bias], [n], then [l], y
//   Explanation  grad, y or l, n, [alpha], operand, then dx
//   Training     u, operand, x, pool, then dx
cudnn::Graph graph_of(const Fused& call);

}  // namespace bcos::transform::cuda
