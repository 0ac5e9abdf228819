#include <algorithm>
#include <limits>

#include "transform/cpu/depthwise_rows.h"

namespace bcos::transform::cpu {
namespace {

// Pixels [begin, end) of a row in scratch.
struct Span {
  int64_t begin, end;
};

// One unit of work: a part of one image in one block of channels.
struct Unit {
  int64_t image, block, channel, lanes, first, last, left, columns;

  Unit(const DepthwiseShape& s, int64_t unit) {
    left = unit % s.column_bands() * s.band_columns;
    unit /= s.column_bands();
    first = unit % s.bands() * s.band_rows;
    unit /= s.bands();
    block = unit % s.lane_blocks();
    image = unit / s.lane_blocks();
    last = std::min(first + s.band_rows, s.height);
    columns = std::min(s.band_columns, s.width - left);
    channel = block * kLanes;
    lanes = std::min(kLanes, s.channels - channel);
  }
  // Those pixels that lie in the image, of a row with `margin` pixels more at either end than the unit.
  Span inside(const DepthwiseShape& s, int64_t margin) const {
    return {std::max<int64_t>(0, margin - left), std::min(columns + 2 * margin, s.width - left + margin)};
  }
  int64_t at(const DepthwiseShape& s, int64_t h, int64_t w) const {
    const int64_t pixel = h * s.width + w;
    return s.channels_last ? (image * s.height * s.width + pixel) * s.channels + channel
                           : (image * s.channels + channel) * s.height * s.width + pixel;
  }
};

// Where the pixels of a row in scratch lie in an image: pixel w has lane c at start + w * pixel + c * lane.
struct Line {
  int64_t start, pixel, lane;

