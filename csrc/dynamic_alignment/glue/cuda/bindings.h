// What Python sees of dynamic alignment units on a GPU.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "dynamic_alignment/glue/cuda/dynamic_alignment.h"

namespace bcos::dynamic_alignment::glue::cuda {

inline void bind(pybind11::module_ m) {
  using namespace pybind11::literals;
  using unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("dynamic_alignment_forward", &forward, unlocked(), "x"_a, "h"_a, "weight"_a, "bias"_a, "spec"_a,
        "tf32"_a);
  m.def("dynamic_alignment_backward", &backward, unlocked(), "grad"_a, "x"_a, "h"_a, "weight"_a, "bias"_a,
        "norm"_a, "l"_a, "spec"_a, "needs"_a, "tf32"_a, "most"_a);
}

}  // namespace bcos::dynamic_alignment::glue::cuda
