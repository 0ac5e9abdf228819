// A plan: a graph that cuDNN has compiled for a device.
#pragma once

#include <memory>

#include "common/cuda/cudnn/graph.h"
#include "common/cuda/cudnn/library.h"

namespace bcos::cudnn {

// What a plan is built for: the GPU of a handle, or one that is described and need not be there.
class Device {
 public:
  explicit Device(Handle handle);
  explicit Device(const std::string& json);

  // What distinguishes GPUs of one kind from others, as cuDNN writes it: without the place of this one in the
  // machine, and without its driver.
  std::string text() const;

  // They say to a descriptor that it is made for this device.
  void tell_graph(Descriptor& graph) const;
  void tell_heuristic(Descriptor& heuristic) const;
  void tell_plan(Descriptor& plan) const;

 private:
  Handle handle_ = nullptr;
  Descriptor properties_;
};

class Plan {
 public:
  // By an engine that gives the same bits in every run. Raises Error, with cuDNN's reason, where none takes
  // the graph.
  static Plan build(const Graph& graph, const Device& device);

  // Of what json() of such a plan returned. Raises Error where cuDNN does not take it.
  static Plan restore(const Graph& graph, const Device& device, const std::string& json);

  std::string json() const { return plan_.text(Attribute::PlanJson); }
  int64_t workspace() const { return workspace_; }  // bytes

  // Starts it on the handle's stream. `addresses`: of the graph's tensors in memory, in their order.
  void run(Handle handle, const std::vector<const void*>& addresses, void* workspace) const;

 private:
  Plan(const Graph& graph, Descriptor plan);

  Descriptor plan_;
  int64_t workspace_;
  std::vector<int64_t> ids_;                    // of the tensors in memory, then of the values
  std::unique_ptr<std::vector<float>> values_;  // where the pack of every run finds them
};

}  // namespace bcos::cudnn
