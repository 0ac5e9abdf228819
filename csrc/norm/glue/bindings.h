// What Python sees of the norm: its options as an object, and its two directions.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "common/autograd/python.h"
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

inline void bind(pybind11::module_ m) {
  namespace py = pybind11;
  using namespace py::literals;
  py::class_<Spec>(m, "NormSpec", "The static options of a norm, checked when it is made.")
      .def(py::init<const std::string&, int64_t, bool, double, at::ScalarType>(), py::kw_only(), "over"_a,
           "groups"_a, "centered"_a, "eps"_a, "out_dtype"_a);
  m.def("norm_kernels", [](const Spec& spec, bool detached, py::function by_operators) {
    return shared(kernels(spec, detached), std::move(by_operators));
  });
  bind_directions<kCpu>(m);
}

}  // namespace bcos::norm::glue
