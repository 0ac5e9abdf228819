// What Python gives the calls of autograd's graph, and gets from them.
#pragma once

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "common/autograd/last_call.h"
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

// The tensors of a tuple in which None stands for one that is not there.
inline Tensors unpacked(const pybind11::tuple& given) {
  Tensors found;
  found.reserve(given.size());
  for (const auto& each : given) {
    TORCH_CHECK_TYPE(each.is_none() || THPVariable_Check(each.ptr()),
                     "one of the inputs is neither a tensor nor None");
    found.push_back(each.is_none() ? at::Tensor() : THPVariable_Unpack(each.ptr()));
  }
  return found;
}

// A function of Python that may be freed by a thread that does not hold the GIL, or at the end of the
// process.
inline std::shared_ptr<pybind11::function> owned(pybind11::function function) {
  return {new pybind11::function(std::move(function)), [](pybind11::function* held) {
            if (!Py_IsInitialized()) return;
            const pybind11::gil_scoped_acquire locked;
            delete held;
          }};
}

// A backward that is a function of Python: (grad, inputs, saved, needs, map) -> gradients.
inline Kernels::Backward backward_in_python(pybind11::function backward) {
  return [function = owned(std::move(backward))](const at::Tensor& grad, const Tensors& inputs,
                                                 const Tensors& saved, const std::vector<bool>& needs,
                                                 const at::Tensor& map) {
    const pybind11::gil_scoped_acquire locked;
    const auto found = (*function)(grad, to_optional(inputs), to_optional(saved), needs, given(map));
    return from_optional(found.cast<OptionalTensors>());
  };
}

// The kernels as an object of Python, which graphs own with it.
inline std::shared_ptr<Kernels> shared(Kernels kernels, pybind11::function by_operators) {
  kernels.by_operators = backward_in_python(std::move(by_operators));
  return std::make_shared<Kernels>(std::move(kernels));
}

// Kernels that functions of Python start.
inline std::shared_ptr<Kernels> started_by_python(pybind11::function forward, pybind11::function backward,
                                                  pybind11::function by_operators, size_t inputs,
                                                  size_t outputs, size_t returned, bool saves_output) {
  const auto forwards = [function = owned(std::move(forward))](const Tensors& given_inputs) {
    const pybind11::gil_scoped_acquire locked;
    return (*function)(to_optional(given_inputs)).cast<Tensors>();
  };
  return shared(
      {forwards, backward_in_python(std::move(backward)), {}, inputs, outputs, returned, saves_output},
      std::move(by_operators));
}

inline PyTypeObject* kernels_type = nullptr;  // the class of Python that holds them

// The kernels that an object of Python holds. A cast of pybind11 looks the class up in its tables first.
inline const std::shared_ptr<Kernels>& held_kernels(PyObject* object) {
  TORCH_CHECK_TYPE(Py_TYPE(object) == kernels_type, "kernels are needed");
  auto* instance = reinterpret_cast<pybind11::detail::instance*>(object);
  return instance->get_value_and_holder().holder<std::shared_ptr<Kernels>>();
}

// Kernels and a tuple of inputs -> the outputs that a caller gets, or None, as call() has them.
inline pybind11::object outputs_of(Arguments arguments) {
  TORCH_CHECK_TYPE(arguments.size() == 2 && PyTuple_Check(arguments[1]),
                   "kernels and a tuple of inputs are needed");
  const auto kernels = held_kernels(arguments[0]);
  const auto inputs = unpacked(pybind11::reinterpret_borrow<pybind11::tuple>(arguments[1]));
  std::optional<Tensors> outputs;
  {
    const pybind11::gil_scoped_release unlocked;
    outputs = call(kernels, inputs);
  }
  if (!outputs) return pybind11::none();
  pybind11::tuple found(outputs->size());
  for (size_t i = 0; i < outputs->size(); i++)
    PyTuple_SET_ITEM(found.ptr(), Py_ssize_t(i), THPVariable_Wrap(std::move((*outputs)[i])));
  return found;
}

