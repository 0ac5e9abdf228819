// PyTorch's own operators for CUDA, computed by its CPU kernels: memory of the stand-in for the CUDA runtime
// is memory of the host. Every operator is one function, which hands the CPU's kernel tensors of the same
// memory.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/extension.h>
#include <torch/library.h>

#include "runtime.h"

namespace {

using c10::IValue;
using Values = std::vector<IValue>;

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

at::Tensor on_gpu(const at::Tensor& t, c10::Device device) {
  if (!t.defined()) return t;
  const auto made = at::empty_strided(t.sizes(), t.strides(), t.options().device(device));
  on_host(made).copy_(t);
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

IValue argument_on_host(const IValue& value) {
  if (value.isDevice()) return c10::Device(c10::kCPU);
  if (value.isGenerator()) return {};  // of a GPU; the CPU's default one serves all
  return mapped(value, on_host);
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
  Values arguments;
  for (const IValue& value : given) arguments.push_back(argument_on_host(value));

  const std::lock_guard lock(runtime::computing());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device.index());
  const bool captured = runtime::is_captured(stream);
  const Values results = computed(op, arguments);
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
      given[written].toTensor().resize_(results[i].toTensor().sizes());
      targets.back() = on_host(given[written].toTensor());
      store(targets.back(), results[i]);
    }
  }
  if (!captured) return;
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
  m.def("on_host", &on_host);
  m.def("on_gpu", [](const at::Tensor& t, int index) { return on_gpu(t, c10::Device(c10::kCUDA, index)); });
}
