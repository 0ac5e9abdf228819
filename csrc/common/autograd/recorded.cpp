#include "common/autograd/recorded.h"

#include <ATen/TracerMode.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bitset>
#include <mutex>
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

// The first output of a call. It is saved with a version of its own, so that a change of it in place is no
// error; the version of the output itself tells of such a change, and the output is then computed again.
struct First {
  c10::VariableVersion version;  // of the output itself; none in compiled autograd
  bool changed;

  void refresh(const Kernels& kernels, const Tensors& inputs, at::Tensor& saved) const {
    if (changed) {
      const c10::AutoGradMode unrecorded(false);
      saved = kernels.forward(inputs)[0];
    } else if (c10::GradMode::is_enabled() && version.enabled()) {
      saved = saved.variable_data();  // a second derivative saves it again, and may meet a change
      autograd::impl::set_version_counter(saved, version);
    }
  }
};

// Which of the inputs, and of the outputs behind them, are saved. To save an undefined tensor takes as long
// as another, and most calls have half of them.
using Present = std::bitset<32>;

// The gradients of the inputs that a call has: they alone have edges.
Tensors gradients(const AutogradContext& ctx, const Kernels& kernels, const First& first, Present present,
                  const at::Tensor& grad, const at::Tensor& map) {
  auto found = ctx.get_saved_variables();
  Tensors inputs(kernels.inputs), saved(kernels.outputs);
  std::vector<bool> needs(inputs.size());
  size_t next = 0;
  const auto take = [&](Tensors& tensors, size_t before, auto&& beside) {
    for (size_t i = 0; i < tensors.size(); i++)
      if (present[before + i]) beside(i), tensors[i] = std::move(found[next++]);
  };
  take(inputs, 0, [&](size_t i) { needs[i] = ctx.needs_input_grad(next); });
  if (!grad.defined()) return Tensors(next);
  take(saved, inputs.size(), [](size_t) {});
  if (kernels.saves_output) first.refresh(kernels, inputs, saved[0]);
  const bool seen = c10::GradMode::is_enabled() || is_seen(grad) || is_seen(inputs);
  auto of_all = (seen ? kernels.by_operators : kernels.backward)(grad, inputs, saved, needs, map);
  size_t edge = 0;
  for (size_t i = 0; i < inputs.size(); i++)
    if (inputs[i].defined()) of_all[edge++] = needs[i] ? std::move(of_all[i]) : at::Tensor();
  of_all.resize(edge);
  return of_all;
}

// What a norm left with a call: the map that grad still has to pass.
struct Left {
  at::Tensor map, grad;
  uint32_t version;  // of grad
  std::string message;

  // The map, for the gradient that arrived.
  at::Tensor taken(const at::Tensor& arrived) const {
    TORCH_CHECK(arrived.is_same(grad) && arrived._version() == version, message);
    if (map.is_cuda()) {  // it may have been made on another stream, of which alone the allocator knows
      const c10::impl::VirtualGuardImpl guard(map.device().type());
      map.record_stream(guard.getStream(map.device()));
    }
    return map;
  }
};

constexpr auto kKernels = "kernels", kChanged = "changed", kPresent = "present";

}  // namespace

// The name by which compiled autograd knows the calls, and what it runs.
struct Recorded : autograd::Function<Recorded> {
  static Tensors backward(AutogradContext* ctx, const Tensors& grads) {
    auto& data = ctx->saved_data;
    const auto& kernels = *reinterpret_cast<const Kernels*>(intptr_t(data[kKernels].toInt()));
    return gradients(*ctx, kernels, {{}, data[kChanged].toBool()}, Present(data[kPresent].toInt()), grads[0],
                     {});
  }
};

namespace {

// The node of a call. torch's own keeps all but tensors in a map of names, demangles its own name in every
// backward, and checks what Recorded returns.
struct Node : autograd::CppNode<Recorded> {
  std::shared_ptr<Kernels> kernels;
  c10::VariableVersion version;  // of the first output, where the kernels save it
  uint32_t saved_version = 0;
  Present present;
  std::atomic<bool> differentiated{false};  // whether a backward was; maker_of reads it in any thread
  std::optional<Left> left;

  std::string name() const override { return "bcos::Recorded"; }

