// The memory of the stand-in: blocks of the host's, each of which knows its GPU.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "state.h"

namespace runtime {
namespace {

constexpr size_t kAligned = 512;

// The block of an address, with its start; null for an address that is in none.
std::pair<char* const, Block>* found_at(const void* address) {
  auto found = state.blocks.upper_bound(const_cast<char*>(static_cast<const char*>(address)));
  if (found == state.blocks.begin()) return nullptr;
  --found;
  return address < found->first + found->second.size ? &*found : nullptr;
}

Block* block_of(const void* address) {
  const std::lock_guard lock(state.mutex);
  auto* const found = found_at(address);
  return found == nullptr ? nullptr : &found->second;
}

bool is_within(const void* address, size_t bytes) {
  const std::lock_guard lock(state.mutex);
  if (block_of(address) == nullptr || bytes == 0) return true;  // pageable memory
  return block_of(address) == block_of(static_cast<const char*>(address) + bytes - 1);
}

// Memory of zeros, of which the host provides what is written.
void* reserved(size_t size) {
  constexpr int kOptions = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* const found = mmap(nullptr, size, PROT_READ | PROT_WRITE, kOptions, -1, 0);
  return found == MAP_FAILED ? nullptr : found;
}

cudaError_t allocate(void** address, size_t size, bool on_host) {
  const std::lock_guard lock(state.mutex);
  size = (std::max<size_t>(size, 1) + kAligned - 1) / kAligned * kAligned;
  if (!on_host && state.used[device] + size > kMemory)
    return fail(cudaErrorMemoryAllocation, "out of memory");
  *address = idle() ? reserved(size) : std::aligned_alloc(kAligned, size);
  if (*address == nullptr) return fail(cudaErrorMemoryAllocation, "the host is out of memory");
  if (!idle()) std::memset(*address, 0xff, size);
  state.blocks[static_cast<char*>(*address)] = {size, device, on_host};
  state.touched[device] = true;
  if (!on_host) state.used[device] += size;
  return cudaSuccess;
}

cudaError_t release(void* address) {
  const std::lock_guard lock(state.mutex);
  const auto found = state.blocks.find(static_cast<char*>(address));
  if (address == nullptr) return cudaSuccess;
  if (found == state.blocks.end())
    return fail(cudaErrorInvalidValue, "memory is freed that was not allocated");
  if (!found->second.on_host) state.used[found->second.device] -= found->second.size;
  if (idle())
    munmap(address, found->second.size);
  else
    std::free(address);
  state.blocks.erase(found);
  return cudaSuccess;
}

// Does this now, and again when a graph is launched.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  const std::lock_guard lock(runtime::computing());
  if (runtime::is_captured(stream)) runtime::record(stream, work);
  if (last == cudaErrorStreamCaptureImplicit) return last;
  if (!idle()) work();
  return cudaSuccess;
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  if (!is_within(to, bytes) || !is_within(from, bytes))
    return fail(cudaErrorInvalidValue, "a copy beyond a block");
  const bool pageable = block_of(to) == nullptr || block_of(from) == nullptr;
  if (pageable && bytes > 0)
    if (const auto error = unless_captured("a copy of pageable memory")) return error;
  return enqueue(stream, [=] { std::memmove(to, from, bytes); });
}

cudaError_t set(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (!is_within(to, bytes)) return fail(cudaErrorInvalidValue, "a memset beyond a block");
  return enqueue(stream, [=] { std::memset(to, value, bytes); });
}

}  // namespace
}  // namespace runtime

using namespace runtime;

// The bytes from an address to the end of its block, 0 where it is in none: for the stand-in for the driver.
extern "C" EXPORT size_t stand_in_memory(uint64_t address) {
  const std::lock_guard lock(state.mutex);
  const auto* const from = reinterpret_cast<const char*>(address);
  const auto* const found = found_at(from);
  return found == nullptr ? 0 : found->first + found->second.size - from;
}

API cudaMalloc(void** address, size_t size) {
  if (const auto error = unless_captured("cudaMalloc")) return error;
  return allocate(address, size, false);
}

API cudaFree(void* address) {
  if (const auto error = unless_captured("cudaFree")) return error;
  return release(address);
}

API cudaHostAlloc(void** address, size_t size, unsigned) {
  return allocate(address, size, true);
}

API cudaFreeHost(void* address) {
  return release(address);
}

API cudaMemGetInfo(size_t* free, size_t* total) {
  *total = kMemory;
  *free = kMemory - state.used[device];
  return cudaSuccess;
}

API cudaPointerGetAttributes(cudaPointerAttributes* found, const void* address) {
  const Block* block = block_of(address);
  *found = {};
  if (block != nullptr) found->type = block->on_host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  if (block != nullptr) found->device = block->device;
  found->devicePointer = found->hostPointer = const_cast<void*>(address);
  return cudaSuccess;
}

API cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (const auto error = unless_captured("cudaMemcpy")) return error;
  return copy(to, from, bytes, nullptr);
}

API cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return copy(to, from, bytes, stream);
}

API cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return copy(to, from, bytes, stream);
}

API cudaMemset(void* to, int value, size_t bytes) {
  return set(to, value, bytes, nullptr);
}

API cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return set(to, value, bytes, stream);
}
