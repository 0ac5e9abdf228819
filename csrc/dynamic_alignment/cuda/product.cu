// Products of fp32 matrices, from which the gradients of dynamic weights give those of h and of the weight.
#include "common/cuda/tile.cuh"
#include "dynamic_alignment/cuda/launch.h"

namespace bcos::dynamic_alignment::cuda {
namespace {

template <typename A, bool TRANSPOSED, bool TF32>
using ProductTile = TileOf<A, TF32, false, !TRANSPOSED, false, RowSum::None, Diagonal::None>;

// Fetches a and b. Rows of memory run along k where a is not transposed, else along m and n.
template <typename Tile, bool TRANSPOSED>
struct Loader {
  using A = typename Tile::A;
  using B = typename Tile::B;
  static constexpr int kCopies = Tile::kCopies;
  static constexpr bool kDirect = true;

  using Value = typename Tile::T;
  static constexpr int V = kVector<Value>;

  const Product<Value>& p;
  int row0, column0, k;  // k of the next unit

  __device__ Loader(const Product<Value>& params) : p(params), k(blockIdx.y * Tile::BK) {
    const int tiles_n = int(ceil_div(p.n, Tile::BN));
    row0 = blockIdx.x / tiles_n * Tile::BM;
    column0 = blockIdx.x % tiles_n * Tile::BN;
  }

  __device__ int units() const {
    const int all = int(ceil_div(p.k, Tile::BK)), own = blockIdx.y;
    return own < all ? int(ceil_div(all - own, p.splits)) : 0;
  }

  // A chunk of 16 bytes of a row of memory, zeros where that has none.
  template <typename Operand>
  __device__ static __forceinline__ void copy(uint32_t unit, const Value* from, int64_t stride, int r,
                                              int row, int rows, int column, int columns) {
    const int chunk = threadIdx.x % Operand::kChunks;
    const int line = threadIdx.x / Operand::kChunks + r * (Tile::kThreads / Operand::kChunks);
    const bool live = within(row + line, rows) && within(column + chunk * V, columns);
    copy_async(shared_address(unit + Operand::at(line, chunk)),
               from + (live ? (row + line) * stride + column + chunk * V : 0), live);
  }

  __device__ __forceinline__ void start(uint32_t unit) {
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      if constexpr (TRANSPOSED)
        copy<A>(unit, p.a, p.a_stride, r, k, p.k, row0, p.m);
      else
        copy<A>(unit, p.a, p.a_stride, r, row0, p.m, k, p.k);
      copy<B>(unit + A::kBytes, p.b, p.n, r, k, p.k, column0, p.n);
    }
    k += p.splits * Tile::BK;
  }
  __device__ void finish(uint32_t) {}
};

template <typename A, bool TRANSPOSED, bool TF32>
__global__ void __launch_bounds__(ProductTile<A, TRANSPOSED, TF32>::kThreads,
                                  kBlocks<ProductTile<A, TRANSPOSED, TF32>, true>)
    product_kernel(const Product<A> p) {
  using Tile = ProductTile<A, TRANSPOSED, TF32>;
  Tile tile;
  Loader<Tile, TRANSPOSED> loader(p);
  tile.multiply(loader, loader.units(), false);
#pragma unroll
  for (int i = 0; i < Tile::MI; ++i)
#pragma unroll
    for (int j = 0; j < Tile::NI; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = loader.row0 + tile.row_of(i, half), column = loader.column0 + tile.column_of(j);
        if (!within(row, p.m) || !within(column, p.n)) continue;
        A* to = p.c + (int64_t(blockIdx.y) * p.m + row) * p.n + column;
        *reinterpret_cast<Vector<A, 2>*>(to) = {tile.c[i][j][half * 2], tile.c[i][j][half * 2 + 1]};
      }
}

template <bool TRANSPOSED, bool TF32, typename A>
cudaError_t start_product(const Product<A>& p, cudaStream_t stream) {
  using Tile = ProductTile<A, TRANSPOSED, TF32>;
  const dim3 grid(ceil_div(p.m, Tile::BM) * ceil_div(p.n, Tile::BN), p.splits);
  return start(product_kernel<A, TRANSPOSED, TF32>, grid, Tile::kThreads, Tile::STAGES * Tile::kStage, stream,
               p);
}

}  // namespace

template <typename A>
cudaError_t product(const Product<A>& p, cudaStream_t stream) {
  if constexpr (std::is_same_v<A, double>)
    return p.transposed ? start_product<true, false>(p, stream) : start_product<false, false>(p, stream);
  if (p.transposed)
    return p.tf32 ? start_product<true, true>(p, stream) : start_product<true, false>(p, stream);
  return p.tf32 ? start_product<false, true>(p, stream) : start_product<false, false>(p, stream);
}

template <typename A>
int splits_of(const Product<A>& p, int multiprocessors) {
  constexpr int kSide = ProductTile<A, false, false>::BM;
  constexpr int kBlocksEach = 2, kShortest = 128, kLongest = 512, kMost = 64;  // k of a part; parts
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const auto most = [](int64_t a, int64_t b) { return a < b ? b : a; };
  const int64_t tiles = ceil_div(p.m, kSide) * ceil_div(p.n, kSide);
  const int64_t for_blocks = least(kBlocksEach * multiprocessors / tiles, ceil_div(p.k, kShortest));
  return int(least(most(for_blocks, ceil_div(p.k, kLongest)), kMost));
}

BCOS_FOR_BOTH_SUMS(product, Product);
template int splits_of(const Product<float>&, int);
template int splits_of(const Product<double>&, int);

}  // namespace bcos::dynamic_alignment::cuda
