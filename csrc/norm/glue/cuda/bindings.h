// What Python sees of the norm on a GPU.
#pragma once

#include "norm/glue/directions.h"

namespace bcos::norm::glue::cuda {

extern const Backend kCuda;

inline void bind(pybind11::module_ m) {
  bind_directions<kCuda>(m);
}

}  // namespace bcos::norm::glue::cuda
