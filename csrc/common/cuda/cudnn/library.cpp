#include "common/cuda/cudnn/library.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace bcos::cudnn {

std::string spelled(size_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

namespace {

constexpr size_t kOldest = 91000,
                 kBeyond = 100000;  // 9.10.0, the oldest that goes with the torch that we take; 10.0.0

struct Loaded {
  Api api;
  size_t version = 0;
  std::string why_not;  // empty where the functions can be called

  Loaded() { why_not = load(); }

 private:
#if defined(_WIN32)
  std::string load() { return "cuDNN's graphs are not built on Windows"; }
#else
  std::string load() {
    const char* name = "libcudnn.so.9";  // the name of version 9 in every wheel and package
    void* library = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) library = dlopen(name, RTLD_NOW);
    if (library == nullptr) return std::string("cuDNN is not there: ") + dlerror();
#define BCOS_CUDNN_LOAD(function, result, arguments)                                       \
  api.function = reinterpret_cast<result(*) arguments>(dlsym(library, "cudnn" #function)); \
  if (api.function == nullptr) return std::string("cuDNN lacks the function cudnn" #function " in ") + name;
    BCOS_CUDNN_FUNCTIONS(BCOS_CUDNN_LOAD)
#undef BCOS_CUDNN_LOAD
    version = api.GetVersion();
    if (version < kOldest || version >= kBeyond)
      return "cuDNN is version " + spelled(version) + ", allowed: from " + spelled(kOldest) + " to below " +
             spelled(kBeyond);
    return "";
  }
#endif
};

const Loaded& loaded() {
  static const Loaded found;
  if (!found.why_not.empty()) throw Error(kNotSupported, found.why_not);
  return found;
}

}  // namespace

const Api& api() {
  return loaded().api;
}

size_t version() {
  return loaded().version;
}

void check(int status, const char* what) {
  if (status == kSuccess) return;
  char message[1024] = "";
  api().GetLastErrorString(message, sizeof(message));
  throw Error(status, "cuDNN " + spelled(version()) + ", " + what + ": status " + std::to_string(status) +
                          (message[0] ? std::string(", ") + message : ""));
}

Descriptor::Descriptor(Kind kind) {
  check(api().BackendCreateDescriptor(kind, &raw_), "making a descriptor");
}

Descriptor::~Descriptor() {
  if (raw_ != nullptr) api().BackendDestroyDescriptor(raw_);
}

void Descriptor::set(Attribute name, Type type, int64_t count, const void* values) {
  const int status = api().BackendSetAttribute(raw_, name, type, count, values);
  if (status != kSuccess) check(status, ("setting attribute " + std::to_string(int(name))).c_str());
}

void Descriptor::set(Attribute name, const std::vector<const Descriptor*>& values) {
  std::vector<Raw> raws;
  for (const auto* value : values) raws.push_back(value->raw_);
  set(name, Type::Descriptor, int64_t(raws.size()), raws.data());
}

int64_t Descriptor::get(Attribute name, Type type, int64_t count, void* values) const {
  int64_t found = 0;
  const int status = api().BackendGetAttribute(raw_, name, type, count, &found, values);
  if (status != kSuccess) check(status, ("reading attribute " + std::to_string(int(name))).c_str());
  return found;
}

int64_t Descriptor::number(Attribute name) const {
  int64_t value = 0;
  get(name, Type::Int64, 1, &value);
  return value;
}

std::string Descriptor::text(Attribute name) const {
  std::string value(size_t(get(name, Type::Char, 0, nullptr)), '\0');
  value.resize(size_t(get(name, Type::Char, int64_t(value.size()), value.data())));
  return value;
}

std::vector<Descriptor> Descriptor::descriptors(Attribute name, Kind kind) const {
  std::vector<Descriptor> found;
  std::vector<Raw> raws;
  const int64_t count = get(name, Type::Descriptor, 0, nullptr);
  for (int64_t i = 0; i < count; i++) {
    found.emplace_back(kind);
    raws.push_back(found.back().raw_);
  }
  const int64_t filled = count == 0 ? 0 : get(name, Type::Descriptor, count, raws.data());
  while (int64_t(found.size()) > filled) found.pop_back();
  return found;
}

void Descriptor::finalize(const char* what) {
  check(api().BackendFinalize(raw_), what);
}

}  // namespace bcos::cudnn
