// How Python calls the norm of a backend.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "norm/glue/norm.h"

namespace bcos::norm::glue {

template <const Backend& backend>
void bind_directions(pybind11::module_ m) {
  using namespace pybind11::literals;
  using unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("norm_forward", &forward<backend>, unlocked(), "x"_a, "weight"_a, "bias"_a, "mean"_a, "var"_a,
        "spec"_a);
  m.def("norm_backward", &backward<backend>, unlocked(), "grad"_a, "x"_a, "weight"_a, "mean"_a, "var"_a,
        "saved_mean"_a, "saved_var"_a, "dvar"_a, "spec"_a, "frozen"_a, "needs"_a, "as_map"_a);
  m.def("norm_second", &second<backend>, unlocked(), "v"_a, "grad"_a, "x"_a, "weight"_a, "mean"_a, "var"_a,
        "saved_mean"_a, "saved_var"_a, "spec"_a, "needs"_a);
}

}  // namespace bcos::norm::glue
