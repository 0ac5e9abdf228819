#include "norm/cpu/positions_kernels.h"

namespace bcos::norm::cpu {

template void run(const RowForward<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const RowBackward<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const RowForward<BFloat16, float>&, int64_t, int64_t);
template void run(const RowBackward<BFloat16, float>&, int64_t, int64_t);
template void run(const RowSecond<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const RowSecond<BFloat16, float>&, int64_t, int64_t);

}  // namespace bcos::norm::cpu
