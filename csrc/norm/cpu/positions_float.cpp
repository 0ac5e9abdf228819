#include "norm/cpu/positions_kernels.h"

namespace bcos::norm::cpu {

BCOS_CLONES void run(const RowForward<float, float>& f, int64_t begin, int64_t end) {
  forward(f, begin, end);
}
BCOS_CLONES void run(const RowBackward<float, float>& f, int64_t share, int64_t begin, int64_t end) {
  backward(f, share, begin, end);
}
BCOS_CLONES void run(const RowSecond<float, float>& f, int64_t share, int64_t begin, int64_t end) {
  second(f, share, begin, end);
}

}  // namespace bcos::norm::cpu
