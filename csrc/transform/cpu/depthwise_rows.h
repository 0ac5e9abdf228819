// Depthwise convolution row by row: a tile of zero-padded rows of kLanes channels, and the sums over its
// windows.
#pragma once

#include <cstdint>
#include <memory>

#include "transform/cpu/depthwise_pass.h"

namespace bcos::transform::cpu {

#if defined(__GNUC__)
typedef float Vec __attribute__((vector_size(64), aligned(64)));
#else
struct Vec {  // never run: depthwise_serves says no to this compiler
  float v[16];
  float& operator[](int i) { return v[i]; }
  Vec operator*(const Vec&) const { return *this; }
  Vec& operator+=(const Vec&) { return *this; }
};
#endif

constexpr int kStep = 7;  // output pixels held in registers: divides the widths 56, 28, 14 and 7

// Scratch of one thread: rows of pixels of kLanes channels.
class Tile {
 public:
  Tile(int64_t rows, int64_t width) : width_(width), store_(rows * width + 1) {
    const auto address = reinterpret_cast<uintptr_t>(store_.get());
    data_ = reinterpret_cast<Vec*>((address + 63) / 64 * 64);
  }
  Vec* row(int64_t r) const { return data_ + r * width_; }
  float* lanes(int64_t r, int64_t w) const { return reinterpret_cast<float*>(row(r) + w); }

 private:
  struct Store {
    explicit Store(int64_t n) : p(new float[n * kLanes]) {}
    float* get() const { return p.get(); }
    std::unique_ptr<float[]> p;
  };
  int64_t width_;
  Store store_;
  Vec* data_;
};

// `kernel` is 3, 5 or 7.

// out[w] = sum over taps of tile[r + i][w + j] * taps[i][j]
void correlate_row(int64_t kernel, const Tile& tile, int64_t r, const Vec* taps, int64_t width, Vec* out);

// out[w] = sum over the window of tile[r + i][w + j], or of its square; `column` is scratch
void box_row(int64_t kernel, const Tile& tile, int64_t r, int64_t width, Vec* column, Vec* out);
void square_box_row(int64_t kernel, const Tile& tile, int64_t r, int64_t width, Vec* column, Vec* out);

// dtaps[i][j] += sum over the band's pixels of u * x shifted by (i, j); x has twice the margin of u
void wgrad_band(int64_t kernel, const Tile& u, const Tile& x, int64_t rows, int64_t width, float* dtaps);

}  // namespace bcos::transform::cpu
