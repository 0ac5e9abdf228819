// One call on a GPU in the terms of csrc/cuda/params.h, and how its kernels are started.
#pragma once

#include "cuda/launch.h"
#include "host/cuda/device.h"
#include "host/params.h"

namespace bcos::host::gpu {

// Norm and scale inside the products; a kernel before own products (backward); beside the vendor's.
enum class Candidate : int64_t { OnePass, Semi, Vendor };

// How a call is served.
struct Way {
  Candidate candidate;
  bool large;  // the larger tile of the products
  bool tf32;   // fp32 products may round their operands
};

// Sizes and formula of a call; a linear layer is the 1 x 1 convolution of images of one pixel.
struct Problem {
  int64_t images, groups, group_channels, group_filters, max_out;
  bcos::Window window;
  bcos::Formula formula;
  bool linear;
  bool planes;  // NCHW: as the vendor's products take contiguous tensors; else NHWC

  Problem(const at::Tensor& x, const at::Tensor& weight, const bcos::Window& window,
          const bcos::Formula& formula, bool linear, Candidate candidate);

  int64_t taps() const { return window.kh * window.kw; }
  int64_t filters() const { return groups * group_filters; }
  int64_t outputs() const { return filters() / max_out; }
  int64_t pixels() const { return images * window.out_h * window.out_w; }
  int64_t in_pixels() const { return images * window.in_h * window.in_w; }
  bool depthwise() const { return groups > 1 && group_channels == 1 && group_filters == 1; }
  bool saves_norm() const { return formula.has_norm() && (groups == 1 || group_channels > 1); }

  cuda::Window cuda_window() const;
  cuda::Shape cuda_shape() const;
  cuda::Formula cuda_formula(const at::Tensor& b) const;  // b: fp32, or undefined

  at::MemoryFormat format() const {
    return planes ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
  }
  int plane() const { return planes ? int(window.out_h * window.out_w) : 0; }
  int in_plane() const { return planes ? int(window.in_h * window.in_w) : 0; }

  // An image tensor as the kernels take it, aligned
  at::Tensor dense(const at::Tensor& t) const;

  // A fresh [N, channels, OH, OW]
  at::Tensor image(int64_t channels, at::ScalarType dtype, const at::Tensor& like) const;
};

cuda::Dtype dtype_of(const at::Tensor& t);

// The tensor itself where it starts at a multiple of 16 bytes, else a copy.
at::Tensor aligned(const at::Tensor& t);

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

// Raises RuntimeError with the kernel's name and the call's shapes if `code` is an error.
void check(cudaError_t code, const char* kernel, const Problem& problem);

template <typename Params>
void launch(const char* kernel, cudaError_t (*start)(const Params&, cudaStream_t), const Params& params,
            const Problem& problem) {
  check(start(params, stream()), kernel, problem);
}

#define BCOS_LAUNCH(kernel, params, problem) launch(#kernel, cuda::kernel, params, problem)

}  // namespace bcos::host::gpu
