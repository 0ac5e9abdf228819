// weight_norm, patch_norm and scale, run on the emulator against float64.
#include "testing.h"

using namespace bcos::transform::cuda;
using namespace testing;

template <typename T, typename O>
void weight_norm(int F, int CG, int taps, bool ohwi, bool raw) {
  const int K = CG * taps;
  const std::string what = std::string("weight_norm ") + name_of<T> + " " + name_of<O> + " " +
                           std::to_string(F) + "x" + std::to_string(CG) + "x" + std::to_string(taps) +
                           (ohwi ? " ohwi" : " oihw") + (raw ? " raw" : "");
  auto w = normal<T>(size_t(F) * K, 1);
  std::fill_n(w.begin(), K, T{});  // a zero filter
  auto alpha = unwritten<float>(F);
  auto operand = unwritten<O>(w.size());
  expect_success(weight_norm_fwd<float>(
      {w.data(), alpha.data(), operand.data(), F, CG, taps, ohwi, raw, dtype_of<T>, dtype_of<O>}, nullptr));
  const auto at = [&](int f, int c, int tap) { return f * K + (ohwi ? tap * CG + c : c * taps + tap); };
  std::vector<double> inverse(F), units(w.size());
  for (int f = 0; f < F; ++f) {
    double squares = 0;
    for (int k = 0; k < K; ++k) squares += std::pow(to_float(w[f * K + k]), 2);
    inverse[f] = squares == 0 ? 0 : 1 / std::sqrt(squares);
    for (int c = 0; c < CG; ++c)
      for (int tap = 0; tap < taps; ++tap)
        units[f * K + tap * CG + c] = to_float(w[at(f, c, tap)]) * (raw ? 1 : inverse[f]);
  }
  expect(what + " alpha", alpha, inverse);
  expect(what + " operand", operand, units);

  for (const bool unit : {true, false})
    for (const int splits : {1, 3}) {
      auto partial = normal<float>(size_t(splits) * F * K, 2);
      const auto shares = wide(partial);
      auto dw = unwritten<T>(w.size());
      expect_success(
          weight_norm_bwd<float>({partial.data(), w.data(), unit ? alpha.data() : nullptr, dw.data(), F, CG,
                                  taps, splits, ohwi, raw, dtype_of<T>, Dtype::Float32},
                                 nullptr));
      std::vector<double> truth(w.size());
      for (int f = 0; f < F; ++f) {
        std::vector<double> d(K);
        double dot = 0;
        for (int k = 0; k < K; ++k) {
          for (int split = 0; split < splits; ++split) d[k] += shares[(split * F + f) * K + k];
          dot += d[k] * to_float(w[at(f, k % CG, k / CG)]);
        }
        for (int k = 0; k < K; ++k) {
          const double projected = (raw ? 1 : inverse[f]) * (d[k] - dot * inverse[f] * inverse[f] *
                                                                        to_float(w[at(f, k % CG, k / CG)]));
          truth[at(f, k % CG, k / CG)] = unit ? projected : d[k];
        }
      }
      expect(what + (unit ? " dw" : " dw of any length") + " splits " + std::to_string(splits), dw, truth);
    }
}