  // Saves what the backward needs; y is the first of the outputs, and is in the graph already.
  void save(const Tensors& inputs, const Tensors& outputs) {
    Tensors saved;
    saved.reserve(inputs.size() + outputs.size());
    const auto add = [&](size_t i, at::Tensor tensor) {
      if (tensor.defined()) present.set(i), saved.push_back(std::move(tensor));
    };
    for (size_t i = 0; i < inputs.size(); i++) add(i, inputs[i]);
    if (kernels->saves_output) {
      const auto& y = outputs[0];
      version = autograd::impl::version_counter(y);
      saved_version = version.current_version();
      add(inputs.size(), y.variable_data());
    }
    for (size_t i = 1; i < outputs.size(); i++) add(inputs.size() + i, outputs[i]);
    ctx_.save_for_backward(std::move(saved));
    save_variables_to_ctx();
  }

  Tensors apply(Tensors&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto& grad = grads[0];
    const auto map = left ? left->taken(grad) : at::Tensor();
    left.reset();
    if (grad.defined() && c10::GradMode::is_enabled()) differentiated = true;
    return gradients(ctx_, *kernels, {version, is_changed()}, present, grad, map);
  }

  // For the next backward.
  void leave(std::optional<Left> something) {
    const std::lock_guard<std::mutex> lock(mutex_);
    left.swap(something);
  }

  // Compiled autograd takes along what stands in the context, and nothing else of a node.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    auto& data = const_cast<Node*>(this)->ctx_.saved_data;
    data[kKernels] = int64_t(reinterpret_cast<intptr_t>(kernels.get()));
    data[kChanged] = is_changed();
    data[kPresent] = int64_t(present.to_ulong());
    CppNode::compiled_args(args);
  }

 private:
  bool is_changed() const { return kernels->saves_output && version.current_version() != saved_version; }
};

// A node under the kind of pointer that the present torch has for nodes.
template <typename T>
auto make_node() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, T>)
    return c10::make_intrusive<T>();
  else
    return std::shared_ptr<T>(new T, [](T* node) { deleteNode(node); });
}

// Tells the hooks of torch.autograd.graph.node_creation_hook, which torch 2.14 brought, of a node that is
// complete.
template <typename Pointer>
void announce([[maybe_unused]] Pointer node) {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 14
  autograd::fire_node_creation_hooks(std::move(node));
#endif
}

Tensors unrecorded(const Kernels& kernels, const Tensors& inputs) {
  const c10::AutoGradMode off(false);
  return kernels.forward(inputs);
}

// The outputs of a call that autograd records. It does what Function::apply does for any function, without
// what a call of kernels cannot be: one that returns an input or a view, or changes one in place.
Tensors record(const std::shared_ptr<Kernels>& kernels, const Tensors& inputs) {
  auto node = make_node<Node>();
  node->kernels = kernels;
  node->set_ctx_grad_fn(node);
  autograd::edge_list edges;
  edges.reserve(inputs.size());
  for (const auto& t : inputs)
    if (t.defined()) edges.push_back(autograd::impl::gradient_edge(t));
  node->is_variable_input_.assign(edges.size(), true);
  node->set_next_edges(std::move(edges));
  node->ctx_.set_materialize_grads(false);
  auto outputs = unrecorded(*kernels, inputs);
  autograd::set_history(outputs[0], node);
  node->save(inputs, outputs);
  announce(std::move(node));
  return outputs;
}

}  // namespace

bool is_followed(at::TensorList tensors) {
  return is_seen(tensors) || autograd::ForwardADLevel::try_get_by_idx(0);
}

std::optional<Tensors> call(const std::shared_ptr<Kernels>& kernels, const Tensors& inputs) {
  if (is_followed(inputs)) return std::nullopt;
  const bool needs_gradient = std::any_of(inputs.begin(), inputs.end(),
                                          [](const auto& t) { return t.defined() && t.requires_grad(); });
  // in inference mode autograd records nothing, even where gradients are enabled
  const bool records = needs_gradient && c10::GradMode::is_enabled() && !c10::InferenceMode::is_enabled();
  auto outputs = records ? record(kernels, inputs) : unrecorded(*kernels, inputs);
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
  return node && !node->differentiated ? node->kernels : nullptr;
}

bool has_hooks(const at::Tensor& y) {
  const auto node = y.grad_fn();
  return node && !(node->pre_hooks().empty() && node->post_hooks().empty() &&
                   node->tensor_pre_hooks().empty() && node->retains_grad_hooks().empty());
}

void leave(const at::Tensor& y, const at::Tensor& grad, const at::Tensor& map, const std::string& message) {
  auto* node = node_of(y);
  TORCH_CHECK_VALUE(node, "y is not the output of a call that these kernels recorded");
  node->leave(Left{map, grad, uint32_t(grad._version()), message});
}

}  // namespace bcos
