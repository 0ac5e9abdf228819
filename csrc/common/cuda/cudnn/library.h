// The loaded cuDNN: its functions, its errors, and its descriptors.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "common/cuda/cudnn/api.h"

namespace bcos::cudnn {

// A status other than success, or no library that can be used; what() says what failed, with cuDNN's own
// words.
class Error : public std::runtime_error {
 public:
  Error(int status, const std::string& text) : std::runtime_error(text), status(status) {}
  int status;  // cudnnStatus_t
};

// The functions of the cuDNN that this process has loaded. Raises Error where there is none, or one whose
// version is not served; which it is does not change while the process runs.
const Api& api();

// Such as 92801 for 9.28.1.
size_t version();

// "9.28.1" of 92801
std::string spelled(size_t version);

// Raises Error with `what`, and cuDNN's message, unless `status` is success.
void check(int status, const char* what);

// A backend descriptor, destroyed with this object.
class Descriptor {
 public:
  explicit Descriptor(Kind kind);
  Descriptor(Descriptor&& other) noexcept : raw_(other.raw_) { other.raw_ = nullptr; }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor();

  Raw raw() const { return raw_; }

  void set(Attribute name, Type type, int64_t count, const void* values);
  void set(Attribute name, int64_t value) { set(name, Type::Int64, 1, &value); }
  void set(Attribute name, const std::vector<int64_t>& values) {
    set(name, Type::Int64, int64_t(values.size()), values.data());
  }
  void set(Attribute name, float value) { set(name, Type::Float, 1, &value); }
  void set(Attribute name, bool value) { set(name, Type::Boolean, 1, &value); }
  void set(Attribute name, DataType value) { set(name, Type::DataType, 1, &value); }
  void set(Attribute name, Pointwise value) { set(name, Type::PointwiseMode, 1, &value); }
  void set(Attribute name, const Descriptor& value) { set(name, Type::Descriptor, 1, &value.raw_); }
  void set(Attribute name, const std::vector<const Descriptor*>& values);
  void set_text(Attribute name, const std::string& text) {
    set(name, Type::Char, int64_t(text.size()), text.data());
  }
  void set_handle(Attribute name, Handle handle) { set(name, Type::Handle, 1, &handle); }

  // Reads at most `count` values; returns how many there are.
  int64_t get(Attribute name, Type type, int64_t count, void* values) const;
  int64_t number(Attribute name) const;
  std::string text(Attribute name) const;
  // The descriptors of this kind that the attribute holds.
  std::vector<Descriptor> descriptors(Attribute name, Kind kind) const;

  void finalize(const char* what);

 private:
  Raw raw_ = nullptr;
};

}  // namespace bcos::cudnn