template <typename T>
void patch_norm(int N, int G, int CG, const Window& w, float eps_inside, float eps_outside, bool planes) {
  const std::string what = std::string("patch_norm ") + name_of<T> + " groups " + std::to_string(G) + "x" +
                           std::to_string(CG) + " window " + std::to_string(w.KH) + "x" +
                           std::to_string(w.KW) + (planes ? " planes" : "");
  const int plane = planes ? w.H * w.W : 0, out_plane = planes ? w.OH * w.OW : 0;
  const Formula<float> formula = Exponents{2}.formula(eps_inside, eps_outside);
  const int rows = N * w.H * w.W * G, sites = N * w.OH * w.OW * G;
  auto x = normal<T>(size_t(rows) * CG, 1);
  std::vector<double> sums(rows), roots(rows), norms(sites, 0.);
  for (int row = 0; row < rows; ++row) {
    for (int c = 0; c < CG; ++c) sums[row] += std::pow(to_float(x[row * CG + c]), 2);
    roots[row] = std::sqrt(sums[row] + eps_inside) + eps_outside;
  }
  const auto given = planar(x, plane, G * CG);
  for (const bool root : {false, true}) {
    auto out = unwritten<float>(rows);
    expect_success(patch_norm_squares<float>(
        {given.data(), out.data(), rows, CG, root, formula, dtype_of<T>, plane}, nullptr));
    expect(what + (root ? " root" : " squares"), interleaved(out, plane, G), root ? roots : sums);
  }
  const auto v = normal<T>(x.size(), 4);
  std::vector<double> products(rows);
  for (size_t i = 0; i < x.size(); ++i) products[i / CG] += double(to_float(x[i])) * to_float(v[i]);
  auto of_both = unwritten<float>(rows);
  expect_success(patch_norm_squares<float>({given.data(), of_both.data(), rows, CG, false, formula,
                                            dtype_of<T>, plane, planar(v, plane, G * CG).data()},
                                           nullptr));
  expect(what + " products", interleaved(of_both, plane, G), products, 1e-5);
  const auto squares = std::vector<float>(sums.begin(), sums.end());
  const auto t = normal<float>(sites, 2);
  auto dx = normal<T>(x.size(), 3);
  auto sum = wide(dx);
  std::vector<double> pooled(rows);
  for (int image = 0; image < N; ++image)
    for (int oh = 0; oh < w.OH; ++oh)
      for (int ow = 0; ow < w.OW; ++ow)
        for (int i = 0; i < w.KH; ++i)
          for (int j = 0; j < w.KW; ++j) {
            const int h = oh * w.SH - w.PH + i * w.DH, v = ow * w.SW - w.PW + j * w.DW;
            if (h < 0 || h >= w.H || v < 0 || v >= w.W) continue;
            for (int g = 0; g < G; ++g) {
              const int site = ((image * w.OH + oh) * w.OW + ow) * G + g,
                        from = ((image * w.H + h) * w.W + v) * G + g;
              norms[site] += squares[from];
              pooled[from] += t[site];
            }
          }
  auto alone = std::vector<double>(sum.size());
  for (size_t i = 0; i < sum.size(); ++i) alone[i] = to_float(x[i]) * pooled[i / CG];
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += alone[i];
  auto sites_of = unwritten<float>(sites);
  expect_success(patch_norm_fwd<float>(
      {planar(squares, plane, G).data(), sites_of.data(), sites, planes ? 1 : G, w, formula, false},
      nullptr));
  expect(what + " window sums", interleaved(sites_of, out_plane, G), norms);
  for (double& n : norms) n = std::sqrt(n + eps_inside) + eps_outside;
  auto n = unwritten<float>(sites);
  expect_success(patch_norm_fwd<float>(
      {planar(squares, plane, G).data(), n.data(), sites, planes ? 1 : G, w, formula}, nullptr));
  expect(what + " n", interleaved(n, out_plane, G), norms);
  dx = planar(dx, plane, G * CG);
  expect_success(patch_norm_bwd<float>(
      {dx.data(), given.data(), planar(t, out_plane, G).data(), rows, G, CG, w, dtype_of<T>, plane},
      nullptr));
  expect(what + " dx", interleaved(dx, plane, G * CG), sum);
  auto dv = unwritten<T>(x.size());
  expect_success(patch_norm_bwd<float>(
      {dv.data(), given.data(), planar(t, out_plane, G).data(), rows, G, CG, w, dtype_of<T>, plane, false},
      nullptr));
  expect(what + " dx alone", interleaved(dv, plane, G * CG), alone);
  if (planes) return;
  auto root = normal<float>(rows, 4);
  root[0] = 0;  // of a zero row
  for (size_t i = 0; i < alone.size(); ++i) alone[i] *= i / CG == 0 ? 0 : 1. / root[i / CG];
  expect_success(patch_norm_bwd<float>(
      {dv.data(), x.data(), t.data(), rows, G, CG, w, dtype_of<T>, 0, false, root.data()}, nullptr));
  expect(what + " dx of a divided x", dv, alone);
}

