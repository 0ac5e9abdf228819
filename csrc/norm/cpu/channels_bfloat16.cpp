#include "norm/cpu/channels_kernels.h"

namespace bcos::norm::cpu {

BCOS_CLONES void run(const Moments<BFloat16>& f, int64_t begin, int64_t end) {
  moments(f, begin, end);
}
BCOS_CLONES void run(const Products<BFloat16, BFloat16>& f, int64_t begin, int64_t end) {
  products(f, begin, end);
}
BCOS_CLONES void run(const Apply<BFloat16, BFloat16>& f, int64_t begin, int64_t end) {
  apply(f, begin, end);
}
BCOS_CLONES void run(const InputGradient<BFloat16, BFloat16>& f, int64_t begin, int64_t end) {
  input_gradient(f, begin, end);
}
BCOS_CLONES void run(const Products<BFloat16, float>& f, int64_t begin, int64_t end) {
  products(f, begin, end);
}
BCOS_CLONES void run(const Apply<BFloat16, float>& f, int64_t begin, int64_t end) {
  apply(f, begin, end);
}
BCOS_CLONES void run(const InputGradient<BFloat16, float>& f, int64_t begin, int64_t end) {
  input_gradient(f, begin, end);
}
BCOS_CLONES void run(const Apply<float, BFloat16>& f, int64_t begin, int64_t end) {
  apply(f, begin, end);
}

}  // namespace bcos::norm::cpu
