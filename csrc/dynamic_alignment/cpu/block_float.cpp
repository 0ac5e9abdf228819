#include "dynamic_alignment/cpu/block_kernels.h"

namespace bcos::dynamic_alignment::cpu {

template void run(const BlockForward<float>&);
template void run(const Finish<float>&);
template void run(const Start<float>&);
template void run(const BlockBackward<float>&);

}  // namespace bcos::dynamic_alignment::cpu
