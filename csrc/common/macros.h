// Portability: one spelling for code that host and device compilers share. BCOS_INLINE_BODY is BCOS_INLINE
// for a lambda, whose code would else be compiled once for the oldest CPU and called from every clone.
#pragma once

#if defined(__CUDACC__)
#define BCOS_HOST_DEVICE __host__ __device__
#define BCOS_INLINE __forceinline__
#define BCOS_INLINE_BODY
#elif defined(__GNUC__)
#define BCOS_HOST_DEVICE
#define BCOS_INLINE inline __attribute__((always_inline))
#define BCOS_INLINE_BODY __attribute__((always_inline))
#else
#define BCOS_HOST_DEVICE
#define BCOS_INLINE inline
#define BCOS_INLINE_BODY
#endif

// One binary for every x86-64: the loader picks the clone of a leaf function that this CPU runs fastest.
#if !defined(BCOS_NO_CLONES) && defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && \
    !defined(__clang__) && __GNUC__ >= 12
#define BCOS_HAS_CLONES
#define BCOS_CLONES __attribute__((flatten, target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define BCOS_CLONE_NAMES "x86-64-v4,x86-64-v3,default"
#else
#define BCOS_CLONES
#define BCOS_CLONE_NAMES "default"
#endif
