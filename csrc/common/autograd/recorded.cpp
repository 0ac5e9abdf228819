#include "common/autograd/recorded.h"

#include <ATen/EmptyTensor.h>
#include <ATen/TracerMode.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>
#include <array>
#include <type_traits>

namespace bcos {
namespace {

namespace autograd = torch::autograd;
using autograd::AutogradContext;
using c10::DispatchKey;
using c10::DispatchKeySet;

// Whether these are the dispatch keys of an ordinary tensor, in inference mode or outside of it.
bool are_plain(DispatchKeySet keys) {
  static const auto plain = [] {
    const DispatchKeySet cpu{DispatchKey::CPU, DispatchKey::AutocastCPU};
    const DispatchKeySet cuda{DispatchKey::CUDA, DispatchKey::AutocastCUDA};
    return std::array{cpu.add(DispatchKey::ADInplaceOrView).add(DispatchKey::AutogradCPU),
                      cuda.add(DispatchKey::ADInplaceOrView).add(DispatchKey::AutogradCUDA), cpu, cuda};
  }();
  return std::find(plain.begin(), plain.end(), keys) != plain.end();
}

bool is_seen(const at::Tensor& t) {
  return t.defined() && !are_plain(t.key_set());
}

// Whether something must see the operators that are called with these tensors: a transform, a trace, a mode,
// or a tensor that is a subclass, a wrapper or a fake one.
bool is_seen(at::TensorList tensors) {
  return c10::impl::TorchDispatchModeTLS::any_modes_set() || at::tracer::impl::is_dispatch_enabled() ||
         c10::impl::tls_is_dispatch_key_included(DispatchKey::FuncTorchDynamicLayerFrontMode) ||
         std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor& t) { return is_seen(t); });
}

constexpr auto kKernels = "kernels", kWitness = "witness", kVersion = "version";
constexpr auto kDifferentiated = "differentiated", kMap = "map", kLeft = "left",
               kVersionLeft = "version left", kMessage = "message";

const Kernels* kernels_of(AutogradContext* ctx) {
  return reinterpret_cast<const Kernels*>(intptr_t(ctx->saved_data[kKernels].toInt()));
}

// What was left with the call: undefined in most of them.
at::Tensor left(AutogradContext* ctx, const at::Tensor& grad) {
  auto& data = ctx->saved_data;
  if (data.count(kMap) == 0) return {};
  const auto expected = data[kLeft].toTensor();
  TORCH_CHECK(grad.is_same(expected) && grad._version() == data[kVersionLeft].toInt(),
              data[kMessage].toStringRef());
  const auto map = data[kMap].toTensor();
  if (map.is_cuda()) {  // it may have been made on another stream, of which alone the allocator knows
    const c10::impl::VirtualGuardImpl guard(map.device().type());
    map.record_stream(guard.getStream(map.device()));
  }
  for (const auto* name : {kMap, kLeft, kVersionLeft, kMessage}) data.erase(name);
  return map;
}

}  // namespace

// What stands in the graph. The first output is saved with a version of its own, so that a change of it in
// place is no error. The witness, an empty tensor with the version of the output itself, tells of such a
// change, and the output is then computed again.
struct Recorded : autograd::Function<Recorded> {
  // Saves what the backward needs; y is the first of the outputs, and is in the graph already.
  static void save(AutogradContext& ctx, const Kernels& kernels, const Tensors& inputs,
                   const Tensors& outputs) {
    auto saved = inputs;
    saved.insert(saved.end(), outputs.begin(), outputs.end());
    auto& first = saved[inputs.size()];
    if (kernels.saves_output) {
      const at::Tensor witness(at::detail::empty_cpu({0}, at::kByte));
      autograd::impl::set_version_counter(witness, autograd::impl::version_counter(first));
      ctx.saved_data[kWitness] = witness;
      ctx.saved_data[kVersion] = int64_t(first._version());
      first = first.variable_data();
    } else {
      first = at::Tensor();
    }
    ctx.saved_data[kKernels] = int64_t(reinterpret_cast<intptr_t>(&kernels));
    ctx.save_for_backward(std::move(saved));
    ctx.set_materialize_grads(false);
  }

  static Tensors backward(AutogradContext* ctx, const Tensors& grads) {
    const auto& kernels = *kernels_of(ctx);
    const auto kept = ctx->get_saved_variables();
    const auto middle = kept.begin() + int64_t(kernels.inputs);
    const Tensors inputs(kept.begin(), middle);
    Tensors saved(middle, kept.end());

    std::vector<bool> needs;
    size_t present = 0;
    for (const auto& t : inputs) needs.push_back(t.defined() && ctx->needs_input_grad(present++));
    Tensors gradients(inputs.size());
    const auto map = left(ctx, grads[0]);
    if (grads[0].defined()) {
      if (c10::GradMode::is_enabled()) ctx->saved_data[kDifferentiated] = true;
      const auto& way = must_be_seen(grads[0], inputs) ? kernels.by_operators : kernels.backward;
      gradients = way(grads[0], inputs, output_as_saved(ctx, kernels, inputs, std::move(saved)), needs, map);
    }
    Tensors found;  // of the inputs that the call has: they alone have edges
    found.reserve(present);
    for (size_t i = 0; i < inputs.size(); i++)
      if (inputs[i].defined()) found.push_back(needs[i] ? std::move(gradients[i]) : at::Tensor());
    return found;
  }

