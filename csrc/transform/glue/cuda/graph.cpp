#include "transform/glue/cuda/graph.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>

#include "transform/glue/cuda/weights.h"

namespace bcos::transform::glue::cuda {
namespace {

// Never destroyed: cuDNN may be gone when the process ends.
cudnn::Cache& plans() {
  static auto* cache = new cudnn::Cache();
  return *cache;
}

cudnn::DataType type_of(at::ScalarType dtype) {
  return dtype == at::kHalf       ? cudnn::DataType::Half
         : dtype == at::kBFloat16 ? cudnn::DataType::BFloat16
                                  : cudnn::DataType::Float;
}

bool must_be_deterministic() {
  const auto& torch = at::globalContext();
  return torch.deterministicCuDNN() || torch.deterministicAlgorithms();
}

kernels::Fused fused(const DeviceCall& call, Step step, const Beside& beside) {
  const bool forward = step == Step::Forward, training = step == Step::Training;
  kernels::Fused out{};
  out.step = step;
  out.images = call.images;
  out.channels = call.channels;
  out.filters = call.filters;
  out.window = call.device_window();
  out.dtype = type_of(call.dtype);
  out.out_dtype = training ? out.dtype : type_of(call.spec.out_dtype);
  out.alpha = beside.alpha && !training;  // u has it already
  out.bias = forward && beside.bias.has_value();
  if (out.bias) out.bias_dtype = type_of(*beside.bias);
  out.power = training && call.has_norm() ? Power::Two : call.power;  // the same product for every b
  if (out.power == Power::General) {
    out.b_minus_1 = float(call.b - 1);
    out.cos_eps = float(call.cos_eps);
  }
  out.deterministic = must_be_deterministic();
  return out;
}

std::string unserved(const DeviceCall& call, const kernels::Fused& graph) {
  if (!at::globalContext().userEnabledCuDNN()) return "torch.backends.cudnn.enabled is False";
  if (call.spec.groups != 1) return "groups is " + std::to_string(call.spec.groups) + ", allowed: 1";
  if (call.spec.max_out != 1) return "max_out is " + std::to_string(call.spec.max_out) + ", allowed: 1";
  if (!call.spec.b) return "b is a tensor";
  if (call.dtype == at::kFloat && !call.tf32) return "products of fp32 need tf32, which torch does not allow";
  return kernels::why_not(graph);
}

const cudnn::Entry* find(const kernels::Fused& graph, bool may_build) {
  const auto key = graph.key();
  return plans().find(device_index(), {key.begin(), key.end()}, graph.deterministic, may_build,
                      [&] { return kernels::graph_of(graph); });
}

}  // namespace

void Prepared::run(const DeviceCall& call, std::initializer_list<at::Tensor> tensors) const {
  std::vector<const void*> addresses;
  for (const auto& t : tensors)
    if (t.defined()) addresses.push_back(data(t));
  at::Tensor workspace;
  if (plan_.workspace() > 0)
    workspace = at::empty({plan_.workspace()}, tensors.begin()->options().dtype(at::kByte));
  try {
    plan_.run(lease_.handle(), addresses, mutable_data(workspace));
  } catch (const cudnn::Error& error) {
    TORCH_CHECK(false, error.what(), "; ", call.sizes());
  }
}

std::optional<Prepared> prepare_graph(const DeviceCall& call, Step step, const Beside& beside) {
  const auto graph = fused(call, step, beside);
  if (!unserved(call, graph).empty()) return std::nullopt;
  const bool may_build = !is_capturing();
  const auto* entry = find(graph, may_build);
  if (entry == nullptr || !entry->plan) return std::nullopt;
  auto lease = plans().handle(device_index(), stream(), may_build);
  if (!lease) return std::nullopt;
  return std::optional<Prepared>(std::in_place, *entry->plan, std::move(*lease));
}

std::string graph_why_not(const Ints& x_sizes, const Ints& weight_sizes, at::ScalarType dtype,
                          at::ScalarType weight_dtype, bool biased, const Spec& spec, Step step, bool tf32) {
  const auto x = at::empty(x_sizes, at::TensorOptions().device(at::kMeta).dtype(dtype));
  const DeviceCall call(Call(spec, x, weight_sizes), false, false, tf32);
  const Beside beside{takes_raw(call, weight_dtype, biased),
                      biased ? std::optional(weight_dtype) : std::nullopt};
  const auto graph = fused(call, step, beside);
  if (auto reason = unserved(call, graph); !reason.empty()) return reason;
  const auto* entry = find(graph, !is_capturing());
  return entry == nullptr ? "a CUDA graph is being recorded, in which no plan is built" : entry->why_not;
}

void set_plan_folder(const std::string& folder) {
  plans().set_folder(folder);
}

}  // namespace bcos::transform::glue::cuda
