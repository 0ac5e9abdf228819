// How Python calls the transform of a backend.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "transform/glue/transform.h"

namespace bcos::transform::glue {

// `names`: those of the backend's options.
template <typename Backend, typename... Options, typename... Names>
void bind_directions(pybind11::module_ m, const Names&... names) {
  using namespace pybind11::literals;
  using unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  m.def("transform_forward", &forward<Backend, Options...>, unlocked(), "x"_a, "weight"_a, "bias"_a, "b"_a,
        "spec"_a, names...);
  m.def("transform_backward", &backward<Backend, Options...>, unlocked(), "grad"_a, "x"_a, "weight"_a, "b"_a,
        "y"_a, "n"_a, "l"_a, "winner"_a, "dn"_a, "dl"_a, "map"_a, "spec"_a, "frozen"_a, "needs"_a, names...);
  m.def("transform_second", &second<Backend, Options...>, unlocked(), "v"_a, "grad"_a, "x"_a, "weight"_a,
        "y"_a, "n"_a, "l"_a, "winner"_a, "spec"_a, "frozen"_a, "detached"_a, "needs"_a, names...);
}

}  // namespace bcos::transform::glue