// The backward of rows of which each has as many gradients as `grad` has times their outputs.
template <typename T, typename O>
ScaleBwd<float> scale_backward(const std::vector<O>& grad, const std::vector<O>& v,
                               const std::vector<uint8_t>& winner, const std::vector<float>& n,
                               const std::vector<float>* alpha, std::vector<T>& u, std::vector<float>& t,
                               int rows, int G, int OG, int max_out, bool frozen,
                               const Formula<float>& formula, int plane) {
  ScaleBwd<float> p{};
  p.grad = grad.data(), p.v = v.data(), p.winner = winner.data(), p.n = n.data();
  p.alpha = alpha != nullptr ? alpha->data() : nullptr;
  p.u = u.data(), p.t = t.data();
  p.rows = int(grad.size()) / OG, p.G = G, p.OG = OG, p.max_out = max_out, p.scales = rows;
  p.frozen = frozen, p.formula = formula, p.plane = plane;
  p.dtype = dtype_of<T>, p.out_dtype = dtype_of<O>;
  return p;
}

template <typename T, typename O>
void scale(int rows, int G, int OG, int max_out, const Exponents& b, bool factors, bool frozen,
           int plane = 0) {
  const Formula<float> formula = b.formula();
  const Power power = formula.power;
  const std::string what = std::string("scale ") + name_of<T> + " " + name_of<O> + " " +
                           std::to_string(rows) + "x" + std::to_string(G) + "x" + std::to_string(OG) + "/" +
                           std::to_string(max_out) + " " + b.name() + (factors ? " alpha bias" : "") +
                           (frozen ? " frozen" : "") + (plane > 0 ? " plane " + std::to_string(plane) : "");
  const int outputs = rows * OG, filters = G * OG * max_out;
  const auto z = normal<T>(size_t(outputs) * max_out, 1);
  const auto alpha = normal<float>(filters, 2), bias = normal<float>(filters, 3);
  auto n = normal<float>(rows, 4);
  for (float& v : n) v = std::abs(v) + 0.5f;
  n[0] = 0;  // a zero patch
  const auto given_z = planar(z, plane, filters);
  const auto given_n = planar(n, plane, G);
  auto y = unwritten<O>(outputs), l = unwritten<O>(outputs);
  std::vector<uint8_t> winner(max_out > 1 ? outputs : 0, 255);
  expect_success(
      scale_fwd<float>({given_z.data(), factors ? alpha.data() : nullptr, factors ? bias.data() : nullptr,
                        given_n.data(), y.data(), formula.of_l ? l.data() : nullptr, winner.data(), rows, G,
                        OG, max_out, formula, dtype_of<T>, Dtype::Float32, dtype_of<O>, plane},
                       nullptr));
  std::vector<double> best(outputs), truth(outputs);
  std::vector<uint8_t> first(winner.size());
  for (int o = 0; o < outputs; ++o) {
    for (int m = 0; m < max_out; ++m) {
      const int f = (o / OG % G * OG + o % OG) * max_out + m;
      double value = to_float(z[o * max_out + m]);
      if (factors) value = value * alpha[f] + bias[f];
      if (m == 0 || value > best[o]) {
        best[o] = value;
        if (max_out > 1) first[o] = uint8_t(m);
      }
    }
    truth[o] = transform(power, best[o], n[o / OG], b.constants());
  }
  expect(what + " y", interleaved(y, plane, G * OG), truth);
  if (formula.of_l) expect(what + " l", interleaved(l, plane, G * OG), best);
  expect_equal(what + " winner", interleaved(winner, plane, G * OG), first);

  const int gradients = frozen ? 2 : 1;  // of each row
  const auto grad = normal<O>(gradients * outputs, 5);
  const auto v = normal<O>(outputs, 6);
  const auto given_grad = planar(grad, plane, G * OG), given_v = planar(v, plane, G * OG);
  auto u = unwritten<T>(gradients * z.size());
  auto t = unwritten<float>(rows);
  const bool with_t = !frozen && power != Power::One, with_db = power == Power::General;
  auto p = scale_backward(given_grad, given_v, winner, given_n, factors ? &alpha : nullptr, u, t, rows, G, OG,
                          max_out, frozen, formula, plane);
  if (!with_t) p.t = nullptr;
  const auto map = normal<float>(size_t(4 * G) * OG, 7);
  const bool mapped = power == Power::Two && !formula.of_l && factors;
  if (mapped) p.map = map.data();
  auto db = unwritten<float>(scale_bwd_blocks(p));
  if (with_db) p.db = db.data();
  expect_success(scale_bwd(p, nullptr));
  std::vector<double> du(u.size()), dt(rows);
  double db_sum = 0, db_terms = 0, db_found = 0;
  for (int o = 0; o < gradients * outputs; ++o) {
    const double norm = n[o % outputs / OG];
    const double y = to_float(v[o % outputs]);
    const Slopes d = slopes(formula, y, norm, b.constants(frozen));
    double upward = to_float(grad[o]);
    if (mapped) {
      const float* of = map.data() + o / OG % G * OG + o % OG;
      upward = upward * of[0] + (y - of[2 * G * OG]) * of[G * OG] + of[3 * G * OG];
    }
    const int m = max_out > 1 ? first[o % outputs] : 0, f = (o / OG % G * OG + o % OG) * max_out + m;
    du[o * max_out + m] = upward * d.l * (factors ? alpha[f] : 1);
    if (norm != 0 && with_t) dt[o / OG] += upward * d.n / norm;
    db_sum += to_float(grad[o]) * d.b;
    db_terms += std::abs(to_float(grad[o]) * d.b);
  }
  expect(what + " u", interleaved(u, plane, filters), du);
  if (with_t) expect(what + " t", interleaved(t, plane, G), dt);
  for (const float share : db) db_found += share;
  if (with_db)
    expect(what + " db", std::vector<float>{float(db_found)}, {db_sum}, 1e-6 * db_terms / std::abs(db_sum));
}

