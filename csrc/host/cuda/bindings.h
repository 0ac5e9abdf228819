// The submodule of the CUDA kernels.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <string>

#include "host/cuda/architectures.h"
#include "host/cuda/device.h"
#include "host/cuda/ops.h"

namespace bcos::host::gpu {

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
  using namespace pybind11::literals;
  using unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("forward", &forward, unlocked(), "x"_a, "weight"_a, "bias"_a, "b"_a, "geometry"_a, "formula"_a,
        "out_dtype"_a, "way"_a);
  m.def("backward", &backward, unlocked(), "grad"_a, "x"_a, "weight"_a, "b"_a, "y"_a, "n"_a, "l"_a,
        "winner"_a, "geometry"_a, "formula"_a, "explain"_a, "needs"_a, "way"_a);
  m.def("build_info", &build_info);
  m.def("why_not", &why_not);
}

}  // namespace bcos::host::gpu
