// A block's share of a matrix product, C[BM, BN] = A[BM, k] B[k, BN]: a ring
// of stages in shared memory that a loader fills unit by unit, and warps that multiply what
// has landed. T is the operands' type; fp32 is multiplied exactly, or as Tf32.
#pragma once

#include <cmath>

#include "common/cuda/operand.cuh"

namespace bcos::cuda {

// What a product also sums over k for each row of A. The values are in registers for the product anyway.
enum class RowSum { None, Plain, Squares };

// Where narrow groups share a tile, one matrix has a block for each group on its diagonal: B, which is zero
// outside of these blocks, or C, of which only the blocks are used. Parts of 16 columns that hold no value of
// a block are not multiplied.
enum class Diagonal { None, B, C };

template <typename T_, bool TF32, int BM_, int BN_, int WARPS_M, int WARPS_N, int STAGES_, bool A_K_MAJOR,
          bool B_K_MAJOR, RowSum SUM, Diagonal DIAGONAL = Diagonal::None>
struct Tile {
  using T = T_;
  static constexpr int BM = BM_, BN = BN_, STAGES = STAGES_, kThreads = WARPS_M * WARPS_N * 32;
  using A = Operand<T, BM, A_K_MAJOR>;
  using B = Operand<T, BN, B_K_MAJOR>;
  static constexpr int UNITS = 2;  // of a stage; a unit has BK values of k
  static constexpr int BK = A::kDepth, kUnit = A::kBytes + B::kBytes, kStage = UNITS * kUnit;
  static constexpr int kRow = BN + 8;  // fp32 of a row of C in shared memory: other banks for the next row
  static constexpr int kSums = STAGES * kStage > BM * kRow * 4 ? STAGES * kStage : BM * kRow * 4;
  static constexpr int kShared = kSums + BM * 4;  // a ring, then C in its place; and a value for each row
  static constexpr int MI = BM / WARPS_M / 16, NI = BN / WARPS_N / 8;
  static constexpr int kCopies = BM * 4 / kThreads;  // 16-byte chunks of an operand to a thread
  static constexpr bool kPacked = DIAGONAL != Diagonal::None;
  static constexpr bool kExact = sizeof(T) >= 4 && !TF32;         // takes no tensor core
  static constexpr int UNROLLED = kPacked || kExact ? 1 : UNITS;  // long units are compiled once
  // The values of a pack for each row and group lie between C and the end of the ring; those of neighbouring
  // rows lie in different banks.
  static constexpr int kGroups = BM * kRow * 4, kGroupRow = 33;
  // A pack has at most two units of k, and a sum for each 4-byte word of a row of A.
  static constexpr bool kWordSums = DIAGONAL == Diagonal::B && SUM == RowSum::Squares;
  static constexpr int kParts = kWordSums ? 8 : 1;
  static_assert(BM == BN && MI == WARPS_N && NI % 2 == 0 && (sizeof(T) == 4 || !TF32));
  static_assert(!kPacked || (kGroups + BM * kGroupRow * 4 <= kSums && MI == 1 && NI <= 16));

  SumsOf<T> c[MI][NI][4] = {};
  float sums[kParts][2] = {};  // of rows g and g + 8 of the warp's own fragment, the warp_n-th
  uint32_t a_lane[A_K_MAJOR ? 2 : MI], b_lane[B_K_MAJOR ? 2 : NI / 2];  // see find_lanes
  uint32_t diagonal = 0;  // a bit for each part of the warp's blocks; see mark_diagonal
  int units_of_pack = 1;  // units that a pack's k take: 1 or 2

  __device__ static int warp_m() { return threadIdx.x / 32 / WARPS_N; }
  __device__ static int warp_n() { return threadIdx.x / 32 % WARPS_N; }
  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ static int row_of(int i, int half) {
    return warp_m() * MI * 16 + i * 16 + lane() / 4 + half * 8;
  }
  __device__ static int column_of(int j) { return warp_n() * NI * 8 + j * 8 + lane() % 4 * 2; }