// The second derivative, and the backward that takes its dl and dn on; `attached`: there are these. `rooted`:
// the root of n is given, and the backward leaves the division by it out.
template <typename T, typename O>
void scale_second(int rows, int G, int OG, int max_out, const Exponents& b, bool factors, bool frozen,
                  bool attached, int plane = 0, bool rooted = false) {
  const Formula<float> formula = b.formula();
  const std::string what = std::string("scale second ") + name_of<T> + " " + name_of<O> + " " +
                           std::to_string(rows) + "x" + std::to_string(G) + "x" + std::to_string(OG) + "/" +
                           std::to_string(max_out) + " " + b.name() + (factors ? " alpha" : "") +
                           (frozen ? " frozen" : "") + (attached ? "" : " detached") +
                           (rooted ? " rooted" : "") + (plane > 0 ? " plane " + std::to_string(plane) : "");
  const int outputs = rows * OG, filters = G * OG * max_out;
  const auto z = normal<T>(size_t(outputs) * max_out, 1);
  const auto alpha = normal<float>(filters, 2), m = normal<float>(rows, 3), more = normal<float>(rows, 8);
  auto n = normal<float>(rows, 4);
  for (float& v : n) v = std::abs(v) + 0.5f;
  n[0] = 0;  // a zero patch
  auto root = n;
  for (int row = 0; rooted && row < rows; ++row) root[row] *= 1 + row % 3;
  const auto grad = normal<O>(outputs, 5), y = normal<O>(outputs, 6), dl_given = normal<O>(outputs, 7);
  std::vector<uint8_t> winner(max_out > 1 ? outputs : 0);
  for (size_t o = 0; o < winner.size(); ++o) winner[o] = uint8_t(o * 7 % max_out);
  const auto of_z = [&](int o) { return o * max_out + (max_out > 1 ? winner[o] : 0); };
  const auto factor = [&](int o) { return factors ? alpha[of_z(o) % filters] : 1.f; };

  std::vector<double> dgrad(outputs), dl(outputs), dn(rows), t(rows), u(z.size()), joined(z.size()),
      both(rows);
  for (int o = 0; o < outputs; ++o) {
    const int row = o / OG;
    const Slopes d = slopes(formula, to_float(y[o]), n[row], b.constants(frozen));
    const double r = n[row] == 0 ? 0 : 1. / root[row], rm = frozen ? 0 : r * m[row];
    const double g = to_float(grad[o]), p = double(to_float(z[of_z(o)])) * factor(o);
    dgrad[o] = d.l * p + d.n * rm;
    dl[o] = g * d.bend * (p - d.cosine * rm);
    dn[row] -= d.cosine * dl[o] + rm * r * g * d.n;
    t[row] += r * g * d.n;
    u[of_z(o)] = g * d.l * factor(o);
    joined[of_z(o)] = (g * d.l + to_float(dl_given[o])) * factor(o);
    both[row] += (rooted ? 1 : r) * (g * d.n + (o % OG == 0 ? more[row] : 0));
  }
  const auto given_grad = planar(grad, plane, G * OG), given_y = planar(y, plane, G * OG);
  const auto given_winner = planar(winner, plane, G * OG);
  const auto given_n = planar(n, plane, G), given_m = planar(m, plane, G);
  const auto given_z = planar(z, plane, filters);
  auto found_dgrad = unwritten<O>(outputs), found_dl = unwritten<O>(outputs);
  auto found_u = unwritten<T>(z.size());
  auto found_dn = unwritten<float>(rows), found_t = unwritten<float>(rows);
  ScaleSecond<float> second{};
  second.grad = given_grad.data(), second.v = given_y.data(), second.winner = given_winner.data();
  second.z = given_z.data(), second.n = given_n.data(), second.m = frozen ? nullptr : given_m.data();
  second.alpha = factors ? alpha.data() : nullptr;
  second.dgrad = found_dgrad.data(), second.u = found_u.data();
  if (attached) second.dl = found_dl.data(), second.dn = found_dn.data(), second.t = found_t.data();
  second.rows = rows, second.G = G, second.OG = OG, second.max_out = max_out, second.frozen = frozen;
  second.formula = formula, second.dtype = dtype_of<T>, second.out_dtype = dtype_of<O>, second.plane = plane;
  if (rooted) second.root = root.data();
  expect_success(bcos::transform::cuda::scale_second(second, nullptr));
  expect(what + " dgrad", interleaved(found_dgrad, plane, G * OG), dgrad);
  expect(what + " u", interleaved(found_u, plane, filters), u);
  if (!attached) return;
  expect(what + " dl", interleaved(found_dl, plane, G * OG), dl);
  expect(what + " dn", interleaved(found_dn, plane, G), dn, 3e-6);
  expect(what + " t", interleaved(found_t, plane, G), t, 3e-6);

  const auto given_dl = planar(dl_given, plane, G * OG);
  const auto given_dn = planar(more, plane, G);
  auto p = scale_backward(given_grad, given_y, given_winner, given_n, factors ? &alpha : nullptr, found_u,
                          found_t, rows, G, OG, max_out, frozen, formula, plane);
  p.dl = given_dl.data(), p.dn = given_dn.data(), p.of_n = rooted;
  expect_success(scale_bwd(p, nullptr));
  expect(what + " joined u", interleaved(found_u, plane, filters), joined);
  expect(what + " joined t", interleaved(found_t, plane, G), both, 3e-6);
}

