// A computation as data: tensors and the operations between them. cuDNN's descriptors are made of it
// (plan.h), and its text is what a stored plan is known by.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "common/cuda/cudnn/api.h"

namespace bcos::cudnn {

using Sizes = std::vector<int64_t>;

enum class Place {
  Memory,   // an input or an output, whose address every run is given
  Virtual,  // between two operations, never stored
  Value     // a number, the same in every run
};

struct Tensor {
  Sizes sizes, strides;
  DataType type;
  Place place;
  float value = 0;  // of a Value
};

// Where the taps of a convolution lie, for each of the two axes.
struct Taps {
  std::array<int64_t, 2> stride, padding, dilation;
};

enum class Operator { Convolution, ConvolutionData, Matmul, Pointwise };

// out = a (operator) b. A convolution takes the images and the weight, that of the data the gradient at the
// output and the weight, and both are cross-correlations; `b` of a pointwise operation is -1 where its mode
// takes one operand, and broadcast where it is smaller than `a`.
struct Operation {
  Operator what;
  Pointwise mode;  // of a pointwise operation
  int a, b, out;   // places in Graph::tensors
};

class Graph {
 public:
  // They return the place of a new tensor.
  int memory(Sizes sizes, Sizes strides, DataType type) {
    return add({std::move(sizes), std::move(strides), type, Place::Memory});
  }
  int value(float value, size_t dimensions);

  // They add an operation and return its result, a virtual tensor of `type` as large as `a`.
  int pointwise(Pointwise mode, int a, int b = -1, DataType type = DataType::Float);
  int product(Operator what, int a, int b, Sizes sizes, Sizes strides);

  // Makes a result a tensor in memory, whose address every run is given, after those before it.
  void output(int tensor, DataType type);

  // The same for equal graphs alone.
  std::string text() const;

  std::vector<Tensor> tensors;
  std::vector<Operation> operations;
  Taps taps{{1, 1}, {0, 0}, {1, 1}};  // of its convolution

 private:
  int add(Tensor tensor);
};

}  // namespace bcos::cudnn
