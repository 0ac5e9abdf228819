#include "transform/cpu/scale_kernels.h"

namespace bcos::transform::cpu {

BCOS_CLONES void run_general(const ScaleBackward<float, float>& f, int64_t begin, int64_t end) {
  backward<Power::General>(f, begin, end);
}
BCOS_CLONES double b_gradient(const ScaleBackward<float, float>& f, int64_t begin, int64_t end) {
  return b_sum(f, begin, end);
}

}  // namespace bcos::transform::cpu
