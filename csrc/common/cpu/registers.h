// Vectors of the compiler, and such as wide as the registers of the CPU at hand, for code that keeps sums in
// them: sums in wider vectors go through memory.
#pragma once

#include <type_traits>

#include "common/macros.h"

// Whether the compiler has vectors of any size, whatever the CPU has: the attribute vector_size, and
// __builtin_shufflevector.
#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
#define BCOS_VECTORS
#endif

namespace bcos::cpu {

#if defined(__GNUC__)
template <int Lanes>
struct RegisterOf {
  typedef float type __attribute__((vector_size(sizeof(float) * Lanes), may_alias));
};
template <int Lanes>
using Register = typename RegisterOf<Lanes>::type;
#endif

#if defined(BCOS_HAS_CLONES)
template <typename F>
__attribute__((flatten, target("arch=x86-64-v4"))) void with_16_lanes(const F& body) {
  body(std::integral_constant<int, 16>{});
}
template <typename F>
__attribute__((flatten, target("arch=x86-64-v3"))) void with_8_lanes(const F& body) {
  body(std::integral_constant<int, 8>{});
}
template <typename F>
__attribute__((flatten)) void with_4_lanes(const F& body) {
  body(std::integral_constant<int, 4>{});
}

// body(lanes) with the floats of a register as a constant of the compiler. The body, a lambda that is
// BCOS_INLINE_BODY, is compiled for each CPU that BCOS_CLONES names.
template <typename F>
BCOS_INLINE void by_lanes(const F& body) {
  if (__builtin_cpu_supports("x86-64-v4")) return with_16_lanes(body);
  if (__builtin_cpu_supports("x86-64-v3")) return with_8_lanes(body);
  with_4_lanes(body);
}
#else
#if defined(__AVX512F__) || !defined(__GNUC__)
constexpr int kRegisterLanes = 16;
#elif defined(__AVX__)
constexpr int kRegisterLanes = 8;
#else
constexpr int kRegisterLanes = 4;
#endif

template <typename F>
BCOS_INLINE void by_lanes(const F& body) {
  body(std::integral_constant<int, kRegisterLanes>{});
}
#endif

}  // namespace bcos::cpu
