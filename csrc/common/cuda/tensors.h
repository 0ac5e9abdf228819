// Tensors as the CUDA kernels of every op take them: pointers, dtypes and sizes. And how a kernel is started.
#pragma once

#include <c10/util/Exception.h>

#include "common/cuda/device.h"
#include "common/cuda/dtype.h"
#include "common/cuda/start.h"

namespace bcos::cuda {

Dtype dtype_of(const at::Tensor& t);

// The tensor itself where it starts at a multiple of 16 bytes, else a copy.
at::Tensor aligned(const at::Tensor& t);

// A new contiguous tensor of the type of sums over values of `like`, on its device.
at::Tensor new_sums(at::IntArrayRef shape, const at::Tensor& like);

// f of the type in which values of x are added up.
template <typename F>
void by_sums(at::ScalarType x, F&& f) {
  if (x == at::kDouble)
    f(Type<double>{});
  else
    f(Type<float>{});
}

// A size as an int; ValueError with its name where it is too large.
int narrow(const char* name, int64_t size);

inline const void* data(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr() : nullptr;
}

inline void* mutable_data(const at::Tensor& t) {
  return t.defined() ? t.mutable_data_ptr() : nullptr;
}

template <typename T>
const T* data(const at::Tensor& t) {
  return static_cast<const T*>(data(t));
}

template <typename T>
T* mutable_data(const at::Tensor& t) {
  return static_cast<T*>(mutable_data(t));
}

// Starts a kernel on the current stream. Raises RuntimeError with its name and `call.sizes()`, a text, if
// that fails.
template <typename Params, typename Call>
void launch(const char* name, cudaError_t (*kernel)(const Params&, cudaStream_t), const Params& params,
            const Call& call) {
  const cudaError_t error = error_of(start(kernel, params));
  TORCH_CHECK(error == cudaSuccess, "the CUDA kernel ", name, " failed: ", describe(error), "; ",
              call.sizes());
}

}  // namespace bcos::cuda
