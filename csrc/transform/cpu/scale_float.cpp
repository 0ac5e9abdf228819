#include "transform/cpu/scale_kernels.h"

namespace bcos::transform::cpu {

template bool run(const ScaleForward<float, float>&, int64_t, int64_t);
template bool run(const ScaleForward<float, BFloat16>&, int64_t, int64_t);
template void run(const ScaleBackward<float, float>&, int64_t, int64_t);
template double b_gradient(const ScaleBackward<float, float>&, int64_t, int64_t);
template void run(const AddScaled<float>&, int64_t, int64_t);

}  // namespace bcos::transform::cpu
