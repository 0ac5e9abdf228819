// A call on a GPU, and how its kernels are started: the one place that fills the structs of
// transform/cuda/params.h from a Call.
#pragma once

#include "common/cuda/device.h"
#include "transform/cuda/launch.h"
#include "transform/tensors.h"

namespace bcos::transform::glue::cuda {

using namespace bcos::cuda;
namespace kernels = bcos::transform::cuda;

// Every tensor of a call on a GPU is an image; the rows of a linear layer are images of one pixel.
struct DeviceCall : Call {
  bool planes;  // images are NCHW, as the vendor's products take contiguous tensors; else they are NHWC
  bool large;   // the larger tile of the products
  bool tf32;    // products of fp32 may round their operands

  DeviceCall(const Call& call, bool planes, bool large, bool tf32);

  int64_t pixels() const { return images * out_plane(); }
  int64_t in_pixels() const { return images * in_plane(); }
  bool depthwise() const { return spec.groups > 1 && group_channels() == 1 && group_filters() == 1; }

  kernels::Window device_window() const;
  kernels::Shape device_shape() const;
  kernels::Formula device_formula(const at::Tensor& b = {}) const;  // b: fp32, or undefined
  int device_plane() const { return planes ? int(out_plane()) : 0; }
  int device_in_plane() const { return planes ? int(in_plane()) : 0; }

  at::MemoryFormat format() const {
    return planes ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
  }

  // An image tensor as the kernels take it: in `format`, without gaps, aligned. Undefined stays undefined.
  at::Tensor dense(const at::Tensor& t) const;

  // A new tensor [N, values, OH, OW] on the device of `like`.
  at::Tensor image(int64_t values, at::ScalarType dtype, const at::Tensor& like) const;
};

kernels::Dtype dtype_of(const at::Tensor& t);

// The tensor itself where it starts at a multiple of 16 bytes, else a copy.
at::Tensor aligned(const at::Tensor& t);

// A new contiguous fp32 tensor on the device of `like`.
at::Tensor floats(at::IntArrayRef shape, const at::Tensor& like);

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
void check(cudaError_t code, const char* kernel, const DeviceCall& call);

// Starts a kernel on the current stream.
template <typename Params>
void launch(const char* kernel, cudaError_t (*start)(const Params&, cudaStream_t), const Params& params,
            const DeviceCall& call) {
  check(start(params, stream()), kernel, call);
}

}  // namespace bcos::transform::glue::cuda
