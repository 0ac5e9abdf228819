// The submodule bcos_kernels._C.cuda on the emulator, as a module of its own.
#include "common/cuda/bindings.h"
#include "dynamic_alignment/glue/cuda/bindings.h"
#include "emulator.h"
#include "norm/glue/cuda/bindings.h"
#include "transform/glue/cuda/bindings.h"

namespace {

// Registers a candidate whose name another one has.
void register_twice() {
  auto candidates = bcos::transform::glue::cuda::candidates();
  candidates.push_back(candidates.front());
  bcos::transform::glue::cuda::check_names(candidates);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  pybind11::module_::import("bcos_kernels._C");  // the types of the specs are bound there
  bcos::cuda::bind(m);
  bcos::norm::glue::cuda::bind(m);
  bcos::transform::glue::cuda::bind(m);
  bcos::dynamic_alignment::glue::cuda::bind(m);
  m.def("register_twice", &register_twice);
  m.def("last_shared", [] { return emulation::block.shared.size(); });  // bytes of the last kernel
  m.def("set_capturing", [](bool now) { bcos::cuda::capturing = now; });
}
