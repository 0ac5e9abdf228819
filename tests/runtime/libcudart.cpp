// A stand-in for the CUDA runtime, put before the one of torch's CUDA build (LD_PRELOAD): GPUs that look like
// an H200.
//
// Their memory is memory of the host, filled with NaN, and everything is done when it is asked for. A graph
// remembers what was done on its streams while it was captured, and a capture leaves memory as it was. What a
// capture forbids is an error: to allocate, to wait, to copy pageable memory, to use a stream that is not
// captured. No kernel is run here; whoever computes in place of kernels calls runtime.h. A kernel that is
// started all the same is an error with its name.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "state.h"

namespace runtime {
namespace {

std::unordered_map<const void*, std::string> kernels;

int devices() {
  const char* named = std::getenv("BCOS_TEST_GPUS");
  return named == nullptr ? 1 : std::atoi(named);
}

cudaError_t not_run(const void* kernel) {
  const auto found = kernels.find(kernel);
  return fail(cudaErrorNotSupported,
              "no stand-in computes " + (found == kernels.end() ? "a kernel" : found->second));
}

int nothing(...) {
  return 0;
}

int context_state(int device, unsigned* flags, int* active) {
  if (flags != nullptr) *flags = 0;
  *active = state.touched[device];
  return 0;
}

}  // namespace

bool idle() {
  static const bool found = std::getenv("BCOS_TEST_IDLE") != nullptr;
  return found;
}

}  // namespace runtime

using namespace runtime;

extern "C" EXPORT void stand_in_context_state(int device, int* active) {
  context_state(device, nullptr, active);
}

// ---- devices

API cudaGetDeviceCount(int* count) {
  *count = devices();
  return cudaSuccess;
}

API cudaGetDevice(int* found) {
  *found = runtime::device;
  return cudaSuccess;
}

API cudaSetDevice(int index) {
  if (index < 0 || index >= devices()) return fail(cudaErrorInvalidDevice, "there is no such device");
  device = index;
  return cudaSuccess;
}

API cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

API cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

API cudaGetDeviceProperties(cudaDeviceProp* found, int device) {
  if (device < 0 || device >= devices()) return fail(cudaErrorInvalidDevice, "there is no such device");
  *found = {};
  std::strcpy(found->name, "NVIDIA H200 (stand-in)");
  found->major = 9;
  found->multiProcessorCount = 132;
  found->totalGlobalMem = kMemory;
  found->warpSize = 32;
  found->maxThreadsPerBlock = 1024;
  found->maxThreadsPerMultiProcessor = 2048;
  found->sharedMemPerBlock = 48 << 10;
  found->sharedMemPerBlockOptin = 227 << 10;
  found->sharedMemPerMultiprocessor = 228 << 10;
  found->regsPerBlock = found->regsPerMultiprocessor = 65536;
  found->l2CacheSize = 60 << 20;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->pciBusID = device;
  return cudaSuccess;
}

API cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const std::map<cudaDeviceAttr, int> known = {
      {cudaDevAttrMultiProcessorCount, 132},
      {cudaDevAttrComputeCapabilityMajor, 9},
      {cudaDevAttrComputeCapabilityMinor, 0},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, 227 << 10},
      {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
      {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrClockRate, 1980000},
      {cudaDevAttrMemoryClockRate, 3201000},
      {cudaDevAttrGlobalMemoryBusWidth, 6144},
      {cudaDevAttrMaxGridDimX, 2147483647},
      {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535},
      {cudaDevAttrL2CacheSize, 60 << 20},
  };
  const auto found = known.find(attribute);
  *value = found == known.end() ? 1 : found->second;
  return device < devices() ? cudaSuccess : fail(cudaErrorInvalidDevice, "there is no such device");
}

API cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}

API cudaDeviceEnablePeerAccess(int, unsigned) {
  return cudaSuccess;
}

API cudaDeviceGetPCIBusId(char* text, int size, int device) {
  std::snprintf(text, size, "0000:%02d:00.0", device);
  return cudaSuccess;
}

API cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

API cudaDeviceSynchronize() {
  return unless_captured("cudaDeviceSynchronize");
}

API cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                     cudaDriverEntryPointQueryResult* result) {
  const bool known = std::strcmp(name, "cuDevicePrimaryCtxGetState") == 0;
  *function = known ? reinterpret_cast<void*>(context_state) : reinterpret_cast<void*>(nothing);
  if (result != nullptr) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// ---- kernels

API cudaLaunchKernel(const void* kernel, dim3, dim3, void**, size_t, cudaStream_t) {
  return not_run(kernel);
}

API cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* kernel, void**) {
  return not_run(kernel);
}

extern "C" EXPORT void __cudaRegisterFunction(void**, const char* kernel, char*, const char* name, int,
                                              uint3*, uint3*, dim3*, dim3*, int*) {
  const std::lock_guard lock(state.mutex);
  kernels[kernel] = name;
}

extern "C" EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}

extern "C" EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
extern "C" EXPORT void __cudaUnregisterFatBinary(void**) {}
extern "C" EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

extern "C" EXPORT char __cudaInitModule(void**) {
  return 1;
}

// ---- errors

API cudaGetLastError() {
  return std::exchange(last, cudaSuccess);
}

API cudaPeekAtLastError() {
  return last;
}

extern "C" EXPORT const char* cudaGetErrorString(cudaError_t) {
  return complaint.c_str();
}

extern "C" EXPORT const char* cudaGetErrorName(cudaError_t) {
  return complaint.c_str();
}

// ---- cuBLAS: handles alone, because a CPU computes the products

extern "C" EXPORT int cublasCreate_v2(void** handle) {
  *handle = std::malloc(1);
  return 0;
}

extern "C" EXPORT int cublasDestroy_v2(void* handle) {
  std::free(handle);
  return 0;
}

extern "C" EXPORT int cublasSetStream_v2(void*, void*) {
  return 0;
}

extern "C" EXPORT int cublasSetWorkspace_v2(void*, void*, size_t) {
  return 0;
}

extern "C" EXPORT int cublasSetMathMode(void*, int) {
  return 0;
}
