// Keys of calls: what a public function decided for its arguments is kept under one.
#pragma once

#include <ATen/autocast_mode.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "common/autograd/recorded.h"

namespace bcos {

// Appends to a key; false for what has none: a value of another type, a dict that is not empty, or a tensor
// that says its sizes itself.
class Key {
 public:
  // By identity, what is held counts as the object that it is, if it cannot change, and a class as its
  // version. That takes half the time, and holds as long as somebody owns the objects.
  explicit Key(bool by_identity = false) : by_identity_(by_identity) {}

  bool add(PyObject* value) {
    if (THPVariable_CheckExact(value)) return add(THPVariable_Unpack(value));
    return add_value(value) || (THPVariable_Check(value) && add(THPVariable_Unpack(value)));
  }

  // What a dict, or an object with one, holds under these names, or that it holds nothing there. It has no
  // key where a tensor is a subclass's or the object's own, because its value may decide, or where the
  // object's class has a property of that name in its place.
  bool add_held(PyObject* holder, PyObject* names) {
    const auto dict =
        PyDict_Check(holder)
            ? pybind11::reinterpret_borrow<pybind11::object>(holder)
            : pybind11::reinterpret_steal<pybind11::object>(PyObject_GenericGetDict(holder, nullptr));
    if (!dict) throw pybind11::error_already_set();
    if (!PyTuple_Check(names)) return false;
    if (by_identity_ && !add_version(Py_TYPE(holder))) return false;
    const auto count = PyTuple_GET_SIZE(names);
    for (Py_ssize_t i = 0; i < count; i++) {
      PyObject* name = PyTuple_GET_ITEM(names, i);
      PyObject* of_class = by_identity_ ? nullptr : _PyType_Lookup(Py_TYPE(holder), name);
      if (of_class && Py_TYPE(of_class)->tp_descr_set) return false;
      PyObject* value = PyDict_GetItemWithError(dict.ptr(), name);
      if (!value && PyErr_Occurred()) throw pybind11::error_already_set();
      if (by_identity_ && (!value || is_constant(value)))
        add_object(value);
      else if (value ? !(holder == dict.ptr() ? add_exact(value) : add_value(value)) : !tag('M'))
        return false;
    }
    return true;
  }

  // What serves calls: of each value of a dict which object it is.
  bool add_identities(PyObject* dict) {
    if (!PyDict_Check(dict)) return false;
    number(PyDict_GET_SIZE(dict));
    PyObject *name = nullptr, *value = nullptr;
    for (Py_ssize_t i = 0; PyDict_Next(dict, &i, &name, &value);) raw(value);
    return true;
  }

  // A tensor of no subclass counts with whether it requires a gradient.
  bool add_exact(PyObject* value) {
    if (!THPVariable_CheckExact(value)) return add_value(value);
    const auto& t = THPVariable_Unpack(value);
    return add(t) && raw(t.requires_grad());
  }

  bool add_count(int64_t count) { return number(count); }

  bool add_strides(const at::Tensor& t) {
    for (const int64_t stride : t.strides()) number(stride);
    return true;
  }

  bool add_autocast(c10::DeviceType device) {
    if (!at::autocast::is_autocast_available(device) || !at::autocast::is_autocast_enabled(device))
      return tag('N');
    return tag('A') && raw(at::autocast::get_autocast_dtype(device));
  }

  std::string_view text() const { return {text_.data(), text_.size()}; }

  // What counts as the object that it is
  std::vector<pybind11::object> objects() const {
    std::vector<pybind11::object> found;
    for (PyObject* each : objects_) found.push_back(pybind11::reinterpret_borrow<pybind11::object>(each));
    return found;
  }

 private:
  void add_object(PyObject* value) {
    objects_.push_back(value);
    tag('P');
    raw(value);
  }

  // No other class has it, nor this one once anything of it or of its bases has changed; 0 is none.
  bool add_version(PyTypeObject* type) {
#if PY_VERSION_HEX < 0x030B0000
    if (!PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG)) return false;
#endif
    return type->tp_version_tag && raw(type->tp_version_tag);
  }

