// What Python gives the calls of autograd's graph, and gets from them.
#pragma once

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "common/autograd/key.h"
#include "common/autograd/recorded.h"

namespace bcos {

using OptionalTensors = std::vector<std::optional<at::Tensor>>;

inline OptionalTensors to_optional(const Tensors& tensors) {
  OptionalTensors found;
  for (const auto& t : tensors) found.push_back(given(t));
  return found;
}

inline Tensors from_optional(const OptionalTensors& tensors) {
  Tensors found;
  for (const auto& t : tensors) found.push_back(t.value_or(at::Tensor()));
  return found;
}

// The kernels as an object of Python. They are never freed, because graphs hold them without owning them;
// there are as many as there are ops with different options.
inline Kernels* kept(Kernels kernels, pybind11::function by_operators) {
  kernels.by_operators = [function = by_operators.release()](
                             const at::Tensor& grad, const Tensors& inputs, const Tensors& saved,
                             const std::vector<bool>& needs, const at::Tensor& map) {
    const pybind11::gil_scoped_acquire locked;
    const auto found = function(grad, to_optional(inputs), to_optional(saved), needs, given(map));
    return from_optional(found.cast<OptionalTensors>());
  };
  return new Kernels(std::move(kernels));
}

inline void bind_calls(pybind11::module_ m) {
  namespace py = pybind11;
  using namespace py::literals;
  py::class_<Kernels, std::unique_ptr<Kernels, py::nodelete>>(
      m, "Kernels", "How calls of an op with the same options are served without a step through Python.")
      .def("__call__",
           torch::wrap_pybind_function_no_gil([](const Kernels& kernels, const OptionalTensors& inputs) {
             return call(kernels, from_optional(inputs));
           }));
  m.def("key_of", &key_of);
  m.def("maker_of", &maker_of, py::return_value_policy::reference, "y"_a);
  m.def("leave", &leave, "y"_a, "grad"_a, "map"_a, "message"_a);
}

}  // namespace bcos
