// What Python sees of the norm: its options as an object, and its two directions on the CPU.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "common/autograd/python.h"
#include "norm/glue/norm.h"

namespace bcos::norm::glue {

inline void bind(pybind11::module_ m) {
  namespace py = pybind11;
  using namespace py::literals;
  using unlocked = py::call_guard<py::gil_scoped_release>;

  py::class_<Spec>(m, "NormSpec", "The static options of a norm, checked when it is made.")
      .def(py::init<const std::string&, int64_t, bool, double, at::ScalarType>(), py::kw_only(), "over"_a,
           "groups"_a, "centered"_a, "eps"_a, "out_dtype"_a);

  m.def("norm_kernels", [](const Spec& spec, bool detached, py::function by_operators) {
    return shared(kernels(spec, detached), std::move(by_operators));
  });
  m.def("norm_forward", &forward, unlocked(), "x"_a, "weight"_a, "bias"_a, "mean"_a, "var"_a, "spec"_a);
  m.def("norm_backward", &backward, unlocked(), "grad"_a, "x"_a, "weight"_a, "mean"_a, "var"_a,
        "saved_mean"_a, "saved_var"_a, "dvar"_a, "spec"_a, "frozen"_a, "needs"_a, "as_map"_a);
  m.def("norm_second", &second, unlocked(), "v"_a, "grad"_a, "x"_a, "weight"_a, "mean"_a, "var"_a,
        "saved_mean"_a, "saved_var"_a, "spec"_a, "needs"_a);
}

}  // namespace bcos::norm::glue
