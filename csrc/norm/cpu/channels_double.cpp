#include "norm/cpu/channels_kernels.h"

namespace bcos::norm::cpu {

template void run(const Moments<double>&, int64_t, int64_t);
template void run(const Products<double, double>&, int64_t, int64_t);
template void run(const Apply<double, double>&, int64_t, int64_t);
template void run(const InputGradient<double, double>&, int64_t, int64_t);

}  // namespace bcos::norm::cpu
