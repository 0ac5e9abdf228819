// Passes over an activation whose statistics lie along its channels: over the batch, over all, or over groups
// of channels. What a channel undergoes is the same at all its positions.
#pragma once

#include "common/cpu/types.h"

namespace bcos::norm::cpu {

using namespace bcos::cpu;
using c10::BFloat16;

// Memory [images, rows, channels] if channels_last, else [images, channels, rows]. Where the images of a
// batch share their constants and memory is channels_last, they are one long image.
struct Extent {
  bool channels_last;
  int64_t images, rows, channels;
  int64_t image_step;  // from one image's constants to the next one's: `channels`, or 0 where all share them
  int64_t splits;      // parts of an image that have sums of their own; 1 unless channels_last

  int64_t planes() const { return images * channels; }
  int64_t parts() const { return images * splits; }
  // The units of a pass that forms sums: parts if channels_last, else planes; and those of any other pass:
  // rows of channels if channels_last, else planes.
  int64_t summed() const { return channels_last ? parts() : planes(); }
  int64_t walked() const { return channels_last ? images * rows : planes(); }
  int64_t part_begin(int64_t part) const { return rows * (part % splits) / splits; }
  int64_t part_end(int64_t part) const { return rows * (part % splits + 1) / splits; }
  int64_t constants(int64_t image) const { return image * image_step; }
};

// The mean of every channel in every part, and the sum of the squared distances from it.
template <typename T>
struct PartMoments {
  const T* x;
  double *mean, *squares;  // [parts, channels]
  Extent extent;
  int64_t units() const { return extent.summed(); }
};

// The sum of grad (x − shift) and that of grad, of every channel in every part.
template <typename T, typename U>
struct Products {
  using A = Accumulate<T>;
  const U* grad;
  const T* x;
  const A* shift;            // [images or 1, channels]
  double *products, *grads;  // [parts, channels]
  Extent extent;
  int64_t units() const { return extent.summed(); }
};

// y = (x − shift) gain + offset, or x gain
template <typename T, typename U>
struct Apply {
  using A = Accumulate<T>;
  const T* x;
  U* y;
  const A *shift, *gain, *offset;  // [images or 1, channels]; shift and offset are both null for x gain
  Extent extent;
  int64_t units() const { return extent.walked(); }
};

// dx = grad of_grad + (x − mean) of_x + offset
template <typename T, typename U>
struct InputGradient {
  using A = Accumulate<T>;
  const U* grad;
  const T* x;
  T* dx;
  const A *mean, *of_grad, *of_x, *offset;  // [images or 1, channels]
  Extent extent;
  int64_t units() const { return extent.walked(); }
};

// Units [begin, end) of a pass; the caller runs them in parallel.
template <typename T>
void run(const PartMoments<T>& pass, int64_t begin, int64_t end);

template <typename T, typename U>
void run(const Products<T, U>& pass, int64_t begin, int64_t end);

template <typename T, typename U>
void run(const Apply<T, U>& pass, int64_t begin, int64_t end);

template <typename T, typename U>
void run(const InputGradient<T, U>& pass, int64_t begin, int64_t end);

}  // namespace bcos::norm::cpu
