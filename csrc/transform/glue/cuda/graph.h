// Calls as graphs of cuDNN: which are served, and how one is run.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>

#include "common/cuda/cudnn/cache.h"
#include "transform/cuda/graphs.h"
#include "transform/glue/cuda/call.h"

namespace bcos::transform::glue::cuda {

using kernels::Step;

// What else decides a graph, besides the call.
struct Beside {
  bool alpha;                          // of Weights
  std::optional<at::ScalarType> bias;  // its dtype, where there is one
};

// A plan that can be run now, on the current stream.
class Prepared {
 public:
  Prepared(const cudnn::Plan& plan, cudnn::Lease lease) : plan_(plan), lease_(std::move(lease)) {}

  // `tensors`: those of kernels::graph_of, in its order; undefined ones are left out.
  void run(const DeviceCall& call, std::initializer_list<at::Tensor> tensors) const;

 private:
  const cudnn::Plan& plan_;
  cudnn::Lease lease_;
};

// Builds the plan where it is neither here nor stored, except while a CUDA graph is recorded: whoever asks
// has chosen the candidate. None where the call is not served as a graph, or not yet.
std::optional<Prepared> prepare_graph(const DeviceCall& call, Step step, const Beside& beside);

// Why a call is not served as a graph on the current GPU: cuDNN's reason or ours; empty where it is.
// `compiles`: a plan that is neither here nor stored is built to find out, in seconds. `biased`: there is a
// bias, of the weight's dtype, or its gradient is formed.
std::string graph_why_not(const Ints& x_sizes, const Ints& weight_sizes, at::ScalarType dtype,
                          at::ScalarType weight_dtype, bool biased, const Spec& spec, Step step, bool tf32,
                          bool compiles);

// Where plans are kept between processes; empty: nowhere.
void set_plan_folder(const std::string& folder);

}  // namespace bcos::transform::glue::cuda
