#include "transform/cpu/scale_kernels.h"

namespace bcos::transform::cpu {

BCOS_CLONES void run_general(const ScaleBackward<float, float>& f, int64_t begin, int64_t end) {
  backward_of<Power::General>(f, begin, end);
}
template double b_gradient(const ScaleBackward<float, float>&, int64_t, int64_t);

}  // namespace bcos::transform::cpu
