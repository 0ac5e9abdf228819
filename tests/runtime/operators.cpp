// PyTorch's own operators for CUDA, computed by its CPU kernels: memory of the stand-in for the CUDA runtime
// is memory of the host. Every operator is one function, which hands the CPU's kernel tensors of the same
// memory.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <set>

#include "runtime.h"

namespace {

using c10::IValue;
using Values = std::vector<IValue>;

constexpr int64_t kFew = 16;

// A tensor of the CPU with the memory of one of a GPU, which it does not keep.
at::Tensor on_host(const at::Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  auto* const start = static_cast<char*>(t.storage().mutable_data());
  void* const data = start == nullptr ? nullptr : start + t.storage_offset() * t.element_size();
  auto found = at::from_blob(data, t.sizes(), t.strides(), at::TensorOptions().dtype(t.dtype()));
  found._set_neg(t.is_neg());
  if (t.is_complex()) found._set_conj(t.is_conj());
  return found;
}

// The same without memory, where operators compute nothing but the shapes of their results.
at::Tensor without_memory(const at::Tensor& t) {
  if (!t.defined() || !t.is_cuda()) return t;
  return at::empty_strided(t.sizes(), t.strides(), t.options().device(c10::kMeta));
}

at::Tensor operand(const at::Tensor& t) {
  return runtime::idle() ? without_memory(t) : on_host(t);
}

at::Tensor on_gpu(const at::Tensor& t, c10::Device device) {
  if (!t.defined()) return t;
  const auto made = at::empty_strided(t.sizes(), t.strides(), t.options().device(device));
  if (!t.is_meta()) on_host(made).copy_(t);
  return made;
}

// A value with `f` of every tensor in it.
template <typename F>
IValue mapped(const IValue& value, F f) {
  if (value.isTensor()) return f(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> found;
    for (const at::Tensor& t : value.toTensorVector()) found.push_back(f(t));
    return found;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> found;
    for (const std::optional<at::Tensor> t : value.toOptionalTensorList())
      found.push_back(t ? std::optional(f(*t)) : t);
    return found;
  }
  return value;
}

IValue argument_of(const IValue& value, bool computes) {
  if (value.isDevice()) return c10::Device(computes ? c10::kCPU : c10::kMeta);
  if (value.isGenerator()) return {};  // of a GPU; the CPU's default one serves all
  return mapped(value, computes ? on_host : without_memory);
}

// Whether an operator computes even where kernels do not: up to kFew values are written, copied and read.
bool is_of_few_values(const c10::OperatorHandle& op, const Values& arguments) {
  static const std::set<std::string> names = {"aten::_local_scalar_dense", "aten::copy_", "aten::fill_",
                                              "aten::zero_"};
  const at::Tensor& t = arguments[0].isTensor() ? arguments[0].toTensor() : at::Tensor();
  return t.defined() && t.numel() <= kFew && names.count(op.schema().name()) > 0;
}

c10::Device device_of(const Values& arguments) {
  std::optional<c10::Device> found;
  for (const IValue& value : arguments)
    mapped(value, [&](const at::Tensor& t) {
      if (!found && t.defined() && t.is_cuda()) found = t.device();
      return t;
    });
  return found.value_or(c10::Device(c10::kCUDA, c10::cuda::current_device()));
}

// The results of a convolution in the memory format that cuDNN would choose, which shapes alone do not tell.
void take_format(const Values& arguments, Values& results) {
  const auto format = [](const IValue& value) { return value.toTensor().suggest_memory_format(); };
  const auto last = at::MemoryFormat::ChannelsLast;
  if (format(arguments[0]) != last && format(arguments[1]) != last) return;
  for (IValue& result : results) {
    const at::Tensor t = result.toTensor();
    if (t.defined() && t.dim() == 4) result = t.contiguous(last);
  }
}

// The tensor whose strides a result has that was given for a result alone. Where nothing is computed, the
// result itself has lost the order of its axes.
at::Tensor order_of(const IValue& first, const at::Tensor& result) {
  if (!result.is_meta() || !first.isTensor()) return result;
  const at::Tensor t = first.toTensor();
  return t.sizes() == result.sizes() && t.is_non_overlapping_and_dense() ? t : result;
}

bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

// The results of the CPU's kernel. A tensor that is given for a result alone is replaced by an empty one,
// whose memory may grow.
Values computed(const c10::OperatorHandle& op, const Values& arguments) {
  torch::jit::Stack stack = arguments;
  for (size_t i = 0; i < stack.size(); ++i) {
    const auto& argument = op.schema().arguments()[i];
    if (argument.kwarg_only() && is_written(argument) && stack[i].isTensor())
      stack[i] = at::empty({0}, stack[i].toTensor().options());
  }
  const c10::impl::ExcludeDispatchKeyGuard autograd(c10::autograd_dispatch_keyset_with_ADInplaceOrView);
  const c10::impl::ExcludeDispatchKeyGuard autocast(c10::autocast_dispatch_keyset);
  op.callBoxed(stack);
  return stack;
}

// The argument that a result is, or -1 for a new tensor.
int written_argument(const c10::FunctionSchema& schema, const c10::Argument& result) {
  if (!is_written(result)) return -1;
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const auto& argument = schema.arguments()[i];
    if (is_written(argument) && argument.alias_info()->beforeSets() == result.alias_info()->beforeSets())
      return i;
  }
  return -1;
}

