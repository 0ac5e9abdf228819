// Element types of the CPU kernels: T of the input, U of the output, A of the sums.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>

#include <type_traits>

#include "common/dtype.h"
#include "common/macros.h"
#include "common/power.h"

namespace bcos::cpu {

template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A sum as an element of a tensor, rounded to nearest even as the constructor of BFloat16 rounds, whose
// branch for NaN would keep a loop from using vectors.
template <typename T, typename A>
BCOS_INLINE T rounded(A value) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    static_assert(std::is_same_v<A, float>, "BFloat16 is rounded once, from the type of sums");
    const auto bits = bits_of<uint32_t>(value);
    const uint32_t nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return T(uint16_t(value != value ? 0x7FC0 : nearest), T::from_bits());
  } else {
    return T(value);
  }
}

// Calls body(T{}) with the element type of t.
template <typename F>
void with_type(at::ScalarType t, F&& body) {
  if (t == at::kDouble) {
    body(double{});
  } else if (t == at::kBFloat16) {
    body(c10::BFloat16{});
  } else {
    TORCH_CHECK(t == at::kFloat, "the CPU kernels have no dtype ", t, ", only float, double and bfloat16");
    body(float{});
  }
}

// Calls body(T{}, U{}) for the input and output types that the checks let through.
template <typename F>
void with_types(at::ScalarType in, at::ScalarType out, F&& body) {
  if (in == at::kBFloat16 && out == at::kFloat) {
    body(c10::BFloat16{}, float{});
  } else {
    TORCH_CHECK(in == out, "the CPU kernels have no output of ", out, " for an input of ", in);
    with_type(in, [&](auto t) { body(t, t); });
  }
}

// Calls body(p) with the values of a tensor whose sums have the type A.
template <typename A, typename F>
void with_values(const at::Tensor& t, F&& body) {
  if constexpr (std::is_same_v<A, double>) {
    body(t.const_data_ptr<double>());
  } else if (t.scalar_type() == at::kBFloat16) {
    body(t.const_data_ptr<c10::BFloat16>());
  } else {
    body(t.const_data_ptr<float>());
  }
}

// p + i, and null for a tensor that the formula does not have
template <typename T>
BCOS_INLINE T* shift(T* p, int64_t i) {
  return p ? p + i : p;
}

template <typename T>
const T* pointer(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<T>() : nullptr;
}

template <typename T>
T* mutable_pointer(const at::Tensor& t) {
  return t.defined() ? t.mutable_data_ptr<T>() : nullptr;
}

}  // namespace bcos::cpu
