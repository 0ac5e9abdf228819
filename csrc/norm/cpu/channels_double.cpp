#include "norm/cpu/channels_kernels.h"

namespace bcos::norm::cpu {

BCOS_CLONES void run(const Moments<double>& f, int64_t begin, int64_t end) {
  moments(f, begin, end);
}
BCOS_CLONES void run(const Products<double, double>& f, int64_t begin, int64_t end) {
  products(f, begin, end);
}
BCOS_CLONES void run(const Apply<double, double>& f, int64_t begin, int64_t end) {
  apply(f, begin, end);
}
BCOS_CLONES void run(const InputGradient<double, double>& f, int64_t begin, int64_t end) {
  input_gradient(f, begin, end);
}

}  // namespace bcos::norm::cpu
