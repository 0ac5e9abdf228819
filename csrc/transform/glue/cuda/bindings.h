// What Python sees of the transform on a GPU.
#pragma once

#include "transform/glue/cuda/graph.h"
#include "transform/glue/cuda/transform.h"
#include "transform/glue/directions.h"

namespace bcos::transform::glue::cuda {

inline void bind(pybind11::module_ m) {
  using namespace pybind11::literals;
  using unlocked = pybind11::call_guard<pybind11::gil_scoped_release>;
  check_names(candidates());
  bind_directions<Cuda, const std::string&, bool, bool, bool>(m, "candidate"_a, "large"_a, "tf32"_a,
                                                              "divides_x"_a = false);
  m.def("candidates", &candidate_names);
  pybind11::enum_<Step>(m, "Step", "What a graph of cuDNN computes of a transform.")
      .value("forward", Step::Forward)
      .value("explanation", Step::Explanation)
      .value("training", Step::Training);
  m.def("graph_why_not", &graph_why_not, unlocked(), "x_sizes"_a, "weight_sizes"_a, "dtype"_a,
        "weight_dtype"_a, "biased"_a, "spec"_a, "step"_a, "tf32"_a, "compiles"_a);
  m.def("set_plan_folder", &set_plan_folder, "folder"_a);
}

}  // namespace bcos::transform::glue::cuda
