#include "transform/cpu/depthwise_kernels.h"

namespace bcos::transform::cpu {

BCOS_CLONES void run(const DepthwiseForward<float, float>& f, int64_t begin, int64_t end) {
  forward(f, begin, end);
}
BCOS_CLONES bool run(const DepthwiseBackward<float, float>& f, int64_t begin, int64_t end) {
  return backward(f, begin, end);
}

}  // namespace bcos::transform::cpu
