#include "common/cuda/cudnn/plan.h"

#include <algorithm>
#include <optional>

namespace bcos::cudnn {
namespace {

constexpr int64_t kAlignment = 16;             // bytes, of every tensor in memory
constexpr int64_t kMostWorkspace = 256 << 20;  // bytes; a fused kernel needs none

int64_t id_of(int tensor) {
  return tensor + 1;
}

Descriptor described(const Tensor& tensor, int index) {
  Descriptor out(Kind::Tensor);
  out.set(Attribute::TensorId, id_of(index));
  out.set(Attribute::TensorDataType, tensor.type);
  out.set(Attribute::TensorSizes, tensor.sizes);
  out.set(Attribute::TensorStrides, tensor.strides);
  out.set(Attribute::TensorAlignment, kAlignment);
  out.set(Attribute::TensorIsVirtual, tensor.place == Place::Virtual);
  out.set(Attribute::TensorIsByValue, tensor.place == Place::Value);
  out.finalize("describing a tensor");
  return out;
}

Descriptor described(const Taps& taps) {
  const auto of = [](const std::array<int64_t, 2>& pair) { return Sizes(pair.begin(), pair.end()); };
  const int mode = kCrossCorrelation;
  Descriptor out(Kind::Convolution);
  out.set(Attribute::ConvolutionSpatialDimensions, int64_t(2));
  out.set(Attribute::ConvolutionComputeType, DataType::Float);
  out.set(Attribute::ConvolutionMode, Type::ConvolutionMode, 1, &mode);
  out.set(Attribute::ConvolutionStrides, of(taps.stride));
  out.set(Attribute::ConvolutionDilations, of(taps.dilation));
  out.set(Attribute::ConvolutionPrePaddings, of(taps.padding));
  out.set(Attribute::ConvolutionPostPaddings, of(taps.padding));
  out.finalize("describing a convolution");
  return out;
}

// The descriptors of a graph; those of operations refer to others, which live as long.
struct Described {
  std::vector<Descriptor> tensors, details, operations;
  std::optional<Descriptor> graph;

  explicit Described(const Graph& source) {
    for (size_t i = 0; i < source.tensors.size(); i++)
      tensors.push_back(described(source.tensors[i], int(i)));
    std::vector<const Descriptor*> all;
    for (const auto& operation : source.operations) {
      add(operation, source.taps);
      operations.back().finalize("describing an operation");
    }
    for (const auto& operation : operations) all.push_back(&operation);
    graph.emplace(Kind::OperationGraph);
    graph->set(Attribute::GraphOperations, all);
  }

 private:
  void add(const Operation& o, const Taps& taps) {
    const auto &a = tensors[o.a], &out = tensors[o.out];
    switch (o.what) {
      case Operator::Convolution:
        details.push_back(described(taps));
        connect(Kind::ConvolutionForward,
                {Attribute::ForwardConvolution, Attribute::ForwardX, Attribute::ForwardWeight,
                 Attribute::ForwardY},
                {&details.back(), &a, &tensors[o.b], &out});
        scale(Attribute::ForwardAlpha, Attribute::ForwardBeta);
        return;
      case Operator::ConvolutionData:
        details.push_back(described(taps));
        connect(Kind::ConvolutionBackwardData,
                {Attribute::BackwardDataConvolution, Attribute::BackwardDataDy, Attribute::BackwardDataWeight,
                 Attribute::BackwardDataDx},
                {&details.back(), &a, &tensors[o.b], &out});
        scale(Attribute::BackwardDataAlpha, Attribute::BackwardDataBeta);
        return;
      case Operator::Matmul:
        details.emplace_back(Kind::Matmul);
        details.back().set(Attribute::MatmulComputeType, DataType::Float);
        details.back().finalize("describing a product");
        connect(Kind::OperationMatmul,
                {Attribute::MatmulDescriptor, Attribute::MatmulA, Attribute::MatmulB, Attribute::MatmulC},
                {&details.back(), &a, &tensors[o.b], &out});
        return;
      case Operator::Pointwise:
        details.emplace_back(Kind::Pointwise);
        details.back().set(Attribute::PointwiseMode, o.mode);
        details.back().set(Attribute::PointwiseMathPrecision, DataType::Float);
        details.back().finalize("describing a pointwise operation");
        connect(Kind::OperationPointwise,
                {Attribute::OperationPointwise, Attribute::PointwiseX, Attribute::PointwiseY},
                {&details.back(), &a, &out});
        if (o.b >= 0) operations.back().set(Attribute::PointwiseB, tensors[o.b]);
        return;
    }
  }

  void connect(Kind kind, const std::vector<Attribute>& names, const std::vector<const Descriptor*>& to) {
    operations.emplace_back(kind);
    for (size_t i = 0; i < names.size(); i++) operations.back().set(names[i], *to[i]);
  }

