// What the last call of a module read. A call that reads the same takes one step from Python to the kernels.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/autograd/key.h"

namespace bcos {

// A module, its linear part, or else the module again, and the dict of that part's parameters.
class Places {
 public:
  explicit Places(PyObject* module) {
    static PyObject *const kModules = PyUnicode_InternFromString("_modules"),
                           *const kLinear = PyUnicode_InternFromString("linear"),
                           *const kParameters = PyUnicode_InternFromString("_parameters");
    module_dict_ = dict_of(module);
    PyObject* parts = item(module_dict_.ptr(), kModules);
    if (!parts) return;
    parts_ = PyDict_GET_SIZE(parts);
    PyObject* linear = item(parts, kLinear);
    if (!linear) linear = module;
    linear_dict_ = dict_of(linear);
    if (PyObject* parameters = item(linear_dict_.ptr(), kParameters)) places_ = {module, linear, parameters};
  }

  bool are_found() const { return places_[2]; }
  int64_t parts() const { return parts_; }
  PyObject* operator[](size_t i) const { return places_[i]; }

  // Which of them this is; their number where it is none.
  size_t index(PyObject* holder) const {
    return size_t(std::find(places_.begin(), places_.end(), holder) - places_.begin());
  }

 private:
  static pybind11::object dict_of(PyObject* holder) {
    auto dict = pybind11::reinterpret_steal<pybind11::object>(PyObject_GenericGetDict(holder, nullptr));
    if (!dict) throw pybind11::error_already_set();
    return dict;
  }

  static PyObject* item(PyObject* dict, PyObject* name) {
    PyObject* found = PyDict_Check(dict) ? PyDict_GetItemWithError(dict, name) : nullptr;
    if (!found && PyErr_Occurred()) throw pybind11::error_already_set();
    return found;
  }

  pybind11::object module_dict_, linear_dict_;
  int64_t parts_ = 0;
  std::array<PyObject*, 3> places_{};
};

class LastCall {
 public:
  LastCall() = default;

  // Of a call of `module`: three lists, as are_held takes them, or None; the arguments of its key; and the
  // kernels that served it. The module and its parts are not owned: another one has the same key only where
  // it reads alike.
  LastCall(PyObject* module, PyObject* watched, Arguments call, std::shared_ptr<Kernels> kernels)
      : watched_(own(watched)), kernels_(std::move(kernels)) {
    const Places places(module);
    for (size_t i = 0; i < call.size(); i++) {
      const size_t place = i < 3 ? kPlaces : places.index(call[i]);
      const bool varies = i == 2 || place < kPlaces;
      call_.emplace_back(place, own(varies ? nullptr : call[i]));
    }
    Key key(true);
    if (!add(key, places, call[2])) return;
    text_ = key.text();
    objects_ = key.objects();
  }

  // The kernels, where a call of the module with x reads what this one did; else null.
  std::shared_ptr<Kernels> kernels(const Places& places, PyObject* x) const {
    Key key(true);
    if (text_.empty() || !add(key, places, x) || key.text() != text_) return nullptr;
    auto found = kernels_;
    const auto watched = watched_;  // to look there may run code that replaces this object
    return !watched || are_all_held({PySequence_Fast_ITEMS(watched.ptr()), 3}) ? found : nullptr;
  }

 private:
  static constexpr size_t kPlaces = 3;

  static pybind11::object own(PyObject* object) {
    return pybind11::reinterpret_borrow<pybind11::object>(object == Py_None ? nullptr : object);
  }

  bool add(Key& key, const Places& places, PyObject* x) const {
    if (!places.are_found()) return false;
    c10::SmallVector<PyObject*, 16> call;
    for (const auto& [place, object] : call_) call.push_back(place < kPlaces ? places[place] : object.ptr());
    call[2] = x;
    return add_call(key, call) && key.add_count(places.parts());
  }

  pybind11::object watched_;
  std::vector<std::pair<size_t, pybind11::object>> call_;  // a place, or what stands there in every call
  std::string text_;
  std::vector<pybind11::object> objects_;  // that the text names by their address
  std::shared_ptr<Kernels> kernels_;
};

// That of each module
inline std::unordered_map<PyObject*, LastCall>& last_calls() {
  static auto& all = *new std::unordered_map<PyObject*, LastCall>;  // Python may end before it
  return all;
}

inline void remember(PyObject* module, LastCall call) {
  constexpr size_t kMost = 4096;
  // To destroy one may run code that remembers another.
  std::unordered_map<PyObject*, LastCall> displaced;
  if (last_calls().size() >= kMost) displaced.swap(last_calls());
  std::swap(last_calls()[module], call);
}

}  // namespace bcos