void store(const IValue& target, const IValue& result) {
  if (target.isTensor() && target.toTensor().defined()) target.toTensor().copy_(result.toTensor());
  if (!target.isTensorList()) return;
  const auto targets = target.toTensorVector(), results = result.toTensorVector();
  for (size_t i = 0; i < targets.size(); ++i) targets[i].copy_(results[i]);
}

void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const Values given(stack->end() - schema.arguments().size(), stack->end());
  stack->resize(stack->size() - given.size());
  const c10::Device device = device_of(given);
  const bool computes = !runtime::idle() || is_of_few_values(op, given);
  Values arguments;
  for (const IValue& value : given) arguments.push_back(argument_of(value, computes));
  if (!computes && op.schema().name() == "aten::copy_" && given[0].toTensor().is_cpu()) {
    stack->push_back(given[0].toTensor().zero_());
    return;
  }

  std::unique_lock lock(runtime::computing(), std::defer_lock);
  if (!runtime::idle()) lock.lock();
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device.index());
  const bool captured = runtime::is_captured(stream);
  Values results = computed(op, arguments);
  if (!computes && schema.name().rfind("aten::convolution", 0) == 0) take_format(arguments, results);
  Values targets;  // where the results are, on the host
  for (size_t i = 0; i < results.size(); ++i) {
    const int written = written_argument(schema, schema.returns()[i]);
    if (written < 0) {
      stack->push_back(mapped(results[i], [&](const at::Tensor& t) { return on_gpu(t, device); }));
      targets.push_back(mapped(stack->back(), on_host));
      continue;
    }
    stack->push_back(given[written]);
    targets.emplace_back();
    if (schema.arguments()[written].kwarg_only() && given[written].isTensor()) {
      const at::Tensor &out = given[written].toTensor(), &result = results[i].toTensor();
      if (out.sizes() != result.sizes())  // torch's iterators keep the order of the axes
        out.resize_(result.sizes()).as_strided_(result.sizes(), order_of(given[0], result).strides());
      targets.back() = on_host(out);
      if (computes) store(targets.back(), results[i]);
    }
  }
  if (!captured || runtime::idle()) return;
  runtime::record(stream, [op, arguments, targets] {
    const Values again = computed(op, arguments);
    for (size_t i = 0; i < again.size(); ++i) store(targets[i], again[i]);
  });
}

std::vector<std::unique_ptr<torch::Library>> libraries;

void install(const std::vector<std::string>& names) {
  libraries.push_back(std::make_unique<torch::Library>(torch::Library::IMPL, "aten", c10::DispatchKey::CUDA,
                                                       __FILE__, __LINE__));
  for (const std::string& name : names)
    libraries.back()->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run>());
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("install", &install);
  m.def("operand", &operand);
  m.def("on_gpu", [](const at::Tensor& t, int index) { return on_gpu(t, c10::Device(c10::kCUDA, index)); });
}
