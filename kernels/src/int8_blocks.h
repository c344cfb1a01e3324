// The product of an int8 block in whole numbers, for any vector unit: take four columns of 16 outputs, multiply each
// with its input, add. Every path gives the same sums, to the last bit. int8.h says how x lies.
//
// Sums are int32 over as many fours of columns as a path says that they hold, then int64. What a path had added to x comes
// off at the end, times the sum of the output's weights.
#pragma once

#include "blocks.h"

namespace {

inline uint64_t mask_of_four(const uint16_t *masks, int64_t four) {
  uint64_t mask;
  memcpy(&mask, masks + 4 * four, sizeof mask);
  return mask;
}

// Multiplies a row's sums with both scales, in float64 and in this order, adds the bias in float32 and writes them.
// `added` is what every x has too much.
inline void finish_whole(const Task &task, int64_t block, int64_t row, const int64_t *sums, int64_t added) {
  const Matrix &w = task.weight;
  const float *scales = w.scales + block * kOutputs;
  const int64_t *weights = w.sums + block * kOutputs;
  float numbers[kOutputs];
  for (int i = 0; i < kOutputs; ++i) {  // without signs, so that sums of a damaged matrix are wrong and no more
    int64_t sum = int64_t(uint64_t(sums[i]) - uint64_t(added) * uint64_t(weights[i]));
    numbers[i] = float(double(sum) * (task.scales[row] * double(scales[i])));
  }
  put_outputs(task, block, row, numbers);
}

// Sums over some columns, added to the totals; moves on to where the values go on. A path may have those of few rows kept
// in several chains, so that an addition need not wait for the one before it.
template <class Lanes, int Blocks, int Rows, bool Full>
inline void add_fours(const uint16_t *const (&masks)[Blocks], int64_t first, int64_t last,
                      const uint8_t *(&values)[Blocks], const uint8_t *x, int64_t (&totals)[Blocks][Rows][kOutputs]) {
  constexpr int kChains = Blocks * Rows < Lanes::kChains ? Lanes::kChains / Blocks / Rows : 1;
  typename Lanes::Sums sums[kChains][Blocks][Rows];
  for (auto &chain : sums)
    for (auto &block : chain)
      for (auto &row : block) row = Lanes::none();
  const uint8_t *p[Blocks];  // in registers, which what is moved on is not
  for (int b = 0; b < Blocks; ++b) p[b] = values[b];
  for (int64_t eight = first; eight < last; eight += 8) {
    for (int b = 0; !Full && b < Blocks; ++b) __builtin_prefetch(masks[b] + 4 * eight + kAhead / 8);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      int64_t four = eight + i;
      typename Lanes::Taken taken[Blocks];
#pragma GCC unroll 3
      for (int b = 0; b < Blocks; ++b) {
        __builtin_prefetch(p[b] + kAhead);
        taken[b] = Full ? Lanes::whole(p[b]) : Lanes::take(mask_of_four(masks[b], four), p[b]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 3
        for (int b = 0; b < Blocks; ++b)
          Lanes::add(sums[i % kChains][b][r], taken[b], x + Lanes::kFourBytes * (four * Rows + r));
    }
  }
  for (int b = 0; b < Blocks; ++b) {
    values[b] = p[b];
    for (int r = 0; r < Rows; ++r) {
      if constexpr (kChains > 1)
        for (int chain = 1; chain < kChains; ++chain) sums[0][b][r] = Lanes::plus(sums[0][b][r], sums[chain][b][r]);
      Lanes::add_to(totals[b][r], sums[0][b][r]);
    }
  }
}

// Sums of `Rows` rows from `row` on, of values that begin at `p`, which then is where they end.
template <class Lanes, int Blocks, int Rows, bool Full>
inline void add_up_whole(const Task &task, int64_t block, const uint8_t *(&p)[Blocks], int64_t row) {
  const Matrix &w = task.weight;
  const uint8_t *x = static_cast<const uint8_t *>(task.x) + row * (w.padded / 4) * Lanes::kFourBytes;
  const uint16_t *masks[Blocks];
  for (int b = 0; b < Blocks; ++b) masks[b] = w.masks_of(block + b);
  int64_t totals[Blocks][Rows][kOutputs] = {};
  for (int64_t first = 0, fours = w.padded / 4; first < fours; first += Lanes::kFours) {
    int64_t last = first + Lanes::kFours < fours ? first + Lanes::kFours : fours;
    add_fours<Lanes, Blocks, Rows, Full>(masks, first, last, p, x, totals);
  }
  for (int b = 0; b < Blocks; ++b)
    for (int r = 0; r < Rows; ++r) finish_whole(task, block + b, row + r, totals[b][r], Lanes::kAdded);
}

template <class Lanes, int Blocks, int Rows>
struct WholeSums {
  static constexpr int kBlocks = Blocks, kRows = Rows;
  template <int Together, int Some, bool Full>
  static inline void add(const Task &task, int64_t block, const uint8_t *(&p)[Together], int64_t row) {
    add_up_whole<Lanes, Together, Some, Full>(task, block, p, row);
  }
};

template <class Lanes, Expand expand = nullptr, int Groups = 2, int Blocks = 1, int Rows = Lanes::kRows>
bool whole_product(const Task &task, int64_t first, int64_t last) {
  return product_by<WholeSums<Lanes, Blocks, Rows>, expand, Groups>(task, first, last);
}

// Where x is int16, nothing was added to it. A lane adds at most two products of int16 with int8 for each four of columns:
// 256 times, 256 * 2 * 32767 * 128 is 2^31 - 2^16.
struct WithoutPlanes {
  static constexpr int64_t kFourBytes = 4 * sizeof(int16_t), kFours = 256, kAdded = 0;
  static constexpr int kChains = 1;
};

}  // namespace
