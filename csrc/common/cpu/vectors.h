// Whether the compiler has vectors of any size, whatever the CPU has: the attribute vector_size, and
// __builtin_shufflevector.
#pragma once

#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
#define BCOS_VECTORS
#endif