 private:
  static bool must_be_seen(const at::Tensor& grad, at::TensorList inputs) {
    return c10::GradMode::is_enabled() || is_seen(grad) || is_seen(inputs);
  }

  static Tensors output_as_saved(AutogradContext* ctx, const Kernels& kernels, const Tensors& inputs,
                                 Tensors saved) {
    if (!kernels.saves_output) return saved;
    const auto witness = ctx->saved_data[kWitness].toTensor();
    if (witness._version() != ctx->saved_data[kVersion].toInt()) {
      const c10::AutoGradMode unrecorded(false);
      saved[0] = kernels.forward(inputs)[0];
    } else if (c10::GradMode::is_enabled()) {  // a second derivative saves it again, and may meet a change
      saved[0] = saved[0].variable_data();
      autograd::impl::set_version_counter(saved[0], autograd::impl::version_counter(witness));
    }
    return saved;
  }
};

namespace {

// The node of a call. torch's own demangles its name in every backward, and checks what Recorded returns.
struct Node : autograd::CppNode<Recorded> {
  std::shared_ptr<Kernels> kernels;  // to which the saved data point

  std::string name() const override { return "bcos::Recorded"; }

  Tensors apply(Tensors&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return Recorded::backward(&ctx_, grads);
  }
};

// A node under the kind of pointer that the present torch has for nodes.
template <typename T>
auto make_node() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, T>)
    return c10::make_intrusive<T>();
  else
    return std::shared_ptr<T>(new T, [](T* node) { deleteNode(node); });
}

Tensors unrecorded(const Kernels& kernels, const Tensors& inputs) {
  const c10::AutoGradMode off(false);
  return kernels.forward(inputs);
}

// The outputs of a call that autograd records. It does what Function::apply does for any function, without
// what a call of kernels cannot be: one that returns an input or a view, or changes one in place.
Tensors record(const std::shared_ptr<Kernels>& kernels, const Tensors& inputs, const Tensors& present) {
  const auto node = make_node<Node>();
  node->kernels = kernels;
  node->set_ctx_grad_fn(node);
  node->set_next_edges(autograd::collect_next_edges(present));
  node->is_variable_input_.assign(present.size(), true);
  auto outputs = unrecorded(*kernels, inputs);
  autograd::set_history(outputs[0], node);
  Recorded::save(node->ctx_, *kernels, inputs, outputs);
  node->save_variables_to_ctx();
  return outputs;
}

}  // namespace

std::optional<Tensors> call(const std::shared_ptr<Kernels>& kernels, const Tensors& inputs) {
  if (is_seen(inputs)) return std::nullopt;
  Tensors present;
  present.reserve(inputs.size());
  bool needs_gradient = false;
  for (const auto& t : inputs) {
    if (!t.defined()) continue;
    present.push_back(t);
    needs_gradient |= t.requires_grad();
  }
  const bool records = needs_gradient && c10::GradMode::is_enabled();
  auto outputs = records ? record(kernels, inputs, present) : unrecorded(*kernels, inputs);
  outputs.resize(kernels->returned);
  return outputs;
}

namespace {

Node* node_of(const at::Tensor& y) {
  return dynamic_cast<Node*>(y.grad_fn().get());
}

}  // namespace

std::shared_ptr<Kernels> maker_of(const at::Tensor& y) {
  const auto* node = node_of(y);
  return node && !node->ctx_.saved_data.count(kDifferentiated) ? node->kernels : nullptr;
}

bool has_hooks(const at::Tensor& y) {
  const auto node = y.grad_fn();
  return node && !(node->pre_hooks().empty() && node->post_hooks().empty() &&
                   node->tensor_pre_hooks().empty() && node->retains_grad_hooks().empty());
}

void leave(const at::Tensor& y, const at::Tensor& grad, const at::Tensor& map, const std::string& message) {
  auto* node = node_of(y);
  TORCH_CHECK_VALUE(node, "y is not the output of a call that these kernels recorded");
  auto& data = node->ctx_.saved_data;
  data[kMap] = map;
  data[kLeft] = grad;
  data[kVersionLeft] = int64_t(grad._version());
  data[kMessage] = message;
}

}  // namespace bcos
