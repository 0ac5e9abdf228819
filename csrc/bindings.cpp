// The Python module bcos_kernels._C: facts of the build, and what each op binds.
#include "dynamic_alignment/glue/bindings.h"

#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "common/autograd/python.h"
#include "common/macros.h"
#include "norm/glue/bindings.h"
#include "transform/glue/bindings.h"
#if defined(BCOS_WITH_CUDA)
#include "common/cuda/bindings.h"
#include "dynamic_alignment/glue/cuda/bindings.h"
#include "norm/glue/cuda/bindings.h"
#include "transform/glue/cuda/bindings.h"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
#if defined(__VERSION__)
  info["compiler"] = __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["isa_clones"] = BCOS_CLONE_NAMES;
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#if defined(BCOS_WITH_CUDA)
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Compiled kernels of bcos_kernels (B-cos Networks, Böhle et al., CVPR 2022, eq. 3; TPAMI 2024)";
  m.def("build_info", &build_info);
  bcos::bind_calls(m);
  bcos::transform::glue::bind(m);
  bcos::norm::glue::bind(m);
  bcos::dynamic_alignment::glue::bind(m);
#if defined(BCOS_WITH_CUDA)
  auto cuda = m.def_submodule("cuda");
  bcos::cuda::bind(cuda);
  bcos::norm::glue::cuda::bind(cuda);
  bcos::transform::glue::cuda::bind(cuda);
  bcos::dynamic_alignment::glue::cuda::bind(cuda);
#endif
}
