// What Python sees of the norm: its options as an object, and its two directions.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "common/autograd/python.h"
#include "norm/glue/directions.h"

namespace bcos::norm::glue {

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
