// What Python sees of dynamic alignment units: their options as an object, and their two directions on the
// CPU.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "dynamic_alignment/glue/dynamic_alignment.h"

namespace bcos::dynamic_alignment::glue {

inline void bind(pybind11::module_ m) {
  namespace py = pybind11;
  using namespace py::literals;
  using unlocked = py::call_guard<py::gil_scoped_release>;

  py::class_<Spec>(m, "DynamicAlignmentSpec",
                   "The static options of dynamic alignment units, checked when it is made.")
      .def(py::init<const Ints&, const Ints&, const Ints&, const std::string&, bool>(), py::kw_only(),
           "kernel"_a, "stride"_a, "padding"_a, "norm"_a, "detach"_a);

  m.def("dynamic_alignment_forward", &forward, unlocked(), "x"_a, "h"_a, "weight"_a, "bias"_a, "spec"_a);
  m.def("dynamic_alignment_backward", &backward, unlocked(), "grad"_a, "x"_a, "h"_a, "weight"_a, "bias"_a,
        "norm"_a, "l"_a, "spec"_a, "needs"_a);
}

}  // namespace bcos::dynamic_alignment::glue
