// Stands in for libcudnn.so.9 in tests: it counts calls, runs graphs on the CPU, and refuses or fails where a
// test says so by mock_set. It is stricter than cuDNN: what is against cuDNN's rules is an error here, also
// where cuDNN is silent.
//
// A plan's text holds the whole graph, so that another process can restore and run it.
#include <dlfcn.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <set>

#include "graph.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace mock;

constexpr int kBadParam = 2000, kExecutionFailed = 5000;

std::recursive_mutex entering;
std::map<std::string, int64_t> settings;  // what a test set
std::map<std::string, int64_t> calls;
thread_local std::string message;

int fail(int status, const std::string& text) {
  message = text;
  return status;
}

int64_t setting(const std::string& name, int64_t usual = 0) {
  const auto found = settings.find(name);
  return found == settings.end() ? usual : found->second;
}

struct Object {
  explicit Object(Kind kind) : kind(kind) {}

  Kind kind;
  bool finalized = false;
  std::map<int, std::vector<int64_t>> numbers;
  std::map<int, std::vector<Object*>> objects;
  std::map<int, std::vector<void*>> pointers;
  std::map<int, std::string> texts;
  Graph graph;     // of a graph, and of what is made of it
  int config = 0;  // which of the heuristic's answers it is

  int64_t number(Attribute name) const {
    const auto found = numbers.find(int(name));
    return found == numbers.end() || found->second.empty() ? 0 : found->second[0];
  }
  const Object* object(Attribute name) const {
    const auto found = objects.find(int(name));
    return found == objects.end() ? nullptr : found->second[0];
  }
  std::vector<int64_t> list(Attribute name) const {
    const auto found = numbers.find(int(name));
    return found == numbers.end() ? std::vector<int64_t>() : found->second;
  }
};

std::set<Object*> alive;
std::map<void*, Stream> handles;

Object* known(Raw raw) {
  auto* object = static_cast<Object*>(raw);
  return alive.count(object) ? object : nullptr;
}

mock::Tensor tensor_of(const Object& o) {
  return {o.number(Attribute::TensorId),        o.number(Attribute::TensorIsVirtual),
          o.number(Attribute::TensorIsByValue), o.number(Attribute::TensorDataType),
          o.list(Attribute::TensorSizes),       o.list(Attribute::TensorStrides)};
}

// The attributes that hold an operation's a, b and output, and its details.
std::vector<Attribute> ends_of(Kind kind) {
  if (kind == Kind::ConvolutionForward)
    return {Attribute::ForwardX, Attribute::ForwardWeight, Attribute::ForwardY,
            Attribute::ForwardConvolution};
  if (kind == Kind::ConvolutionBackwardData)
    return {Attribute::BackwardDataDy, Attribute::BackwardDataWeight, Attribute::BackwardDataDx,
            Attribute::BackwardDataConvolution};
  if (kind == Kind::OperationMatmul)
    return {Attribute::MatmulA, Attribute::MatmulB, Attribute::MatmulC, Attribute::MatmulDescriptor};
  return {Attribute::PointwiseX, Attribute::PointwiseB, Attribute::PointwiseY, Attribute::OperationPointwise};
}

// The rules of cuDNN's fusions for one operation; empty where it keeps them.
std::string broken_rule(const Graph& graph, const mock::Operation& o) {
  const auto &a = graph.tensor(o.ids[0]), &out = graph.tensor(o.ids[2]);
  if (o.kind == int(Kind::OperationPointwise))
    return a.sizes == out.sizes ? "" : "the first input of a pointwise operation is broadcast";
  if (a.is_virtual && a.type == int(DataType::Float) && graph.tensor(o.ids[1]).type != a.type)
    return "a virtual operand of a product has another type than the other operand";
  if (a.type != graph.tensor(o.ids[1]).type) return "the operands of a product have different types";
  return "";
}

int make_graph(Object& o) {
  std::set<int64_t> ids;
  for (const auto* operation : o.objects[int(Attribute::GraphOperations)]) {
    mock::Operation made{int64_t(operation->kind), 0, {}, {}};
    const auto ends = ends_of(operation->kind);
    for (int i = 0; i < 3; i++) {
      const auto* end = operation->object(ends[i]);
      made.ids.push_back(end ? end->number(Attribute::TensorId) : 0);
      if (end && ids.insert(made.ids.back()).second) o.graph.tensors.push_back(tensor_of(*end));
    }
    const auto* details = operation->object(ends[3]);
    made.mode = details->number(Attribute::PointwiseMode);
    for (const auto name :
         {Attribute::ConvolutionStrides, Attribute::ConvolutionPrePaddings, Attribute::ConvolutionDilations})
      for (const int64_t number : details->list(name)) made.taps.push_back(number);
    o.graph.operations.push_back(made);
    if (auto rule = broken_rule(o.graph, made); !rule.empty()) return fail(kBadParam, rule);
  }
  return kSuccess;
}

