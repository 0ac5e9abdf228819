// Checks of arguments that any op needs. A failure is a ValueError or a TypeError which names the argument,
// its value and what is allowed.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <vector>

namespace bcos {

using Ints = std::vector<int64_t>;
using Pair = std::array<int64_t, 2>;
using OptionalTensor = std::optional<at::Tensor>;

// The tensors that the kernels of a backend take.
struct Takes {
  c10::DeviceType device;
  std::vector<at::ScalarType> dtypes;
};

// An input of the backend: its device, its dtype and its number of dimensions.
void check_kind(const Takes& takes, const char* name, const at::Tensor& t, int64_t dimensions);

// An input of the backend: its device, its dtype, its number of dimensions, and no empty size but the first.
void check_input(const Takes& takes, const char* name, const at::Tensor& t, int64_t dimensions);

// Another tensor of the same call: it lies on the device of x.
void check_beside(const at::Tensor& x, const char* name, const at::Tensor& t);

// A tensor whose shape and dtype follow from the rest of the call.
void check_exactly(const at::Tensor& x, const char* name, const at::Tensor& t, at::IntArrayRef shape,
                   at::ScalarType dtype);

// The dtype of an output: x's, or float beside an x of a half type.
void check_out_dtype(const at::Tensor& x, at::ScalarType out_dtype);

void check_not_empty(const char* name, const at::Tensor& t);

// As many values as are allowed, each from `least` to 2^31-1.
void check_sizes(const char* name, at::IntArrayRef values, int64_t count, int64_t least);

// Two values from `least` to 2^31-1.
Pair checked_pair(const char* name, at::IntArrayRef values, int64_t least);

// A finite number of `least` or more.
void check_number(const char* name, double value, double least);

}  // namespace bcos
