// Keys of calls: what a public function decided for its arguments is kept under one.
#pragma once

#include <ATen/autocast_mode.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>

namespace bcos {

// Appends to a key; false for what has none: a value of another type, or a tensor that says its sizes itself.
class Key {
 public:
  bool add(PyObject* value) {
    if (value == Py_None) return tag('N');
    if (PyBool_Check(value)) return tag('B') && raw(value == Py_True);
    if (PyLong_CheckExact(value)) return add_int(value);
    if (PyFloat_CheckExact(value)) return tag('F') && raw(PyFloat_AS_DOUBLE(value));
    if (PyTuple_CheckExact(value)) return add_tuple(value);
    if (PyUnicode_CheckExact(value)) return add_text(value);
    if (THPVariable_Check(value)) return add(THPVariable_Unpack(value));
    if (THPDtype_Check(value)) return tag('D') && raw(reinterpret_cast<THPDtype*>(value)->scalar_type);
    return false;
  }

  bool add_autocast(c10::DeviceType device) {
    if (!at::autocast::is_autocast_available(device) || !at::autocast::is_autocast_enabled(device))
      return tag('N');
    return tag('A') && raw(at::autocast::get_autocast_dtype(device));
  }

  pybind11::bytes bytes() const { return {text_.data(), text_.size()}; }

 private:
  bool tag(char kind) {
    text_.push_back(kind);
    return true;
  }

  template <typename T>
  bool raw(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return true;
  }

  bool add_int(PyObject* value) {
    int overflows = 0;
    const long long number = PyLong_AsLongLongAndOverflow(value, &overflows);
    return !overflows && tag('I') && raw(number);
  }

  bool add_tuple(PyObject* values) {
    const auto count = PyTuple_GET_SIZE(values);
    tag('(');
    raw(count);
    for (Py_ssize_t i = 0; i < count; i++)
      if (!add(PyTuple_GET_ITEM(values, i))) return false;
    return true;
  }

  bool add_text(PyObject* value) {
    Py_ssize_t count = 0;
    const char* text = PyUnicode_AsUTF8AndSize(value, &count);
    if (!text) {
      PyErr_Clear();
      return false;
    }
    tag('S');
    raw(count);
    text_.append(text, size_t(count));
    return true;
  }

  bool add(const at::Tensor& t) {
    if (!t.defined() || t.is_nested() || t.unsafeGetTensorImpl()->is_python_dispatch() ||
        t.unsafeGetTensorImpl()->has_symbolic_sizes_strides())
      return false;
    tag('T');
    raw(t.dim());
    for (const int64_t size : t.sizes()) raw(size);
    raw(t.scalar_type());
    raw(t.device().type());
    raw(t.device().index());
    return raw(t.layout());
  }

  std::string text_;
};

// A key of the arguments, of which the first is a tensor: equal for equal types and values. Of a tensor count
// its shape, dtype, device and layout, and of the device the state of autocast. None where there is no key.
inline pybind11::object key_of(const pybind11::args& arguments) {
  Key key;
  for (const auto& argument : arguments)
    if (!key.add(argument.ptr())) return pybind11::none();
  PyObject* first = arguments.empty() ? Py_None : arguments[0].ptr();
  if (!THPVariable_Check(first) || !key.add_autocast(THPVariable_Unpack(first).device().type()))
    return pybind11::none();
  return key.bytes();
}

}  // namespace bcos