  // Finds which parts hold anything of a block: of half a unit of k x 16 columns (Diagonal::B), or of the
  // warp's rows x 16 columns (Diagonal::C). A group has `width` columns, and `depth` k or rows.
  __device__ __forceinline__ void mark_diagonal(int pack, int width, int depth) {
    constexpr bool OF_B = DIAGONAL == Diagonal::B;
    constexpr int PARTS = OF_B ? 4 : 1, SIZE = OF_B ? BK / 2 : MI * 16;
    const int first = OF_B ? 0 : warp_m() * SIZE, column0 = warp_n() * NI * 8;
    if (OF_B) units_of_pack = pack * depth > BK ? 2 : 1;
#pragma unroll
    for (int pair = 0; pair < NI / 2; ++pair) {
      const int low = (column0 + pair * 16) / width, high = (column0 + pair * 16 + 15) / width;
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        const int begin = low * depth, end = (high + 1) * depth, at = first + part * SIZE;
        diagonal |= uint32_t(begin < at + SIZE && at < end) << (part * (NI / 2) + pair);
      }
    }
  }

  // Multiplies all units of k. The loader's start(unit) begins to fetch the next one to that place in shared
  // memory, where finish(unit) leaves what was fetched to registers; a loader that is kDirect copies all.
  // `with_sums` asks for SUM.
  template <typename Loader>
  __device__ __forceinline__ void multiply(Loader& loader, int units, bool with_sums) {
    find_lanes();
    if (SUM == RowSum::None)
      multiply_all(loader, units, false);
    else if (kExact || !Loader::kDirect)  // long loops are compiled once alone
      multiply_all(loader, units, with_sums);
    else if (with_sums)
      multiply_all(loader, units, true);
    else
      multiply_all(loader, units, false);
    wait_for_copies<0>();
    barrier();
  }

  // A step takes two units, so that there is one barrier for both; the ring is filled first.
  template <typename Loader>
  __device__ __forceinline__ void multiply_all(Loader& loader, int units, bool with_sums) {
    for (int step = 1 - STAGES; step * UNITS < units; ++step) {
      wait_for_copies<STAGES - 2>();
      barrier();
      const int unit = step * UNITS, next = unit + (STAGES - 1) * UNITS;
      const uint32_t multiplied = unsigned(step) % STAGES * kStage;
      const uint32_t filled = stage_of<STAGES>(step + STAGES - 1) * kStage;
#pragma unroll UNROLLED
      for (int i = 0; i < UNITS; ++i) {
        if (Loader::kDirect && next + i < units) loader.start(filled + i * kUnit);
      }
#pragma unroll UNROLLED
      for (int i = 0; i < UNITS; ++i) {
        const bool more = !Loader::kDirect && next + i < units;
        if (more) loader.start(filled + i * kUnit);
        if (step >= 0 && (i == 0 || unit + i < units))
          multiply_unit(multiplied + i * kUnit, with_sums, i & (units_of_pack - 1));
        if (more) loader.finish(filled + i * kUnit);
      }
      commit_copies();
    }
  }

  // Whether columns 8 j and 8 (j + 1) hold anything of a block in this half of a unit.
  __device__ static bool meets(uint32_t marks, int half, int j) {
    const int part = DIAGONAL == Diagonal::B ? half : 0;
    return !kPacked || (marks >> (part * (NI / 2) + j / 2) & 1) != 0;
  }

