#include "norm/cpu/channels_kernels.h"

namespace bcos::norm::cpu {

template void run(const Moments<float>&, int64_t, int64_t);
template void run(const Products<float, float>&, int64_t, int64_t);
template void run(const Apply<float, float>&, int64_t, int64_t);
template void run(const InputGradient<float, float>&, int64_t, int64_t);

}  // namespace bcos::norm::cpu
