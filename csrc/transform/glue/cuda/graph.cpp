#include "transform/glue/cuda/graph.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>

#include <limits>

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
  return out;
}

std::string unserved(const DeviceCall& call, const kernels::Fused& graph) {
  if (!at::globalContext().userEnabledCuDNN()) return "torch.backends.cudnn.enabled is False";
  if (call.spec.groups != 1) return "groups is " + std::to_string(call.spec.groups) + ", allowed: 1";
  if (call.spec.max_out != 1) return "max_out is " + std::to_string(call.spec.max_out) + ", allowed: 1";
  if (!call.spec.b) return "b is a tensor";
  // of a zero patch, |l|/n would not be 0
  if (call.has_norm() && root_norm(0.0f, call.constants<float>()) < std::numeric_limits<float>::min())
    return "norm_eps is too small for a quotient of fp32";
  if (call.dtype == at::kFloat && !call.tf32) return "products of fp32 need tf32, which torch does not allow";
  return kernels::why_not(graph);
}

const cudnn::Entry* find(const kernels::Fused& graph, cudnn::Source allowed) {
  return plans().find(device_index(), graph.key(), allowed, [&] { return kernels::graph_of(graph); });
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
  const bool recorded = is_capturing();
  const auto* entry = find(graph, recorded ? cudnn::Source::Memory : cudnn::Source::Compiler);
  if (entry == nullptr || !entry->plan) return std::nullopt;
  auto lease = plans().handle(device_index(), stream(), !recorded);
  if (!lease) return std::nullopt;
  return std::optional<Prepared>(std::in_place, *entry->plan, std::move(*lease));
}

std::string graph_why_not(const Ints& x_sizes, const Ints& weight_sizes, at::ScalarType dtype,
                          at::ScalarType weight_dtype, bool biased, const Spec& spec, Step step, bool tf32,
                          bool compiles) {
  const auto x = at::empty(x_sizes, at::TensorOptions().device(at::kMeta).dtype(dtype));
  const DeviceCall call(Call(spec, x, weight_sizes), false, false, tf32);
  const Beside beside{takes_raw(call, weight_dtype, biased),
                      biased ? std::optional(weight_dtype) : std::nullopt};
  const auto graph = fused(call, step, beside);
  if (auto reason = unserved(call, graph); !reason.empty()) return reason;
  const bool recorded = is_capturing();
  const auto source = recorded   ? cudnn::Source::Memory
                      : compiles ? cudnn::Source::Compiler
                                 : cudnn::Source::Disk;
  if (const auto* entry = find(graph, source)) return entry->why_not;
  return recorded ? "no plan was there when a CUDA graph was recorded"
                  : "no plan is stored; bk.tune compiles it";
}

void set_plan_folder(const std::string& folder) {
  plans().set_folder(folder);
}

}  // namespace bcos::transform::glue::cuda