  // `of_pack`: which unit of a pack's k it is.
  __device__ __forceinline__ void multiply_unit(uint32_t unit, bool with_sums, int of_pack) {
    const uint32_t marks = diagonal >> (of_pack * NI);
    if constexpr (kExact) {
      multiply_exactly(unit, unit + A::kBytes, with_sums, of_pack, marks);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t a[MI][4], b[NI][2];
#pragma unroll
        for (int i = 0; i < MI; ++i) load_a(a[i], unit, i, half);
#pragma unroll
        for (int j = 0; j < NI && !kPacked; j += 2) load_b(b[j], b[j + 1], unit, j, half);
        if constexpr (SUM != RowSum::None) {
#pragma unroll
          for (int i = 0; i < MI; ++i)
            if (with_sums && i == warp_n()) add_fragment(a[i], of_pack, half);
        }
        if constexpr (TF32) {
#pragma unroll
          for (int i = 0; i < MI; ++i)
#pragma unroll
            for (int r = 0; r < 4; ++r) a[i][r] = to_tf32(as_float(a[i][r]));
        }
#pragma unroll
        for (int j = 0; j < NI; j += 2) {
          if (!meets(marks, half, j)) continue;
          if constexpr (kPacked) load_b(b[j], b[j + 1], unit, j, half);
          if constexpr (TF32) {
#pragma unroll
            for (int r = 0; r < 4; ++r) b[j + r / 2][r % 2] = to_tf32(as_float(b[j + r / 2][r % 2]));
          }
#pragma unroll
          for (int i = 0; i < MI; ++i)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              multiply_add<std::conditional_t<TF32, Tf32, T>>(c[i][j + e], a[i], b[j + e][0], b[j + e][1]);
        }
      }
    }
  }

  // Each thread takes the same entries of C as with tensor cores.
  __device__ __forceinline__ void multiply_exactly(uint32_t a_base, uint32_t b_base, bool with_sums,
                                                   int of_pack, uint32_t marks) {
#pragma unroll 1
    for (int k = 0; k < BK; k += 4) {
      decltype(A::four(0, 0, 0)) a[MI][2];
#pragma unroll
      for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) a[i][h] = A::four(a_base, row_of(i, h), k);
      if constexpr (SUM != RowSum::None) {
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int h = 0; h < 2; ++h)
            if (with_sums && i == warp_n()) add_four(a[i][h], h, of_pack, k);
      }
