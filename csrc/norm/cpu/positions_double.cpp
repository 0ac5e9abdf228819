#include "norm/cpu/positions_kernels.h"

namespace bcos::norm::cpu {

template void run(const RowForward<double, double>&, int64_t, int64_t);
template void run(const RowBackward<double, double>&, int64_t, int64_t);
template void run(const RowSecond<double, double>&, int64_t, int64_t);

}  // namespace bcos::norm::cpu
