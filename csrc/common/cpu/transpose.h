// Transposes a matrix of floats.
#pragma once

#include <cstdint>

namespace bcos::cpu {

// out [columns, rows] = in [rows, columns]; the rows of both lie these strides apart.
void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out,
               int64_t out_stride);

}  // namespace bcos::cpu
