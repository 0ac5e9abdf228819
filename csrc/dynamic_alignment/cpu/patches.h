// The patches of an image for a tile of pixels, taken from it and added to it value by value.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dynamic_alignment/spec.h"

namespace bcos::dynamic_alignment::cpu {

// body(image, first, at, count) for every run of pixels [begin, end) within one image: those from `first` of
// its plane, which are those from `at` of the tile.
template <typename F>
void in_images(const Call& call, int64_t begin, int64_t end, F&& body) {
  const int64_t plane = call.plane();
  for (int64_t q = begin; q < end;) {
    const int64_t image = q / plane, first = q % plane, count = std::min(end - q, plane - first);
    body(image, first, q - begin, count);
    q += count;
  }
}

// all [N, rows, plane] -> tile [rows, end - begin]
template <typename A>
void take(const Call& call, int64_t rows, const A* all, int64_t begin, int64_t end, A* tile) {
  in_images(call, begin, end, [&](int64_t image, int64_t first, int64_t at, int64_t count) {
    for (int64_t r = 0; r < rows; r++)
      std::copy_n(all + (image * rows + r) * call.plane() + first, count, tile + r * (end - begin) + at);
  });
}

// The inverse of `take`.
template <typename A>
void give(const Call& call, int64_t rows, const A* tile, int64_t begin, int64_t end, A* all) {
  in_images(call, begin, end, [&](int64_t image, int64_t first, int64_t at, int64_t count) {
    for (int64_t r = 0; r < rows; r++)
      std::copy_n(tile + r * (end - begin) + at, count, all + (image * rows + r) * call.plane() + first);
  });
}

// A run of pixels of one row of the output that see value p of their patches within the image: the run begins
// at pixel `at` of the tile, and sees x[offset], x[offset + step] and so on. Pixels that see the padding are
// in no run.
struct Run {
  int64_t offset, step, at, count;
};

template <typename F>
void seen(const Call& call, int64_t p, int64_t begin, int64_t end, F&& body) {
  const auto& [kernel, stride, padding, norm, detach] = call.spec;
  const int64_t channel = p / call.taps(), ky = p % call.taps() / kernel[1], kx = p % kernel[1];
  const int64_t width = call.in[1], step = stride[1];
  in_images(call, begin, end, [&](int64_t image, int64_t first, int64_t at, int64_t count) {
    const int64_t plane = (image * call.channels + channel) * call.in[0];
    for (int64_t q = first; q < first + count;) {
      const int64_t row = q / call.out[1], column = q % call.out[1];
      const int64_t run = std::min(first + count - q, call.out[1] - column);
      const int64_t y = row * stride[0] + ky - padding[0], x = column * step + kx - padding[1];
      const int64_t skipped = x < 0 ? (step - 1 - x) / step : 0;
      const int64_t last = x < width ? std::min(run, (width - 1 - x) / step + 1) : 0;
      if (y >= 0 && y < call.in[0] && skipped < last)
        body(Run{(plane + y) * width + x + skipped * step, step, at + q - first + skipped, last - skipped});
      q += run;
    }
  });
}

// Value p of every pixel's patch -> u [end - begin]
template <typename A>
void take_value(const Call& call, const A* x, int64_t p, int64_t begin, int64_t end, A* u) {
  std::fill_n(u, end - begin, A(0));
  seen(call, p, begin, end, [&](const Run& run) {
    const A* from = x + run.offset;
    A* to = u + run.at;
    if (run.step == 1)
      std::copy_n(from, run.count, to);
    else
      for (int64_t i = 0; i < run.count; i++) to[i] = from[i * run.step];
  });
}

// Adds du [end - begin], which belongs to value p of every pixel's patch, to dx.
template <typename A>
void add_value(const Call& call, const A* du, int64_t p, int64_t begin, int64_t end, A* dx) {
  seen(call, p, begin, end, [&](const Run& run) {
    const A* from = du + run.at;
    A* to = dx + run.offset;
    if (run.step == 1)
      for (int64_t i = 0; i < run.count; i++) to[i] += from[i];
    else
      for (int64_t i = 0; i < run.count; i++) to[i * run.step] += from[i];
  });
}

}  // namespace bcos::dynamic_alignment::cpu
