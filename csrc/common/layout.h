// The two memory orders of images with two or three axes.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/MemoryFormat.h>

namespace bcos {

inline bool is_channels_last(at::MemoryFormat format) {
  return format == at::MemoryFormat::ChannelsLast || format == at::MemoryFormat::ChannelsLast3d;
}

// The format of a tensor with this many dimensions.
inline at::MemoryFormat image_format(bool channels_last, int64_t dimensions) {
  if (!channels_last || dimensions < 4) return at::MemoryFormat::Contiguous;
  return dimensions == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
}

// Whether [N, C, positions] lies in memory as the rows [N · positions, C]: the channels of a position side by
// side.
inline bool lies_in_rows(const at::Tensor& t) {
  if (t.numel() == 0) return true;
  int64_t next = 1;
  for (int64_t i = 0; i < t.dim(); i++) {
    const int64_t dim = i == 0 ? 1 : i == t.dim() - 1 ? 0 : t.dim() - i;  // from the innermost in memory
    if (t.size(dim) != 1 && t.stride(dim) != next) return false;
    next *= t.size(dim);
  }
  return true;
}

}  // namespace bcos
