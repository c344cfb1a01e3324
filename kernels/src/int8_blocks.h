// The product of an int8 block in whole numbers, for any vector unit: take four columns of 16 outputs, multiply each
// with its input, add. Every path gives the same sums, to the last bit. int8.h says how x lies.
//
// Sums are int32 over 1024 columns at most, then int64. A lane adds at most two products of int16 with int8 for each four
// of columns, 256 times: 256 * 2 * 32767 * 128 is 2^31 - 2^16. Four products of two bytes are less.
#pragma once

#include "blocks.h"

namespace {

constexpr int64_t kFours = 256;  // of columns that are added up in int32

inline uint64_t mask_of_four(const uint16_t *masks, int64_t four) {
  uint64_t mask;
  memcpy(&mask, masks + 4 * four, sizeof mask);
  return mask;
}

// Multiplies a row's sums with both scales, in float64 and in this order, adds the bias in float32 and writes them.
inline void finish_whole(const Task &task, int64_t block, int64_t row, const int64_t *sums) {
  const Matrix &w = task.weight;
  int real = real_type(w.type);
  int64_t first = block * kOutputs, left = w.outputs - first;
  for (int64_t i = 0; i < (left < kOutputs ? left : kOutputs); ++i) {
    float bias = task.bias == nullptr ? 0.0f : number_at(real, task.bias, first + i);
    double scale = task.scales[row] * double(w.scales[first + i]);
    put_number(real, task.y, row * w.outputs + first + i, float(double(sums[i]) * scale) + bias);
  }
}

// Sums over some columns, added to the totals; returns where the values go on.
template <class Lanes, int Rows, bool Full>
inline const uint8_t *add_fours(const uint16_t *masks, int64_t first, int64_t last, const uint8_t *p, const uint8_t *x,
                                int64_t (&totals)[Rows][kOutputs]) {
  typename Lanes::Sums sums[Rows];
  typename Lanes::Weights weights = Lanes::no_weights();
  for (int r = 0; r < Rows; ++r) sums[r] = Lanes::none();
  for (int64_t four = first; four < last; ++four) {
    __builtin_prefetch(p + kAhead);
    if (!Full && four % 8 == 0) __builtin_prefetch(masks + 4 * four + kAhead / 8);
    typename Lanes::Taken taken = Full ? Lanes::whole(p) : Lanes::take(mask_of_four(masks, four), p);
    Lanes::count_weights(weights, taken);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) Lanes::add(sums[r], taken, x + Lanes::kFourBytes * (four * Rows + r));
  }
  for (int r = 0; r < Rows; ++r) Lanes::add_to(totals[r], sums[r], weights);
  return p;
}

// Sums of `Rows` rows from `row` on; returns where the block's values end.
template <class Lanes, int Rows, bool Full>
inline const uint8_t *add_up_whole(const Task &task, int64_t block, int64_t row) {
  const Matrix &w = task.weight;
  const uint8_t *x = static_cast<const uint8_t *>(task.x) + row * (w.padded / 4) * Lanes::kFourBytes;
  const uint8_t *p = w.values_of(block);
  int64_t totals[Rows][kOutputs] = {};
  for (int64_t first = 0, fours = w.padded / 4; first < fours; first += kFours) {
    int64_t last = first + kFours < fours ? first + kFours : fours;
    p = add_fours<Lanes, Rows, Full>(w.masks_of(block), first, last, p, x, totals);
  }
  for (int r = 0; r < Rows; ++r) finish_whole(task, block, row + r, totals[r]);
  return p;
}

template <class Lanes, int Rows, bool Full>
inline bool whole_in_groups(const Task &task, int64_t block, int64_t row) {
  const uint8_t *end = task.weight.values_of(block + 1);
  for (; task.batch - row >= Rows; row += Rows)
    if (add_up_whole<Lanes, Rows, Full>(task, block, row) != end) return false;
  if constexpr (Rows > 1) return whole_in_groups<Lanes, Rows / 2, Full>(task, block, row);
  return true;
}

template <class Lanes>
bool whole_product(const Task &task, int64_t block) {
  return task.weight.full ? whole_in_groups<Lanes, Lanes::kRows, true>(task, block, 0)
                          : whole_in_groups<Lanes, Lanes::kRows, false>(task, block, 0);
}

// Where x is int16, nothing was added to it: there is nothing to take off.
struct WithoutPlanes {
  static constexpr int64_t kFourBytes = 4 * sizeof(int16_t);
  struct Weights {};
  static Weights no_weights() { return {}; }
  template <class Taken>
  static void count_weights(Weights &, const Taken &) {}
};

}  // namespace
