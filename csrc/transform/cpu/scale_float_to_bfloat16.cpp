#include "transform/cpu/scale_kernels.h"

namespace bcos::transform::cpu {

template bool run(const ScaleForward<float, BFloat16>&, int64_t, int64_t);

}  // namespace bcos::transform::cpu