int finalize(Object& o) {
  switch (o.kind) {
    case Kind::Tensor: {
      const auto t = tensor_of(o);
      if (t.id == 0 || t.sizes.empty() || t.sizes.size() != t.strides.size() ||
          o.number(Attribute::TensorAlignment) != 16)
        return fail(kBadParam, "a tensor is described badly");
      return kSuccess;
    }
    case Kind::ConvolutionForward:
    case Kind::ConvolutionBackwardData:
    case Kind::OperationMatmul:
    case Kind::OperationPointwise:
      for (const int i : {0, 2, 3}) {
        const auto* end = o.object(ends_of(o.kind)[i]);
        if (end == nullptr || !end->finalized) return fail(kBadParam, "an operation lacks an end");
      }
      return kSuccess;
    case Kind::OperationGraph:
      return make_graph(o);
    case Kind::Heuristic:
      if (setting("refuse_graph")) return fail(kNotSupported, "the mock refuses this graph");
      o.graph = o.object(Attribute::HeuristicGraph)->graph;
      return kSuccess;
    case Kind::Plan:
      if (const auto& json = o.texts[int(Attribute::PlanJson)]; !json.empty())
        return read_graph(json, o.graph) ? kSuccess : fail(kNotSupported, "the text is no plan");
      if (o.object(Attribute::PlanEngineConfig)->config < setting("refused_configs"))
        return fail(kNotSupported, "the mock refuses this engine");
      o.graph = o.object(Attribute::PlanEngineConfig)->graph;
      return kSuccess;
    default:
      return kSuccess;
  }
}

std::string device_text() {
  return "{\"cudaDeviceId\":" + std::to_string(setting("place")) + ",\"deviceName\":\"mock " +
         std::to_string(setting("device")) + "\"}";
}

// A list of values as the attribute's type has them.
std::vector<int64_t> numbers_of(Type type, int64_t count, const void* values) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < count; i++) {
    if (type == Type::Int64)
      out.push_back(static_cast<const int64_t*>(values)[i]);
    else if (type == Type::Boolean)
      out.push_back(static_cast<const bool*>(values)[i]);
    else
      out.push_back(static_cast<const int*>(values)[i]);
  }
  return out;
}

// Runs a graph now, and again where a stand-in for the CUDA runtime records it. Values are those of this
// call, as cuDNN reads them when it is called; memory is read when the graph runs.
void start(const Graph& graph, std::map<int64_t, void*> addresses, Stream stream) {
  std::map<int64_t, std::vector<char>> values;
  for (const auto& t : graph.tensors) {
    const auto* const from = t.is_value ? static_cast<const char*>(addresses.at(t.id)) : nullptr;
    if (from != nullptr) values[t.id].assign(from, from + (t.type == int(DataType::Float) ? 4 : 2));
  }
  const std::function<void()> work = [graph, addresses, values]() mutable {
    for (auto& [id, bytes] : values) addresses[id] = bytes.data();
    run(graph, addresses);
  };
  using Enqueue = void(Stream, const std::function<void()>&);
  static auto* const enqueue = reinterpret_cast<Enqueue*>(dlsym(RTLD_DEFAULT, "stand_in_enqueue"));
  enqueue == nullptr ? work() : enqueue(stream, work);
}

int execute(const Object& plan, const Object& pack, Stream stream) {
  if (setting("fail_run")) return fail(kExecutionFailed, "the mock fails to run");
  const auto ids = pack.list(Attribute::VariantPackIds);
  const auto& pointers = pack.pointers.at(int(Attribute::VariantPackPointers));
  const auto* workspace = pack.pointers.at(int(Attribute::VariantPackWorkspace))[0];
  if (ids.size() != pointers.size()) return fail(kBadParam, "a pack has other ids than pointers");
  if ((setting("workspace") > 0) != (workspace != nullptr)) return fail(kBadParam, "the workspace is wrong");
  std::map<int64_t, void*> addresses;
  for (size_t i = 0; i < ids.size(); i++) addresses[ids[i]] = pointers[i];
  for (const auto& t : plan.graph.tensors) {
    if (t.is_virtual) continue;
    const auto at = addresses.find(t.id);
    if (at == addresses.end() || at->second == nullptr) return fail(kBadParam, "a tensor has no address");
    if (!t.is_value && reinterpret_cast<uintptr_t>(at->second) % 16)
      return fail(kBadParam, "an address is misaligned");
  }
  if (addresses.size() != size_t(std::count_if(plan.graph.tensors.begin(), plan.graph.tensors.end(),
                                               [](const auto& t) { return !t.is_virtual; })))
    return fail(kBadParam, "a pack has more addresses than the graph has tensors");
  start(plan.graph, addresses, stream);
  return kSuccess;
}

}  // namespace

#define ENTER(name)                                         \
  const std::lock_guard guard(entering);                    \
  calls[name]++;                                            \
  if (const int64_t status = setting("fail_" name); status) \
  return fail(int(status), "the mock fails in " name)

EXPORT void mock_set(const char* name, int64_t value) {
  const std::lock_guard guard(entering);
  settings[name] = value;
}

EXPORT int64_t mock_calls(const char* name) {
  const std::lock_guard guard(entering);
  return calls[name];
}