// The first output of a module's call; None where call() has none. The inputs behind x are those of a dict
// under these names; a value that is no tensor is not there.
inline pybind11::object first_output(const std::shared_ptr<Kernels>& kernels, PyObject* x, PyObject* dict,
                                     PyObject* names) {
  Tensors inputs;
  inputs.reserve(kernels->inputs);
  inputs.push_back(THPVariable_Unpack(x));
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
    PyObject* value = PyDict_GetItemWithError(dict, PyTuple_GET_ITEM(names, i));
    inputs.push_back(value && THPVariable_Check(value) ? THPVariable_Unpack(value) : at::Tensor());
  }
  inputs.resize(kernels->inputs);
  std::optional<Tensors> outputs;
  {
    const pybind11::gil_scoped_release unlocked;
    outputs = call(kernels, inputs);
  }
  if (!outputs) return pybind11::none();
  return pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(std::move(outputs->front())));
}

// Plans, lists for are_held or None, and the arguments of key_of_held -> the first output of the kernels that
// the plans hold under that key. The first holder is the module, and the last a dict of the inputs behind x.
// Returns the key where the plans hold nothing under it, and None where there is no key, where they hold None
// and where call() has no outputs.
inline pybind11::object repeated(Arguments arguments) {
  const auto count = arguments.size();
  TORCH_CHECK_TYPE(count >= 7 && PyDict_Check(arguments[0]) && PyDict_Check(arguments[count - 2]) &&
                       PyTuple_Check(arguments[count - 1]),
                   "a dict of plans, lists or None, the arguments of a key, and a dict of inputs are needed");
  const auto of_key = arguments.slice(2);
  const auto key = key_of_held(of_key);
  if (key.is_none()) return key;
  PyObject* plan = PyDict_GetItemWithError(arguments[0], key.ptr());
  if (!plan && PyErr_Occurred()) throw pybind11::error_already_set();
  if (!plan) return key;
  if (plan == Py_None) return pybind11::none();
  const auto kernels = held_kernels(plan);
  remember(of_key[3], LastCall(of_key[3], arguments[1], of_key, kernels));
  return first_output(kernels, of_key[2], arguments[count - 2], arguments[count - 1]);
}

// A module and x -> what repeated() returned for the module's last call, computed anew, where all reads as it
// did; else None.
inline pybind11::object again(Arguments arguments) {
  TORCH_CHECK_TYPE(arguments.size() == 2, "a module and an input are needed");
  static PyObject* const kNames = Py_BuildValue("(ss)", "weight", "bias");
  const auto found = last_calls().find(arguments[0]);
  if (found == last_calls().end()) return pybind11::none();
  const Places places(arguments[0]);
  const auto kernels = found->second.kernels(places, arguments[1]);
  return kernels ? first_output(kernels, arguments[1], places[2], kNames) : pybind11::none();
}

inline void bind_calls(pybind11::module_ m) {
  namespace py = pybind11;
  using namespace py::literals;
  const py::class_<Kernels, std::shared_ptr<Kernels>> type(
      m, "Kernels", "How calls of an op with the same options are served and recorded.");
  kernels_type = reinterpret_cast<PyTypeObject*>(type.ptr());
  m.def("kernels_started_by_python", &started_by_python, "forward"_a, "backward"_a, "by_operators"_a,
        "inputs"_a, "outputs"_a, "returned"_a, "saves_output"_a);
  bind_fast<key_of>(m, "key_of");
  bind_fast<key_of_held>(m, "key_of_held");
  bind_fast<are_held>(m, "are_held");
  bind_fast<outputs_of>(m, "outputs_of");
  bind_fast<repeated>(m, "repeated");
  bind_fast<again>(m, "again");
  m.def("maker_of", &maker_of, "y"_a);
  m.def("has_hooks", &has_hooks, "y"_a);
  // it waits for a backward of y's node, which may need the GIL
  m.def("leave", &leave, py::call_guard<py::gil_scoped_release>(), "y"_a, "grad"_a, "map"_a, "message"_a);
}

}  // namespace bcos
