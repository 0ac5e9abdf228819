#include "transform/cpu/scale_kernels.h"

namespace bcos::transform::cpu {

template bool run(const ScaleForward<double, double>&, int64_t, int64_t);
template void run(const ScaleBackward<double, double>&, int64_t, int64_t);
template double b_gradient(const ScaleBackward<double, double>&, int64_t, int64_t);
template void run(const AddScaled<double>&, int64_t, int64_t);

}  // namespace bcos::transform::cpu
