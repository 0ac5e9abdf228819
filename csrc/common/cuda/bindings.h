// What Python learns about the GPUs that the kernels were compiled for.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <string>

#include "common/cuda/architectures.h"
#include "common/cuda/cudnn/library.h"
#include "common/cuda/device.h"

namespace bcos::cuda {

inline pybind11::dict build_info() {
  pybind11::dict info;
  info["runtime"] = CUDART_VERSION;
  info["architectures"] = architectures();
  info["device"] = kDevice == c10::kCUDA ? "cuda" : "cpu";
  return info;
}

// Why the current device cannot run the kernels; empty if it can.
inline std::string why_not() {
  const cudaError_t error = usable();
  return error == cudaSuccess ? "" : describe(error);
}

// The version of the loaded cuDNN, such as "9.28.1"; RuntimeError with the reason where none can be used.
inline std::string cudnn_version() {
  return cudnn::spelled(cudnn::version());
}

inline void bind(pybind11::module_ m) {
  m.def("build_info", &build_info);
  m.def("why_not", &why_not);
  m.def("cudnn_version", &cudnn_version);
}

}  // namespace bcos::cuda
