// Graphs as the stand-in for cuDNN holds them: as text, and run on the CPU in fp32 with sums in fp64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "common/cuda/cudnn/api.h"

namespace mock {

using namespace bcos::cudnn;

struct Tensor {
  int64_t id, is_virtual, is_value, type;
  std::vector<int64_t> sizes, strides;

  int64_t count() const {
    int64_t n = 1;
    for (const int64_t size : sizes) n *= size;
    return n;
  }
  int64_t offset(int64_t index) const {
    int64_t at = 0;
    for (size_t i = sizes.size(); i-- > 0; index /= sizes[i]) at += index % sizes[i] * strides[i];
    return at;
  }
};

struct Operation {
  int64_t kind, mode;
  std::vector<int64_t> ids;   // of a, b or 0, and the output
  std::vector<int64_t> taps;  // stride, padding, dilation
};

struct Graph {
  std::vector<Tensor> tensors;
  std::vector<Operation> operations;

  const Tensor& tensor(int64_t id) const {
    return *std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& t) { return t.id == id; });
  }
};

// ---- graphs as text

inline void write(std::ostream& out, const std::vector<int64_t>& list) {
  out << list.size() << ' ';
  for (const int64_t item : list) out << item << ' ';
}

inline bool read(std::istream& in, std::vector<int64_t>& list) {
  size_t count = 0;
  if (!(in >> count) || count > 64) return false;
  list.resize(count);
  for (auto& item : list) in >> item;
  return bool(in);
}

inline std::string text_of(const Graph& graph) {
  std::ostringstream out;
  out << "{plan " << graph.tensors.size() << ' ' << graph.operations.size() << ' ';
  for (const auto& t : graph.tensors) {
    write(out, {t.id, t.is_virtual, t.is_value, t.type});
    write(out, t.sizes);
    write(out, t.strides);
  }
  for (const auto& o : graph.operations) {
    write(out, {o.kind, o.mode});
    write(out, o.ids);
    write(out, o.taps);
  }
  out << '}';
  return out.str();
}

inline bool read_graph(const std::string& text, Graph& graph) {
  std::istringstream in(text);
  std::string start, end;
  size_t tensors = 0, operations = 0;
  in >> start >> tensors >> operations;
  if (!in || start != "{plan") return false;
  std::vector<int64_t> facts;
  for (size_t i = 0; i < tensors; i++) {
    Tensor t{};
    if (!read(in, facts) || facts.size() != 4 || !read(in, t.sizes) || !read(in, t.strides)) return false;
    t.id = facts[0], t.is_virtual = facts[1], t.is_value = facts[2], t.type = facts[3];
    graph.tensors.push_back(t);
  }
  for (size_t i = 0; i < operations; i++) {
    Operation o{};
    if (!read(in, facts) || facts.size() != 2 || !read(in, o.ids) || !read(in, o.taps)) return false;
    o.kind = facts[0], o.mode = facts[1];
    graph.operations.push_back(o);
  }
  return bool(in >> end) && end == "}";
}

// ---- numbers in memory