// The first of equals wins a maximum, and the first NaN.
void ties() {
  const float z[] = {2, 2, 1, 1, NAN, NAN, NAN, 5, 5, -1, -2, -1};
  float y[4];
  std::vector<uint8_t> winner(4, 255);
  expect_success(scale_fwd<float>({z, nullptr, nullptr, nullptr, y, nullptr, winner.data(), 2, 1, 2, 3,
                                   Exponents{1}.formula(), Dtype::Float32, Dtype::Float32, Dtype::Float32},
                                  nullptr));
  expect_equal("scale winner of equals and of NaN", winner, {0, 1, 0, 0});
  expect_equal("scale NaN stays", {uint8_t(std::isnan(y[1])), uint8_t(std::isnan(y[2]))}, {1, 1});
}

void refusals() {
  ScaleFwd<float> p{};
  p.rows = p.G = p.OG = p.max_out = 1;
  p.dtype = Dtype::Float16, p.out_dtype = Dtype::BFloat16;
  const bool pair = scale_fwd(p, nullptr) == cudaErrorInvalidValue;
  p.dtype = Dtype(7);
  const bool dtype = scale_fwd(p, nullptr) == cudaErrorInvalidValue;
  p.rows = 0;
  expect_equal("refused dtypes, and no rows", {pair, dtype, scale_fwd(p, nullptr) == cudaSuccess}, {1, 1, 1});
}

