// What Python learns about the GPUs that the kernels were compiled for.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <string>

#include "common/cuda/architectures.h"
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

inline void bind(pybind11::module_ m) {
  m.def("build_info", &build_info);
  m.def("why_not", &why_not);
}

}  // namespace bcos::cuda
