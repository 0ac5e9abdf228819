// What the other stand-ins ask of the stand-in for the CUDA runtime.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <mutex>

#define EXPORT __attribute__((visibility("default")))

namespace runtime {

// Held while something computes: the emulator of thread blocks runs one kernel at a time.
EXPORT std::recursive_mutex& computing();

// Whether kernels compute nothing, and memory that nobody has written reads 0: `BCOS_TEST_IDLE` says so. What
// is rehearsed then is everything around them, at any size.
EXPORT bool idle();

// Whether what runs on this stream belongs to a CUDA graph. Work on any other stream is an error during a
// capture that forbids it, which the next call of cudaGetLastError returns.
EXPORT bool is_captured(cudaStream_t stream);

// `work` is done again whenever the graph that is being captured from this stream is launched.
EXPORT void record(cudaStream_t stream, std::function<void()> work);

}  // namespace runtime
