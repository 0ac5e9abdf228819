#include "transform/cpu/scale_kernels.h"

namespace bcos::transform::cpu {

template bool run(const ScaleForward<float, float>&, int64_t, int64_t);
BCOS_CLONES void run_integral(const ScaleBackward<float, float>& f, int64_t begin, int64_t end) {
  backward_of<Power::One, Power::Two>(f, begin, end);
}
template <>
void run(const ScaleBackward<float, float>& f, int64_t begin, int64_t end) {
  f.power == Power::General ? run_general(f, begin, end) : run_integral(f, begin, end);
}
template void run(const AddScaled<float>&, int64_t, int64_t);

}  // namespace bcos::transform::cpu
