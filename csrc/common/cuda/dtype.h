// The element types of the CUDA kernels.
#pragma once

namespace bcos::cuda {

enum class Dtype : int { Float32, Float16, BFloat16 };

// Whether this is one of the three. Kernels that read a dtype at run time do not check it: their launchers
// do.
constexpr bool is_known(Dtype dtype) {
  return dtype == Dtype::Float32 || dtype == Dtype::Float16 || dtype == Dtype::BFloat16;
}

// Whether an output may have dtype `out` beside an input of `dtype`: the same, or fp32.
constexpr bool is_output_of(Dtype dtype, Dtype out) {
  return is_known(dtype) && (out == dtype || out == Dtype::Float32);
}

}  // namespace bcos::cuda
