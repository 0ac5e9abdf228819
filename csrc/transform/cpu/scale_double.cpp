#include "transform/cpu/scale_kernels.h"

namespace bcos::transform::cpu {

BCOS_CLONES bool run(const ScaleForward<double, double>& f, int64_t begin, int64_t end) {
  return forward(f, begin, end);
}
BCOS_CLONES void run(const ScaleBackward<double, double>& f, int64_t begin, int64_t end) {
  backward<Power::One, Power::Two, Power::General>(f, begin, end);
}
BCOS_CLONES double b_gradient(const ScaleBackward<double, double>& f, int64_t begin, int64_t end) {
  return b_sum(f, begin, end);
}
BCOS_CLONES void run(const AddScaled<double>& f, int64_t begin, int64_t end) {
  add_scaled(f, begin, end);
}

}  // namespace bcos::transform::cpu
