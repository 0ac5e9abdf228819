#include "norm/cpu/channels_kernels.h"

namespace bcos::norm::cpu {

BCOS_CLONES void run(const Moments<float>& f, int64_t begin, int64_t end) {
  moments(f, begin, end);
}
BCOS_CLONES void run(const Products<float, float>& f, int64_t begin, int64_t end) {
  products(f, begin, end);
}
BCOS_CLONES void run(const Apply<float, float>& f, int64_t begin, int64_t end) {
  apply(f, begin, end);
}
BCOS_CLONES void run(const InputGradient<float, float>& f, int64_t begin, int64_t end) {
  input_gradient(f, begin, end);
}

}  // namespace bcos::norm::cpu
