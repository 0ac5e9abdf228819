// The second derivative of the scale beside a vendor convolution on NCHW tensors.
#include "transform/cuda/planes.cuh"

namespace bcos::transform::cuda::planes {
namespace {

template <typename T, typename O, int V>
__global__ void __launch_bounds__(kThreads, 2) scale_second_kernel(const Sliced<ScaleSecond<SumsOf<T>>> s) {
  using A = SumsOf<T>;
  const ScaleSecond<A>& p = s.p;
  const Strip<V> strip(p.rows, p.plane, s.slices);
  const Constants<A> k = constants(p.formula, p.frozen);
  A n[V] = {}, inv_n[V], rm[V] = {}, dn[V] = {}, t[V] = {};
  if (strip.inside && p.formula.power != Power::One) load(n, p.n, strip.row, true);
  if (strip.inside && p.m != nullptr) load(rm, p.m, strip.row, true);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    inv_n[i] = safe_inverse(n[i]);
    rm[i] *= root_gradient(n[i], k);
  }
  by_power(p.formula.power, [&](auto power) {
    constexpr Power P = decltype(power)::value;
    for (int o = strip.slice; strip.inside && o < p.OG; o += s.slices) {
      const int64_t output = strip.plane * p.OG + o, at = output * p.plane + strip.pixel;
      const int filter = int(strip.plane % p.G * p.OG + o) * p.max_out;
      const auto of_filter = [&](int m) { return (output * p.max_out + m) * p.plane + strip.pixel; };
      A grad[V], v[V] = {}, products[V], u[V], dgrad[V], dl[V];
      Vector<uint8_t, V> winner{};
      load(grad, static_cast<const O*>(p.grad), at, true);
      if (P != Power::One) load(v, static_cast<const O*>(p.v), at, true);
      if (p.max_out == 1) {
        load(products, static_cast<const T*>(p.z), at, true);
      } else {
        winner = *reinterpret_cast<const Vector<uint8_t, V>*>(p.winner + at);
#pragma unroll
        for (int i = 0; i < V; ++i)
          products[i] = widened(static_cast<const T*>(p.z)[of_filter(winner.v[i]) + i]);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const A alpha = p.alpha != nullptr ? p.alpha[filter + winner.v[i]] : A(1);
        const A value = restored<P>(p.formula, v[i], inv_n[i], k);
        const SecondOrder<A> found = second_order<P>(grad[i], value, products[i] * alpha, inv_n[i], rm[i], k);
        u[i] = found.u * alpha;
        dgrad[i] = found.dgrad;
        dl[i] = found.dl;
        dn[i] += found.dn;
        t[i] += found.t;
      }
      store(static_cast<O*>(p.dgrad), at, dgrad, true);
      if (p.dl != nullptr) store(static_cast<O*>(p.dl), at, dl, true);
      for (int m = 0; m < p.max_out; ++m) {
        A values[V];
#pragma unroll
        for (int i = 0; i < V; ++i) values[i] = winner.v[i] == m ? u[i] : A(0);
        store(static_cast<T*>(p.u), of_filter(m), values, true);
      }
    }
  });
  if (p.dl == nullptr) return;
  strip.add_slices(dn);
  barrier();  // before what the first slice reads is overwritten
  strip.add_slices(t);
  if (!strip.inside || strip.slice != 0) return;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    t[i] *= root_gradient(n[i], k);
    dn[i] -= rm[i] * t[i];
  }
  store(p.dn, strip.row, dn, true);
  store(p.t, strip.row, t, true);
}

}  // namespace

template <typename A>
cudaError_t scale_second(const ScaleSecond<A>& p, cudaStream_t stream) {
  return by_dtypes<A>(p.dtype, p.out_dtype, [&](auto type, auto out) {
    using T = typename decltype(type)::type;
    using O = typename decltype(out)::type;
    return by_width<T>(p.plane, p.dtype, [&](auto width) {
      return start_strips<width>(scale_second_kernel<T, O, width>, p.rows, p.OG, kShared<width, A>, p,
                                 stream);
    });
  });
}

BCOS_FOR_BOTH_SUMS(scale_second, ScaleSecond);

}  // namespace bcos::transform::cuda::planes