#pragma unroll
      for (int j = 0; j < NI; ++j) {
        if (!meets(marks, k / (BK / 2), j)) continue;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const auto b = B::four(b_base, column_of(j) + e, k);
#pragma unroll
          for (int i = 0; i < MI; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              // four terms on their own: a quarter of the roundings at the size of the whole sum
              auto terms = a[i][h].x * b.x;
              terms = std::fma(a[i][h].y, b.y, terms);
              terms = std::fma(a[i][h].z, b.z, terms);
              c[i][j][h * 2 + e] += std::fma(a[i][h].w, b.w, terms);
            }
        }
      }
    }
  }

  __device__ static float as_float(uint32_t word) { return __uint_as_float(word); }
  __device__ static float term(float v) { return SUM == RowSum::Squares ? v * v : v; }

  // Part (of_pack, half, r / 2) of the words is the lane's own: word 4 part + lane % 4.
  __device__ __forceinline__ void add_fragment(const uint32_t (&a)[4], int of_pack, int half) {
#pragma unroll
    for (int unit = 0; unit < (kWordSums ? 2 : 1); ++unit) {
      if (kWordSums && unit != of_pack) continue;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float& sum = sums[kWordSums ? unit * 4 + half * 2 + r / 2 : 0][r & 1];
        if constexpr (TF32) {
          sum += term(as_float(a[r]));
        } else {
          sum += term(to_float(low_half<T>(a[r])));
          sum += term(to_float(low_half<T>(a[r] >> 16)));
        }
      }
    }
  }

  // Values k to k + 3 of a row, which all lanes of the row have: of a pack, the lane k / 4 adds them.
  __device__ __forceinline__ void add_four(float4 a, int h, int of_pack, int k) {
    if constexpr (!kWordSums) {
      sums[0][h] += term(a.x) + term(a.y) + (term(a.z) + term(a.w));
    } else if (k / 4 == lane() % 4) {
#pragma unroll
      for (int unit = 0; unit < 2; ++unit) {
        if (unit != of_pack) continue;
        sums[unit * 4][h] += term(a.x);
        sums[unit * 4 + 1][h] += term(a.y);
        sums[unit * 4 + 2][h] += term(a.z);
        sums[unit * 4 + 3][h] += term(a.w);
      }
    }
  }

  // Whether an operand is read as matrices, of which a lane's address is then the same in each unit but for
  // the unit's own: with K_MAJOR in each half of k, else in each 16 rows or columns of the warp.
  static constexpr bool kAMatrices = !kExact && (A_K_MAJOR || !TF32);
  static constexpr bool kBMatrices = !kExact && (B_K_MAJOR || !TF32);

  __device__ __forceinline__ void find_lanes() {
    const int row = warp_m() * MI * 16, column = warp_n() * NI * 8, l = lane();
#pragma unroll
    for (int e = 0; kAMatrices && e < (A_K_MAJOR ? 2 : MI); ++e)
      a_lane[e] = kept(shared_address(A_K_MAJOR ? A::at(row + l % 16, e * 2 + l / 16)
                                                : A::at(l % 8 + l / 16 * 8, row / 8 + e * 2 + l / 8 % 2)));
#pragma unroll
    for (int e = 0; kBMatrices && e < (B_K_MAJOR ? 2 : NI / 2); ++e)
      b_lane[e] =
          kept(shared_address(A::kBytes + (B_K_MAJOR ? B::at(column + l % 8 + l / 16 * 8, e * 2 + l / 8 % 2)
                                                     : B::at(l % 16, column / 8 + e * 2 + l / 16))));
  }

  // Rows 16 i of the warp and half a unit of k, in the layout of multiply_add.
  __device__ __forceinline__ void load_a(uint32_t (&a)[4], uint32_t unit, int i, int half) {
    const int row = warp_m() * MI * 16 + i * 16, l = lane();
    if constexpr (kAMatrices) {
      load_matrices<!A_K_MAJOR>(a, A_K_MAJOR
                                       ? a_lane[half] + unit + i * 16 * 64
                                       : a_lane[A_K_MAJOR ? 0 : i] + unit + half * 16 * A::kChunks * 16);
    } else {
#pragma unroll
      for (int r = 0; r < 4; ++r)
        a[r] = __float_as_uint(A::value(unit, row + l / 4 + r % 2 * 8, half * 8 + l % 4 + r / 2 * 4));
    }
  }

  // Columns 8 j and 8 (j + 1) of the warp.
  __device__ __forceinline__ void load_b(uint32_t (&first)[2], uint32_t (&second)[2], uint32_t unit, int j,
                                         int half) {
    const int column = warp_n() * NI * 8 + j * 8, l = lane();
    uint32_t r[4];
    if constexpr (kBMatrices) {
      load_matrices<!B_K_MAJOR>(r, B_K_MAJOR
                                       ? b_lane[half] + unit + j * 8 * 64
                                       : b_lane[B_K_MAJOR ? 0 : j / 2] + unit + half * 16 * B::kChunks * 16);
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        r[e] = __float_as_uint(
            B::value(unit + A::kBytes, column + l / 4 + e / 2 * 8, half * 8 + l % 4 + e % 2 * 4));
    }
    first[0] = r[0], first[1] = r[1], second[0] = r[2], second[1] = r[3];
  }

  // Leaves the sums of A's rows at kSums + 4 row; a barrier follows.
  __device__ __forceinline__ void share_sums() {
    constexpr bool spread = !kExact;  // over the four lanes of a row
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = spread ? lane_sum(sums[0][h], 4) : sums[0][h];
      if (lane() % 4 == 0) shared_store(kSums + row_of(warp_n(), h) * 4, sum);
    }
    barrier();
  }

  // Leaves the sums over each word of A's rows where group_value finds them; a barrier follows.
  __device__ __forceinline__ void share_word_sums() {
    static_assert(kWordSums);
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int word = !kExact ? part * 4 + lane() % 4 : part / 4 * 16 + lane() % 4 * 4 + part % 4;
        shared_store(group_at(row_of(warp_n(), h), word), sums[part][h]);
      }
    barrier();
  }

  // Leaves C at 0, kRow values to a row; a barrier follows. Of a pack, own(row, column) gives anew what is
  // not finite, over its own group alone: 0 times an infinite value of a neighbour is NaN.
  template <typename F>
  __device__ __forceinline__ void share_product(F&& own) {
    store_product();
    if constexpr (kPacked) {
      float zero = 0;
#pragma unroll
      for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int j = 0; j < NI; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) zero = fmaf(c[i][j][e], 0.f, zero);
#pragma unroll 1
      for (int e = 0; zero != 0 && e < MI * NI * 4; ++e) {
        const int row = row_of(e / (NI * 4), e / 2 % 2), column = column_of(e / 4 % NI) + e % 2;
        if (!is_finite(product(row, column))) shared_store((row * kRow + column) * 4, own(row, column));
      }
    }
    barrier();
  }
  __device__ __forceinline__ void store_product() {
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < NI; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          shared_store((row_of(i, h) * kRow + column_of(j)) * 4, float2{c[i][j][h * 2], c[i][j][h * 2 + 1]});
  }
  __device__ static float product(int row, int column) {
    return shared_load<float>((row * kRow + column) * 4);
  }
  // COUNT neighbouring values of a row, from a multiple of 4.
  template <int COUNT>
  __device__ static __forceinline__ void products(float (&out)[COUNT], int row, int column) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
      const auto four = shared_load<float4>((row * kRow + column + i) * 4);
      out[i] = four.x, out[i + 1] = four.y, out[i + 2] = four.z, out[i + 3] = four.w;
    }
  }
  __device__ static float row_value(int row) { return shared_load<float>(kSums + row * 4); }
  __device__ static uint32_t group_at(int row, int slot) { return kGroups + (row * kGroupRow + slot) * 4; }
  __device__ static float group_value(int row, int slot) { return shared_load<float>(group_at(row, slot)); }
};

