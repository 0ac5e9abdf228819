// The two memory orders of images with two or three axes.
#pragma once

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

}  // namespace bcos
