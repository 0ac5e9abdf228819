// What only a GPU has: the barrier, shuffles, shared memory by byte offset, asynchronous copies, matrix
// products and the start of a kernel. Everything above is plain C++: whoever runs the kernels without a GPU,
// as the emulation in the tests does, replaces this file alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace bcos::cuda {

struct Tf32 {};  // fp32 rounded to ten bits of mantissa for a tensor core

// Sums over 2^n consecutive lanes are formed by xor masks below 2^n; all lanes of the warp take part.
template <typename A>
__device__ __forceinline__ A shuffle_xor(A value, int mask) {
  return __shfl_xor_sync(~0u, value, mask);
}

__device__ __forceinline__ void barrier() {
  __syncthreads();
}

__device__ __forceinline__ bool within(int index, int limit) {
  return unsigned(index) < unsigned(limit);
}

// The slot of a ring of STAGES that a step takes.
template <int STAGES>
__device__ __forceinline__ int stage_of(int step) {
  return unsigned(step) % STAGES;
}

__device__ __forceinline__ uint8_t* shared_bytes() {
  extern __shared__ __align__(128) uint8_t bytes[];
  return bytes;
}

// The address that copies and loads of matrices take, of a byte of shared memory.
__device__ __forceinline__ uint32_t shared_address(uint32_t at) {
  return uint32_t(__cvta_generic_to_shared(shared_bytes())) + at;
}

// The value itself, which stays in a register: the compiler would form it anew in every round of a loop.
__device__ __forceinline__ uint32_t kept(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}
template <typename T>
__device__ __forceinline__ const T* kept(const T* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

template <typename V>
__device__ __forceinline__ V shared_load(uint32_t at) {
  return *reinterpret_cast<const V*>(shared_bytes() + at);
}

template <typename V>
__device__ __forceinline__ void shared_store(uint32_t at, V value) {
  *reinterpret_cast<V*>(shared_bytes() + at) = value;
}

// 16, 8 or 4 bytes to a shared address, zeros where not inside (then `from` is not read and may point
// anywhere). Lands at wait_for_copies.
template <int BYTES = 16>
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool inside) {
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(to), "l"(from), "n"(BYTES),
                 "r"(inside ? BYTES : 0)
                 : "memory");
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Until all but the newest PENDING groups of this thread's
// copies have landed; other threads need a barrier too.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

// Four matrices of 8 rows x 16 bytes; lane i gives the shared address of row i % 8 of matrix i / 8. With
// TRANSPOSED a lane holds two neighbours of a column instead of a row (16-bit types).
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t from) {
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ uint32_t to_tf32(float value) {
  uint32_t out;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(out) : "f"(value));
  return out;
}

// c += a b: 16 x 8 from 16 x 16 and 16 x 8 (half types),
// or 16 x 8 and 8 x 8 (tf32), in the layouts of mma.sync.
#define BCOS_MMA(SHAPE, TYPES)                                            \
  asm volatile("mma.sync.aligned." SHAPE ".row.col." TYPES                \
               " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
template <typename Operand>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                            uint32_t b0, uint32_t b1) {
  BCOS_MMA("m16n8k16", "f32.bf16.bf16.f32");
}
template <>
__device__ __forceinline__ void multiply_add<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                     uint32_t b1) {
  BCOS_MMA("m16n8k16", "f32.f16.f16.f32");
}
template <>
__device__ __forceinline__ void multiply_add<Tf32>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                   uint32_t b1) {
  BCOS_MMA("m16n8k8", "f32.tf32.tf32.f32");
}
#undef BCOS_MMA

// Starts `kernel` with `shared` bytes of shared memory; the error of the setting or of the start.
template <typename... P>
cudaError_t start(void (*kernel)(P...), dim3 grid, int threads, size_t shared, cudaStream_t stream,
                  const std::common_type_t<P>&... params) {
  const auto entry = reinterpret_cast<const void*>(kernel);
  if (shared > 48 << 10) {
    const auto wanted = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (const cudaError_t error = cudaFuncSetAttribute(entry, wanted, int(shared))) return error;
  }
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&params))...};
  return cudaLaunchKernel(entry, grid, dim3(threads), arguments, shared, stream);
}

}  // namespace bcos::cuda
