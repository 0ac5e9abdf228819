// How the kernels of the scale walk over the outputs. A thread has V neighbouring values at a time: of NHWC
// tensors outputs of one row, of NCHW tensors pixels of one output.
#pragma once

#include "common/cuda/planes.cuh"
#include "transform/cuda/formula.cuh"

namespace bcos::transform::cuda {

template <bool PLANES>
constexpr int kThreads = PLANES ? planes::kThreads : 128;

// The row that neighbouring lanes share: what planes::Strip is of NCHW tensors.
struct Lanes {
  static constexpr int pixel = 0;
  int slices, slice;  // the lanes of a row, and the thread's own
  int64_t row, plane;
  bool inside;

  __device__ Lanes(int rows, int, int lanes) : slices(lanes), slice(threadIdx.x % lanes) {
    plane = row = int64_t(blockIdx.x) * (kThreads<false> / lanes) + threadIdx.x / lanes;
    inside = row < rows;
  }

  template <typename A>
  __device__ __forceinline__ void add_slices(A (&sum)[1]) const {
    sum[0] = lane_sum(sum[0], slices);
  }
};

template <bool PLANES, int V>
using Walk = std::conditional_t<PLANES, planes::Strip<V>, Lanes>;

template <bool PLANES, int V>
struct Values {
  static constexpr int kRows = PLANES ? V : 1;     // that they belong to: value i to row i, or all to one
  static constexpr int kOutputs = PLANES ? 1 : V;  // likewise

  int64_t at;  // of the first value
  int pixel;   // of NCHW: that of the first value within its plane
  int output;  // the first, counted over groups

  // The values from `at` on, and their first row.
  template <typename P>
  __device__ Values(const P& p, int64_t at) : at(at), pixel(PLANES ? int(at % p.plane) : 0) {
    output = PLANES ? int(at / p.plane % (int64_t(p.G) * p.OG)) : int(at / p.OG % p.G * p.OG + at % p.OG);
  }
  template <typename P>
  __device__ int64_t first_row(const P& p) const {
    return PLANES ? at / p.plane / p.OG * p.plane + pixel : at / p.OG;
  }
  // Those of the outputs from `o` on of a row's group; `row` is that of the walk, or one whose scale it
  // shares.
  template <typename P>
  __device__ Values(const P& p, const Walk<PLANES, V>& walk, int64_t row, int o)
      : at(row * p.OG + o), pixel(walk.pixel), output(int(walk.plane % p.G * p.OG) + o) {
    if constexpr (PLANES) at = (row - pixel) * p.OG + int64_t(o) * p.plane + pixel;
  }

  __device__ static constexpr int row_of(int i) { return PLANES ? i : 0; }
  __device__ int output_of(int i) const { return output + (PLANES ? 0 : i); }

  template <typename P>
  __device__ __forceinline__ int filter(const P& p, int i, int m) const {
    return output_of(i) * p.max_out + m;
  }
  // Where the product of value i and filter m lies.
  template <typename P>
  __device__ __forceinline__ int64_t product(const P& p, int i, int m) const {
    return PLANES ? (at - pixel) * p.max_out + int64_t(m) * p.plane + pixel + i : (at + i) * p.max_out + m;
  }

  // The products with filter m of every value.
  template <typename T, typename P>
  __device__ __forceinline__ void load_products(SumsOf<T> (&out)[V], const T* z, const P& p, int m) const {
    if (PLANES || p.max_out == 1) {
      load(out, z, product(p, 0, m), true);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) out[i] = widened(z[product(p, i, m)]);
    }
  }

  // Which filter of each value won: 0 where an output has one.
  template <typename P>
  __device__ __forceinline__ Vector<uint8_t, V> winners(const P& p) const {
    if (p.max_out == 1) return {};
    return *reinterpret_cast<const Vector<uint8_t, V>*>(p.winner + at);
  }

  // u alpha of the winners, and 0 of the other filters; alpha is null where it is 1.
  template <typename T, typename P>
  __device__ __forceinline__ void store_winners(T* to, SumsOf<T> (&u)[V], const Vector<uint8_t, V>& winner,
                                                const P& p, const SumsOf<T>* alpha) const {
    using A = SumsOf<T>;
    if constexpr (PLANES) {
      for (int m = 0; m < p.max_out; ++m) {
        const A factor = alpha != nullptr ? alpha[filter(p, 0, m)] : A(1);
        A values[V];
#pragma unroll
        for (int i = 0; i < V; ++i) values[i] = winner.v[i] == m ? u[i] * factor : A(0);
        store(to, product(p, 0, m), values, true);
      }
    } else if (p.max_out == 1) {
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (alpha != nullptr) u[i] *= alpha[filter(p, i, 0)];
      store(to, at, u, true);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i)
        for (int m = 0; m < p.max_out; ++m) {
          const A factor = alpha != nullptr ? alpha[filter(p, i, m)] : A(1);
          to[product(p, i, m)] = rounded<T>(winner.v[i] == m ? u[i] * factor : A(0));
        }
    }
  }
};

// The grid of a walk over all rows, and the slices that it goes with. A block takes `shared` bytes.
template <bool PLANES, int V, typename A>
struct Plan {
  static constexpr size_t shared = PLANES ? planes::kShared<V, A> : 0;
  int slices;
  dim3 grid;

  template <typename P>
  explicit Plan(const P& p)
      : slices(PLANES ? planes::slices_of(p.OG) : lanes_of(p.OG / V)),
        grid(PLANES ? planes::strip_grid(p.rows, slices, V)
                    : dim3(ceil_div(p.rows, kThreads<false> / slices))) {}
};

// f(T, O, PLANES, V) of the types of the input and of the output, and the layout, as constants.
template <typename A, typename P, typename F>
cudaError_t by_values(const P& p, F&& f) {
  return by_dtypes<A>(p.dtype, p.out_dtype, [&](auto type, auto out) {
    using T = typename decltype(type)::type;
    if (p.plane > 0)
      return planes::by_width<T>(p.plane, p.dtype,
                                 [&](auto width) { return f(type, out, std::true_type{}, width); });
    return by_vector<T>(p.OG, [&](auto width) { return f(type, out, std::false_type{}, width); });
  });
}

}  // namespace bcos::transform::cuda