  static bool is_constant(PyObject* value) {
    if (!PyTuple_CheckExact(value))
      return value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) ||
             PyFloat_CheckExact(value) || PyUnicode_CheckExact(value);
    const auto count = PyTuple_GET_SIZE(value);
    for (Py_ssize_t i = 0; i < count; i++)
      if (!PyLong_CheckExact(PyTuple_GET_ITEM(value, i))) return false;
    return true;
  }

  bool add_value(PyObject* value) {  // of any type but a tensor
    if (value == Py_None) return tag('N');
    if (PyBool_Check(value)) return tag('B') && raw(value == Py_True);
    if (PyLong_CheckExact(value)) return add_int(value);
    if (PyFloat_CheckExact(value)) return tag('F') && raw(PyFloat_AS_DOUBLE(value));
    if (PyTuple_CheckExact(value)) return add_tuple(value);
    if (PyUnicode_CheckExact(value)) return add_text(value);
    if (PyDict_Check(value)) return PyDict_GET_SIZE(value) == 0 && tag('E');
    if (THPDtype_Check(value)) return tag('D') && raw(reinterpret_cast<THPDtype*>(value)->scalar_type);
    return false;
  }

  bool tag(char kind) {
    text_.push_back(kind);
    return true;
  }

  template <typename T>
  bool raw(T value) {
    const auto end = text_.size();
    text_.resize_for_overwrite(end + sizeof(value));
    std::memcpy(text_.data() + end, &value, sizeof(value));
    return true;
  }

  // Most numbers are small, and a short key is found in less time.
  bool number(int64_t value) {
    return value == int16_t(value) ? tag('i') && raw(int16_t(value)) : tag('I') && raw(value);
  }

  bool add_int(PyObject* value) {
    int overflows = 0;
    const long long found = PyLong_AsLongLongAndOverflow(value, &overflows);
    return !overflows && number(found);
  }

  bool add_tuple(PyObject* values) {
    const auto count = PyTuple_GET_SIZE(values);
    tag('(');
    number(count);
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
    number(count);
    text_.append(text, text + count);
    return true;
  }

  bool add(const at::Tensor& t) {
    if (!t.defined() || t.is_nested() || t.unsafeGetTensorImpl()->is_python_dispatch() ||
        t.unsafeGetTensorImpl()->has_symbolic_sizes_strides())
      return false;
    tag('T');
    number(t.dim());
    for (const int64_t size : t.sizes()) number(size);
    raw(t.scalar_type());
    raw(t.device().type());
    raw(t.device().index());
    return raw(t.layout());
  }

  static constexpr size_t kUsual = 768;  // bytes: most keys are no longer

  bool by_identity_;
  c10::SmallVector<char, kUsual> text_;
  c10::SmallVector<PyObject*, 32> objects_;
};

// The arguments of a function of Python. These functions are called too often for pybind11 to sort them.
using Arguments = c10::ArrayRef<PyObject*>;

inline pybind11::object as_bytes(const Key& key) {
  return pybind11::bytes(key.text().data(), key.text().size());
}

// A key of arguments: equal for equal types and values. The first is the dict of the backends that may serve
// the call, the second what was asked for outside of it, the third a tensor. Of a tensor count its shape,
// dtype, device and layout, and of the device the state of autocast. None where there is no key.
inline pybind11::object key_of(Arguments arguments) {
  Key key;
  if (arguments.size() < 3 || !key.add_identities(arguments[0])) return pybind11::none();
  for (PyObject* argument : arguments.slice(1))
    if (!key.add(argument)) return pybind11::none();
  PyObject* x = arguments[2];
  if (!THPVariable_Check(x) || !key.add_autocast(THPVariable_Unpack(x).device().type()))
    return pybind11::none();
  return as_bytes(key);
}

