// What Python sees of the transform: its options as an object, and its directions on the CPU.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "common/autograd/python.h"
#include "transform/glue/directions.h"

namespace bcos::transform::glue {

inline void bind(pybind11::module_ m) {
  namespace py = pybind11;
  using namespace py::literals;

  const auto values = [](at::DimVector Spec::* member) {
    return [member](const Spec& spec) {
      return py::tuple(py::cast(Ints((spec.*member).begin(), (spec.*member).end())));
    };
  };
  py::class_<Spec>(m, "TransformSpec", "The static options of a B-cos transform, checked when it is made.")
      .def(py::init<const Ints&, const Ints&, const Ints&, const Ints&, int64_t, int64_t,
                    std::optional<double>, bool, std::pair<double, double>, double, bool, at::ScalarType>(),
           py::kw_only(), "stride"_a, "padding"_a, "dilation"_a, "border"_a = Ints(), "groups"_a, "max_out"_a,
           "b"_a, "unit"_a, "norm_eps"_a, "cos_eps"_a, "exact_two"_a, "out_dtype"_a)
      .def_property_readonly("stride", values(&Spec::stride))
      .def_property_readonly("padding", values(&Spec::padding))
      .def_property_readonly("dilation", values(&Spec::dilation))
      .def_property_readonly("border", values(&Spec::border))
      .def_readonly("groups", &Spec::groups)
      .def_readonly("max_out", &Spec::max_out)
      .def_readonly("b", &Spec::b)
      .def_readonly("unit", &Spec::unit)
      .def_property_readonly(
          "norm_eps", [](const Spec& spec) { return py::make_tuple(spec.eps_inside, spec.eps_outside); })
      .def_readonly("cos_eps", &Spec::cos_eps)
      .def_readonly("exact_two", &Spec::exact_two)
      .def_readonly("out_dtype", &Spec::out_dtype)
      .def("__repr__", [](py::handle self) {
        std::string text = "TransformSpec(";
        for (const char* name : {"stride", "padding", "dilation", "border", "groups", "max_out", "b", "unit",
                                 "norm_eps", "cos_eps", "exact_two", "out_dtype"})
          text += std::string(name) + "=" + py::repr(self.attr(name)).cast<std::string>() + ", ";
        return text.substr(0, text.size() - 2) + ")";
      });

  bind_directions<Cpu>(m);
  m.def("transform_kernels",
        [](const Spec& spec, bool saves_output, bool detached, py::function by_operators) {
          return shared(kernels(spec, saves_output, detached), std::move(by_operators));
        });
}

}  // namespace bcos::transform::glue