inline float bfloat(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline uint16_t bfloat_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return 0x7fc0;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float load(const void* from, int64_t at, int64_t type) {
  if (type == int(DataType::Float)) return static_cast<const float*>(from)[at];
  if (type == int(DataType::Half)) return float(static_cast<const _Float16*>(from)[at]);
  return bfloat(static_cast<const uint16_t*>(from)[at]);
}

inline void store(void* to, int64_t at, int64_t type, float value) {
  if (type == int(DataType::Float))
    static_cast<float*>(to)[at] = value;
  else if (type == int(DataType::Half))
    static_cast<_Float16*>(to)[at] = _Float16(value);
  else
    static_cast<uint16_t*>(to)[at] = bfloat_of(value);
}

inline float rounded(float value, int64_t type) {
  if (type == int(DataType::Half)) return float(_Float16(value));
  return type == int(DataType::BFloat16) ? bfloat(bfloat_of(value)) : value;
}

// ---- running a graph

inline float applied(int64_t mode, float a, float b) {
  switch (Pointwise(mode)) {
    case Pointwise::Add:
      return a + b;
    case Pointwise::Mul:
      return a * b;
    case Pointwise::Sqrt:
      return std::sqrt(a);
    case Pointwise::Div:
      return a / b;
    case Pointwise::Pow:
      return std::pow(a, b);
    case Pointwise::Abs:
      return std::fabs(a);
    case Pointwise::Identity:
      return a;
  }
  return NAN;
}

using Results = std::map<int64_t, std::vector<float>>;

inline void pointwise(const Graph& graph, const Operation& o, Results& results) {
  const auto& out = graph.tensor(o.ids[2]);
  const auto& a = results[o.ids[0]];
  auto& y = results[out.id];
  for (int64_t i = 0; i < out.count(); i++) {
    float second = 0;
    if (o.ids[1] != 0) {
      const auto& b = graph.tensor(o.ids[1]);
      int64_t at = 0, step = 1, rest = i;
      for (size_t d = out.sizes.size(); d-- > 0; rest /= out.sizes[d], step *= b.sizes[d])
        if (b.sizes[d] != 1) at += rest % out.sizes[d] * step;
      second = results[b.id][at];
    }
    y[i] = applied(o.mode, a[i], second);
  }
}

inline void matmul(const Graph& graph, const Operation& o, Results& results) {
  const auto &a = graph.tensor(o.ids[0]), &b = graph.tensor(o.ids[1]);
  const int64_t M = a.sizes[1], K = a.sizes[2], N = b.sizes[2];
  for (int64_t m = 0; m < M; m++)
    for (int64_t n = 0; n < N; n++) {
      double sum = 0;
      for (int64_t k = 0; k < K; k++) sum += double(results[a.id][m * K + k]) * results[b.id][k * N + n];
      results[o.ids[2]][m * N + n] = float(sum);
    }
}

// Forward, or the gradient at the images: the same walk over the taps, with the two images exchanged.
inline void convolution(const Graph& graph, const Operation& o, Results& results, bool forward) {
  const auto &images = graph.tensor(o.ids[forward ? 0 : 2]), &w = graph.tensor(o.ids[1]);
  const auto& outputs = graph.tensor(o.ids[forward ? 2 : 0]);
  const auto &x = results[images.id], &weight = results[w.id], &g = results[outputs.id];
  const int64_t C = w.sizes[1], F = w.sizes[0], KH = w.sizes[2], KW = w.sizes[3], H = images.sizes[2],
                W = images.sizes[3], OH = outputs.sizes[2], OW = outputs.sizes[3];
  std::vector<double> sums(size_t(graph.tensor(o.ids[2]).count()));
  for (int64_t n = 0; n < images.sizes[0]; n++)
    for (int64_t f = 0; f < F; f++)
      for (int64_t p = 0; p < OH * OW; p++)
        for (int64_t tap = 0; tap < KH * KW; tap++) {
          const int64_t h = p / OW * o.taps[0] - o.taps[2] + tap / KW * o.taps[4];
          const int64_t v = p % OW * o.taps[1] - o.taps[3] + tap % KW * o.taps[5];
          if (h < 0 || h >= H || v < 0 || v >= W) continue;
          const int64_t at = (n * F + f) * OH * OW + p;
          for (int64_t c = 0; c < C; c++) {
            const int64_t in = ((n * C + c) * H + h) * W + v;
            const double factor = weight[(f * C + c) * KH * KW + tap];
            forward ? sums[at] += factor * x[in] : sums[in] += factor * g[at];
          }
        }
  std::transform(sums.begin(), sums.end(), results[o.ids[2]].begin(), [](double sum) { return float(sum); });
}

inline void run(const Graph& graph, const std::map<int64_t, void*>& addresses) {
  Results results;
  for (const auto& t : graph.tensors) {
    auto& values = results[t.id];
    values.assign(size_t(t.count()), NAN);
    bool is_input = !t.is_virtual;
    for (const auto& o : graph.operations) is_input = is_input && o.ids[2] != t.id;
    for (int64_t i = 0; is_input && i < t.count(); i++)
      values[i] = load(addresses.at(t.id), t.offset(i), t.type);
  }
  for (const auto& o : graph.operations) {
    if (o.kind == int(Kind::OperationPointwise)) pointwise(graph, o, results);
    if (o.kind == int(Kind::OperationMatmul)) matmul(graph, o, results);
    if (o.kind == int(Kind::ConvolutionForward)) convolution(graph, o, results, true);
    if (o.kind == int(Kind::ConvolutionBackwardData)) convolution(graph, o, results, false);
    const auto& out = graph.tensor(o.ids[2]);
    for (int64_t i = 0; i < out.count(); i++) {
      float& value = results[out.id][i];
      value = rounded(value, out.type);
      if (!out.is_virtual) store(addresses.at(out.id), out.offset(i), out.type, value);
    }
  }
}

}  // namespace mock
