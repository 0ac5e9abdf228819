#include "transform/cpu/depthwise_kernels.h"

namespace bcos::transform::cpu {

BCOS_CLONES void run(const DepthwiseForward<BFloat16, BFloat16>& f, int64_t begin, int64_t end) {
  forward(f, begin, end);
}
BCOS_CLONES bool run(const DepthwiseBackward<BFloat16, BFloat16>& f, int64_t begin, int64_t end) {
  return backward(f, begin, end);
}

}  // namespace bcos::transform::cpu
