#include "norm/cpu/positions_kernels.h"

namespace bcos::norm::cpu {

template void run(const RowForward<float, float>&, int64_t, int64_t);
template void run(const RowBackward<float, float>&, int64_t, int64_t);
template void run(const RowSecond<float, float>&, int64_t, int64_t);

}  // namespace bcos::norm::cpu
