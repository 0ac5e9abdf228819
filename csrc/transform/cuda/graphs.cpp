#include "transform/cuda/graphs.h"

#include <algorithm>
#include <cstring>

namespace bcos::transform::cuda {
namespace {

using cudnn::DataType;
using cudnn::Graph;
using cudnn::Operator;
using cudnn::Pointwise;
using cudnn::Sizes;

constexpr int64_t kMostValues = (int64_t(1) << 31) - 1;  // cuDNN's fused kernels may index by 32 bits

int64_t bits(float value) {
  int32_t out;
  std::memcpy(&out, &value, sizeof(out));
  return out;
}

// Adds the tensors and operations of one call. A tensor of images is [N, C, H, W] in NHWC; in a pointwise
// call it is a matrix [1, pixels, C].
struct Builder {
  const Fused& call;
  Graph graph;

  size_t dimensions() const { return call.pointwise() ? 3 : 4; }
  int64_t pixels() const { return call.images * call.window.H * call.window.W; }

  int images(int64_t channels, bool of_output, DataType type) {
    if (call.pointwise())
      return graph.memory({1, pixels(), channels}, {pixels() * channels, channels, 1}, type);
    const int64_t H = of_output ? call.window.OH : call.window.H,
                  W = of_output ? call.window.OW : call.window.W;
    return graph.memory({call.images, channels, H, W}, {channels * H * W, 1, channels * W, channels}, type);
  }

  int per_filter(DataType type) {
    const int64_t F = call.filters;
    return call.pointwise() ? graph.memory({1, 1, F}, {F, F, 1}, type)
                            : graph.memory({1, F, 1, 1}, {F, 1, F, F}, type);
  }

  // OHWI; of a pointwise call the matrix whose columns are the filters, or whose rows are.
  int operand(bool filters_last) {
    const int64_t F = call.filters, C = call.channels, KH = call.window.KH, KW = call.window.KW;
    if (!call.pointwise()) return graph.memory({F, C, KH, KW}, {C * KH * KW, 1, C * KW, C}, call.dtype);
    return filters_last ? graph.memory({1, C, F}, {C * F, 1, C}, call.dtype)
                        : graph.memory({1, F, C}, {C * F, C, 1}, call.dtype);
  }

  int multiplied(int a, int b, DataType type = DataType::Float) {
    return graph.pointwise(Pointwise::Mul, a, b, type);
  }

  // s of |l|/n
  int scale(int cosine) {
    if (call.power == Power::Two) return cosine;
    if (call.cos_eps != 0)
      cosine = graph.pointwise(Pointwise::Add, cosine, graph.value(call.cos_eps, dimensions()));
    return graph.pointwise(Pointwise::Pow, cosine, graph.value(call.b_minus_1, dimensions()));
  }

  int cosine(int l, int n) { return graph.pointwise(Pointwise::Div, graph.pointwise(Pointwise::Abs, l), n); }

  // What the product writes to: images of the input or of the output.
  int product(Operator of_images, int a, int b, int64_t channels, bool of_output) {
    const int like = images(channels, of_output, DataType::Float);
    const auto t = graph.tensors[like];
    graph.tensors.pop_back();
    return graph.product(call.pointwise() ? Operator::Matmul : of_images, a, b, t.sizes, t.strides);
  }

  void forward() {
    const int x = images(call.channels, false, call.dtype), w = operand(true);
    const int alpha = call.alpha ? per_filter(DataType::Float) : -1;
    const int bias = call.bias ? per_filter(call.bias_dtype) : -1;
    const int n = call.power == Power::One ? -1 : images(1, true, DataType::Float);
    int l = product(Operator::Convolution, x, w, call.filters, true);
    if (call.alpha) l = multiplied(l, alpha);
    if (call.bias) l = graph.pointwise(Pointwise::Add, l, bias);
    int y = l;
    if (call.power != Power::One) {
      // y is formed of l as it is, not of what is stored of it.
      if (call.saves_l()) graph.output(graph.pointwise(Pointwise::Identity, l), call.out_dtype);
      y = multiplied(scale(cosine(l, n)), l);
    }
    graph.output(y, call.out_dtype);
  }

  void explanation() {
    const int grad = images(call.filters, true, call.out_dtype),
              v = images(call.filters, true, call.out_dtype);
    const int n = images(1, true, DataType::Float);
    const int alpha = call.alpha ? per_filter(DataType::Float) : -1;
    const int w = operand(false);
    // |l| = sqrt(|y| n), so that s = |l|/n = sqrt(|y|/n) at b = 2
    int s = cosine(v, n);
    s = call.saves_y() ? graph.pointwise(Pointwise::Sqrt, s) : scale(s);
    int u = multiplied(grad, s, call.alpha ? DataType::Float : call.dtype);
    if (call.alpha) u = multiplied(u, alpha, call.dtype);
    graph.output(product(Operator::ConvolutionData, u, w, call.channels, false), call.dtype);
  }

  void training() {
    const int u = images(call.filters, true, call.dtype), w = operand(false);
    const int x = images(call.channels, false, call.dtype), pool = images(1, false, DataType::Float);
    const int dx = product(Operator::ConvolutionData, u, w, call.channels, false);
    graph.output(graph.pointwise(Pointwise::Add, dx, multiplied(x, pool)), call.dtype);
  }
};

}  // namespace

bool Fused::pointwise() const {
  const auto& w = window;
  return w.KH * w.KW == 1 && w.SH == 1 && w.SW == 1 && w.PH == 0 && w.PW == 0;
}

std::vector<int64_t> Fused::key() const {
  const auto& w = window;
  std::vector<int64_t> key{images, channels, filters, bits(b_minus_1), bits(cos_eps)};
  for (const int part : {w.H, w.W, w.OH, w.OW, w.KH, w.KW, w.SH, w.SW, w.PH, w.PW, w.DH, w.DW, int(step),
                         int(dtype), int(out_dtype), int(bias_dtype), int(alpha), int(bias), int(power)})
    key.push_back(part);
  return key;
}

std::string why_not(const Fused& call) {
  const auto& w = call.window;
  const int64_t most =
      std::max(call.images * call.channels * w.H * w.W, call.images * call.filters * w.OH * w.OW);
  if (most == 0) return "there are no values";
  if (most > kMostValues)
    return "a tensor has " + std::to_string(most) + " values, allowed: up to " + std::to_string(kMostValues);
  if (call.step == Step::Forward && call.power == Power::One && !call.alpha && !call.bias)
    return "b is 1 and nothing follows the product";
  if (call.step == Step::Forward) return "";
  if (call.power == Power::One) return "b is 1 and dx is the product alone";
  if (call.step == Step::Explanation && !call.pointwise())
    return "a convolution of several taps or strides takes no scale in front of the product";
  if (w.SH != 1 || w.SW != 1) return "the stride is not 1";
  if (w.DH * (w.KH - 1) < w.PH || w.DW * (w.KW - 1) < w.PW) return "the padding is wider than the kernel";
  return "";
}

Graph graph_of(const Fused& call) {
  Builder builder{call, {}};
  const auto& w = call.window;
  builder.graph.taps = {{w.SH, w.SW}, {w.PH, w.PW}, {w.DH, w.DW}};
  switch (call.step) {
    case Step::Forward:
      builder.forward();
      break;
    case Step::Explanation:
      builder.explanation();
      break;
    case Step::Training:
      builder.training();
      break;
  }
  return std::move(builder.graph);
}

}  // namespace bcos::transform::cuda
