#include "transform/cpu/scale_second_kernels.h"

namespace bcos::transform::cpu {

template void run(const ScaleSecond<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const ScaleJoin<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const ScaleSecond<BFloat16, float>&, int64_t, int64_t);
template void run(const ScaleJoin<BFloat16, float>&, int64_t, int64_t);

}  // namespace bcos::transform::cpu
