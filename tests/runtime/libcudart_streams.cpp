// Streams, events and graphs of the stand-in, and what computes for it asks of them.
#include <algorithm>
#include <cstring>

#include "state.h"

namespace runtime {

std::recursive_mutex& computing() {
  static std::recursive_mutex made;
  return made;
}

bool is_captured(cudaStream_t stream) {
  const bool found = of(stream) != nullptr && of(stream)->graph != nullptr;
  if (!found && is_forbidden())
    fail(cudaErrorStreamCaptureImplicit, "work on a stream that is not captured while a graph is");
  return found;
}

void record(cudaStream_t stream, std::function<void()> work) {
  of(stream)->graph->work.push_back(std::move(work));
}

}  // namespace runtime

using namespace runtime;

// For the stand-in for cuDNN: does this now, and again when a graph is launched.
extern "C" EXPORT void stand_in_enqueue(cudaStream_t stream, const std::function<void()>& work) {
  if (idle()) return;
  const std::lock_guard lock(computing());
  if (is_captured(stream)) record(stream, work);
  work();
}

API cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int priority) {
  const std::lock_guard lock(state.mutex);
  state.streams.push_back(std::make_unique<Stream>(Stream{priority, nullptr}));
  *stream = reinterpret_cast<cudaStream_t>(state.streams.back().get());
  return cudaSuccess;
}

API cudaStreamDestroy(cudaStream_t) {
  return cudaSuccess;
}

API cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  *priority = of(stream) == nullptr ? 0 : of(stream)->priority;
  return cudaSuccess;
}

API cudaStreamSynchronize(cudaStream_t) {
  return unless_captured("cudaStreamSynchronize");
}

API cudaStreamQuery(cudaStream_t) {
  return unless_captured("cudaStreamQuery");
}

API cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const auto& graph = reinterpret_cast<Event*>(event)->graph;
  if (of(stream) != nullptr && graph != nullptr) of(stream)->graph = graph;  // joins the capture
  return cudaSuccess;
}

API cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
  function(data);
  return cudaSuccess;
}

API cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}

API cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<Event*>(event);
  return cudaSuccess;
}

API cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  *reinterpret_cast<Event*>(event) = {std::chrono::steady_clock::now(),
                                      of(stream) == nullptr ? nullptr : of(stream)->graph};
  return cudaSuccess;
}

API cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}

API cudaEventQuery(cudaEvent_t) {
  return unless_captured("cudaEventQuery");
}

API cudaEventSynchronize(cudaEvent_t) {
  return unless_captured("cudaEventSynchronize");
}

API cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const auto passed = reinterpret_cast<Event*>(end)->time - reinterpret_cast<Event*>(start)->time;
  *milliseconds = std::max(1e-4f, std::chrono::duration<float, std::milli>(passed).count());
  return cudaSuccess;
}

// ---- graphs

API cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode asked) {
  if (of(stream) == nullptr) return fail(cudaErrorStreamCaptureUnsupported, "the default stream is captured");
  const std::lock_guard lock(state.mutex);
  auto graph = of(stream)->graph = std::make_shared<Graph>();
  graph->forbids = asked != cudaStreamCaptureModeRelaxed;
  state.forbidding += graph->forbids;
  for (const auto& [address, block] : state.blocks)
    if (!idle()) graph->before.emplace_back(address, std::vector(address, address + block.size));
  return cudaSuccess;
}

API cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* ended) {
  if (of(stream) == nullptr || of(stream)->graph == nullptr)
    return fail(cudaErrorIllegalState, "no capture is ended");
  const std::lock_guard lock(state.mutex);
  const auto graph = of(stream)->graph;
  for (const auto& other : state.streams)
    if (other->graph == graph) other->graph = nullptr;
  state.forbidding -= graph->forbids;
  for (const auto& [address, values] : graph->before) {
    const auto found = state.blocks.find(address);
    if (found != state.blocks.end() && found->second.size == values.size())
      std::memcpy(address, values.data(), values.size());
  }
  graph->before.clear();
  *ended = reinterpret_cast<cudaGraph_t>(new std::shared_ptr<Graph>(graph));
  return cudaSuccess;
}

API cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool captured = of(stream) != nullptr && of(stream)->graph != nullptr;
  *status = captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

API cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                             cudaGraph_t* graph, const cudaGraphNode_t** nodes,
                             const cudaGraphEdgeData** edges, size_t* count) {
  cudaStreamIsCapturing(stream, status);
  auto* captured = of(stream) == nullptr ? nullptr : of(stream)->graph.get();
  if (id != nullptr) *id = reinterpret_cast<unsigned long long>(captured);
  if (graph != nullptr) *graph = reinterpret_cast<cudaGraph_t>(captured);
  if (nodes != nullptr) *nodes = nullptr;
  if (edges != nullptr) *edges = nullptr;
  if (count != nullptr) *count = 0;
  return cudaSuccess;
}

API cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* other) {
  std::swap(mode, *other);
  return cudaSuccess;
}

API cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  *made = reinterpret_cast<cudaGraphExec_t>(new auto(*reinterpret_cast<std::shared_ptr<Graph>*>(graph)));
  return cudaSuccess;
}

API cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  const std::lock_guard lock(runtime::computing());
  for (const auto& work : (*reinterpret_cast<std::shared_ptr<Graph>*>(graph))->work) work();
  return cudaSuccess;
}

API cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<std::shared_ptr<Graph>*>(graph);
  return cudaSuccess;
}

API cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete reinterpret_cast<std::shared_ptr<Graph>*>(graph);
  return cudaSuccess;
}

API cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) {
  *count = 1;
  return cudaSuccess;
}
