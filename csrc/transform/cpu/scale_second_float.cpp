#include "transform/cpu/scale_second_kernels.h"

namespace bcos::transform::cpu {

template void run(const ScaleSecond<float, float>&, int64_t, int64_t);
template void run(const ScaleJoin<float, float>&, int64_t, int64_t);
template void run(const ScaleSecond<double, double>&, int64_t, int64_t);
template void run(const ScaleJoin<double, double>&, int64_t, int64_t);

}  // namespace bcos::transform::cpu
