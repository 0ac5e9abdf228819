// The scale |cos|^(b-1) beside a vendor convolution, forward and backward. Rows are pixels x groups.
#include "transform/cuda/launch.h"
#include "transform/cuda/planes.cuh"

namespace bcos::transform::cuda {
namespace {

constexpr int kThreads = 128;
template <typename A>
constexpr int kBlocks = sizeof(A) == 8 ? 3 : 6;  // of a multiprocessor: registers to hold everything

// V neighbouring outputs of a row to a thread.
template <typename T, typename O, int V>
__global__ void __launch_bounds__(kThreads) scale_fwd_kernel(const ScaleFwd<SumsOf<T>> p) {
  using A = SumsOf<T>;
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (first >= int64_t(p.rows) * p.OG) return;
  const int64_t row = first / p.OG;
  const int filter = int(row % p.G * p.OG + first % p.OG) * p.max_out;
  const T* z = static_cast<const T*>(p.z);
  A best[V], y[V];
  int winner[V] = {};
  for (int m = 0; m < p.max_out; ++m) {
    A l[V];
    if (p.max_out == 1) {
      load(l, z, first, true);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) l[i] = widened(z[(first + i) * p.max_out + m]);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int f = filter + i * p.max_out + m;
      if (p.alpha != nullptr) l[i] *= p.alpha[f];
      if (p.bias != nullptr) l[i] += load_as<A>(p.bias, p.bias_dtype, f);
      if (m == 0 || replaces(l[i], best[i])) {
        best[i] = l[i];
        winner[i] = m;
      }
    }
  }
  const Constants<A> k = constants(p.formula);
  const A inv_n = p.formula.power == Power::One ? A(0) : safe_inverse(p.n[row]);
  by_power(p.formula.power, [&](auto power) {
#pragma unroll
    for (int i = 0; i < V; ++i) y[i] = scaled<decltype(power)::value>(best[i], inv_n, k);
  });
  store(static_cast<O*>(p.y), first, y, true);
  if (p.l != nullptr) store(static_cast<O*>(p.l), first, best, true);
  if (p.max_out > 1) {
#pragma unroll
    for (int i = 0; i < V; ++i) p.winner[first + i] = uint8_t(winner[i]);
  }
}

// V neighbouring outputs at a time to a lane; the lanes of a row add up its t.
template <typename T, typename O, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<SumsOf<T>>)
    scale_bwd_kernel(const OfLanes<ScaleBwd<SumsOf<T>>> s) {
  using A = SumsOf<T>;
  const ScaleBwd<A>& p = s.p;
  const int64_t row = int64_t(blockIdx.x) * (kThreads / s.lanes) + threadIdx.x / s.lanes;
  const int lane = threadIdx.x % s.lanes;
  const bool inside = row < p.rows, has_norm = p.formula.power != Power::One;
  const Constants<A> k = constants(p.formula, p.frozen);
  const int64_t scale = row % p.scales;
  const A n = inside && has_norm ? p.n[scale] : A(1), inv_n = safe_inverse(n);
  A total = 0, db = 0;
  by_power(p.formula.power, [&](auto power) {
    constexpr Power P = decltype(power)::value;
    for (int o = lane * V; inside && o < p.OG; o += s.lanes * V) {
      const int64_t at = row * p.OG + o, held = scale * p.OG + o;
      A grad[V], v[V] = {}, u[V];
      load(grad, static_cast<const O*>(p.grad), at, true);
      if (P != Power::One) load(v, static_cast<const O*>(p.v), held, true);
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] = restored<P>(p.formula, v[i], inv_n, k);
      if (P == Power::Two && p.map != nullptr) {
#pragma unroll
        for (int i = 0; i < V; ++i) grad[i] = mapped(p, int(row % p.G * p.OG) + o + i, grad[i], v[i]);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const auto [dl, dn] = partials<P>(v[i], v[i], inv_n, k);
        u[i] = grad[i] * dl;
        total += grad[i] * dn;
        if (P == Power::General && p.db != nullptr) db += grad[i] * partial_b(v[i], inv_n, k);
      }
      if (p.dl != nullptr) {
        load(grad, static_cast<const O*>(p.dl), at, true);
#pragma unroll
        for (int i = 0; i < V; ++i) u[i] += grad[i];
      }
      const int filter = int(row % p.G * p.OG + o) * p.max_out;
      if (p.max_out == 1) {
        if (p.alpha != nullptr) {
#pragma unroll
          for (int i = 0; i < V; ++i) u[i] *= p.alpha[filter + i];
        }
        store(static_cast<T*>(p.u), at, u, true);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i)
          for (int m = 0; m < p.max_out; ++m) {
            const A factor = p.alpha != nullptr ? p.alpha[filter + i * p.max_out + m] : A(1);
            const A value = p.winner[held + i] == m ? u[i] * factor : A(0);
            static_cast<T*>(p.u)[(at + i) * p.max_out + m] = rounded<T>(value);
          }
      }
    }
  });
  total = lane_sum(total, s.lanes);
  if (inside && lane == 0 && p.t != nullptr) {
    if (p.dn != nullptr) total += p.dn[row];
    p.t[row] = total * root_gradient(n, k);
  }
  if (p.db != nullptr) {
    db = block_sum(db, 0);
    if (threadIdx.x == 0) p.db[blockIdx.x] = db;
  }
}

