#include "dynamic_alignment/cpu/block_kernels.h"

namespace bcos::dynamic_alignment::cpu {

BCOS_CLONES void run(const BlockForward<double>& f) {
  forward(f);
}
BCOS_CLONES void run(const Finish<double>& f) {
  finish(f);
}
BCOS_CLONES void run(const Start<double>& f) {
  start(f);
}
BCOS_CLONES void run(const BlockBackward<double>& f) {
  backward(f);
}

}  // namespace bcos::dynamic_alignment::cpu