int main() {
  ties();
  refusals();
  for_dtypes([](auto type) {
    using T = typename decltype(type)::type;
    weight_norm<T, T>(3, 40, 9, true, false);
    weight_norm<T, T>(5, 3, 4, false, false);
    weight_norm<T, T>(2, 129, 1, true, true);
    if constexpr (!std::is_same_v<T, float>) weight_norm<float, T>(3, 7, 9, false, true);

    for (const bool planes : {false, true}) {
      patch_norm<T>(2, 1, 24, {5, 7, 5, 7, 3, 3, 1, 1, 1, 1, 1, 1}, 1e-6f, 0, planes);
      patch_norm<T>(1, 3, 5, {9, 8, 4, 3, 3, 2, 2, 3, 1, 0, 2, 1}, 0, 1e-12f, planes);
      patch_norm<T>(1, 1, 300, {3, 3, 5, 5, 1, 1, 1, 1, 1, 1, 1, 1}, 1e-6f, 0.5f, planes);
      patch_norm<T>(3, 2, 9, {4, 5, 2, 3, 3, 3, 2, 2, 1, 1, 1, 1}, 1e-6f, 0, planes);
    }

    for (const Exponents b :
         {Exponents{2}, kTwoOfL, {1}, {1.5f}, {2.5f, true}, {2, true}, {2, true, false}}) {
      scale<T, T>(37, 1, 24, 1, b, true, false);
      scale<T, float>(6, 2, 7, 3, b, true, false);
      scale<T, float>(33, 3, 16, 2, b, false, true);
      scale<T, T>(336, 1, 24, 1, b, true, false, 112);
      scale<T, float>(48, 2, 7, 3, b, true, false, 12);
      scale<T, float>(210, 3, 16, 2, b, false, true, 35);
    }
    scale<T, T>(5, 5, 600, 1, {2}, false, true);
    for (const Exponents b : {Exponents{2}, kTwoOfL, {1.5f}, {2.5f}}) {
      scale_second<T, T>(37, 1, 24, 1, b, true, false, true);
      scale_second<T, T>(37, 1, 24, 1, b, true, false, true, 0, true);
      scale_second<T, float>(6, 2, 7, 3, b, true, false, true);
      scale_second<T, float>(33, 3, 16, 2, b, false, true, true);
      scale_second<T, T>(5, 5, 600, 1, b, false, true, false);
      scale_second<T, T>(336, 1, 24, 1, b, true, false, true, 112);
      scale_second<T, float>(48, 2, 7, 3, b, true, false, true, 12);
      scale_second<T, float>(210, 3, 16, 2, b, false, true, true, 35);
    }
    scale_second<T, T>(37, 1, 24, 1, {1}, true, true, false);
    scale_second<T, T>(48, 2, 7, 3, {1}, true, true, false, 12);
  });
  return result();
}
