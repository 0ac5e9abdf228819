// Stands in for libcuda.so.1 in tests: it runs nothing, and refuses what a GPU of compute capability 9.0 or
// its driver would refuse. It has the functions that Triton's launcher calls.
//
// A refusal has a reason, which cuGetErrorString returns, so that Triton's own error contains it. Memory is
// known by its address and its size alone: a test names it by mock_allocate.
#include <cuda.h>
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr uint64_t kMostBlocks[] = {(1ull << 31) - 1, 65535, 65535};
constexpr unsigned kMostThreads = 1024;
constexpr int kSharedUnasked = 48 << 10, kSharedOptIn = 227 << 10, kSharedOfMultiprocessor = 228 << 10;
constexpr int kMultiprocessors = 132, kRegisters = 65536, kVersion = 13000;
constexpr int kMostDimensions = 5;
constexpr uint64_t kMostBox = 256, kAligned = 16, kAddresses = 1ull << 40;

struct Function {
  int shared = kSharedUnasked;  // the most bytes of dynamic shared memory that a launch may ask for
};

std::string reason = "no error";
std::map<uint64_t, uint64_t> memory;  // address -> bytes
std::vector<std::unique_ptr<Function>> functions;
int64_t launches = 0;

__attribute__((format(printf, 1, 2))) CUresult refuse(const char* format, ...) {
  char text[512];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  reason = text;
  return CUDA_ERROR_INVALID_VALUE;
}

unsigned long long wide(uint64_t value) {  // as printf takes it
  return value;
}

// The bytes from an address to the end of its memory, 0 if it is in none. A stand-in for the CUDA runtime in
// the process knows its own.
uint64_t known(uint64_t address) {
  using Memory = size_t(uint64_t);
  static auto* const of_runtime = reinterpret_cast<Memory*>(dlsym(RTLD_DEFAULT, "stand_in_memory"));
  if (const uint64_t found = of_runtime == nullptr ? 0 : of_runtime(address)) return found;
  const auto behind = memory.upper_bound(address);
  if (behind == memory.begin()) return 0;
  const auto& [start, bytes] = *std::prev(behind);
  return address - start < bytes ? start + bytes - address : 0;
}

Function* function(CUfunction handle) {
  for (const auto& each : functions)
    if (each.get() == reinterpret_cast<Function*>(handle)) return each.get();
  return nullptr;
}

int bytes_of(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
      return 8;
    default:
      return type <= CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ ? 4 : 0;
  }
}

uint64_t span_of(CUtensorMapSwizzle swizzle) {
  switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_NONE:
      return UINT64_MAX;
    case CU_TENSOR_MAP_SWIZZLE_32B:
      return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B:
      return 64;
    default:
      return 128;
  }
}

}  // namespace

// ---- what a test calls

EXPORT void mock_allocate(uint64_t address, uint64_t bytes) {
  memory[address] = bytes;
}

EXPORT void mock_free_all() {
  memory.clear();
}

EXPORT int64_t mock_launches() {
  return launches;
}

// ---- what Triton calls

EXPORT CUresult cuGetErrorString(CUresult code, const char** text) {
  *text = code == CUDA_SUCCESS ? "no error" : reason.c_str();
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int* version) {
  *version = kVersion;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuInit(unsigned) {
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice* device, int index) {
  if (index != 0) return refuse("device %d, there is 0 alone", index);
  *device = 0;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (device != 0) return refuse("device %d, there is 0 alone", device);
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = kSharedOptIn;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *value = kSharedOfMultiprocessor;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
      *value = kRegisters;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
      *value = kMultiprocessors;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
      *value = 32;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH:
      *value = 1;  // of no consequence to a launch
      return CUDA_SUCCESS;
    default:
      return refuse("attribute %d of a device, which the stand-in does not know", attribute);
  }
}

EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = reinterpret_cast<CUcontext>(1);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext) {
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  return cuCtxGetCurrent(context);
}
// What the stand-in for the CUDA runtime says of it, where there is one in the process.
EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  using State = void(int, int*);
  *flags = 0;
  *active = 1;
  if (auto* state = reinterpret_cast<State*>(dlsym(RTLD_DEFAULT, "stand_in_context_state")))
    state(device, active);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetLimit(size_t*, CUlimit limit) {
  return refuse("limit %d, which the stand-in does not know", limit);
}
EXPORT CUresult cuCtxSetLimit(CUlimit limit, size_t) {
  return refuse("limit %d, which the stand-in does not know", limit);
}

EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  if (memcmp(image, "\177ELF", 4) != 0) return refuse("a module that is no ELF file");
  *module = reinterpret_cast<CUmodule>(const_cast<void*>(image));
  return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction* found, CUmodule, const char*) {
  functions.push_back(std::make_unique<Function>());
  *found = reinterpret_cast<CUfunction>(functions.back().get());
  return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
  if (function(handle) == nullptr) return refuse("a function that no module has");
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      *value = kMostThreads;
      return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      *value = 0;  // Triton's kernels have dynamic shared memory alone; their registers are tested in their
                   // binaries
      return CUDA_SUCCESS;
    default:
      return refuse("attribute %d of a function, which the stand-in does not know", attribute);
  }
}

