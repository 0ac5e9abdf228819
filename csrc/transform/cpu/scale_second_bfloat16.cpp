#include "transform/cpu/scale_second_kernels.h"

namespace bcos::transform::cpu {

BCOS_CLONES void run(const ScaleSecond<BFloat16, BFloat16>& f, int64_t begin, int64_t end) {
  second<Power::One, Power::Two, Power::General>(f, begin, end);
}
BCOS_CLONES void run(const ScaleJoin<BFloat16, BFloat16>& f, int64_t begin, int64_t end) {
  join(f, begin, end);
}

}  // namespace bcos::transform::cpu