  // The row begins `margin` pixels left of the unit.
  Line(const DepthwiseShape& s, const Unit& u, int64_t h, int64_t margin)
      : start(u.at(s, h, u.left - margin)),
        pixel(s.channels_last ? s.channels : 1),
        lane(s.channels_last ? 1 : s.height * s.width) {}
};

// body(value, index) for the pixels `span` of a row in scratch and the same in an image
template <typename F>
BCOS_INLINE void each_value(const Line& line, const Unit& u, Span span, Vec* row, F&& body) {
  float* values = reinterpret_cast<float*>(row);
  if (line.lane == 1 && u.lanes == kLanes) {
    for (int64_t w = span.begin; w < span.end; w++)
#pragma omp simd
      for (int64_t c = 0; c < kLanes; c++) body(values[w * kLanes + c], line.start + w * line.pixel + c);
  } else {
    for (int64_t w = span.begin; w < span.end; w++)
      for (int64_t c = 0; c < u.lanes; c++)
        body(values[w * kLanes + c], line.start + w * line.pixel + c * line.lane);
  }
}

// body(lane, index) for every lane of kLanes pixels from w on, where an image has them side by side
template <typename F>
BCOS_INLINE void each_lane(const Line& line, const Unit& u, int64_t w, Vec* block, F&& body) {
  for (int64_t c = 0; c < u.lanes; c++) {
    float* lane = reinterpret_cast<float*>(block + c);
    const int64_t from = line.start + c * line.lane + w;
#pragma omp simd
    for (int64_t i = 0; i < kLanes; i++) body(lane[i], from + i);
  }
}

template <typename T>
BCOS_INLINE void load(const T* image, const DepthwiseShape& s, const Unit& u, int64_t h, int64_t margin,
                      Vec* row) {
  const auto copy = [&](float& value, int64_t i) BCOS_INLINE_BODY { value = float(image[i]); };
  const Line line(s, u, h, margin);
  Span span = u.inside(s, margin);
  for (; line.pixel == 1 && span.begin + kLanes <= span.end; span.begin += kLanes) {
    Vec* block = row + span.begin;
    if (u.lanes < kLanes) std::fill_n(block, kLanes, Vec{});
    each_lane(line, u, span.begin, block, copy);
    transpose(block);
  }
  each_value(line, u, span, row, copy);
}

// What is left in the row is of no use.
template <typename T>
BCOS_INLINE void store(Vec* row, const DepthwiseShape& s, const Unit& u, int64_t h, T* image) {
  const auto copy = [&](float& value, int64_t i) BCOS_INLINE_BODY { image[i] = rounded<T>(value); };
  const Line line(s, u, h, 0);
  Span span{0, u.columns};
  for (; line.pixel == 1 && span.begin + kLanes <= span.end; span.begin += kLanes) {
    transpose(row + span.begin);
    each_lane(line, u, span.begin, row + span.begin, copy);
  }
  each_value(line, u, span, row, copy);
}

// What load or store will touch of row h, if the image has it; nothing where `image` is null.
template <typename T>
BCOS_INLINE Ahead ahead(const T* image, const DepthwiseShape& s, const Unit& u, int64_t h) {
  if (!image || !s.channels_last || h < 0 || h >= s.height) return {};
  const Line line(s, u, h, 0);
  return {reinterpret_cast<const char*>(image + line.start), line.pixel * int64_t(sizeof(T))};
}

// The rows of the window around row h of an image.
BCOS_INLINE Rows window(const Ring& ring, const DepthwiseShape& s, int64_t h) {
  return ring.rows(std::max<int64_t>(0, h - s.rows / 2), std::min(s.height, h + s.rows / 2 + 1));
}

// The first tap of that window.
BCOS_INLINE int64_t first_tap(const DepthwiseShape& s, int64_t h) {
  return std::max<int64_t>(0, s.rows / 2 - h) * s.columns;
}

}  // namespace

template <typename T, typename U>
BCOS_CLONES void run(const DepthwiseForward<T, U>& f, int64_t begin, int64_t end) {
  const auto& s = f.shape;
  const int64_t above = s.rows / 2, margin = s.columns / 2, width = s.band_columns + 2 * margin;
  const bool normed = s.power != Power::One, with_l = s.power == Power::General;
  Ring x(s.rows + 1, s.height, width);
  const Ring squares(s.rows + 1, s.height, width), z(2, s.height, width), l(1, 1, width);
  for (int64_t index = begin; index < end; index++) {
    const Unit u(s, index);
    const Span inside = u.inside(s, margin);
    const Vec *taps = reinterpret_cast<const Vec*>(f.taps) + u.block * s.taps(),
              *bias = reinterpret_cast<const Vec*>(f.bias) + u.block;
    x.clear(inside.begin, inside.end, u.lanes);
    int64_t loaded = std::max<int64_t>(0, u.first - above);
    for (int64_t h = u.first; h <= u.last; h++) {  // the row before is finished beside the product of row h
      Product product;
      Forward before;
      if (h < u.last) {
        for (; loaded < std::min(s.height, h + above + 1); loaded++) {
          load(f.x, s, u, loaded, margin, x.row(loaded));
          if (normed) box_row(s.columns, true, x.row(loaded), u.columns, squares.row(loaded));
        }
        product = {window(x, s, h), taps + first_tap(s, h), z.row(h), u.columns};
      }
      if (h > u.first) {
        before = {window(squares, s, h - 1), bias, z.row(h - 1), with_l ? l.row(0) : nullptr, 0, u.columns};
        before.ahead = {ahead(f.x, s, u, loaded), ahead(f.y, s, u, h)};
      }
      forward_row(s.columns, s.power, product, before, f.k);
      if (h > u.first) store(z.row(h - 1), s, u, h - 1, f.y);
      if (h > u.first && with_l) store(l.row(0), s, u, h - 1, f.l);
    }
  }
}

template <typename T, typename U>
BCOS_CLONES bool run(const DepthwiseBackward<T, U>& f, int64_t begin, int64_t end) {
  const auto& s = f.shape;
  const int64_t above = s.rows / 2, margin = s.columns / 2, width = s.band_columns + 4 * margin;
  const bool normed = s.power != Power::One, with_t = normed && f.dx && f.k.unfrozen != 0;
  Ring x(s.rows + 1, s.height, width), du(s.rows + 1, s.height, width), rows(4, 4, width);
  const Ring squares(s.rows + 1, s.height, width), spread(s.rows + 1, s.height, width),
      sums(1, 1, s.taps() + 2);
  Vec *product_row = rows.row(0), *y = rows.row(1), *l = rows.row(2), *t = with_t ? rows.row(3) : nullptr;
  Vec *dtaps = sums.row(0), *dbias = dtaps + s.taps(), *lowest = dbias + 1;
  float least = std::numeric_limits<float>::infinity();
  const float zero_norm = root_norm(0.f, f.k);
  for (int64_t index = begin; index < end; index++) {
    const Unit u(s, index);
    const Span of_x = u.inside(s, 2 * margin), inside = u.inside(s, margin);
    const Vec* taps = reinterpret_cast<const Vec*>(f.taps) + u.block * s.taps();
    std::fill_n(reinterpret_cast<float*>(dtaps), (s.taps() + 1) * kLanes, 0.f);
    std::fill_n(reinterpret_cast<float*>(lowest), kLanes, std::numeric_limits<float>::infinity());
    x.clear(of_x.begin, of_x.end, u.lanes);
    du.clear(inside.begin, inside.end, u.lanes);
    rows.clear(inside.begin, inside.end, u.lanes);
    int64_t loaded = std::max<int64_t>(0, u.first - 2 * above);
    // row d of the gradient of z is formed beside the product of row h, whose window ends above d
    for (int64_t d = std::max<int64_t>(0, u.first - above); d <= u.last + above; d++) {
      const int64_t h = d - above - 1;
      const bool forms = d < std::min(s.height, u.last + above), multiplies = f.dx && h >= u.first;
      Product product;
      Backward pixels;
      if (forms) {
        for (; (normed || f.dtaps) && loaded < std::min(s.height, d + above + 1); loaded++) {
          load(f.x, s, u, loaded, 2 * margin, x.row(loaded));
          if (normed) box_row(s.columns, true, x.row(loaded), u.columns + 2 * margin, squares.row(loaded));
        }
        load(f.grad, s, u, d, margin, du.row(d));
        if (s.power == Power::Two) load(f.y, s, u, d, margin, y);
        if (s.power == Power::General) load(f.l, s, u, d, margin, l);
        pixels = {window(squares, s, d), du.row(d), y, l, t, lowest, inside.begin, inside.end};
        pixels.ahead = {ahead(f.x, s, u, loaded), ahead(f.grad, s, u, d + 1),
                        ahead(s.power == Power::General ? f.l : f.y, s, u, d + 1), ahead(f.dx, s, u, h + 1)};
      }
      if (multiplies) product = {window(du, s, h), taps + first_tap(s, h), product_row, u.columns};
      backward_row(s.columns, s.power, product, pixels, f.k);
      if (forms && with_t) box_row(s.columns, false, t, u.columns, spread.row(d));
      if (forms && d >= u.first && d < u.last) {
        if (f.dbias) {
          Vec of_row{};
          for (int64_t w = 0; w < u.columns; w++) of_row += du.row(d)[margin + w];
          *dbias += of_row;
        }
        if (f.dtaps)
          wgrad_row(s.columns, du.row(d) + margin, window(x, s, d), margin, u.columns,
                    dtaps + first_tap(s, d));
      }
      if (multiplies && with_t)
        add_products(window(spread, s, h), x.row(h) + 2 * margin, u.columns, product_row);
      if (multiplies) store(product_row, s, u, h, f.dx);
    }
    const auto add = [&](const Vec* from, int64_t size, float* to) {
      for (int64_t i = 0; i < size; i++) to[i] += reinterpret_cast<const float*>(from)[i];
    };
    if (f.dtaps) add(dtaps, s.taps() * kLanes, f.dtaps + u.block * s.taps() * kLanes);
    if (f.dbias) add(dbias, kLanes, f.dbias + u.channel);
    for (int64_t c = 0; c < u.lanes; c++) least = std::min(least, reinterpret_cast<const float*>(lowest)[c]);
  }
  return least == zero_norm;
}

template void run(const DepthwiseForward<float, float>&, int64_t, int64_t);
template bool run(const DepthwiseBackward<float, float>&, int64_t, int64_t);
template void run(const DepthwiseForward<BFloat16, BFloat16>&, int64_t, int64_t);
template bool run(const DepthwiseBackward<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const DepthwiseForward<BFloat16, float>&, int64_t, int64_t);
template bool run(const DepthwiseBackward<BFloat16, float>&, int64_t, int64_t);

}  // namespace bcos::transform::cpu
