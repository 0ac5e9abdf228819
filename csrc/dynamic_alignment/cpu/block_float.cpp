#include "dynamic_alignment/cpu/block_kernels.h"

namespace bcos::dynamic_alignment::cpu {

BCOS_CLONES void run(const BlockForward<float>& f) {
  forward(f);
}
BCOS_CLONES void run(const Finish<float>& f) {
  finish(f);
}
BCOS_CLONES void run(const Start<float>& f) {
  start(f);
}
BCOS_CLONES void run(const BlockBackward<float>& f) {
  backward(f);
}

}  // namespace bcos::dynamic_alignment::cpu
