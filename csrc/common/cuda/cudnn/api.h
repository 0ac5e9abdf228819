// The part of cuDNN's C backend API that is called here, declared by hand: building needs no cuDNN, and the
// library that torch has loaded is called through dlsym. Names and values are those of cudnn_graph.h of cuDNN
// 9 (NVIDIA cuDNN backend API reference), which are the same in all releases of version 9.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bcos::cudnn {

using Handle = void*;  // cudnnHandle_t
using Stream = void*;  // cudaStream_t
using Raw = void*;     // cudnnBackendDescriptor_t

// cudnnStatus_t; the thousands tell kinds of errors apart.
constexpr int kSuccess = 0, kNotSupported = 3000, kInternalError = 4000;

// cudnnBackendDescriptorType_t
enum class Kind : int {
  Pointwise = 0,
  Convolution = 1,
  Engine = 2,
  EngineConfig = 3,
  Heuristic = 4,
  Plan = 5,
  ConvolutionForward = 10,
  ConvolutionBackwardData = 12,
  OperationPointwise = 13,
  OperationGraph = 15,
  VariantPack = 16,
  Tensor = 17,
  Matmul = 18,
  OperationMatmul = 19,
  DeviceProperties = 38
};

// cudnnBackendAttributeType_t
enum class Type : int {
  Handle = 0,
  DataType = 1,
  Boolean = 2,
  Int64 = 3,
  Float = 4,
  Pointer = 6,
  ConvolutionMode = 7,
  HeuristicMode = 8,
  NumericalNote = 11,
  PointwiseMode = 14,
  Descriptor = 15,
  Char = 24
};

// cudnnBackendAttributeName_t
enum class Attribute : int {
  PointwiseMode = 0,
  PointwiseMathPrecision = 1,
  ConvolutionComputeType = 100,
  ConvolutionMode = 101,
  ConvolutionDilations = 102,
  ConvolutionStrides = 103,
  ConvolutionPostPaddings = 104,
  ConvolutionPrePaddings = 105,
  ConvolutionSpatialDimensions = 106,
  HeuristicMode = 200,
  HeuristicGraph = 201,
  HeuristicResults = 202,
  HeuristicDevice = 204,
  EngineConfigEngine = 300,
  PlanHandle = 400,
  PlanEngineConfig = 401,
  PlanWorkspaceSize = 402,
  PlanJson = 405,
  PlanDevice = 407,
  ForwardAlpha = 700,
  ForwardBeta = 701,
  ForwardConvolution = 702,
  ForwardWeight = 703,
  ForwardX = 704,
  ForwardY = 705,
  BackwardDataAlpha = 706,
  BackwardDataBeta = 707,
  BackwardDataConvolution = 708,
  BackwardDataWeight = 709,
  BackwardDataDx = 710,
  BackwardDataDy = 711,
  OperationPointwise = 750,
  PointwiseX = 751,
  PointwiseB = 752,
  PointwiseY = 753,
  GraphHandle = 800,
  GraphOperations = 801,
  TensorAlignment = 900,
  TensorDataType = 901,
  TensorSizes = 902,
  TensorStrides = 903,
  TensorId = 906,
  TensorIsVirtual = 907,
  TensorIsByValue = 908,
  VariantPackIds = 1000,
  VariantPackPointers = 1001,
  VariantPackWorkspace = 1003,
  EngineNumericalNote = 1303,
  MatmulComputeType = 1500,
  MatmulA = 1520,
  MatmulB = 1521,
  MatmulC = 1522,
  MatmulDescriptor = 1523,
  DeviceHandle = 2701,
  DeviceJson = 2702
};

// cudnnDataType_t
enum class DataType : int { Float = 0, Half = 2, BFloat16 = 9 };

// cudnnPointwiseMode_t
enum class Pointwise : int { Add = 0, Mul = 1, Sqrt = 4, Div = 6, Pow = 8, Abs = 10, Identity = 21 };

constexpr int kCrossCorrelation = 1;  // cudnnConvolutionMode_t
constexpr int kHeuristicModeA = 3;    // cudnnBackendHeurMode_t
constexpr int kNondeterministic = 4;  // cudnnBackendNumericalNote_t
constexpr int kNumericalNotes = 16;   // at least as many as there are

// A name that the library exports without its "cudnn", the type of its result, and its arguments.
#define BCOS_CUDNN_FUNCTIONS(X)                                                               \
  X(GetVersion, size_t, ())                                                                   \
  X(GetLastErrorString, void, (char* message, size_t size))                                   \
  X(Create, int, (Handle * handle))                                                           \
  X(Destroy, int, (Handle handle))                                                            \
  X(SetStream, int, (Handle handle, Stream stream))                                           \
  X(BackendCreateDescriptor, int, (Kind kind, Raw * descriptor))                              \
  X(BackendDestroyDescriptor, int, (Raw descriptor))                                          \
  X(BackendFinalize, int, (Raw descriptor))                                                   \
  X(BackendSetAttribute, int,                                                                 \
    (Raw descriptor, Attribute name, Type type, int64_t count, const void* values))           \
  X(BackendGetAttribute, int,                                                                 \
    (Raw descriptor, Attribute name, Type type, int64_t asked, int64_t* count, void* values)) \
  X(BackendExecute, int, (Handle handle, Raw plan, Raw pack))

struct Api {
#define BCOS_CUDNN_MEMBER(name, result, arguments) result(*name) arguments = nullptr;
  BCOS_CUDNN_FUNCTIONS(BCOS_CUDNN_MEMBER)
#undef BCOS_CUDNN_MEMBER
};

}  // namespace bcos::cudnn
