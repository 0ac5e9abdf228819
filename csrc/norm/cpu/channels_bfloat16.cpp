#include "norm/cpu/channels_kernels.h"

namespace bcos::norm::cpu {

template void run(const Moments<BFloat16>&, int64_t, int64_t);
template void run(const Products<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const Apply<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const InputGradient<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const Products<BFloat16, float>&, int64_t, int64_t);
template void run(const Apply<BFloat16, float>&, int64_t, int64_t);
template void run(const InputGradient<BFloat16, float>&, int64_t, int64_t);
template void run(const Apply<float, BFloat16>&, int64_t, int64_t);

}  // namespace bcos::norm::cpu