// Tiles of 128 x 128 for half types, of 64 x 64 for every type but fp64, and of 32 x 32 for that. In a pack
// each warp has all columns, so that all warps have as much to do.
template <typename T, bool TF32, bool LARGE, bool A_K_MAJOR, bool B_K_MAJOR, RowSum SUM, Diagonal DIAGONAL>
using TileOf = std::conditional_t<
    std::is_same_v<T, double>, Tile<T, false, 32, 32, 2, 1, 2, A_K_MAJOR, B_K_MAJOR, RowSum::None>,
    std::conditional_t<
        LARGE, Tile<T, TF32, 128, 128, 2, 4, 2, A_K_MAJOR, B_K_MAJOR, SUM>,
        std::conditional_t<DIAGONAL == Diagonal::None,
                           Tile<T, TF32, 64, 64, 2, 2, 2, A_K_MAJOR, B_K_MAJOR, SUM>,
                           Tile<T, TF32, 64, 64, 4, 1, 2, A_K_MAJOR, B_K_MAJOR, SUM, DIAGONAL>>>>;
// Blocks that run on a multiprocessor together: as many as leave 128 registers to a thread, or 168 in packs,
// of fp32, of fp64 and where the operands pass through registers.
template <typename Tile, bool COPIED>
constexpr int kBlocks = Tile::BM == 128                                             ? 2
                        : COPIED && sizeof(typename Tile::T) == 2 && !Tile::kPacked ? 4
                                                                                    : 384 / Tile::kThreads;

}  // namespace bcos::cuda