  void scale(Attribute alpha, Attribute beta) {
    operations.back().set(alpha, 1.0f);
    operations.back().set(beta, 0.0f);
  }
};

// Whether the engine gives the same bits in every run.
bool is_deterministic(const Descriptor& config) {
  const auto engines = config.descriptors(Attribute::EngineConfigEngine, Kind::Engine);
  std::vector<int> notes(kNumericalNotes);
  for (const auto& engine : engines) {
    const int64_t count =
        engine.get(Attribute::EngineNumericalNote, Type::NumericalNote, kNumericalNotes, notes.data());
    if (count > kNumericalNotes) return false;  // of a later cuDNN, with notes that nobody here knows
    if (std::find(notes.begin(), notes.begin() + count, kNondeterministic) != notes.begin() + count)
      return false;
  }
  return true;
}

}  // namespace

Device::Device(Handle handle) : handle_(handle), properties_(Kind::DeviceProperties) {
  properties_.set_handle(Attribute::DeviceHandle, handle);
  properties_.finalize("describing the GPU");
}

Device::Device(const std::string& json) : properties_(Kind::DeviceProperties) {
  properties_.set_text(Attribute::DeviceJson, json);
  properties_.finalize("reading the description of a GPU");
}

std::string Device::text() const {
  auto text = properties_.text(Attribute::DeviceJson);
  for (const char* name : {"\"cudaDeviceId\":", "\"pciDeviceId\":", "\"driverVer\":"}) {
    const size_t start = text.find(name), end = text.find_first_of(",}", start);
    if (end != std::string::npos) text.erase(start, end - start + (text[end] == ','));
  }
  return text;
}

void Device::tell_graph(Descriptor& graph) const {
  if (handle_ != nullptr) graph.set_handle(Attribute::GraphHandle, handle_);
}

void Device::tell_heuristic(Descriptor& heuristic) const {
  if (handle_ == nullptr) heuristic.set(Attribute::HeuristicDevice, properties_);
}

void Device::tell_plan(Descriptor& plan) const {
  if (handle_ != nullptr)
    plan.set_handle(Attribute::PlanHandle, handle_);
  else
    plan.set(Attribute::PlanDevice, properties_);
}

Plan::Plan(const Graph& graph, Descriptor plan)
    : plan_(std::move(plan)),
      workspace_(plan_.number(Attribute::PlanWorkspaceSize)),
      values_(std::make_unique<std::vector<float>>()) {
  for (const auto place : {Place::Memory, Place::Value})
    for (size_t i = 0; i < graph.tensors.size(); i++)
      if (graph.tensors[i].place == place) {
        ids_.push_back(id_of(int(i)));
        if (place == Place::Value) values_->push_back(graph.tensors[i].value);
      }
}

Plan Plan::build(const Graph& graph, const Device& device) {
  Described described(graph);
  device.tell_graph(*described.graph);
  described.graph->finalize("the graph");
  Descriptor heuristic(Kind::Heuristic);
  heuristic.set(Attribute::HeuristicGraph, *described.graph);
  heuristic.set(Attribute::HeuristicMode, Type::HeuristicMode, 1, &kHeuristicModeA);
  device.tell_heuristic(heuristic);
  heuristic.finalize("looking for engines");
  std::string refusal = "cuDNN has no engine for this graph";
  for (const auto& config : heuristic.descriptors(Attribute::HeuristicResults, Kind::EngineConfig)) {
    if (!is_deterministic(config)) {
      refusal = "cuDNN has no deterministic engine for this graph";
      continue;
    }
    try {
      Descriptor plan(Kind::Plan);
      device.tell_plan(plan);
      plan.set(Attribute::PlanEngineConfig, config);
      plan.finalize("building a plan");
      Plan built(graph, std::move(plan));
      if (built.workspace_ <= kMostWorkspace) return built;
      refusal = "cuDNN's plan needs a workspace of " + std::to_string(built.workspace_) +
                " bytes, allowed: up to " + std::to_string(kMostWorkspace);
    } catch (const Error& error) {
      refusal = error.what();
    }
  }
  throw Error(kNotSupported, refusal);
}

Plan Plan::restore(const Graph& graph, const Device& device, const std::string& json) {
  Descriptor plan(Kind::Plan);
  device.tell_plan(plan);
  plan.set_text(Attribute::PlanJson, json);
  plan.finalize("restoring a plan");
  return Plan(graph, std::move(plan));
}

void Plan::run(Handle handle, const std::vector<const void*>& addresses, void* workspace) const {
  std::vector<const void*> pointers = addresses;
  for (const float& value : *values_) pointers.push_back(&value);
  if (pointers.size() != ids_.size())
    throw Error(kInternalError, "a plan of " + std::to_string(ids_.size()) + " tensors was given " +
                                    std::to_string(pointers.size()));
  Descriptor pack(Kind::VariantPack);
  pack.set(Attribute::VariantPackIds, ids_);
  pack.set(Attribute::VariantPackPointers, Type::Pointer, int64_t(pointers.size()), pointers.data());
  pack.set(Attribute::VariantPackWorkspace, Type::Pointer, 1, &workspace);
  pack.finalize("the addresses of a run");
  check(api().BackendExecute(handle, plan_.raw(), pack.raw()), "running a plan");
}

}  // namespace bcos::cudnn
