// The Python module bcos_kernels._C.
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "common/macros.h"
#include "host/ops.h"
#if defined(BCOS_WITH_CUDA)
#include "host/cuda/bindings.h"
#endif

namespace py = pybind11;
using namespace py::literals;
namespace host = bcos::host;

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
  using unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("conv2d", &host::conv2d, unlocked(), "x"_a, "weight"_a, "bias"_a, "b"_a, "stride"_a, "padding"_a,
        "dilation"_a, "groups"_a, "max_out"_a, "exponent"_a, "unit"_a, "eps_inside"_a, "eps_outside"_a,
        "cos_eps"_a, "exact_two"_a, "out_dtype"_a);
  m.def("conv2d_backward", &host::conv2d_backward, unlocked(), "grad"_a, "x"_a, "weight"_a, "b"_a, "y"_a,
        "n"_a, "l"_a, "winner"_a, "stride"_a, "padding"_a, "dilation"_a, "groups"_a, "max_out"_a,
        "exponent"_a, "unit"_a, "eps_inside"_a, "eps_outside"_a, "cos_eps"_a, "exact_two"_a, "explain"_a,
        "needs"_a);
  m.def("linear", &host::linear, unlocked(), "x"_a, "weight"_a, "bias"_a, "b"_a, "max_out"_a, "exponent"_a,
        "unit"_a, "eps_inside"_a, "eps_outside"_a, "cos_eps"_a, "exact_two"_a, "out_dtype"_a);
  m.def("linear_backward", &host::linear_backward, unlocked(), "grad"_a, "x"_a, "weight"_a, "b"_a, "y"_a,
        "n"_a, "l"_a, "winner"_a, "max_out"_a, "exponent"_a, "unit"_a, "eps_inside"_a, "eps_outside"_a,
        "cos_eps"_a, "exact_two"_a, "explain"_a, "needs"_a);
  m.def("patch_norm", &host::patch_norm, unlocked(), "x"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a,
        "groups"_a, "eps_inside"_a, "eps_outside"_a);
  m.def("weight_norm", &host::weight_norm, unlocked(), "weight"_a);
  m.def("build_info", &build_info);
#if defined(BCOS_WITH_CUDA)
  host::gpu::bind(m.def_submodule("cuda"));
#endif
}
