// Depthwise convolution row by row: the last rows of an image, zero-padded and kLanes channels wide, and the
// sums over its windows.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/cpu/registers.h"
#include "transform/cpu/depthwise_pass.h"

namespace bcos::transform::cpu {

#if defined(__GNUC__)
using Vec = Register<kLanes>;
#else
struct Vec {  // never run: depthwise_serves says no to this compiler
  float v[16];
  Vec operator*(const Vec&) const { return *this; }
  Vec operator+(const Vec&) const { return *this; }
  Vec& operator+=(const Vec&) { return *this; }
};
#endif

constexpr int64_t kStep = 7;           // output pixels held in registers: divides the widths 56, 28, 14 and 7
constexpr int64_t kSlack = kStep + 9;  // pixels behind a row that whole groups of pixels read and write

// Rows of a window, from above to below.
struct Rows {
  const float* const* at = nullptr;
  int64_t count = 0;

  const Vec* row(int64_t i) const { return reinterpret_cast<const Vec*>(at[i]); }
};

// The last `kept` rows of an image of `height` rows, kLanes channels wide, in the scratch of one thread.
class Ring {
 public:
  Ring(int64_t kept, int64_t height, int64_t width)
      : kept_(kept), width_(width + kSlack), store_(new float[(kept_ * width_ + 1) * kLanes]), rows_(height) {
    const auto address = reinterpret_cast<uintptr_t>(store_.get());
    auto* data = reinterpret_cast<float*>((address + 63) / 64 * 64);
    for (int64_t h = 0; h < height; h++) rows_[h] = data + h % kept * width_ * kLanes;
  }
  Vec* row(int64_t h) const { return reinterpret_cast<Vec*>(rows_[h]); }
  Rows rows(int64_t first, int64_t last) const { return {rows_.data() + first, last - first}; }

  // Sets the pixels of every row to 0 but [begin, end), and these too where not all of their lanes are used.
  // Whoever writes leaves what was set to 0: nothing is done until the pixels or the lanes change.
  void clear(int64_t begin, int64_t end, int64_t lanes) {
    const Vec zero = {};
    const std::array<int64_t, 3> used{begin, end, lanes};
    if (used == used_) return;
    used_ = used;
    for (int64_t h = 0; h < std::min(kept_, int64_t(rows_.size())); h++) {
      std::fill(row(h), row(h) + (lanes < kLanes ? end : begin), zero);
      std::fill(row(h) + end, row(h) + width_, zero);
    }
  }

 private:
  int64_t kept_, width_;
  std::array<int64_t, 3> used_{};
  std::unique_ptr<float[]> store_;
  std::vector<float*> rows_;
};

// out[w] = sum over the window's rows i and columns j of in[i][w + j] * taps[i][j]; nothing where width is 0.
struct Product {
  Rows in;
  const Vec* taps = nullptr;
  Vec* out = nullptr;
  int64_t width = 0;
};

// A row of a channels_last image that will be needed soon. Its pixels lie so far apart that the CPU does not
// fetch them by itself, and all of them at once would be waited for: one is asked for with each pixel of
// another row that is computed.
struct Ahead {
  const char* first = nullptr;  // pixel; null where nothing is needed
  int64_t step = 0;             // bytes from a pixel to the next

  BCOS_INLINE void fetch(int64_t w) const {
#if defined(__GNUC__)
    if (first) __builtin_prefetch(first + w * step);
#endif
  }
};

// What is to be done for each pixel of [begin, end) of another row. Its roots and quotients cost little
// between the sums of a Product, which leave the divider idle.
struct Forward {  // z becomes y; l, where the formula saves it, is written
  Rows squares;   // x^2, summed over the columns of the window
  const Vec* bias = nullptr;
  Vec *z = nullptr, *l = nullptr;
  int64_t begin = 0, end = 0;
  std::array<Ahead, 2> ahead{};
};
struct Backward {  // the gradient of y becomes that of z
  Rows squares;
  Vec* grad = nullptr;
  const Vec *y = nullptr, *l = nullptr;
  Vec* t = nullptr;       // written: the coefficient of x in dx, or nowhere where it is null
  Vec* lowest = nullptr;  // the least norm so far of each lane
  int64_t begin = 0, end = 0;
  std::array<Ahead, 4> ahead{};
};

// Transposes kLanes pixels of kLanes channels.
void transpose(Vec* block);

// `columns`, of the kernel, is 1, 3, 5 or 7.
void forward_row(int64_t columns, Power power, const Product& product, const Forward& pixels,
                 const Constants<float>& k);
void backward_row(int64_t columns, Power power, const Product& product, const Backward& pixels,
                  const Constants<float>& k);

// out[w] = sum over the columns j of in[w + j], or of its square
void box_row(int64_t columns, bool squares, const Vec* in, int64_t width, Vec* out);

// out[w] += x[w] * the sum of all rows at w
void add_products(const Rows& rows, const Vec* x, int64_t width, Vec* out);

// dtaps[i][j] += sum over the pixels w of u[w] * rows[i][first + w + j]
void wgrad_row(int64_t columns, const Vec* u, const Rows& rows, int64_t first, int64_t width, Vec* dtaps);

}  // namespace bcos::transform::cpu
