// What the files of the stand-in for the CUDA runtime share.
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime.h"

#define API extern "C" EXPORT cudaError_t

namespace runtime {

constexpr size_t kMemory = 139ull << 30;  // of each GPU

struct Block {
  size_t size;
  int device;
  bool on_host;
};

// What is captured, and later launched: the work itself, and memory as it was before.
struct Graph {
  bool forbids = false;  // whether other streams and waiting are errors
  std::vector<std::function<void()>> work;
  std::vector<std::pair<char*, std::vector<char>>> before;
};

struct Stream {
  int priority;
  std::shared_ptr<Graph> graph;  // that is being captured
};

struct Event {
  std::chrono::steady_clock::time_point time;
  std::shared_ptr<Graph> graph;
};

struct State {
  std::recursive_mutex mutex;
  std::map<char*, Block> blocks;
  size_t used[64] = {};
  bool touched[64] = {};  // whether there is a context
  std::vector<std::unique_ptr<Stream>> streams;
  int forbidding = 0;  // captures
};

inline State state;
inline thread_local int device = 0;
inline thread_local cudaError_t last = cudaSuccess;
inline thread_local std::string complaint;
inline thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;

inline cudaError_t fail(cudaError_t error, const std::string& why) {
  complaint = why;
  return last = error;
}

inline Stream* of(cudaStream_t stream) {  // null for the default streams, which are small numbers
  return reinterpret_cast<uintptr_t>(stream) < 16 ? nullptr : reinterpret_cast<Stream*>(stream);
}

inline bool is_forbidden() {
  return state.forbidding > 0 && mode != cudaStreamCaptureModeRelaxed;
}

inline cudaError_t unless_captured(const char* function) {
  if (!is_forbidden()) return cudaSuccess;
  return fail(cudaErrorStreamCaptureUnsupported, std::string(function) + " while a graph is captured");
}

}  // namespace runtime
