#include "transform/cpu/scale_kernels.h"

namespace bcos::transform::cpu {

BCOS_CLONES bool run(const ScaleForward<float, float>& f, int64_t begin, int64_t end) {
  return forward(f, begin, end);
}
BCOS_CLONES void run_integral(const ScaleBackward<float, float>& f, int64_t begin, int64_t end) {
  backward<Power::One, Power::Two>(f, begin, end);
}
void run(const ScaleBackward<float, float>& f, int64_t begin, int64_t end) {
  f.power == Power::General ? run_general(f, begin, end) : run_integral(f, begin, end);
}
BCOS_CLONES void run(const AddScaled<float>& f, int64_t begin, int64_t end) {
  add_scaled(f, begin, end);
}

}  // namespace bcos::transform::cpu
