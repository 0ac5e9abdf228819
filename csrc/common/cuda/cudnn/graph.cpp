#include "common/cuda/cudnn/graph.h"

#include <sstream>

namespace bcos::cudnn {
namespace {

template <typename List>
void write(std::ostream& out, const List& list) {
  for (const auto& item : list) out << item << ',';
  out << ' ';
}

}  // namespace

int Graph::add(Tensor tensor) {
  tensors.push_back(std::move(tensor));
  return int(tensors.size()) - 1;
}

int Graph::value(float value, size_t dimensions) {
  return add({Sizes(dimensions, 1), Sizes(dimensions, 1), DataType::Float, Place::Value, value});
}

int Graph::pointwise(Pointwise mode, int a, int b, DataType type) {
  const int out = add({tensors[a].sizes, tensors[a].strides, type, Place::Virtual});
  operations.push_back({Operator::Pointwise, mode, a, b, out});
  return out;
}

int Graph::product(Operator what, int a, int b, Sizes sizes, Sizes strides) {
  const int out = add({std::move(sizes), std::move(strides), DataType::Float, Place::Virtual});
  operations.push_back({what, Pointwise::Identity, a, b, out});
  return out;
}

void Graph::output(int tensor, DataType type) {
  tensors[tensor].place = Place::Memory;
  tensors[tensor].type = type;
}

std::string Graph::text() const {
  std::ostringstream out;
  out << std::hexfloat;
  for (const auto& t : tensors) {
    out << "tensor " << int(t.place) << ' ' << int(t.type) << ' ' << t.value << ' ';
    write(out, t.sizes);
    write(out, t.strides);
  }
  for (const auto& o : operations)
    out << "operation " << int(o.what) << ' ' << int(o.mode) << ' ' << o.a << ' ' << o.b << ' ' << o.out
        << ' ';
  for (const auto* pair : {&taps.stride, &taps.padding, &taps.dilation}) write(out, *pair);
  return out.str();
}

}  // namespace bcos::cudnn