EXPORT CUresult cuFuncSetCacheConfig(CUfunction handle, CUfunc_cache) {
  if (function(handle) == nullptr) return refuse("a function that no module has");
  return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  Function* changed = function(handle);
  if (changed == nullptr) return refuse("a function that no module has");
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
    return refuse("attribute %d of a function, which the stand-in does not set", attribute);
  if (value < 0 || value > kSharedOptIn)
    return refuse("%d bytes of shared memory, allowed: %d", value, kSharedOptIn);
  changed->shared = value;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
    return refuse("attribute %d of a pointer, which the stand-in does not know", attribute);
  if (known(address) == 0) return refuse("address 0x%llx, which is in no memory", wide(address));
  *static_cast<CUdeviceptr*>(value) = address;
  return CUDA_SUCCESS;
}

// Every condition is one of the CUDA driver API's reference, except for the last two: that all of the tensor
// lies in memory that is known, and that a box fits into shared memory.
EXPORT CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                       void* start, const cuuint64_t* sizes, const cuuint64_t* strides,
                                       const cuuint32_t* box, const cuuint32_t* steps,
                                       CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const auto address = reinterpret_cast<uint64_t>(start);
  const uint64_t element = bytes_of(type);
  if (reinterpret_cast<uint64_t>(map) % 64 != 0)
    return refuse("a tensor map whose address is no multiple of 64");
  if (element == 0) return refuse("type %d of a tensor map, which the stand-in does not know", type);
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE)
    return refuse("interleave %d, which the stand-in does not know", interleave);
  if (rank == 0 || rank > kMostDimensions)
    return refuse("rank %u of a tensor map, allowed: 1 to %d", rank, kMostDimensions);
  if (address % kAligned != 0)
    return refuse("address 0x%llx of a tensor map, allowed: multiples of %llu", wide(address),
                  wide(kAligned));
  uint64_t last = 0, shared = element;  // the first byte of the last element, and the bytes of a box
  for (cuuint32_t i = 0; i < rank; ++i) {
    const uint64_t stride = i == 0 ? element : strides[i - 1];
    if (sizes[i] == 0 || sizes[i] > 1ull << 32)
      return refuse("size %llu of axis %u, allowed: 1 to 2^32", wide(sizes[i]), i);
    if (i > 0 && (stride % kAligned != 0 || stride >= kAddresses))
      return refuse("stride %llu of axis %u, allowed: multiples of %llu below 2^40", wide(stride), i,
                    wide(kAligned));
    if (i > 0 && stride % (i == 1 ? element : strides[i - 2]) != 0)
      return refuse("stride %llu of axis %u, which the stride %llu before it does not divide", wide(stride),
                    i, wide(strides[i - 2]));
    if (box[i] == 0 || box[i] > kMostBox)
      return refuse("box of %u along axis %u, allowed: 1 to %llu", box[i], i, wide(kMostBox));
    if (steps[i] == 0 || steps[i] > 8) return refuse("step %u along axis %u, allowed: 1 to 8", steps[i], i);
    last += (sizes[i] - 1) * stride;
    shared *= box[i];
  }
  const uint64_t row = box[0] * element;
  if (row % kAligned != 0)
    return refuse("box of %llu bytes along axis 0, allowed: multiples of %llu", wide(row), wide(kAligned));
  if (row > span_of(swizzle))
    return refuse("box of %llu bytes along axis 0, allowed with swizzle %d: %llu", wide(row), swizzle,
                  wide(span_of(swizzle)));
  if (known(address) < last + element)
    return refuse("a tensor map of %llu bytes in memory of %llu", wide(last + element), wide(known(address)));
  if (shared > kSharedOptIn) return refuse("a box of %llu bytes, allowed: %d", wide(shared), kSharedOptIn);
  memset(map, 0, sizeof *map);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction handle, void**, void**) {
  const Function* started = function(handle);
  if (started == nullptr) return refuse("a function that no module has");
  const unsigned grid[] = {config->gridDimX, config->gridDimY, config->gridDimZ};
  for (int i = 0; i < 3; ++i)
    if (grid[i] == 0 || grid[i] > kMostBlocks[i])
      return refuse("grid.%c is %u, allowed: 1 to %llu", "xyz"[i], grid[i], wide(kMostBlocks[i]));
  const uint64_t threads = uint64_t(config->blockDimX) * config->blockDimY * config->blockDimZ;
  if (threads == 0 || threads > kMostThreads)
    return refuse("%llu threads in a block, allowed: 1 to %u", wide(threads), kMostThreads);
  if (config->sharedMemBytes > unsigned(started->shared))
    return refuse("%u bytes of shared memory, allowed: the %d that were asked for", config->sharedMemBytes,
                  started->shared);
  if (config->numAttrs != 0)
    return refuse("%u attributes of a launch, which the stand-in does not know", config->numAttrs);
  ++launches;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuOccupancyMaxActiveClusters(int*, CUfunction, const CUlaunchConfig*) {
  return refuse("clusters, which the stand-in does not know");
}

EXPORT CUresult cuTensorMapEncodeIm2col(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                        const cuuint64_t*, const cuuint64_t*, const int*, const int*,
                                        cuuint32_t, cuuint32_t, const cuuint32_t*, CUtensorMapInterleave,
                                        CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return refuse("a tensor map of windows, which the stand-in does not know");
}