// Values of 16 bytes of the narrower type where rows allow it, else one.
int vector_of(Dtype dtype) {
  return dtype == Dtype::Float64 ? 2 : dtype == Dtype::Float32 ? 4 : 8;
}

bool is_vector(int outputs, Dtype dtype) {
  return outputs % vector_of(dtype) == 0;
}

template <typename A>
int backward_lanes(const ScaleBwd<A>& p) {
  return lanes_of(is_vector(p.OG, p.dtype) ? p.OG / vector_of(p.dtype) : p.OG);
}

}  // namespace

template <typename A>
cudaError_t scale_fwd(const ScaleFwd<A>& p, cudaStream_t stream) {
  const int64_t outputs = int64_t(p.rows) * p.OG;
  if (outputs == 0) return cudaSuccess;
  if (!is_known<A>(p.bias_dtype)) return cudaErrorInvalidValue;
  if (p.plane > 0) return planes::scale_fwd(p, stream);
  return by_dtypes<A>(p.dtype, p.out_dtype, [&](auto type, auto out) {
    using T = typename decltype(type)::type;
    using O = typename decltype(out)::type;
    const bool vector = is_vector(p.OG, p.dtype);
    const auto kernel = vector ? scale_fwd_kernel<T, O, kVector<T>> : scale_fwd_kernel<T, O, 1>;
    const dim3 grid(ceil_div(outputs, kThreads * (vector ? kVector<T> : 1)));
    return start(kernel, grid, kThreads, 0, p, stream);
  });
}

template <typename A>
int scale_bwd_blocks(const ScaleBwd<A>& p) {
  if (p.plane > 0)
    return planes::strip_grid(p.rows, planes::slices_of(p.OG), planes::width_of(p.plane, p.dtype)).x;
  return int(ceil_div(p.rows, kThreads / backward_lanes(p)));
}

template <typename A>
cudaError_t scale_bwd(const ScaleBwd<A>& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  if (p.plane > 0) return planes::scale_bwd(p, stream);
  return by_dtypes<A>(p.dtype, p.out_dtype, [&](auto type, auto out) {
    using T = typename decltype(type)::type;
    using O = typename decltype(out)::type;
    const auto kernel =
        is_vector(p.OG, p.dtype) ? scale_bwd_kernel<T, O, kVector<T>> : scale_bwd_kernel<T, O, 1>;
    const OfLanes<ScaleBwd<A>> shared{p, backward_lanes(p)};
    return start(kernel, dim3(scale_bwd_blocks(p)), kThreads, kThreads / 32 * sizeof(A), shared, stream);
  });
}

BCOS_FOR_BOTH_SUMS(scale_fwd, ScaleFwd);
template int scale_bwd_blocks(const ScaleBwd<float>&);
template int scale_bwd_blocks(const ScaleBwd<double>&);
BCOS_FOR_BOTH_SUMS(scale_bwd, ScaleBwd);

}  // namespace bcos::transform::cuda
