// A convolution in float64: its cases and what the kernels are held against.
#pragma once

#include "testing.h"

namespace testing {

using bcos::transform::cuda::Shape;
using bcos::transform::cuda::Window;

struct Case {
  const char* name;
  Shape shape;
  Exponents b;
  bool factors = false;     // alpha and a bias
  bool window_sum = false;  // the norm from precomputed squares
  bool large = false;
  bool tf32 = false;
};

inline Shape shape(int N, int G, int CG, int FG, int H, int W, int KH, int KW, int S = 1, int P = 0,
                   int D = 1, int max_out = 1) {
  const auto out = [&](int size, int kernel) { return (size + 2 * P - D * (kernel - 1) - 1) / S + 1; };
  return {N, G, CG, FG, max_out, {H, W, out(H, KH), out(W, KW), KH, KW, S, S, P, P, D, D}};
}

// Groups that share a tile: copies of 8, 4 and 16 bytes, a pack that is no power of two, most groups to a
// tile.
const Case kPacked[] = {
    {"packs of 4", shape(1, 16, 4, 4, 6, 5, 3, 3, 1, 1), {2}, true},
    {"packs of 6x10 max_out", shape(1, 4, 6, 10, 5, 6, 3, 2, 2, 1, 1, 2), {2.5f, true}, true},
    {"packs of 2", shape(1, 32, 2, 2, 5, 4, 2, 2), {1.5f}},
    {"packs of 24x8", shape(2, 6, 24, 8, 5, 4, 1, 1), {2}, false, true},
    {"packs of 32", shape(1, 2, 32, 32, 4, 5, 1, 1), {1}, true},
    {"packs of 1x2", shape(1, 32, 1, 2, 4, 5, 1, 1), {2}},
};

// Calls f(output pixel, input pixel, tap) for each pair of pixels that a window joins.
template <typename F>
void for_taps(const Shape& s, F f) {
  const Window& w = s.window;
  for (int image = 0; image < s.N; ++image)
    for (int oh = 0; oh < w.OH; ++oh)
      for (int ow = 0; ow < w.OW; ++ow)
        for (int tap = 0; tap < w.KH * w.KW; ++tap) {
          const int h = oh * w.SH - w.PH + tap / w.KW * w.DH, v = ow * w.SW - w.PW + tap % w.KW * w.DW;
          if (h < 0 || h >= w.H || v < 0 || v >= w.W) continue;
          f((image * w.OH + oh) * w.OW + ow, (image * w.H + h) * w.W + v, tap);
        }
}

inline int outputs(const Shape& s) {
  return s.N * s.window.OH * s.window.OW;
}
inline int inputs(const Shape& s) {
  return s.N * s.window.H * s.window.W;
}
inline int taps(const Shape& s) {
  return s.window.KH * s.window.KW;
}

// The layer forward: n [outputs, G], l and y [outputs, G * OG], winner as y, squares [inputs, G].
struct Forward {
  std::vector<double> n, l, y, squares;
  std::vector<uint8_t> winner;
};

inline Forward forward(const Case& c, const std::vector<double>& x, const std::vector<double>& w,
                       const std::vector<float>& alpha, const std::vector<float>& bias) {
  const Shape& s = c.shape;
  const int C = s.G * s.CG, F = s.G * s.FG, O = F / s.max_out;
  const auto k = c.b.constants();
  std::vector<double> z(size_t(outputs(s)) * F);
  Forward out;
  out.n.resize(outputs(s) * s.G);
  out.squares.resize(inputs(s) * s.G);
  for (size_t i = 0; i < x.size(); ++i) out.squares[i / s.CG] += x[i] * x[i];
  for_taps(s, [&](int site, int from, int tap) {
    for (int g = 0; g < s.G; ++g) out.n[site * s.G + g] += out.squares[from * s.G + g];
    for (int f = 0; f < F; ++f)
      for (int channel = 0; channel < s.CG; ++channel)
        z[site * F + f] += x[from * C + f / s.FG * s.CG + channel] * w[(f * taps(s) + tap) * s.CG + channel];
  });
  for (double& n : out.n) n = std::sqrt(n + k.eps_inside) + k.eps_outside;
  for (int at = 0; at < outputs(s) * O; ++at) {
    double best = 0;
    int winner = 0;
    for (int m = 0; m < s.max_out; ++m) {
      const int f = at % O * s.max_out + m;
      double l = z[at / O * F + f];
      if (c.factors) l = l * alpha[f] + bias[f];
      if (m == 0 || l > best) best = l, winner = m;
    }
    out.l.push_back(best);
    out.winner.push_back(uint8_t(winner));
    out.y.push_back(transform(c.b.formula().power, best, out.n[at / (O / s.G)], k));
  }
  return out;
}

inline std::string describe(const Case& c) {
  return std::string(c.name) + " " + c.b.name() + (c.factors ? " alpha bias" : "") +
         (c.window_sum ? " window" : "") + (c.large ? " large" : "") + (c.tf32 ? " tf32" : "");
}

}  // namespace testing
