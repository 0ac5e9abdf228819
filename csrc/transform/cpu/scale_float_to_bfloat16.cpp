#include "transform/cpu/scale_kernels.h"

namespace bcos::transform::cpu {

BCOS_CLONES bool run(const ScaleForward<float, BFloat16>& f, int64_t begin, int64_t end) {
  return forward(f, begin, end);
}

}  // namespace bcos::transform::cpu