// Adds a tensor, with its strides, and what holders hold, as add_held reads it: pairs of a holder and of the
// names that count follow the tensor. A call that is followed has no key. Else the arguments, and what counts
// of a tensor, are as above.
inline bool add_call(Key& key, Arguments arguments) {
  if (arguments.size() < 3 || !key.add_identities(arguments[0]) || !key.add(arguments[1])) return false;
  PyObject* x = arguments[2];
  if (!THPVariable_CheckExact(x) || !key.add(x)) return false;
  const auto& tensor = THPVariable_Unpack(x);
  if (is_followed(tensor) || tensor.layout() != at::kStrided || !key.add_strides(tensor) ||
      !key.add_autocast(tensor.device().type()))
    return false;
  for (size_t i = 3; i + 1 < arguments.size(); i += 2)
    if (!key.add_held(arguments[i], arguments[i + 1])) return false;
  return true;
}

inline pybind11::object key_of_held(Arguments arguments) {
  Key key;
  return add_call(key, arguments) ? as_bytes(key) : pybind11::none();
}

// Whether getattr(owner, name) is `value`, as far as that can be seen in a fraction of getattr's time: the
// code of a function, what a module holds, and a function of a class without a metaclass, which is found as
// it is.
inline bool is_found(PyObject* owner, PyObject* name, PyObject* value) {
  if (!PyUnicode_CheckExact(name)) return false;
  if (PyFunction_Check(owner))
    return PyFunction_GET_CODE(owner) == value && !PyUnicode_CompareWithASCIIString(name, "__code__");
  if (PyModule_CheckExact(owner)) {
    PyObject* held = PyDict_GetItemWithError(PyModule_GetDict(owner), name);
    if (!held) PyErr_Clear();
    return held == value;
  }
  return PyFunction_Check(value) && PyType_CheckExact(owner) &&
         _PyType_Lookup(reinterpret_cast<PyTypeObject*>(owner), name) == value;
}

// Of three lists, owners, names and values: whether getattr(owner, name) == value for all of them. False
// where an owner has lost its attribute.
inline bool are_all_held(Arguments lists) {
  TORCH_CHECK_TYPE(
      lists.size() == 3 && PyList_Check(lists[0]) && PyList_Check(lists[1]) && PyList_Check(lists[2]),
      "owners, names and values: three lists are needed");
  const auto count = PyList_GET_SIZE(lists[0]);
  TORCH_CHECK_VALUE(PyList_GET_SIZE(lists[1]) == count && PyList_GET_SIZE(lists[2]) == count,
                    "owners, names and values: lists of the same length are needed");
  for (Py_ssize_t i = 0; i < count; i++) {
    PyObject *owner = PyList_GET_ITEM(lists[0], i), *name = PyList_GET_ITEM(lists[1], i),
             *value = PyList_GET_ITEM(lists[2], i);
    if (is_found(owner, name, value)) continue;
    const auto found = pybind11::reinterpret_steal<pybind11::object>(PyObject_GetAttr(owner, name));
    if (!found && PyErr_ExceptionMatches(PyExc_AttributeError)) {
      PyErr_Clear();
      return false;
    }
    const int same = found ? PyObject_RichCompareBool(found.ptr(), value, Py_EQ) : -1;
    if (same < 0) throw pybind11::error_already_set();
    if (!same) return false;
  }
  return true;
}

inline pybind11::object are_held(Arguments lists) {
  return pybind11::bool_(are_all_held(lists));
}

// How Python calls such a function.
template <pybind11::object (*function)(Arguments)>
PyObject* called(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  return function({arguments, size_t(count)}).release().ptr();
  END_HANDLE_TH_ERRORS
}

template <pybind11::object (*function)(Arguments)>
void bind_fast(pybind11::module_ m, const char* name) {
  static PyMethodDef definition{name,
                                reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&called<function>)),
                                METH_FASTCALL, nullptr};
  m.add_object(name, pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(&definition, nullptr)));
}

}  // namespace bcos
