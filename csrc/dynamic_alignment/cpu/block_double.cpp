#include "dynamic_alignment/cpu/block_kernels.h"

namespace bcos::dynamic_alignment::cpu {

template void run(const BlockForward<double>&);
template void run(const Finish<double>&);
template void run(const Start<double>&);
template void run(const BlockBackward<double>&);

}  // namespace bcos::dynamic_alignment::cpu
