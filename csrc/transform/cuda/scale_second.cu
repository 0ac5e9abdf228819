// The second derivative of the scale beside a vendor convolution. Rows are pixels x groups.
#include "transform/cuda/launch.h"
#include "transform/cuda/planes.cuh"

namespace bcos::transform::cuda {
namespace {

constexpr int kThreads = 128;
template <typename A>
constexpr int kBlocks = sizeof(A) == 8 ? 3 : 4;  // of a multiprocessor: registers to hold everything

// V neighbouring outputs at a time to a lane; the lanes of a row add up its dn and t.
template <typename T, typename O, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<SumsOf<T>>)
    scale_second_kernel(const OfLanes<ScaleSecond<SumsOf<T>>> s) {
  using A = SumsOf<T>;
  const ScaleSecond<A>& p = s.p;
  const int64_t row = int64_t(blockIdx.x) * (kThreads / s.lanes) + threadIdx.x / s.lanes;
  const int lane = threadIdx.x % s.lanes;
  const bool inside = row < p.rows, has_norm = p.formula.power != Power::One;
  const Constants<A> k = constants(p.formula, p.frozen);
  const A n = inside && has_norm ? p.n[row] : A(1), inv_n = safe_inverse(n), r = root_gradient(n, k);
  const A rm = inside && p.m != nullptr ? r * p.m[row] : A(0);
  const T* z = static_cast<const T*>(p.z);
  A dn = 0, t = 0;
  by_power(p.formula.power, [&](auto power) {
    constexpr Power P = decltype(power)::value;
    for (int o = lane * V; inside && o < p.OG; o += s.lanes * V) {
      const int64_t at = row * p.OG + o;
      const int filter = int(row % p.G * p.OG + o) * p.max_out;
      A grad[V], v[V] = {}, products[V], u[V], dgrad[V], dl[V];
      int winner[V] = {};
      load(grad, static_cast<const O*>(p.grad), at, true);
      if (P != Power::One) load(v, static_cast<const O*>(p.v), at, true);
      if (p.max_out == 1) {
        load(products, z, at, true);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i) {
          winner[i] = p.winner[at + i];
          products[i] = widened(z[(at + i) * p.max_out + winner[i]]);
        }
      }
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const A alpha = p.alpha != nullptr ? p.alpha[filter + i * p.max_out + winner[i]] : A(1);
        const A value = restored<P>(p.formula, v[i], inv_n, k);
        const SecondOrder<A> found = second_order<P>(grad[i], value, products[i] * alpha, inv_n, rm, k);
        u[i] = found.u * alpha;
        dgrad[i] = found.dgrad;
        dl[i] = found.dl;
        dn += found.dn;
        t += found.t;
      }
      store(static_cast<O*>(p.dgrad), at, dgrad, true);
      if (p.dl != nullptr) store(static_cast<O*>(p.dl), at, dl, true);
      if (p.max_out == 1) {
        store(static_cast<T*>(p.u), at, u, true);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i)
          for (int m = 0; m < p.max_out; ++m)
            static_cast<T*>(p.u)[(at + i) * p.max_out + m] = rounded<T>(winner[i] == m ? u[i] : A(0));
      }
    }
  });
  dn = lane_sum(dn, s.lanes);
  t = lane_sum(t, s.lanes) * r;
  if (!inside || lane != 0 || p.dl == nullptr) return;
  p.dn[row] = dn - rm * t;
  p.t[row] = t;
}

}  // namespace

template <typename A>
cudaError_t scale_second(const ScaleSecond<A>& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  if (p.plane > 0) return planes::scale_second(p, stream);
  return by_dtypes<A>(p.dtype, p.out_dtype, [&](auto type, auto out) {
    using T = typename decltype(type)::type;
    using O = typename decltype(out)::type;
    const bool vector = p.OG % kVector<T> == 0;
    const int lanes = lanes_of(vector ? p.OG / kVector<T> : p.OG);
    const auto kernel = vector ? scale_second_kernel<T, O, kVector<T>> : scale_second_kernel<T, O, 1>;
    return start(kernel, dim3(ceil_div(p.rows, kThreads / lanes)), kThreads, 0, {p, lanes}, stream);
  });
}

BCOS_FOR_BOTH_SUMS(scale_second, ScaleSecond);

}  // namespace bcos::transform::cuda