EXPORT int64_t mock_alive() {
  const std::lock_guard guard(entering);
  return int64_t(alive.size());
}

EXPORT size_t cudnnGetVersion() {
  return size_t(setting("version", 92801));
}

EXPORT void cudnnGetLastErrorString(char* text, size_t size) {
  std::snprintf(text, size, "%s", message.c_str());
}

EXPORT int cudnnCreate(Handle* handle) {
  ENTER("Create");
  *handle = new int(0);
  handles[*handle] = nullptr;
  return kSuccess;
}

EXPORT int cudnnDestroy(Handle handle) {
  ENTER("Destroy");
  handles.erase(handle);
  delete static_cast<int*>(handle);
  return kSuccess;
}

EXPORT int cudnnSetStream(Handle handle, Stream stream) {
  ENTER("SetStream");
  if (!handles.count(handle)) return fail(kBadParam, "no such handle");
  handles[handle] = stream;
  return kSuccess;
}

EXPORT int cudnnBackendCreateDescriptor(Kind kind, Raw* descriptor) {
  ENTER("BackendCreateDescriptor");
  auto* object = new Object(kind);
  alive.insert(object);
  *descriptor = object;
  return kSuccess;
}

EXPORT int cudnnBackendDestroyDescriptor(Raw descriptor) {
  ENTER("BackendDestroyDescriptor");
  if (!known(descriptor)) return fail(kBadParam, "no such descriptor");
  alive.erase(known(descriptor));
  delete static_cast<Object*>(descriptor);
  return kSuccess;
}

EXPORT int cudnnBackendFinalize(Raw descriptor) {
  ENTER("BackendFinalize");
  auto* object = known(descriptor);
  if (!object || object->finalized) return fail(kBadParam, "no such descriptor, or finalized twice");
  if (object->kind == Kind::Plan)
    calls[object->texts[int(Attribute::PlanJson)].empty() ? "built" : "restored"]++;
  const int status = finalize(*object);
  object->finalized = status == kSuccess;
  return status;
}

EXPORT int cudnnBackendSetAttribute(Raw descriptor, Attribute name, Type type, int64_t count,
                                    const void* values) {
  ENTER("BackendSetAttribute");
  auto* object = known(descriptor);
  if (!object || object->finalized) return fail(kBadParam, "no such descriptor, or finalized before");
  if (type == Type::Char) {
    object->texts[int(name)].assign(static_cast<const char*>(values), size_t(count));
  } else if (type == Type::Descriptor) {
    for (int64_t i = 0; i < count; i++) {
      auto* other = known(static_cast<const Raw*>(values)[i]);
      if (!other || !other->finalized) return fail(kBadParam, "an attribute is not finalized");
      object->objects[int(name)].push_back(other);
    }
  } else if (type == Type::Pointer || type == Type::Handle) {
    auto* const* given = static_cast<void* const*>(values);
    if (type == Type::Handle && !handles.count(given[0])) return fail(kBadParam, "no such handle");
    object->pointers[int(name)].assign(given, given + count);
  } else {
    object->numbers[int(name)] = numbers_of(type, count, values);
  }
  return kSuccess;
}

EXPORT int cudnnBackendGetAttribute(Raw descriptor, Attribute name, Type, int64_t asked, int64_t* count,
                                    void* values) {
  ENTER("BackendGetAttribute");
  auto* object = known(descriptor);
  if (!object || !object->finalized) return fail(kBadParam, "no such descriptor, or not finalized");
  if (name == Attribute::DeviceJson || name == Attribute::PlanJson) {
    const auto text = name == Attribute::DeviceJson ? device_text() : text_of(object->graph);
    *count = int64_t(text.size());
    if (asked > 0) std::memcpy(values, text.data(), std::min(text.size(), size_t(asked)));
  } else if (name == Attribute::HeuristicResults || name == Attribute::EngineConfigEngine) {
    *count = name == Attribute::EngineConfigEngine ? 1 : setting("configs", 2);
    for (int64_t i = 0; i < std::min(asked, *count); i++) {
      auto* result = known(static_cast<Raw*>(values)[i]);
      result->graph = object->graph;
      result->config = name == Attribute::EngineConfigEngine ? object->config : int(i);
      result->finalized = true;
    }
  } else if (name == Attribute::EngineNumericalNote) {
    *count = object->config < setting("nondeterministic_configs");
    if (*count && asked) *static_cast<int*>(values) = kNondeterministic;
  } else if (name == Attribute::PlanWorkspaceSize) {
    *count = 1;
    *static_cast<int64_t*>(values) = setting("workspace");
  } else {
    return fail(kBadParam, "no such attribute");
  }
  return kSuccess;
}

EXPORT int cudnnBackendExecute(Handle handle, Raw plan, Raw pack) {
  ENTER("BackendExecute");
  auto *made = known(plan), *given = known(pack);
  if (!handles.count(handle) || !made || !given || !made->finalized || !given->finalized)
    return fail(kBadParam, "no such handle, plan or pack");
  return execute(*made, *given, handles[handle]);
}
